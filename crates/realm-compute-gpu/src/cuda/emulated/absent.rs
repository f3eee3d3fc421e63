//! Stands in for the emulated device in builds without the feature `cuda-emulated`.

use std::sync::Arc;

use crate::{EmulatedKernel, Reason, cuda::gpu::Gpu};

pub(crate) fn open(_seed: u64) -> Result<Arc<dyn Gpu>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}

pub(crate) fn open_sm80(_seed: u64) -> Result<Arc<dyn Gpu>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}

pub(crate) fn open_small(_seed: u64, _wgmma: bool) -> Result<Arc<dyn Gpu>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}

pub(crate) fn kernels() -> Result<Vec<EmulatedKernel>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}
