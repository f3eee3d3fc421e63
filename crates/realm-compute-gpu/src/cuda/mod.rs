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

/// The backend on device `ordinal` of the driver's list.
pub(crate) fn open(ordinal: u32) -> Result<Arc<dyn Backend>, Reason> {
    Ok(Arc::new(backend::CudaBackend::new(driver::open(ordinal)?)))
}

/// The backend on the emulated device; `seed` varies the order of its threads.
pub(crate) fn open_emulated(seed: u64) -> Result<Arc<dyn Backend>, Reason> {
    Ok(Arc::new(backend::CudaBackend::new(emulated::open(seed)?)))
}
