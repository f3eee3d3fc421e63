//! Stands in for the backend in builds without the features `cuda` and `cuda-emulated`.

use std::sync::Arc;

use realm_core::backend::{Backend, BackendError};

use crate::{
    EmulatedKernel, GpuDevice, Reason,
    claims::{Comparison, Limits, Pair},
};

pub(crate) fn devices() -> Result<Vec<GpuDevice>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda" })
}

pub(crate) fn open(_ordinal: u32) -> Result<Arc<dyn Backend>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda" })
}

pub(crate) fn open_emulated(_seed: u64) -> Result<Arc<dyn Backend>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}

pub(crate) fn open_emulated_small(_seed: u64, _hopper: bool) -> Result<Arc<dyn Backend>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}

pub(crate) fn open_emulated_sm80(_seed: u64) -> Result<Arc<dyn Backend>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}

/// Nothing makes comparisons.
pub(crate) enum ClaimsLab {}

impl ClaimsLab {
    pub(crate) fn limits(&mut self) -> Result<Limits, BackendError> {
        match *self {}
    }

    pub(crate) fn size(&self, _comparison: Comparison) -> String {
        match *self {}
    }

    pub(crate) fn compare(&mut self, _comparison: Comparison) -> Result<Pair, BackendError> {
        match *self {}
    }
}

pub(crate) fn open_claims(_device: &str) -> Result<ClaimsLab, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda" })
}

pub(crate) fn emulated_kernels() -> Result<Vec<EmulatedKernel>, Reason> {
    Err(Reason::NotBuiltIn { feature: "cuda-emulated" })
}
