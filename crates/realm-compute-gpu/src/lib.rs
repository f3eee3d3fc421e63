//! Realm's GPU backends: CUDA (feature `cuda`) and Vulkan, Metal or DX12 through wgpu (feature
//! `wgpu`). Both features are off by default.
//!
//! [`probe`] lists every GPU with what it is, and wherever there is none, or one that cannot be used,
//! the [`Reason`]. A binary with both features on starts on any machine: drivers are loaded at run
//! time, and a machine without them gets a reason, never a panic. [`open_cuda`] opens a CUDA device;
//! of wgpu's, none can run models yet. [`open_cuda_emulated`] opens the device that tests run the
//! CUDA kernels on where there is no GPU (feature `cuda-emulated`).
//!
//! ```
//! for probe in realm_compute_gpu::probe() {
//!     match probe.devices {
//!         Ok(devices) => devices.iter().for_each(|device| println!("{device}")),
//!         Err(reason) => println!("no {}: {reason}", probe.backend),
//!     }
//! }
//! ```

#![deny(unsafe_code)]

pub mod claims;
mod probe;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod text;

#[cfg(any(feature = "cuda", feature = "cuda-emulated"))]
mod cuda;
#[cfg(not(any(feature = "cuda", feature = "cuda-emulated")))]
#[path = "cuda/absent.rs"]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;
#[cfg(not(feature = "wgpu"))]
#[path = "wgpu/absent.rs"]
mod wgpu;

#[cfg(any(feature = "cuda", feature = "cuda-emulated"))]
pub mod bench {
    //! How fast the CUDA kernels are, one by one, on a device. `benches/kernels.rs` prints it.

    pub use crate::cuda::bench::{
        Options, Report, Row, Sizes, bench_cuda, bench_cuda_emulated, bench_names,
    };
}

use std::sync::Arc;

pub use probe::{GpuDevice, Probe, Reason};
use realm_core::backend::Backend;

/// Opens the CUDA device that [`probe_cuda`] lists as `cuda:{ordinal}`.
///
/// # Errors
/// The [`Reason`] why it cannot be used.
pub fn open_cuda(ordinal: u32) -> Result<Arc<dyn Backend>, Reason> {
    cuda::open(ordinal)
}

/// Opens the emulated CUDA device: the same kernels, compiled for the CPU, warps and asynchronous
/// copies imitated. It is there for tests and very slow. `seed` varies the order in which threads
/// run.
///
/// # Errors
/// [`Reason::NotBuiltIn`] without the feature `cuda-emulated`.
pub fn open_cuda_emulated(seed: u64) -> Result<Arc<dyn Backend>, Reason> {
    cuda::open_emulated(seed)
}

/// Opens the emulated CUDA device as one without what Hopper brought (wgmma, tensor copies), so that
/// the kernels for Ampere run: `cuda-emulated-sm80`.
///
/// # Errors
/// [`Reason::NotBuiltIn`] without the feature `cuda-emulated`.
pub fn open_cuda_emulated_sm80(seed: u64) -> Result<Arc<dyn Backend>, Reason> {
    cuda::open_emulated_sm80(seed)
}

/// Opens either emulated CUDA device with a single multiprocessor: kernels that are only worth while for
/// large launches then run in small ones.
///
/// # Errors
/// [`Reason::NotBuiltIn`] without the feature `cuda-emulated`.
pub fn open_cuda_emulated_small(seed: u64, hopper: bool) -> Result<Arc<dyn Backend>, Reason> {
    cuda::open_emulated_small(seed, hopper)
}

/// A CUDA kernel of this build, as the emulated devices know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EmulatedKernel {
    /// The compilation that it is from: `matmul_q4_k`.
    pub unit: String,
    /// Its name.
    pub kernel: String,
    /// Whether an emulated device of this process has run it to a good end.
    pub ran: bool,
}

/// Every CUDA kernel of this build, in the order of their units and names, and which of them the
/// emulated devices have run so far: a test of all of them ends by asking which it has left out.
///
/// # Errors
/// [`Reason::NotBuiltIn`] without the feature `cuda-emulated`.
pub fn emulated_kernels() -> Result<Vec<EmulatedKernel>, Reason> {
    cuda::emulated_kernels()
}

/// Looks for CUDA devices. Loads NVIDIA's driver library where there is one; creates no context.
///
/// Devices stand in the driver's order, which `CUDA_VISIBLE_DEVICES` restricts, so `cuda:0` is what
/// CUDA itself calls device 0.
pub fn probe_cuda() -> Probe {
    Probe { backend: "cuda", devices: cuda::devices() }
}

/// Looks for wgpu's adapters: Vulkan, Metal and DX12, whichever the platform has. Creates no
/// device.
///
/// Discrete GPUs stand first, then integrated, virtual and unclassified ones, software adapters
/// last; `wgpu:0` is therefore the best that the machine has. A GPU with drivers for two of the
/// APIs is listed once for each.
pub fn probe_wgpu() -> Probe {
    Probe { backend: "wgpu", devices: wgpu::devices() }
}

/// Every GPU backend's probe, in the order in which `--device auto` tries them.
pub fn probe() -> [Probe; 2] {
    [probe_cuda(), probe_wgpu()]
}
