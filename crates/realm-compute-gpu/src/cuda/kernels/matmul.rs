//! Launches of `kernels/cuda/matmul.cu`: products of weights with many rows.
//!
//! A block has 128 weight rows, of a gated product 64 of either weight, and N rows of the input. Weights
//! are decoded to f32, rounded once to the input's type, multiplied on tensor cores, and summed in f32.

mod plan;

use realm_core::{
    backend::{BackendError, LoadedWeight as _},
    graph::ops::Activation,
};
use zerocopy::{Immutable, IntoBytes};

pub(crate) use self::plan::{COUNTERS, SCRATCH_BYTES};
use self::plan::{Plan, Problem};
use super::matvec::{SEGMENTS, Segment};
use crate::cuda::{
    gpu::{Launch, TensorMapSpec},
    planes::{Layout, TILE_ROWS},
    step::{Columns, Form},
};

/// Row tiles of a block.
const BLOCK_TILES: usize = 8;

/// Memory of a product whose k is split.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scratch {
    /// Address of f32 partial sums, aligned to 16 bytes.
    pub(crate) partials: u64,
    /// Their bytes: with less than [`SCRATCH_BYTES`], k is split less.
    pub(crate) bytes: usize,
    /// Address of [`COUNTERS`] `u32` counters, 0 between launches.
    pub(crate) counters: u64,
}

/// Products of one input with up to [`SEGMENTS`] weights of one type; with an activation, of two:
/// `activation(input · firstᵀ + bias) · (input · secondᵀ + bias)` goes to the first's target.
#[derive(Debug)]
pub(crate) struct Matmul<'a> {
    /// Rows of `k` elements, [`Form::BF16`] or [`Form::F16`].
    pub(crate) input: &'a Columns,
    /// Rows that the input has memory for.
    pub(crate) input_rows: usize,
    pub(crate) k: usize,
    /// Rows that the launch is made for.
    pub(crate) rows: usize,
    /// Address of the first row's number, a `u32`; 0 where it is 0.
    pub(crate) first: u64,
    /// Address of the last row's number plus one.
    pub(crate) end: u64,
    pub(crate) segments: &'a [Segment<'a>],
    pub(crate) activation: Option<Activation>,
    /// Whether a row's bits may depend on nothing but the row: else k is split where rows are few.
    pub(crate) invariant: bool,
    pub(crate) scratch: Scratch,
}

/// Rows that belong to experts, one expert's after another's: weights hold the experts' rows, one
/// expert's after another's, too, and so do biases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Experts {
    /// How many there are.
    pub(crate) count: usize,
    /// Address of `count + 1` `u32`, written by the step: where each expert's rows start, and where the
    /// last one's end.
    pub(crate) starts: u64,
    /// Address of the target's row, a `u32`, of each row of the input; 0 where it is the same.
    pub(crate) order: u64,
}

/// Twin of `MatmulSegment` in `matmul.cuh`.
#[derive(Default, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct SegmentParams {
    planes: u64,
    bias: u64,
    target: Columns,
    tiles: u32,
    n: u32,
    blocks: u32,
    unused: u32,
}

/// Twin of `MatmulParams`, of which the map is aligned to 64 bytes.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Params {
    map: [u8; 128],
    input: Columns,
    first: u64,
    end: u64,
    starts: u64,
    order: u64,
    partials: u64,
    counters: u64,
    k: u32,
    experts: u32,
    activation: u32,
    splits: u32,
    split_stages: u32,
    unused: u32,
    segments: [SegmentParams; SEGMENTS],
}

/// The launch of a product.
///
/// # Errors
/// Where the device refuses the input as a matrix to copy from.
pub(crate) fn launch(product: &Matmul<'_>) -> Result<Launch, BackendError> {
    build(product, None, plan::choose)
}

/// The launch of products in which each row has the weights of its expert.
///
/// # Errors
/// As those of [`launch`].
pub(crate) fn grouped(product: &Matmul<'_>, experts: Experts) -> Result<Launch, BackendError> {
    build(product, Some(experts), plan::choose)
}

fn build(
    product: &Matmul<'_>,
    experts: Option<Experts>,
    choose: impl FnOnce(&Problem<'_>) -> Plan,
) -> Result<Launch, BackendError> {
    let &Matmul { input, k, rows, segments, activation, scratch, .. } = product;
    let (first, count) = (segments[0].weight, experts.map_or(1, |experts| experts.count));
    let dtype = first.info().dtype;
    check(product, count);

    let share = if activation.is_some() { BLOCK_TILES / 2 } else { BLOCK_TILES };
    let mut params = [SegmentParams::default(); SEGMENTS];
    for (to, segment) in params.iter_mut().zip(segments) {
        let info = segment.weight.info();
        let n = info.rows / count.max(1);
        // An expert that does not begin with a tile may lie in one more.
        let tiles = match n % TILE_ROWS {
            0 => n / TILE_ROWS,
            _ if count > 1 => (n + TILE_ROWS - 1).div_ceil(TILE_ROWS),
            _ => n.div_ceil(TILE_ROWS),
        };
        *to = SegmentParams {
            planes: segment.weight.planes(),
            bias: segment.bias.unwrap_or(0),
            target: segment.target,
            tiles: Layout::of(info).row_tiles as u32,
            n: n as u32,
            blocks: tiles.div_ceil(share) as u32,
            unused: 0,
        };
    }
    let blocks: u32 = match activation {
        Some(_) => params[0].blocks,
        None => params.iter().map(|segment| segment.blocks).sum(),
    };
    let plan = choose(&Problem {
        dtype,
        k,
        rows,
        experts: experts.map(|experts| experts.count),
        blocks: blocks as usize,
        may_split: !product.invariant,
        scratch: scratch.bytes,
        facts: first.facts(),
    });
    let groups = plan.groups(rows, experts.map(|experts| experts.count));
    let parameters = Params {
        map: map(product, &plan)?,
        input: *input,
        first: product.first,
        end: product.end,
        starts: experts.map_or(0, |experts| experts.starts),
        order: experts.map_or(0, |experts| experts.order),
        partials: scratch.partials,
        counters: scratch.counters,
        k: k as u32,
        experts: experts.map_or(0, |experts| experts.count as u32),
        activation: activation.map_or(0, super::activation_number),
        splits: plan.splits as u32,
        split_stages: plan.split_stages as u32,
        unused: 0,
        segments: params,
    };
    let unit = format!("matmul_{}", dtype.name().to_lowercase());
    let compute = if input.form() == Form::F16 { "f16" } else { "bf16" };
    let variant = if plan.wgmma { "wgmma" } else { "mma" };
    Ok(Launch {
        kernel: format!("{unit}_{compute}_{variant}_n{}", plan.n),
        unit,
        // Groups of rows first: the blocks of a weight's rows then run at the same time, and all but one
        // find its planes in the L2.
        grid: [groups as u32, blocks, plan.splits as u32],
        threads: plan.threads() as u32,
        shared: plan.shared(first.info()) as u32,
        parameters: parameters.as_bytes().to_vec(),
    })
}

/// What whoever lowers a graph vouches for.
fn check(product: &Matmul<'_>, experts: usize) {
    let Matmul { input, k, segments, activation, .. } = product;
    let dtype = segments[0].weight.info().dtype;
    assert!(segments.len() <= SEGMENTS, "{} segments", segments.len());
    debug_assert!(matches!(input.form(), Form::BF16 | Form::F16), "{:?}", input.form());
    debug_assert!(activation.is_none() || segments.len() == 2, "a gate and what it gates");
    for segment in *segments {
        let info = segment.weight.info();
        assert!(info.dtype == dtype && info.cols == *k, "{info:?} is no segment of {dtype}, k {k}");
        assert!(info.rows.is_multiple_of(experts.max(1)), "{info:?} of {experts} experts");
        debug_assert!(segment.target.form() != Form::Int8, "a product to int8");
    }
}

/// The input as a matrix of which boxes are copied; nothing where the kernel copies rows.
fn map(product: &Matmul<'_>, plan: &Plan) -> Result<[u8; 128], BackendError> {
    if !plan.wgmma {
        return Ok([0; 128]);
    }
    let input = product.input;
    product.segments[0].weight.gpu().tensor_map(&TensorMapSpec {
        address: input.data,
        cols: u64::from(input.stride),
        rows: product.input_rows as u64,
        row_bytes: 2 * u64::from(input.stride),
        box_cols: 64,
        box_rows: plan.n as u32,
    })
}

#[cfg(test)]
mod tests;
