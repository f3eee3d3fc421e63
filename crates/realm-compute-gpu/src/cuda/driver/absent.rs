//! Stands in for the driver in builds without the feature `cuda`.

use std::sync::Arc;

use crate::{GpuDevice, Reason, cuda::gpu::Gpu};

pub(crate) fn devices() -> Result<Vec<GpuDevice>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda" })
}

pub(crate) fn open(_ordinal: u32) -> Result<Arc<dyn Gpu>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda" })
}
