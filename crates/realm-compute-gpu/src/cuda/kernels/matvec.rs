//! Launches of `kernels/cuda/matvec.cu`: products of weights with a few rows.

use std::cmp::Reverse;

use realm_core::{
    DType,
    backend::{LoadedWeight as _, Precision},
    graph::ops::Activation,
};
use zerocopy::{Immutable, IntoBytes};

use crate::cuda::{
    gpu::{Facts, Launch},
    planes::{Layout, Stage, TILE_ROWS},
    step::{Columns, Form},
    weights::CudaWeight,
};

/// Most weights of one launch.
pub(crate) const SEGMENTS: usize = 4;

/// Rows of the input that a block takes.
const GROUP_ROWS: usize = 8;
/// The same where each is three columns of a kernel with one tile of 8.
const NARROW_ROWS: usize = 2;
/// Warps that a device should have at work, about: more than the largest devices run at once.
const WARPS: usize = 4096;
/// Most slices of k, each a warp's.
const MAX_SLICES: usize = 16;
/// Most stages in a warp's ring.
const MAX_RING: usize = 4;
/// Bytes at the start of a slot.
const BARRIER_BYTES: usize = 16;
/// Bytes of a warp's constants for quantized formats, and of its zeros where it has one row.
const CONSTANT_BYTES: usize = 16;
const ZERO_BYTES: usize = 16;
/// Warps of a multiprocessor with which its share of the memory's bandwidth is in use: beyond, longer
/// rings serve better than more warps.
const BUSY_WARPS: usize = 32;
/// What a multiprocessor has for its blocks, from compute capability 8.0 on, and what of its shared
/// memory a block takes beyond what it asks for; from the table of technical specifications in the
/// CUDA programming guide. Devices that run fewer blocks or warps run them in turn.
const RESIDENT_BLOCKS: usize = 32;
const RESIDENT_WARPS: usize = 64;
const REGISTERS: usize = 65_536;
const RESERVED_BYTES: usize = 1024;
/// Most blocks along a grid's second axis.
const MAX_GRID_Y: u32 = 65_535;

/// A weight and where its product goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    /// `[n, k]`.
    pub(crate) weight: &'a CudaWeight,
    /// Address of `n` f32, added to each row.
    pub(crate) bias: Option<u64>,
    /// Rows of `n` elements, of any form but [`Form::Int8`].
    pub(crate) target: Columns,
}

/// The form in which products with a weight of that type read their input.
pub(crate) fn input_form(dtype: DType, precision: Precision) -> Form {
    match precision {
        Precision::BF16 => Form::BF16,
        Precision::F16 => Form::F16,
        _ if dtype.is_float() => Form::F32,
        Precision::Int8 => Form::Int8,
        Precision::F32 | Precision::Auto => Form::BF16x3,
    }
}

/// Twin of `Segment` in `matvec.cuh`.
#[derive(Default, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct SegmentParams {
    planes: u64,
    bias: u64,
    target: Columns,
    tiles: u32,
    n: u32,
    slices: u32,
    slice_stages: u32,
    longer_slices: u32,
    share: u32,
    longer_shares: u32,
    all_tiles: u32,
}

/// Twin of `MatvecParams`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Params {
    input: Columns,
    count: u64,
    k: u32,
    group_rows: u32,
    row_columns: u32,
    ring_stages: u32,
    slot_bytes: u32,
    warp_bytes: u32,
    partial: u32,
    partial_stride: u32,
    activation: u32,
    tiles_in_x: u32,
    segments: [SegmentParams; SEGMENTS],
}

/// Twin of `MixtureParams`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MixtureParams {
    product: Params,
    experts: u64,
    slots: u32,
    input_slots: u32,
}

/// Rows that are slots of a mixture of experts: each is multiplied by its expert's part of a weight,
/// which has those of all experts, one's rows after another's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots {
    /// Address of the number of each slot's expert, a `u32`.
    pub(crate) experts: u64,
    /// How many experts there are.
    pub(crate) count: usize,
    /// Slots of a row: the target has a row a slot.
    pub(crate) used: usize,
    /// Whether the input has a row a slot, too; else one for all slots of a row.
    pub(crate) own_input: bool,
}

/// Products of one input with up to [`SEGMENTS`] weights of one type; with an activation, of two:
/// `activation(input · firstᵀ + bias) · (input · secondᵀ + bias)` goes to the first's target.
///
/// `input` has rows of `k` elements in the form that [`input_form`] names; `rows` is how many the launch
/// is made for, the `u32` at `count` how many there are.
pub(crate) fn product(
    input: &Columns,
    k: usize,
    rows: usize,
    count: u64,
    segments: &[Segment<'_>],
    activation: Option<Activation>,
) -> Launch {
    let facts = segments[0].weight.facts();
    launch(&Product { input, k, rows, count, segments, activation, facts, slots: None })
}

/// The same with each slot's expert, for the slots of `rows` rows; a slot's bits are those of the product
/// with its expert alone.
pub(crate) fn mixture(
    input: &Columns,
    k: usize,
    rows: usize,
    count: u64,
    segments: &[Segment<'_>],
    activation: Option<Activation>,
    slots: &Slots,
) -> Launch {
    let facts = segments[0].weight.facts();
    launch(&Product { input, k, rows, count, segments, activation, facts, slots: Some(slots) })
}

struct Product<'a> {
    input: &'a Columns,
    k: usize,
    rows: usize,
    count: u64,
    segments: &'a [Segment<'a>],
    activation: Option<Activation>,
    /// The device.
    facts: &'a Facts,
    slots: Option<&'a Slots>,
}

impl Product<'_> {
    /// Where the product of a weight goes and how its k is cut into slices, for a block with so many
    /// matrices; of experts, as that of one expert would be.
    fn segment(&self, segment: &Segment<'_>, stages: usize, matrices: usize) -> SegmentParams {
        let (info, layout) = (segment.weight.info(), Layout::of(segment.weight.info()));
        let n = info.rows / self.slots.map_or(1, |slots| slots.count.max(1));
        let one = n.div_ceil(TILE_ROWS);
        // An expert that does not begin with a tile may lie in one more.
        let tiles = match self.slots {
            Some(_) if !n.is_multiple_of(TILE_ROWS) => (n + TILE_ROWS - 1).div_ceil(TILE_ROWS),
            _ => one,
        };
        let slices = slices(one, stages, matrices);
        SegmentParams {
            planes: segment.weight.planes(),
            bias: segment.bias.unwrap_or(0),
            target: segment.target,
            tiles: tiles as u32,
            n: n as u32,
            slices: slices as u32,
            slice_stages: (stages / slices.max(1)) as u32,
            longer_slices: (stages % slices.max(1)) as u32,
            share: 0,
            longer_shares: 0,
            all_tiles: layout.row_tiles as u32,
        }
    }
}

fn launch(product: &Product<'_>) -> Launch {
    let &Product { input, k, rows, count, segments, activation, facts, slots } = product;
    let (dtype, form) = (segments[0].weight.info().dtype, input.form());
    assert!(segments.len() <= SEGMENTS, "{} segments", segments.len());
    for segment in segments {
        let info = segment.weight.info();
        assert!(info.dtype == dtype && info.cols == k, "{info:?} is no segment of {dtype}, k {k}");
        debug_assert!(segment.target.form() != Form::Int8, "a product to int8");
    }

    let stage = Stage::of(dtype);
    let stages = k.div_ceil(stage.k);
    // A slot is a group by itself.
    let all_rows = slots.map_or(rows, |slots| rows * slots.used);
    let variant = Variant::of(form, slots.map_or(rows, |_| 1), stage.group);
    let group_rows = slots.map_or(variant.group_rows(form), |_| 1);
    let columns = rows.min(group_rows) * form.columns();
    let matrices = if activation.is_some() { 2 } else { 1 };
    let mut params = [SegmentParams::default(); SEGMENTS];
    for (to, segment) in params.iter_mut().zip(segments) {
        *to = product.segment(segment, stages, matrices);
    }
    let slices = params.iter().map(|segment| segment.slices as usize).max().unwrap_or(0);
    let tiles: u32 = match activation {
        Some(_) => params[0].tiles,
        None => params.iter().map(|segment| segment.tiles).sum(),
    };
    let groups = all_rows.div_ceil(group_rows) as u32;
    let room = Room {
        slot: BARRIER_BYTES + stage.bytes + columns * variant.column_bytes(form, stage.k),
        head: variant.head_bytes(&stage),
        columns,
        slices,
        matrices,
        slice_stages: stages.div_ceil(slices.max(1)),
        most_warps: variant.most_warps(stage.group),
        registers: variant.registers(stage.group),
        blocks: tiles as usize * groups as usize,
        facts,
    };
    let plan = room.plan();
    for segment in &mut params {
        segment.share = segment.slices / plan.team as u32;
        segment.longer_shares = segment.slices % plan.team as u32;
    }
    // Groups of rows along the first axis: the blocks of a tile then run at the same time, and all but
    // one find its planes in the L2.
    let tiles_in_x = groups == 1 || rows == 1 || tiles > MAX_GRID_Y;
    let parameters = Params {
        input: *input,
        count,
        k: k as u32,
        group_rows: group_rows as u32,
        row_columns: form.columns() as u32,
        ring_stages: plan.ring as u32,
        slot_bytes: room.slot as u32,
        warp_bytes: plan.warp_bytes as u32,
        partial: plan.partial as u32,
        partial_stride: plan.partial_stride as u32,
        activation: activation.map_or(0, super::activation_number),
        tiles_in_x: u32::from(tiles_in_x),
        segments: params,
    };
    let unit = format!("matvec_{}", dtype.name().to_lowercase());
    let (end, parameters) = match slots {
        None => ("", parameters.as_bytes().to_vec()),
        Some(slots) => {
            let input_slots = if slots.own_input { 1 } else { slots.used as u32 };
            let (experts, slots) = (slots.experts, slots.used as u32);
            let parameters = MixtureParams { product: parameters, experts, slots, input_slots };
            ("_mixture", parameters.as_bytes().to_vec())
        }
    };
    Launch {
        kernel: format!("{unit}_{}{end}", variant.name(form)),
        unit,
        grid: if tiles_in_x { [tiles, groups, 1] } else { [groups, tiles, 1] },
        threads: 32 * (matrices * plan.team) as u32,
        shared: plan.bytes as u32,
        parameters,
    }
}

/// Slices of k, from the weight's shape alone: a row's bits depend on them. Enough to keep a large
/// device busy, and no more, for each costs a warp's start and end; a few less where they are then
/// equally long, or nearly, for a block lasts as long as its longest.
fn slices(row_tiles: usize, stages: usize, matrices: usize) -> usize {
    let most = MAX_SLICES / matrices;
    let enough = WARPS.div_ceil((row_tiles * matrices).max(1));
    let target = enough.next_power_of_two().clamp(4, most).min(stages);
    let idle = |slices: usize| stages.div_ceil(slices) * slices - stages;
    let counts = ((5 * target).div_ceil(8).max(1)..=target).rev();
    let equal = counts.clone().find(|&slices| 16 * idle(slices) <= stages);
    equal.or_else(|| counts.min_by_key(|&slices| idle(slices))).unwrap_or(0)
}

/// Kernels of a format; the rows' form names the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// f32 without tensor cores.
    Plain,
    /// One row of one column.
    One,
    /// Up to 8 columns.
    Narrow,
    /// Up to 24.
    Wide,
}

impl Variant {
    /// For so many rows; `group` weights share a scale. A row has the same bits in all that serve a form.
    fn of(form: Form, rows: usize, group: usize) -> Self {
        match form {
            Form::F32 => Self::Plain,
            Form::BF16x3 if rows > NARROW_ROWS => Self::Wide,
            Form::BF16x3 => Self::Narrow,
            _ if rows == 1 && matches!(group, 16 | 32) => Self::One,
            _ => Self::Narrow,
        }
    }

    fn name(self, form: Form) -> &'static str {
        match (self, form) {
            (Self::Plain, _) => "f32",
            (Self::Wide, _) => "bf16_n3",
            (Self::One, Form::F16) => "f16_one",
            (Self::One, Form::Int8) => "int8_one",
            (Self::One, _) => "bf16_one",
            (Self::Narrow, Form::F16) => "f16_n1",
            (Self::Narrow, Form::Int8) => "int8_n1",
            (Self::Narrow, _) => "bf16_n1",
        }
    }

    /// Rows of the input that a block takes.
    fn group_rows(self, form: Form) -> usize {
        if self == Self::Narrow && form.columns() > 1 { NARROW_ROWS } else { GROUP_ROWS }
    }

    /// Most warps of a block: what `matvec.cu` says.
    fn most_warps(self, group: usize) -> usize {
        match self {
            Self::One => 20,
            Self::Narrow if matches!(group, 16 | 32) => 10,
            Self::Plain | Self::Narrow => 16,
            Self::Wide => 6,
        }
    }

    /// Registers of a thread, of nearly all formats, as ptxas reports them for sm_90a, rounded up as they
    /// are given out.
    fn registers(self, group: usize) -> usize {
        match self {
            Self::One => 48,
            Self::Narrow if group == 0 => 40,
            Self::Narrow => 96,
            Self::Plain => 48,
            Self::Wide => 208,
        }
    }

    /// Bytes of a warp's memory before its ring.
    fn head_bytes(self, stage: &Stage) -> usize {
        match self {
            Self::Plain => 0,
            _ if stage.group == 0 => 0,
            Self::One => ZERO_BYTES + CONSTANT_BYTES,
            Self::Narrow | Self::Wide => stage.table_bytes + CONSTANT_BYTES,
        }
    }

    /// Bytes of a column's activations, and their scales, in a stage.
    fn column_bytes(self, form: Form, k: usize) -> usize {
        let scales = if form == Form::Int8 { k / 32 * size_of::<f32>() } else { 0 };
        match self {
            Self::Plain => 4 * k,
            Self::One => 2 * k + scales,
            // An odd number of 16 byte units: so the same unit of eight columns lies in different banks.
            Self::Narrow | Self::Wide => (((2 * k + scales) / 16) | 1) * 16,
        }
    }
}

/// What a launch needs.
struct Room<'a> {
    /// Bytes of a stage with its activations, and of what a warp has before its ring.
    slot: usize,
    head: usize,
    columns: usize,
    slices: usize,
    matrices: usize,
    /// Most stages of a slice.
    slice_stages: usize,
    /// Most warps of a block.
    most_warps: usize,
    /// Registers of a thread.
    registers: usize,
    /// Blocks of the grid.
    blocks: usize,
    /// The device.
    facts: &'a Facts,
}

/// How its blocks use shared memory.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Warps that share a tile's slices.
    team: usize,
    /// Stages of a warp's ring.
    ring: usize,
    warp_bytes: usize,
    partial: usize,
    partial_stride: usize,
    bytes: usize,
}

impl Room<'_> {
    /// The plan that keeps most warps of a multiprocessor at work; of those that are alike in this, one
    /// whose blocks all run at once, with the longest rings, slices that are shared out evenly, and the
    /// most warps a block.
    fn plan(&self) -> Plan {
        let most = self.slices.min(self.most_warps / self.matrices).max(1);
        let plans = (1..=most).flat_map(|team| {
            let stages = self.slice_stages * self.slices.div_ceil(team);
            let longest = stages.clamp(1, MAX_RING);
            (longest.min(2)..=longest).map(move |ring| self.lay_out(team, ring))
        });
        let fits = |plan: &Plan| self.resident_blocks(plan) > 0;
        let worth = |plan: &Plan| {
            let rounds = self.slices.div_ceil(plan.team);
            // A warp does nothing while its first stage is on its way, as long as a stage takes.
            let stages = self.slice_stages * rounds;
            let warps = self.warps_at_work(plan).min(BUSY_WARPS) * stages / (stages + 1);
            let even = Reverse(rounds * plan.team - self.slices);
            (warps, self.waves(plan) == 1, plan.ring, even, plan.team)
        };
        // Where none fits, the smallest: the device's error then says what is lacking.
        plans
            .filter(fits)
            .max_by_key(worth)
            .unwrap_or_else(|| self.lay_out(1, (self.slices * self.slice_stages).clamp(1, 2)))
    }

    /// Blocks that a multiprocessor runs at once.
    fn resident_blocks(&self, plan: &Plan) -> usize {
        if plan.bytes > self.facts.shared_memory as usize {
            return 0;
        }
        let shared =
            self.facts.multiprocessor_shared_memory as usize / (plan.bytes + RESERVED_BYTES);
        let warps = plan.team * self.matrices;
        shared
            .min(RESIDENT_BLOCKS)
            .min(RESIDENT_WARPS / warps)
            .min(REGISTERS / (32 * self.registers * warps))
    }

    /// How often the device fills with blocks.
    fn waves(&self, plan: &Plan) -> usize {
        let at_once = self.resident_blocks(plan) * self.facts.multiprocessors.max(1) as usize;
        self.blocks.div_ceil(at_once.max(1)).max(1)
    }

    /// Warps at work on a multiprocessor, on the average of the launch: neither are the ones that wait
    /// for a block's longest, nor those that the last wave lacks.
    fn warps_at_work(&self, plan: &Plan) -> usize {
        let rounds = self.slices.div_ceil(plan.team);
        let work = self.blocks * self.slices * self.matrices;
        work / (rounds * self.waves(plan) * self.facts.multiprocessors.max(1) as usize).max(1)
    }

    fn warp_bytes(&self, ring: usize) -> usize {
        self.head + ring * self.slot
    }

    fn lay_out(&self, team: usize, ring: usize) -> Plan {
        let warp_bytes = self.warp_bytes(ring);
        let rings = warp_bytes * team * self.matrices;
        let partial = self.columns * TILE_ROWS * size_of::<f32>();
        // A warp with one slice is done with its ring's planes when it has the slice's sums.
        let planes = self.head + BARRIER_BYTES;
        let room = warp_bytes.saturating_sub(planes);
        let (partial, partial_stride, more) = if team == self.slices && partial <= room {
            (planes, warp_bytes, 0)
        } else {
            (rings, partial, partial * self.slices * self.matrices)
        };
        Plan { team, ring, warp_bytes, partial, partial_stride, bytes: rings + more }
    }
}

#[cfg(test)]
mod tests;
