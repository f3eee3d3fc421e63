//! What the GPU kernels promise, held against the same work done the plain way: what `realm bench
//! --claims` asks of a device.

use realm_core::backend::BackendError;

use crate::{Reason, cuda};

/// A way of doing some work, timed.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// How it is done: `fused`, `dequantized to bf16, then multiplied`.
    pub way: &'static str,
    /// Seconds it takes: the median.
    pub seconds: f64,
    /// The part of the device's limit that it reaches with the work at hand, whatever more it does.
    pub fraction: f64,
}

/// The same work done in two ways.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// As Realm does it.
    pub ours: Timed,
    /// The plain way.
    pub plain: Timed,
    /// What the fractions are of: `the copy bandwidth`.
    pub limit: &'static str,
}

/// A comparison that a device can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// A row of activations times a Q4_K weight: unpacked in registers, or to bf16 in memory first.
    FusedRow,
    /// The same with 512 rows.
    FusedRows,
    /// A row, with the weight unpacked to bf16 on the CPU and copied before.
    CopiedRow,
    /// Attention of a prompt of 4096 tokens, or with its matrix of scores in memory.
    Attention,
    /// Products of 512 rows in bf16, or in f32.
    Half,
}

/// The limits that a device shows: bytes a second of a copy within it, read and written, and operations
/// a second of its tensor cores by `mma.sync` in bf16.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Additions and multiplications a second.
    pub ops_per_second: f64,
}

/// A device on which comparisons are made.
pub struct Bench(pub(crate) cuda::ClaimsLab);

impl Bench {
    /// The device of that name: `cuda:0`, `cuda-emulated`.
    ///
    /// # Errors
    /// The [`Reason`] why it cannot be used, or that there are no kernels to be compared.
    pub fn open(device: &str) -> Result<Self, Reason> {
        cuda::open_claims(device).map(Self)
    }

    /// What the device can do at most.
    ///
    /// # Errors
    /// The device's failure.
    pub fn limits(&mut self) -> Result<Limits, BackendError> {
        self.0.limits()
    }

    /// What is compared, in numbers: `14336x4096`.
    pub fn size(&self, comparison: Comparison) -> String {
        self.0.size(comparison)
    }

    /// Times both ways.
    ///
    /// # Errors
    /// The device's failure, too little memory for instance.
    pub fn compare(&mut self, comparison: Comparison) -> Result<Pair, BackendError> {
        self.0.compare(comparison)
    }
}
