//! Realm's GPU backends: CUDA (feature `cuda`) and Vulkan, Metal or DX12 through wgpu (feature
//! `wgpu`). Both features are off by default.
//!
//! So far the crate finds devices and says honestly what it found: [`probe`] lists every GPU with
//! what it is, and wherever there is none, or one that cannot be used, the [`Reason`]. A binary
//! with both features on starts on any machine: drivers are loaded at run time, and a machine
//! without them gets a reason, never a panic.
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

mod probe;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod text;

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda/absent.rs"]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;
#[cfg(not(feature = "wgpu"))]
#[path = "wgpu/absent.rs"]
mod wgpu;

pub use probe::{GpuDevice, Probe, Reason};

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
