//! The paged KV cache in a device's memory.
//!
//! A block holds [`KV_BLOCK_TOKENS`] tokens. A layer has its keys, then its values, each as tiles in the
//! order `[block][kv_head]`; a tile is `[token][head_dim]` in the cache's type. Q8_0 tiles hold all
//! quants in that order and then the scales, `[token][head_dim / 32]`.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

use realm_core::{
    backend::{BackendError, BlockId, KvPool, KvSpec, KvType},
    graph::KvLayer,
};
use zerocopy::{Immutable, IntoBytes};

use super::gpu::{Buffer, Gpu, HostBuffer, Mark, TensorMapSpec};

/// Tokens a block of the cache.
pub(crate) const KV_BLOCK_TOKENS: usize = 64;

/// Elements that the largest head may have.
const MAX_HEAD_DIM: usize = 256;

/// Bytes of page-locked memory that blocks are swapped through, unless one block needs more.
const STAGING_BYTES: usize = 16 << 20;

/// One layer of the cache, as kernels see it: twin of the struct in `kernels/cuda/kv.cuh`.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct KvLayerView {
    keys: u64,
    values: u64,
    kv_heads: u32,
    head_dim: u32,
    tile_bytes: u32,
    kind: u32,
}

/// How kernels name a type.
fn kind(kv_type: KvType) -> u32 {
    match kv_type {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::BF16 => 2,
        KvType::Q8_0 => 3,
    }
}

/// Where a layer lies in the buffer.
#[derive(Debug, Clone, Copy)]
struct Place {
    layer: KvLayer,
    tile_bytes: usize,
    /// Of the first tile of keys.
    keys: usize,
    /// Of the first tile of values.
    values: usize,
}

impl Place {
    /// Keys and values of a block.
    fn parts(&self, block: BlockId) -> [Range<usize>; 2] {
        let bytes = self.layer.heads * self.tile_bytes;
        let offset = block.0 as usize * bytes;
        [self.keys, self.values].map(|part| part + offset..part + offset + bytes)
    }
}

/// The cache of a device.
pub(crate) struct CudaKvPool {
    spec: KvSpec,
    places: Vec<Place>,
    buffer: Buffer,
    gpu: Arc<dyn Gpu>,
}

impl CudaKvPool {
    /// A cache whose contents are undefined.
    ///
    /// # Errors
    /// Blocks of other than [`KV_BLOCK_TOKENS`] tokens, heads that the kernels or the type cannot
    /// hold, or too little memory.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, spec: &KvSpec) -> Result<Arc<Self>, BackendError> {
        if spec.block_tokens != KV_BLOCK_TOKENS {
            let problem = format!(
                "KV blocks of {} tokens where CUDA's have {KV_BLOCK_TOKENS}",
                spec.block_tokens
            );
            return Err(BackendError::Inputs { problem });
        }
        let device = &gpu.facts().name;
        let mut bytes = 0;
        let mut places = Vec::new();
        for &layer in &spec.layers {
            let place = place(device, spec, layer, bytes)?;
            bytes = place.1;
            places.push(place.0);
        }
        let buffer = Buffer::new(gpu, bytes, "the KV cache")?;
        Ok(Arc::new(Self { spec: spec.clone(), places, buffer, gpu: gpu.clone() }))
    }

    /// A layer, for kernels' parameters.
    pub(crate) fn layer_view(&self, layer: usize) -> KvLayerView {
        let place = &self.places[layer];
        KvLayerView {
            keys: self.buffer.address() + place.keys as u64,
            values: self.buffer.address() + place.values as u64,
            kv_heads: place.layer.heads as u32,
            head_dim: place.layer.head_dim as u32,
            tile_bytes: place.tile_bytes as u32,
            kind: kind(self.spec.kv_type),
        }
    }

    /// Tensor maps of a layer's keys and values, of types of 16 bits: matrices of a row a token of a tile,
    /// whose boxes are 64 elements of a tile's tokens.
    ///
    /// # Errors
    /// The device makes no such map.
    pub(crate) fn tensor_maps(&self, layer: usize) -> Result<[[u8; 128]; 2], BackendError> {
        let Place { layer, keys, values, .. } = self.places[layer];
        let map = |offset: usize| {
            self.gpu.tensor_map(&TensorMapSpec {
                address: self.buffer.address() + offset as u64,
                cols: layer.head_dim as u64,
                rows: (self.spec.blocks * layer.heads * KV_BLOCK_TOKENS) as u64,
                row_bytes: 2 * layer.head_dim as u64,
                box_cols: 64,
                box_rows: KV_BLOCK_TOKENS as u32,
            })
        };
        Ok([map(keys)?, map(values)?])
    }

    /// The device.
    pub(crate) fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }

    /// Heads of a layer and their size.
    pub(crate) fn layer(&self, layer: usize) -> KvLayer {
        self.places[layer].layer
    }

    fn check(&self, blocks: &[BlockId]) -> Result<(), BackendError> {
        match blocks.iter().find(|block| block.0 as usize >= self.spec.blocks) {
            None => Ok(()),
            Some(block) => Err(BackendError::Inputs {
                problem: format!("KV block {} of {}", block.0, self.spec.blocks),
            }),
        }
    }

    /// Bytes of a block over all layers.
    fn block_bytes(&self) -> usize {
        self.places.iter().map(|place| 2 * place.layer.heads * place.tile_bytes).sum()
    }

    /// Where the parts of a block lie, in the order in which they are swapped out.
    fn ranges(&self, block: BlockId) -> impl Iterator<Item = Range<usize>> {
        self.places.iter().flat_map(move |place| place.parts(block))
    }

    /// Page-locked memory for so many of the blocks at a time.
    fn staging(&self, blocks: usize) -> Result<(HostBuffer, usize), BackendError> {
        let bytes = self.block_bytes().max(1);
        let at_once = (STAGING_BYTES / bytes).clamp(1, blocks.max(1));
        Ok((HostBuffer::new(&self.gpu, at_once * bytes)?, at_once))
    }
}

/// A layer that starts at `keys`, and where it ends.
fn place(
    device: &str,
    spec: &KvSpec,
    layer: KvLayer,
    keys: usize,
) -> Result<(Place, usize), BackendError> {
    let (kv_type, head_dim) = (spec.kv_type, layer.head_dim);
    if head_dim == 0 || !head_dim.is_multiple_of(8) || head_dim > MAX_HEAD_DIM {
        return Err(BackendError::Unsupported {
            device: device.into(),
            op: "Attention".into(),
            why: format!(
                "heads have {head_dim} elements, and its kernels take multiples of 8 up to \
                 {MAX_HEAD_DIM}"
            ),
        });
    }
    let row = kv_type.dtype().row_bytes(head_dim);
    let tile_bytes = KV_BLOCK_TOKENS * row.ok_or(BackendError::KvType { kv_type, head_dim })?;
    let part = tile_bytes.checked_mul(layer.heads).and_then(|bytes| bytes.checked_mul(spec.blocks));
    let values = part.and_then(|bytes| keys.checked_add(bytes));
    let end = values.zip(part).and_then(|(values, part)| values.checked_add(part));
    match (values, end) {
        (Some(values), Some(end)) => Ok((Place { layer, tile_bytes, keys, values }, end)),
        _ => Err(BackendError::OutOfMemory {
            device: device.into(),
            what: "the KV cache".into(),
            needed: u64::MAX,
            available: None,
        }),
    }
}

impl KvPool for CudaKvPool {
    fn spec(&self) -> &KvSpec {
        &self.spec
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.check(&[from, to])?;
        if from == to {
            return Ok(());
        }
        let base = self.buffer.address();
        for (from, to) in self.ranges(from).zip(self.ranges(to)) {
            self.gpu.copy(base + to.start as u64, base + from.start as u64, from.len())?;
        }
        Ok(())
    }

    fn swap_out(&self, blocks: &[BlockId]) -> Result<Vec<u8>, BackendError> {
        self.check(blocks)?;
        let mut contents = Vec::new();
        let needed = self.block_bytes().saturating_mul(blocks.len());
        if contents.try_reserve_exact(needed).is_err() {
            return Err(BackendError::OutOfMemory {
                device: "cpu".into(),
                what: format!("{} KV blocks swapped out", blocks.len()),
                needed: needed as u64,
                available: None,
            });
        }
        let (mut host, at_once) = self.staging(blocks.len())?;
        for blocks in blocks.chunks(at_once) {
            let mut at = 0;
            let mut start = || -> Result<(), BackendError> {
                for range in blocks.iter().flat_map(|&block| self.ranges(block)) {
                    let bytes = range.len();
                    host.download(at, &self.buffer, range)?;
                    at += bytes;
                }
                Ok(())
            };
            // Copies that did start are waited for before their memory goes.
            let started = start();
            Mark::new(&self.gpu)?.wait()?;
            started?;
            contents.extend_from_slice(&host.bytes()[..at]);
        }
        Ok(contents)
    }

    fn swap_in(&self, contents: &[u8], blocks: &[BlockId]) -> Result<(), BackendError> {
        self.check(blocks)?;
        let bytes = self.block_bytes();
        if contents.len() != bytes.saturating_mul(blocks.len()) {
            let (found, blocks) = (contents.len(), blocks.len());
            let problem =
                format!("{found} swapped bytes do not fill {blocks} KV blocks of {bytes}");
            return Err(BackendError::Inputs { problem });
        }
        let (mut host, at_once) = self.staging(blocks.len())?;
        let parts = contents.chunks((at_once * bytes).max(1));
        for (blocks, contents) in blocks.chunks(at_once).zip(parts) {
            host.bytes_mut()[..contents.len()].copy_from_slice(contents);
            let mut at = 0;
            let mut start = || -> Result<(), BackendError> {
                for range in blocks.iter().flat_map(|&block| self.ranges(block)) {
                    host.upload(at..at + range.len(), &self.buffer, range.start)?;
                    at += range.len();
                }
                Ok(())
            };
            let started = start();
            Mark::new(&self.gpu)?.wait()?;
            started?;
        }
        Ok(())
    }
}
