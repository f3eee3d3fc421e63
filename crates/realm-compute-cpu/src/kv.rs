//! The paged KV cache.
//!
//! A block holds [`KV_BLOCK_TOKENS`] tokens of one layer as *tiles*, a KV head each, keys and values
//! apart, in the order `[block][kv_head]`. The attention kernels multiply a tile as it lies, so a
//! tile of values is `[token][head_dim]` and a tile of keys its transpose, `[head_dim][token]`.
//! Q8_0 tiles hold all quants in that order and then the scales, one for 32 elements of a head:
//! `[token][head_dim / 32]` for values, `[head_dim / 32][token]` for keys.

#[cfg(test)]
mod tests;

use crate::{
    attention::simd::{Kernel, Simd, dispatch},
    isa::Isa,
    pool::Pool,
    shared::SharedMut,
};
use realm_core::{
    backend::{BackendError, BlockId, KvPool, KvSpec, KvType, SequenceRows},
    formats::{BlockFormat, F16Le, Q8_0},
};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ops::Range,
    ptr::NonNull,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// Tokens a block of the cache: a tile of the attention kernels.
pub const KV_BLOCK_TOKENS: usize = 64;

/// Tiles start at multiples of this: a cache line.
const ALIGN: usize = 64;

/// Elements of a head that are converted at a time: a block of Q8_0.
const CHUNK: usize = Q8_0::LEN;

/// Steps with fewer elements than this are stored by the calling thread alone.
const PARALLEL_ELEMENTS: usize = 16 * 1024;

/// Zeroed bytes that take no memory until they are touched.
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    /// Of the first tile, from `start`.
    offset: usize,
    len: usize,
}

// SAFETY: it owns its bytes as a `Vec<u8>` does.
unsafe impl Send for Memory {}
// SAFETY: as a `Vec<u8>`: shared access only reads.
unsafe impl Sync for Memory {}

impl Memory {
    /// `None` where the system has not that much.
    fn new(len: usize) -> Option<Self> {
        // Larger alignments make `alloc_zeroed` write the zeros itself, hence touch every page.
        let layout = Layout::from_size_align(len.checked_add(ALIGN)?, 16).ok()?;
        // SAFETY: the size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let offset = start.as_ptr().align_offset(ALIGN);
        (offset <= ALIGN).then_some(())?;
        Some(Self { start, layout, offset, len })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `offset + len` initialised bytes lie in the allocation that we own.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(self.offset), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and we are borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(self.offset), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Where a layer lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    heads: usize,
    head_dim: usize,
    /// Of a tile.
    tile_bytes: usize,
    /// Of the first tile of keys.
    keys: usize,
    /// Of the first tile of values.
    values: usize,
}

/// Keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl Place {
    fn tile(&self, part: Part, block: BlockId, head: usize) -> Range<usize> {
        let base = if part == Part::Key { self.keys } else { self.values };
        let start = base + (block.0 as usize * self.heads + head) * self.tile_bytes;
        start..start + self.tile_bytes
    }

    fn block(&self, part: Part, block: BlockId) -> Range<usize> {
        let start = self.tile(part, block, 0).start;
        start..start + self.heads * self.tile_bytes
    }
}

/// The CPU's KV cache.
pub(crate) struct CpuKvPool {
    spec: KvSpec,
    places: Vec<Place>,
    memory: RwLock<Memory>,
}

impl CpuKvPool {
    /// A cache full of zeros. The system gives it memory when it is first touched.
    ///
    /// # Errors
    /// Blocks of other than [`KV_BLOCK_TOKENS`] tokens, a head size that the type cannot hold, or
    /// more bytes than the system promises.
    pub(crate) fn new(spec: &KvSpec) -> Result<Self, BackendError> {
        if spec.block_tokens != KV_BLOCK_TOKENS {
            let problem = format!(
                "KV blocks of {} tokens where the CPU's have {KV_BLOCK_TOKENS}",
                spec.block_tokens
            );
            return Err(BackendError::Inputs { problem });
        }
        let mut places = Vec::new();
        let mut len = Some(0usize);
        for layer in &spec.layers {
            let (kv_type, head_dim) = (spec.kv_type, layer.head_dim);
            let row = kv_type.dtype().row_bytes(head_dim);
            let row = row.ok_or(BackendError::KvType { kv_type, head_dim })?;
            let tile_bytes = row.checked_mul(KV_BLOCK_TOKENS);
            let part = tile_bytes
                .and_then(|bytes| bytes.checked_mul(layer.heads)?.checked_mul(spec.blocks));
            let (Some(keys), Some(tile_bytes), Some(part)) = (len, tile_bytes, part) else {
                return Err(out_of_memory(u64::MAX));
            };
            let values = keys.checked_add(part);
            len = values.and_then(|values| values.checked_add(part));
            let values = values.ok_or(out_of_memory(u64::MAX))?;
            places.push(Place { heads: layer.heads, head_dim, tile_bytes, keys, values });
        }
        let len = len.ok_or(out_of_memory(u64::MAX))?;
        let memory = Memory::new(len).ok_or(out_of_memory(len as u64))?;
        Ok(Self { spec: spec.clone(), places, memory: RwLock::new(memory) })
    }

    /// The cache for reading. While it lives, writers wait.
    pub(crate) fn read(&self) -> KvRead<'_> {
        KvRead { pool: self, memory: self.memory.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a step's keys and values, each `[tokens, kv_heads · head_dim]`, at their positions.
    ///
    /// # Panics
    /// If the slices do not have that length, or the sequences do not fit the cache
    /// ([`realm_core::backend::Inputs::check`] tells beforehand).
    pub(crate) fn write_rows(
        &self,
        (pool, isa): (&Pool, Isa),
        layer: usize,
        sequences: &[SequenceRows<'_>],
        key: &[f32],
        value: &[f32],
    ) {
        let place = self.places[layer];
        let tokens = sequences.last().map_or(0, |sequence| sequence.rows.end);
        let elements = tokens * place.heads * place.head_dim;
        assert!(key.len() == elements && value.len() == elements, "{elements} keys and values");
        let mut memory = self.write();
        let memory = SharedMut::new(memory.bytes_mut());
        let task = |task: usize| {
            let (part, head) = if task.is_multiple_of(2) {
                (Part::Key, task / 2)
            } else {
                (Part::Value, task / 2)
            };
            let rows = if part == Part::Key { key } else { value };
            let kv_type = self.spec.kv_type;
            let blocks = self.spec.blocks;
            dispatch(
                isa,
                Store { memory: &memory, place, blocks, kv_type, part, head, sequences, rows },
            );
        };
        if elements < PARALLEL_ELEMENTS {
            (0..2 * place.heads).for_each(task);
        } else {
            pool.run(2 * place.heads, task);
        }
    }

    /// Fills the whole cache with one byte; 0xff is NaN in every type.
    #[cfg(test)]
    pub(crate) fn fill(&self, byte: u8) {
        self.write().bytes_mut().fill(byte);
    }

    fn check(&self, blocks: &[BlockId]) -> Result<(), BackendError> {
        match blocks.iter().find(|block| block.0 as usize >= self.spec.blocks) {
            None => Ok(()),
            Some(block) => Err(BackendError::Inputs {
                problem: format!("KV block {} of {}", block.0, self.spec.blocks),
            }),
        }
    }

    /// Bytes of one block over all layers.
    fn block_bytes(&self) -> usize {
        self.places.iter().map(|place| 2 * place.heads * place.tile_bytes).sum()
    }

    /// Where the parts of a block lie, in the order in which they are swapped out.
    fn ranges(&self, block: BlockId) -> impl Iterator<Item = Range<usize>> {
        self.places
            .iter()
            .flat_map(move |place| [place.block(Part::Key, block), place.block(Part::Value, block)])
    }
}

fn out_of_memory(needed: u64) -> BackendError {
    let (device, what) = ("cpu".to_string(), "the KV cache".to_string());
    BackendError::OutOfMemory { device, what, needed, available: None }
}

impl KvPool for CpuKvPool {
    fn spec(&self) -> &KvSpec {
        &self.spec
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.check(&[from, to])?;
        let mut memory = self.write();
        for (from, to) in self.ranges(from).zip(self.ranges(to)) {
            memory.bytes_mut().copy_within(from, to.start);
        }
        Ok(())
    }

    fn swap_out(&self, blocks: &[BlockId]) -> Result<Vec<u8>, BackendError> {
        self.check(blocks)?;
        let len = self.block_bytes().saturating_mul(blocks.len());
        let mut contents = Vec::new();
        if contents.try_reserve_exact(len).is_err() {
            return Err(out_of_memory(len as u64));
        }
        let memory = self.read();
        for range in blocks.iter().flat_map(|&block| self.ranges(block)) {
            contents.extend_from_slice(&memory.memory.bytes()[range]);
        }
        Ok(contents)
    }

    fn swap_in(&self, contents: &[u8], blocks: &[BlockId]) -> Result<(), BackendError> {
        self.check(blocks)?;
        if contents.len() != self.block_bytes().saturating_mul(blocks.len()) {
            let (bytes, blocks) = (contents.len(), blocks.len());
            let problem = format!("{bytes} swapped bytes do not fill {blocks} KV blocks");
            return Err(BackendError::Inputs { problem });
        }
        let mut memory = self.write();
        let mut contents = contents;
        for range in blocks.iter().flat_map(|&block| self.ranges(block)) {
            let (part, rest) = contents.split_at(range.len());
            memory.bytes_mut()[range].copy_from_slice(part);
            contents = rest;
        }
        Ok(())
    }
}

/// The cache, borrowed for reading.
pub(crate) struct KvRead<'a> {
    pool: &'a CpuKvPool,
    memory: RwLockReadGuard<'a, Memory>,
}

impl KvRead<'_> {
    /// The type of all tiles.
    pub(crate) fn kv_type(&self) -> KvType {
        self.pool.spec.kv_type
    }

    /// KV heads of a layer.
    pub(crate) fn heads(&self, layer: usize) -> usize {
        self.pool.places[layer].heads
    }

    /// Elements a head of a layer.
    pub(crate) fn head_dim(&self, layer: usize) -> usize {
        self.pool.places[layer].head_dim
    }

    /// A tile, laid out as the module says.
    pub(crate) fn tile(&self, layer: usize, part: Part, block: BlockId, head: usize) -> &[u8] {
        let place = &self.pool.places[layer];
        assert!(head < place.heads && (block.0 as usize) < self.pool.spec.blocks, "no such tile");
        &self.memory.bytes()[place.tile(part, block, head)]
    }
}

/// Stores one head's keys or values of a step.
struct Store<'a> {
    memory: &'a SharedMut<'a, u8>,
    place: Place,
    blocks: usize,
    kv_type: KvType,
    part: Part,
    head: usize,
    sequences: &'a [SequenceRows<'a>],
    rows: &'a [f32],
}

impl Kernel for Store<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Place { heads, head_dim, .. } = self.place;
        for sequence in self.sequences {
            for (position, row) in (sequence.cached..).zip(sequence.rows.clone()) {
                let block = sequence.blocks[position / KV_BLOCK_TOKENS];
                assert!(
                    (block.0 as usize) < self.blocks,
                    "KV block {} of {}",
                    block.0,
                    self.blocks
                );
                let tile = self.place.tile(self.part, block, self.head);
                // SAFETY: one task stores a head's keys, one its values; tiles of other heads or of
                // the other part do not overlap, blocks being in range.
                let tile = unsafe { self.memory.range(tile) };
                let row = &self.rows[(row * heads + self.head) * head_dim..][..head_dim];
                let token = position % KV_BLOCK_TOKENS;
                for (chunk, values) in row.chunks(CHUNK).enumerate() {
                    store(simd, tile, (self.kv_type, self.part), (token, chunk, head_dim), values);
                }
            }
        }
    }
}

/// Stores elements `CHUNK · chunk ..` of a token's head.
#[inline(always)]
fn store<S: Simd>(
    simd: S,
    tile: &mut [u8],
    (kv_type, part): (KvType, Part),
    (token, chunk, head_dim): (usize, usize, usize),
    values: &[f32],
) {
    // Distance of the chunk's elements, and place of the first.
    let (step, first) = match part {
        Part::Key => (KV_BLOCK_TOKENS, chunk * CHUNK * KV_BLOCK_TOKENS + token),
        Part::Value => (1, token * head_dim + chunk * CHUNK),
    };
    match kv_type {
        KvType::F32 => {
            for (i, value) in values.iter().enumerate() {
                tile[(first + i * step) * 4..][..4].copy_from_slice(&value.to_le_bytes());
            }
        }
        KvType::F16 => {
            let mut halves = [0; 2 * CHUNK];
            let whole = values.len() / S::LANES * S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                simd.store_f16(simd.load(&values[at..]), &mut halves[2 * at..]);
            }
            for (half, &value) in halves.chunks_exact_mut(2).zip(values).skip(whole) {
                half.copy_from_slice(&F16Le::from_f32(value).0);
            }
            scatter(tile, first, step, &halves[..2 * values.len()]);
        }
        KvType::BF16 => {
            let mut halves = [0; 2 * CHUNK];
            for (half, &value) in halves.chunks_exact_mut(2).zip(values) {
                half.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
            }
            scatter(tile, first, step, &halves[..2 * values.len()]);
        }
        KvType::Q8_0 => {
            let block = Q8_0::encode(values);
            for (i, &q) in block.qs.iter().enumerate() {
                tile[first + i * step] = q as u8;
            }
            let scale = match part {
                Part::Key => chunk * KV_BLOCK_TOKENS + token,
                Part::Value => token * (head_dim / CHUNK) + chunk,
            };
            let scales = KV_BLOCK_TOKENS * head_dim;
            tile[scales + 2 * scale..][..2].copy_from_slice(&block.d.0);
        }
    }
}

/// Writes two-byte elements to places `first + i · step`.
#[inline(always)]
fn scatter(tile: &mut [u8], first: usize, step: usize, halves: &[u8]) {
    let tile = &mut tile[2 * first..];
    if step == 1 {
        for (to, half) in tile.chunks_exact_mut(2).zip(halves.chunks_exact(2)) {
            to.copy_from_slice(half);
        }
    } else {
        for (to, half) in tile.chunks_mut(2 * step).zip(halves.chunks_exact(2)) {
            to[..2].copy_from_slice(half);
        }
    }
}
