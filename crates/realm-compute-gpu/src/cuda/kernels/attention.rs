//! Launches of `kernels/cuda/attention.cu`: attention of a step's rows over the paged cache.
//!
//! A sequence is cut at multiples of [`SPLIT`] tokens. A block sums one split of one row for a few query
//! heads that read the same KV head; a second kernel adds the splits in order. Rows that can have but one
//! split are stored by the first kernel, with the same bits. Products of a cache in f32 are sums of `fmaf`;
//! of all other types, tensor cores' (`attention_lanes.cuh`, `attention_tensor.cuh`).

#[cfg(test)]
mod tests;

use std::sync::Arc;

use realm_core::{
    backend::{KvPool, KvType},
    graph::ops::AttentionSpec,
};
use zerocopy::{Immutable, IntoBytes};

use crate::cuda::{
    gpu::Launch,
    kv::{CudaKvPool, KvLayerView},
    step::{Columns, Form, StepView},
};

/// Tokens of a sequence that one block sums.
pub(crate) const SPLIT: usize = 256;

/// Warps of a block of the second kernel.
const MERGE_WARPS: usize = 8;
/// Bytes of a piece of the cache in a warp's ring, without tensor cores.
const SLOT_LIMIT: usize = 2048;
/// Grids have at most so many rows.
const MAX_ROWS: usize = 65_535;
const NO_WINDOW: u32 = u32::MAX;

/// Tokens that a row sees, itself included, as the kernels are told.
pub(super) fn window(spec: &AttentionSpec) -> u32 {
    spec.mask.window.map_or(NO_WINDOW, |window| window.try_into().unwrap_or(NO_WINDOW))
}

/// What the kernels are told: twin of the struct in `attention.cuh`.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct AttentionParams {
    step: StepView,
    count: u64,
    kv: KvLayerView,
    query: u64,
    sinks: u64,
    partials: u64,
    stats: u64,
    target: Columns,
    heads: u32,
    group: u32,
    subsets: u32,
    first_row: u32,
    splits: u32,
    units: u32,
    causal: u32,
    window: u32,
    direct: u32,
    scale: f32,
    soft_cap: f32,
    unused: u32,
}

/// An attention of a step's rows.
pub(crate) struct AttentionArgs<'a> {
    /// The cache, with the step's own tokens.
    pub(crate) kv: &'a Arc<CudaKvPool>,
    pub(crate) layer: usize,
    pub(crate) spec: &'a AttentionSpec,
    /// f32 rows `[rows, heads · head_dim]`, aligned to 16 bytes.
    pub(crate) query: u64,
    /// An f32 a head.
    pub(crate) sinks: Option<u64>,
    pub(crate) view: &'a StepView,
    /// Address of the number of rows, a `u32`: the step's first ones.
    pub(crate) count: u64,
    /// Rows that the launches are made for.
    pub(crate) rows: usize,
    /// Splits of the longest sequence that the launches are made for.
    pub(crate) splits: usize,
    /// Splits that all rows see together, at most.
    pub(crate) total: usize,
    /// Work memory, aligned to 16 bytes.
    pub(crate) partials: u64,
    /// Its bytes: [`partial_bytes`] of one row at least. With fewer than all rows need, they go through
    /// it in passes.
    pub(crate) partial_bytes: usize,
    /// Rows of `heads · head_dim` elements of any form but [`Form::Int8`].
    pub(crate) target: Columns,
}

/// Whether the kernels can do it.
///
/// # Errors
/// What they cannot.
pub(crate) fn supports(spec: &AttentionSpec, kv: &CudaKvPool) -> Result<(), String> {
    let head_dim = spec.head_dim;
    if head_dim == 0 || !head_dim.is_multiple_of(8) || head_dim > 256 {
        return Err(format!(
            "heads have {head_dim} elements; they must be a multiple of 8 up to 256"
        ));
    }
    if kv.spec().kv_type == KvType::Q8_0 && !head_dim.is_multiple_of(32) {
        return Err(format!(
            "a q8_0 cache cannot hold heads of {head_dim} elements; use --kv-type f16"
        ));
    }
    if spec.heads == 0 || spec.heads > MAX_ROWS {
        return Err(format!("{} heads; there must be 1 to {MAX_ROWS}", spec.heads));
    }
    Ok(())
}

/// Splits that a row can see.
fn visible_splits(spec: &AttentionSpec, splits: usize) -> usize {
    let most = splits.max(1);
    match spec.mask.window {
        Some(window) if spec.mask.causal => {
            most.min(window.saturating_sub(1).div_ceil(SPLIT).saturating_add(1))
        }
        _ => most,
    }
}

/// Bytes of work memory for the partial sums of so many rows of sequences of up to `splits` splits.
pub(crate) fn partial_bytes(spec: &AttentionSpec, rows: usize, splits: usize) -> usize {
    match visible_splits(spec, splits) {
        1 => 0,
        splits => rows * splits * unit_bytes(spec),
    }
}

/// Bytes of the partial sums of a split of a row.
fn unit_bytes(spec: &AttentionSpec) -> usize {
    spec.heads * (spec.head_dim + 2) * 4
}

/// How rows go through the work memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    rows_per_pass: usize,
    /// Splits that every row has room for; 0 where rows of different lengths lie behind one another.
    splits: usize,
    /// Splits of a pass.
    units: usize,
}

impl Plan {
    fn new(args: &AttentionArgs<'_>) -> Self {
        let most = visible_splits(args.spec, args.splits);
        if most == 1 {
            return Self { rows_per_pass: args.rows, splits: 1, units: args.rows };
        }
        let room = args.partial_bytes / unit_bytes(args.spec);
        let total = args.total.clamp(1, args.rows * most);
        let splits = most.min(total);
        // Blocks without work are cheap, but not free.
        if args.rows > 1 && total <= room && total + total / 8 < args.rows * splits {
            return Self { rows_per_pass: args.rows, splits: 0, units: total };
        }
        let rows_per_pass = (room / splits).clamp(1, args.rows.min(MAX_ROWS));
        Self { rows_per_pass, splits, units: rows_per_pass * splits }
    }
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    /// Elements that a head may have.
    dim: usize,
    /// Query heads a block.
    heads: usize,
    /// Lanes that share a token; none on tensor cores.
    lanes: Option<usize>,
    /// Warps a block.
    warps: usize,
}

impl Variant {
    fn new(kv_type: KvType, head_dim: usize, group: usize) -> Self {
        let dim = match head_dim {
            0..=64 => 64,
            65..=128 => 128,
            _ => 256,
        };
        if kv_type != KvType::F32 {
            return Self { dim, heads: 8, warps: 4, lanes: None };
        }
        let heads = match group {
            1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        let lanes = match (dim, heads) {
            (64, _) => 8,
            (128, 1) => 8,
            (128, _) => 16,
            (_, 1) => 16,
            _ => 32,
        };
        Self { dim, heads, warps: if heads == 8 { 4 } else { 8 }, lanes: Some(lanes) }
    }

    /// Bytes of shared memory: the warps' rings, and in their place, later, the block's sums.
    fn shared(self, kv_type: KvType) -> usize {
        let (element, scaled) = match kv_type {
            KvType::F32 => (4, false),
            KvType::F16 | KvType::BF16 => (2, false),
            KvType::Q8_0 => (1, true),
        };
        let row = self.dim * element;
        let (piece, slots, parts) = match self.lanes {
            Some(lanes) => ((SLOT_LIMIT / row).min(16), 4, self.warps * 32 / lanes),
            None => (16, if row > 256 { 2 } else { 4 }, self.warps),
        };
        let scales = if scaled { piece * self.dim / 32 * 2 } else { 0 };
        let ring = self.warps * slots * (piece * row + scales);
        let sums = parts * self.heads * (self.dim + 3) * 4;
        ring.max(sums)
    }
}

/// The launches, in order.
pub(crate) fn attention(args: &AttentionArgs<'_>) -> Vec<Launch> {
    debug_assert!(args.target.form() != Form::Int8, "attention cannot store int8");
    let (spec, kv_type) = (args.spec, args.kv.spec().kv_type);
    let kv_heads = args.kv.layer(args.layer).heads;
    let group = spec.heads / kv_heads;
    let variant = Variant::new(kv_type, spec.head_dim, group);
    let subsets = group.div_ceil(variant.heads);
    let direct = visible_splits(spec, args.splits) == 1;
    let plan = Plan::new(args);
    let pass = plan.rows_per_pass.min(MAX_ROWS);
    let sums = (plan.units * spec.heads * spec.head_dim * 4) as u64;
    let launch = |kernel: String, grid: [usize; 3], warps: usize, shared: usize, p: &_| Launch {
        unit: format!("attention_{kv_type}"),
        kernel: format!("attention_{kv_type}_{kernel}"),
        grid: grid.map(|blocks| blocks as u32),
        threads: (warps * 32) as u32,
        shared: shared as u32,
        parameters: AttentionParams::as_bytes(p).to_vec(),
    };
    let mut launches = Vec::new();
    for first in (0..args.rows).step_by(pass) {
        let rows = pass.min(args.rows - first);
        let p = AttentionParams {
            step: *args.view,
            count: args.count,
            kv: args.kv.layer_view(args.layer),
            query: args.query,
            sinks: args.sinks.unwrap_or(0),
            partials: args.partials,
            stats: args.partials + sums,
            target: args.target,
            heads: spec.heads as u32,
            group: group as u32,
            subsets: subsets as u32,
            first_row: first as u32,
            splits: plan.splits as u32,
            units: plan.units as u32,
            causal: spec.mask.causal.into(),
            window: window(spec),
            direct: direct.into(),
            scale: spec.scale,
            soft_cap: spec.soft_cap.unwrap_or(0.0),
            unused: 0,
        };
        let kernel = format!("d{}_h{}", variant.dim, variant.heads);
        let grid = match plan.splits {
            0 => [plan.units, kv_heads * subsets, 1],
            splits => [splits, kv_heads * subsets, rows],
        };
        launches.push(launch(kernel, grid, variant.warps, variant.shared(kv_type), &p));
        if !direct {
            launches.push(launch("merge".into(), [spec.heads, rows, 1], MERGE_WARPS, 0, &p));
        }
    }
    launches
}
