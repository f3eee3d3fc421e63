//! Stands in for the backend in builds without the features `cuda` and `cuda-emulated`.

use std::sync::Arc;

use realm_core::backend::Backend;

use crate::{GpuDevice, Reason};

pub(crate) fn devices() -> Result<Vec<GpuDevice>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda" })
}

pub(crate) fn open(_ordinal: u32) -> Result<Arc<dyn Backend>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda" })
}

pub(crate) fn open_emulated(_seed: u64) -> Result<Arc<dyn Backend>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}
