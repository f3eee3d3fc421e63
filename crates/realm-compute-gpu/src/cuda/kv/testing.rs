//! What tests of the cache and of the kernels that use it need: batches of rows over scattered blocks, and
//! the cache's contents as the core formats have them.

use std::{ops::Range, sync::Arc};

use realm_conformance::random::Random;
use realm_core::{
    backend::{BlockId, KvPool, KvSpec, KvType, Role},
    graph::KvLayer,
};
use zerocopy::IntoBytes;

use super::{CudaKvPool, KV_BLOCK_TOKENS};
use crate::cuda::{
    gpu::{Buffer, Gpu},
    step::{Counts, Row, Sequence, StepView},
    testing,
};

pub(crate) const KV_TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];

/// A device and random numbers from a fresh seed, which is printed.
pub(crate) fn device() -> (Arc<dyn Gpu>, Random) {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    (testing::gpu(seed), Random::new(seed))
}

/// A cache full of NaN.
pub(crate) fn pool(
    gpu: &Arc<dyn Gpu>,
    layers: &[KvLayer],
    kv_type: KvType,
    blocks: usize,
) -> Arc<CudaKvPool> {
    let layers = layers.to_vec();
    let spec = KvSpec { layers, kv_type, blocks, block_tokens: KV_BLOCK_TOKENS };
    let pool = CudaKvPool::new(gpu, &spec).unwrap();
    pool.buffer.fill(0xff).unwrap();
    pool
}

/// A buffer that holds f32.
pub(crate) fn floats(gpu: &Arc<dyn Gpu>, values: &[f32]) -> Buffer {
    let buffer = Buffer::new(gpu, values.len() * 4, "test values").unwrap();
    buffer.write(0, values.as_bytes()).unwrap();
    buffer
}

/// What a buffer holds, as f32.
pub(crate) fn read_floats(buffer: &Buffer) -> Vec<f32> {
    let bytes = buffer.read(0..buffer.bytes()).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

pub(crate) fn normals(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.normal()).collect()
}

/// Block tables: as many blocks as each length needs, scattered.
pub(crate) fn tables(random: &mut Random, lengths: &[usize], blocks: usize) -> Vec<Vec<u32>> {
    let mut free = random.permutation(blocks).into_iter();
    let needed = lengths.iter().map(|length| length.div_ceil(KV_BLOCK_TOKENS));
    needed.map(|count| free.by_ref().take(count).collect()).collect()
}

/// A sequence's rows in a step.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Positions of its rows.
    pub(crate) rows: Range<usize>,
    /// Its tokens in the cache.
    pub(crate) length: usize,
    pub(crate) table: Vec<u32>,
}

/// A step's description on the device.
pub(crate) struct Step {
    pub(crate) view: StepView,
    pub(crate) rows: usize,
    _buffers: Vec<Buffer>,
}

impl Step {
    /// All rows are decoded ones.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, parts: &[Part]) -> Self {
        Self::with(gpu, parts, Role::Decode)
    }

    /// All rows have that role.
    pub(crate) fn with(gpu: &Arc<dyn Gpu>, parts: &[Part], role: Role) -> Self {
        let prompts = role == Role::Prefill;
        let (mut rows, mut sequences, mut tables) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, part) in parts.iter().enumerate() {
            let first = rows.len() as u32;
            let prefill = if prompts { part.rows.len() as u32 } else { 0 };
            for position in part.rows.clone() {
                let (position, sequence) = (position as u32, sequence as u32);
                rows.push(Row { position, sequence, ..Row::default() });
            }
            let table = tables.len() as u32;
            sequences.push(Sequence { length: part.length as u32, table, first, prefill });
            tables.extend_from_slice(&part.table);
        }
        let counts = Counts {
            rows: rows.len() as u32,
            outputs: 0,
            sequences: parts.len() as u32,
            decode_rows: if prompts { 0 } else { rows.len() as u32 },
        };
        let bytes = [counts.as_bytes(), rows.as_bytes(), sequences.as_bytes(), tables.as_bytes()];
        let buffers = bytes.map(|bytes| {
            let buffer = Buffer::new(gpu, bytes.len(), "a step").unwrap();
            buffer.write(0, bytes).unwrap();
            buffer
        });
        let [counts, of_rows, sequences, tables] = buffers.each_ref().map(Buffer::address);
        let view = StepView { counts, rows: of_rows, sequences, tables, ..StepView::default() };
        Self { view, rows: rows.len(), _buffers: buffers.into() }
    }
}

/// The contents of a cache.
pub(crate) struct Contents {
    pool: Arc<CudaKvPool>,
    bytes: Vec<u8>,
}

impl Contents {
    pub(crate) fn new(pool: &Arc<CudaKvPool>) -> Self {
        let bytes = pool.buffer.read(0..pool.buffer.bytes()).unwrap();
        Self { pool: pool.clone(), bytes }
    }

    /// A token's key (0) or value (1) of a head, in the core format's bytes.
    pub(crate) fn row(
        &self,
        layer: usize,
        part: usize,
        block: u32,
        head: usize,
        slot: usize,
    ) -> Vec<u8> {
        let place = &self.pool.places[layer];
        let start = place.parts(BlockId(block))[part].start + head * place.tile_bytes;
        let tile = &self.bytes[start..start + place.tile_bytes];
        let dim = place.layer.head_dim;
        if self.pool.spec().kv_type != KvType::Q8_0 {
            let bytes = place.tile_bytes / KV_BLOCK_TOKENS;
            return tile[slot * bytes..(slot + 1) * bytes].to_vec();
        }
        let (quants, scales) = tile.split_at(KV_BLOCK_TOKENS * dim);
        let quants = &quants[slot * dim..(slot + 1) * dim];
        let scales = &scales[slot * dim / 16..(slot + 1) * dim / 16];
        let blocks = scales.chunks(2).zip(quants.chunks(32));
        blocks.flat_map(|(scale, quants)| [scale, quants].concat()).collect()
    }

    /// The same, as f32.
    pub(crate) fn values(
        &self,
        layer: usize,
        part: usize,
        table: &[u32],
        head: usize,
        token: usize,
    ) -> Vec<f32> {
        let block = table[token / KV_BLOCK_TOKENS];
        let bytes = self.row(layer, part, block, head, token % KV_BLOCK_TOKENS);
        let mut values = vec![0.0; self.pool.places[layer].layer.head_dim];
        self.pool.spec().kv_type.dtype().decode(&bytes, &mut values);
        values
    }
}
