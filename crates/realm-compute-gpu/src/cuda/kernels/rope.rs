//! Launches of `kernels/cuda/rope.cu`: rotation of queries and keys by their positions, and the write
//! of keys and values to the cache, together or alone.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use realm_core::{backend::BackendError, graph::ops::RopePairs, rope::RopeFrequencies};
use zerocopy::{Immutable, IntoBytes};

use crate::cuda::{
    gpu::{Buffer, Gpu, Launch},
    kv::{CudaKvPool, KvLayerView},
    step::StepView,
};

const THREADS: u32 = 128;
const HEADS_A_BLOCK: usize = 8;

/// What the kernel is told: twin of the struct in `rope.cu`.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct RopeParams {
    step: StepView,
    kv: KvLayerView,
    frequencies: u64,
    magnitude: f64,
    query: u64,
    output: u64,
    key: u64,
    value: u64,
    heads: u32,
    head_dim: u32,
    pairs: u32,
    adjacent: u32,
}

/// A rope's frequencies in a device's memory.
pub(crate) struct Frequencies {
    buffer: Buffer,
    pairs: usize,
    magnitude: f64,
}

impl Frequencies {
    /// Copies them to the device.
    ///
    /// # Errors
    /// Too little memory, or the device's failure.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, rope: &RopeFrequencies) -> Result<Self, BackendError> {
        let bytes = rope.inverse.as_bytes();
        let buffer = Buffer::new(gpu, bytes.len(), "rotary frequencies")?;
        buffer.write(0, bytes)?;
        Ok(Self { buffer, pairs: rope.inverse.len(), magnitude: rope.magnitude })
    }
}

/// A rotation of f32 rows `[rows, heads · head_dim]`.
pub(crate) struct Rotation<'a> {
    pub(crate) input: u64,
    /// May be the input.
    pub(crate) output: u64,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) pairs: RopePairs,
    pub(crate) frequencies: &'a Frequencies,
}

/// Keys and values to store: f32 rows `[rows, kv_heads · head_dim]`.
pub(crate) struct Write<'a> {
    pub(crate) kv: &'a Arc<CudaKvPool>,
    pub(crate) layer: usize,
    pub(crate) key: u64,
    pub(crate) value: u64,
}

impl RopeParams {
    fn rotate(&mut self, rotation: &Rotation<'_>) {
        self.frequencies = rotation.frequencies.buffer.address();
        self.magnitude = rotation.frequencies.magnitude;
        self.pairs = rotation.frequencies.pairs as u32;
        self.adjacent = (rotation.pairs == RopePairs::Adjacent).into();
        self.query = rotation.input;
        self.output = rotation.output;
        self.heads = rotation.heads as u32;
        self.head_dim = rotation.head_dim as u32;
    }

    fn write(&mut self, write: &Write<'_>) -> usize {
        let layer = write.kv.layer(write.layer);
        self.kv = write.kv.layer_view(write.layer);
        self.key = write.key;
        self.value = write.value;
        self.head_dim = layer.head_dim as u32;
        2 * layer.heads
    }

    fn launch(&self, heads: usize, rows: usize) -> Launch {
        Launch {
            unit: "rope".into(),
            kernel: "rope_kv_write".into(),
            grid: [heads.div_ceil(HEADS_A_BLOCK) as u32, rows as u32, 1],
            threads: THREADS,
            // A cosine and a sine a pair.
            shared: self.pairs * 8,
            parameters: self.as_bytes().to_vec(),
        }
    }
}

/// Rotates the heads of `rows` rows.
pub(crate) fn rope(rotation: &Rotation<'_>, view: &StepView, rows: usize) -> Launch {
    let mut p = RopeParams { step: *view, ..RopeParams::default() };
    p.rotate(rotation);
    p.launch(rotation.heads, rows)
}

/// Stores the keys and values of `rows` rows as they are.
pub(crate) fn kv_write(write: &Write<'_>, view: &StepView, rows: usize) -> Launch {
    let mut p = RopeParams { step: *view, ..RopeParams::default() };
    let heads = p.write(write);
    p.launch(heads, rows)
}

/// Rotates the queries of `rows` rows, stores their keys, rotated alike, and their values as they are.
pub(crate) fn rope_kv_write(
    query: &Rotation<'_>,
    write: &Write<'_>,
    view: &StepView,
    rows: usize,
) -> Launch {
    let mut p = RopeParams { step: *view, ..RopeParams::default() };
    p.rotate(query);
    let heads = query.heads + p.write(write);
    p.launch(heads, rows)
}
