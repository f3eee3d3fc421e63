//! Stands in for the backend in builds without the feature `cuda`.

use crate::{GpuDevice, Reason};

pub(crate) fn devices() -> Result<Vec<GpuDevice>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda" })
}
