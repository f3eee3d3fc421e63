//! The CUDA backend: fused kernels over quantized weights, on a device or emulated on the CPU.

use std::sync::Arc;

use realm_core::backend::Backend;

use crate::Reason;

mod backend;
pub(crate) mod bench;
mod gpu;
mod kernels;
mod kv;
mod planes;
mod program;
mod step;
#[cfg(test)]
mod testing;
mod weights;

#[cfg(feature = "cuda")]
mod driver;
#[cfg(not(feature = "cuda"))]
#[path = "driver/absent.rs"]
mod driver;
#[cfg(feature = "cuda-emulated")]
mod emulated;
#[cfg(not(feature = "cuda-emulated"))]
#[path = "emulated/absent.rs"]
mod emulated;

pub(crate) use driver::devices;
pub(crate) use emulated::kernels as emulated_kernels;

/// The backend on device `ordinal` of the driver's list.
pub(crate) fn open(ordinal: u32) -> Result<Arc<dyn Backend>, Reason> {
    Ok(Arc::new(backend::CudaBackend::new(driver::open(ordinal)?)))
}

/// What makes comparisons on a device.
pub(crate) use bench::Lab as ClaimsLab;

/// The device that `--device` calls so, for comparisons.
pub(crate) fn open_claims(device: &str) -> Result<ClaimsLab, Reason> {
    let lab = |gpu, sizes| Ok(ClaimsLab::new(gpu, sizes));
    match (device, device.strip_prefix("cuda:").map(str::parse)) {
        ("cuda-emulated", _) => lab(emulated::open(1)?, bench::Sizes::Toy),
        ("cuda-emulated-sm80", _) => lab(emulated::open_sm80(1)?, bench::Sizes::Toy),
        (_, Some(Ok(ordinal))) => lab(driver::open(ordinal)?, bench::Sizes::Quick),
        _ => Err(Reason::NoKernels { backend: "this device" }),
    }
}

/// The backend on the emulated device; `seed` varies the order of its threads.
pub(crate) fn open_emulated(seed: u64) -> Result<Arc<dyn Backend>, Reason> {
    Ok(Arc::new(backend::CudaBackend::new(emulated::open(seed)?)))
}

/// The backend on an emulated device with one multiprocessor.
pub(crate) fn open_emulated_small(seed: u64, hopper: bool) -> Result<Arc<dyn Backend>, Reason> {
    Ok(Arc::new(backend::CudaBackend::new(emulated::open_small(seed, hopper)?)))
}

/// The backend on the emulated device that lacks what Hopper brought.
pub(crate) fn open_emulated_sm80(seed: u64) -> Result<Arc<dyn Backend>, Reason> {
    Ok(Arc::new(backend::CudaBackend::new(emulated::open_sm80(seed)?)))
}
