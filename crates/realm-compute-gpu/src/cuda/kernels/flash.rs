//! Launches of `kernels/cuda/flash.cu`: attention of prompts' rows.
//!
//! A block has a tile: some rows of a sequence times the query heads that read one KV head, as the rows
//! of a matrix; it goes through the cache that its rows see, softmax and both products at once. Queries,
//! keys, values and weights are f16 or bf16, all sums f32. Devices of compute capability 9.0 have
//! kernels of their own (`flash_wgmma.cuh`); all others run `flash_mma.cuh`.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use realm_core::{
    backend::{BackendError, KvPool, KvType, Precision},
    graph::ops::AttentionSpec,
};
use zerocopy::{Immutable, IntoBytes};

use super::attention;
use crate::cuda::{
    gpu::Launch,
    kv::{CudaKvPool, KvLayerView},
    step::{Columns, Form, StepView},
};

/// What the kernels are told: twin of the struct in `flash.cuh`.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct FlashParams {
    keys: [u8; 128],
    values: [u8; 128],
    step: StepView,
    kv: KvLayerView,
    query: u64,
    sinks: u64,
    target: Columns,
    heads: u32,
    group: u32,
    subsets: u32,
    block_heads: u32,
    tile_rows: u32,
    causal: u32,
    window: u32,
    scale: f32,
    soft_cap: f32,
    unused: [u32; 7],
}

/// An attention of a step's prompts.
pub(crate) struct FlashArgs<'a> {
    /// The cache, with the step's own tokens.
    pub(crate) kv: &'a Arc<CudaKvPool>,
    pub(crate) layer: usize,
    pub(crate) spec: &'a AttentionSpec,
    /// f32 rows `[rows, heads · head_dim]`, aligned to 16 bytes.
    pub(crate) query: u64,
    /// An f32 a head.
    pub(crate) sinks: Option<u64>,
    pub(crate) view: &'a StepView,
    /// Rows of prompts that the launch is made for.
    pub(crate) rows: usize,
    /// Prompts that it is made for.
    pub(crate) sequences: usize,
    pub(crate) precision: Precision,
    /// Rows of `heads · head_dim` elements of any form but [`Form::Int8`].
    pub(crate) target: Columns,
}

/// The type that products are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    F16,
    BF16,
}

impl Input {
    /// A cache of 16 bits goes in as it is, integers and their scales fit f16. Where nothing asks for f16
    /// numbers of any size fit.
    fn new(kv_type: KvType, precision: Precision) -> Self {
        match (kv_type, precision) {
            (KvType::F32, Precision::F16) | (KvType::F16 | KvType::Q8_0, _) => Self::F16,
            (KvType::BF16 | KvType::F32, _) => Self::BF16,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    wgmma: bool,
    /// Elements that a head may have.
    dim: usize,
    /// Rows of a block's matrix.
    rows: usize,
    warps: usize,
    /// Bytes of shared memory.
    shared: usize,
}

impl Variant {
    fn new(head_dim: usize, kv_type: KvType, wgmma: bool) -> Self {
        if wgmma {
            return Self::wide(head_dim, kv_type);
        }
        // As in flash.cu: rows and warps of a block, tokens of a step, steps' keys or values in
        // shared memory.
        let (dim, rows, warps, step, slots) = match head_dim {
            0..=64 => (64, 128, 4, 64, 3),
            65..=96 => (96, 128, 4, 64, 3),
            97..=128 => (128, 128, 4, 32, 4),
            _ => (256, 64, 4, 32, 3),
        };
        let shared = (rows + step * slots) * dim * 2 + rows * 4;
        Self { wgmma, dim, rows, warps, shared }
    }

    /// As `WgmmaShape` in flash_wgmma.cuh has it.
    fn wide(head_dim: usize, kv_type: KvType) -> Self {
        // Warpgroups of 64 rows each, tokens of a step, steps in shared memory, pieces of caches that
        // are converted.
        let (dim, groups, step, stages, slots): (usize, _, _, _, _) = match head_dim {
            0..=64 => (64, 3, 128, 4, 4),
            65..=128 => (128, 2, 128, 2, 4),
            _ => (256, 2, 64, 2, 2),
        };
        let rows = groups * 64;
        let (slots, slot) = match kv_type {
            KvType::F16 | KvType::BF16 => (0, 0),
            // The cache's tile.
            KvType::Q8_0 => (slots, 64 * dim + 64 * dim / 32 * 2),
            KvType::F32 => (slots, 16 * dim * 4),
        };
        let matrices = (rows + 2 * stages * step) * dim * 2;
        let barriers = 4 * stages + groups + slots;
        let shared = matrices + slots * slot + rows * 4 + barriers * 8 + 96;
        Self { wgmma: true, dim, rows, warps: 4 + 4 * groups, shared }
    }
}

/// How the query heads of a KV head and the rows of a sequence are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiling {
    /// Blocks that share a KV head, and the query heads of each.
    subsets: usize,
    block_heads: usize,
    tile_rows: usize,
    /// Tiles of all sequences, at most.
    tiles: usize,
}

impl Tiling {
    fn new(matrix_rows: usize, group: usize, rows: usize, sequences: usize) -> Self {
        let subsets = group.div_ceil(matrix_rows);
        let block_heads = group.div_ceil(subsets);
        let tile_rows = matrix_rows / block_heads;
        // Every sequence may have a tile that is not full.
        let tiles = rows / tile_rows + sequences.min(rows);
        Self { subsets, block_heads, tile_rows, tiles }
    }
}

/// The launch.
///
/// # Errors
/// A step of more blocks than a grid has, or a cache that the device makes no tensor map of.
pub(crate) fn flash(args: &FlashArgs<'_>) -> Result<Launch, BackendError> {
    let (spec, kv_type) = (args.spec, args.kv.spec().kv_type);
    debug_assert!(args.target.form() != Form::Int8, "attention cannot store int8");
    let kv_heads = args.kv.layer(args.layer).heads;
    let group = spec.heads / kv_heads;
    let variant = Variant::new(spec.head_dim, kv_type, args.kv.gpu().facts().wgmma);
    let tiling = Tiling::new(variant.rows, group, args.rows, args.sequences);
    let blocks = tiling.tiles.max(1) * kv_heads * tiling.subsets;
    let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32);
    let Some(blocks) = blocks else {
        let problem = format!(
            "{} rows of {} heads are more than a step can have; make it smaller",
            args.rows, spec.heads
        );
        return Err(BackendError::Inputs { problem });
    };
    let [keys, values] = match kv_type {
        KvType::F16 | KvType::BF16 if variant.wgmma => args.kv.tensor_maps(args.layer)?,
        _ => [[0; 128]; 2],
    };
    let parameters = FlashParams {
        keys,
        values,
        step: *args.view,
        kv: args.kv.layer_view(args.layer),
        query: args.query,
        sinks: args.sinks.unwrap_or(0),
        target: args.target,
        heads: spec.heads as u32,
        group: group as u32,
        subsets: tiling.subsets as u32,
        block_heads: tiling.block_heads as u32,
        tile_rows: tiling.tile_rows as u32,
        causal: spec.mask.causal.into(),
        window: attention::window(spec),
        scale: spec.scale,
        soft_cap: spec.soft_cap.unwrap_or(0.0),
        unused: [0; 7],
    };
    let input = Input::new(kv_type, args.precision).name();
    let kind = if variant.wgmma { "wgmma" } else { "mma" };
    Ok(Launch {
        unit: format!("flash_{kv_type}"),
        kernel: format!("flash_{kv_type}_{input}_{kind}_d{}", variant.dim),
        grid: [blocks, 1, 1],
        threads: (variant.warps * 32) as u32,
        shared: variant.shared as u32,
        parameters: parameters.as_bytes().to_vec(),
    })
}
