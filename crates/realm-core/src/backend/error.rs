//! What can go wrong in a backend.

use super::KvType;

/// What went wrong in a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend cannot run this graph.
    #[error("{device} cannot run {op}: {why}; choose another --device")]
    Unsupported {
        /// As in [`DeviceInfo::name`](super::DeviceInfo::name).
        device: String,
        /// The op's name.
        op: String,
        /// What is missing.
        why: String,
    },
    /// The device's memory does not suffice.
    #[error("{device} is out of memory: {what} needs {needed} bytes{available}; use a smaller --ctx, a smaller file or another --device", available = .available.map_or(String::new(), |n| format!(", {n} are free")))]
    OutOfMemory {
        /// As in [`DeviceInfo::name`](super::DeviceInfo::name).
        device: String,
        /// What was to be allocated.
        what: String,
        /// Its size.
        needed: u64,
        /// What is free, where known.
        available: Option<u64>,
    },
    /// A weight's bytes do not fit its shape.
    #[error("tensor {name}: {bytes} bytes where {expected} are needed; the file is damaged")]
    WeightLength {
        /// The tensor.
        name: String,
        /// What came.
        bytes: usize,
        /// What the shape needs.
        expected: usize,
    },
    /// Head sizes that a KV type cannot hold.
    #[error("KV type {kv_type} cannot hold heads of {head_dim}; use --kv-type f16")]
    KvType {
        /// The type.
        kv_type: KvType,
        /// Elements a head.
        head_dim: usize,
    },
    /// A step that does not fit its program.
    #[error("step: {problem}")]
    Inputs {
        /// What does not fit.
        problem: String,
    },
    /// A call into a device's driver failed, or a kernel went wrong.
    #[error("{device} failed: {call}: {cause}; start again, with another --device if it stays so")]
    Failed {
        /// As in [`DeviceInfo::name`](super::DeviceInfo::name).
        device: String,
        /// What was called.
        call: String,
        /// The driver's words.
        cause: String,
    },
    /// Weights, caches or steps of another backend, or of another graph.
    #[error("{what} does not belong to {device}")]
    Foreign {
        /// As in [`DeviceInfo::name`](super::DeviceInfo::name).
        device: String,
        /// What was handed over.
        what: String,
    },
}
