//! Which kernel a product takes, and how its work is cut into blocks.

use realm_core::{DType, graph::WeightInfo};

use super::BLOCK_TILES;
use crate::cuda::{
    gpu::Facts,
    planes::{Layout, Stage},
};

/// Bytes of partial sums that are enough for any split.
pub(crate) const SCRATCH_BYTES: usize = 16 << 20;
/// Counters that are: one for each block that adds the parts.
pub(crate) const COUNTERS: usize = 4096;

/// Most rows with which k is split: the weights then take longer to arrive than to be multiplied.
const SPLIT_ROWS: usize = 64;
/// Fewest stages of a split, about: each costs a block's start, and its sums' way through memory.
const SPLIT_STAGES: usize = 2;
/// Cycles that a block decodes 16 k, and bytes that the L2 gives each multiprocessor in a cycle while all
/// ask; both about.
const DECODING: usize = 70;
const L2_BYTES: usize = 28;
/// Bytes of shared memory of a multiprocessor with wgmma, and what each of its blocks takes for itself.
const HOPPER_BYTES: usize = 228 * 1024;
const RESERVED_BYTES: usize = 1024;
/// Bytes of barriers in a block with wgmma.
const BARRIER_BYTES: usize = 256;

/// What is to be computed.
#[derive(Debug, Clone)]
pub(super) struct Problem<'a> {
    pub(super) dtype: DType,
    pub(super) k: usize,
    /// Rows of the input, and how many experts share them.
    pub(super) rows: usize,
    pub(super) experts: Option<usize>,
    /// Blocks of weight rows.
    pub(super) blocks: usize,
    /// Whether k may be split, and bytes of memory for the parts' sums.
    pub(super) may_split: bool,
    pub(super) scratch: usize,
    pub(super) facts: &'a Facts,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) wgmma: bool,
    /// Rows of the input that a block takes.
    pub(super) n: usize,
    /// Splits of k, and stages of each but the last.
    pub(super) splits: usize,
    pub(super) split_stages: usize,
}

/// The plan that takes the least time, by a rough estimate. A row's bits are the same in all that split k
/// alike.
pub(super) fn choose(problem: &Problem<'_>) -> Plan {
    let sizes: &[usize] = if problem.facts.wgmma { &[32, 64, 128, 256] } else { &[32, 128] };
    let unsplit =
        |n: usize| Plan { wgmma: problem.facts.wgmma, n, splits: 1, split_stages: stages(problem) };
    if problem.may_split && problem.rows <= SPLIT_ROWS && problem.experts.is_none() {
        let few = |&&n: &&usize| n >= problem.rows && n <= SPLIT_ROWS;
        let plan = split(problem, unsplit(sizes.iter().find(few).copied().unwrap_or(32)));
        if plan.splits > 1 {
            return plan;
        }
    }
    let plans = sizes.iter().map(|&n| unsplit(n));
    plans.min_by_key(|plan| time(problem, plan)).unwrap_or_else(|| unsplit(32))
}

/// Stages of k.
fn stages(problem: &Problem<'_>) -> usize {
    problem.k.div_ceil(Stage::of(problem.dtype).k)
}

/// Cycles of a multiprocessor, about, for each 16 k.
fn time(problem: &Problem<'_>, plan: &Plan) -> usize {
    // Products, which on Hopper take half as long; meanwhile weights are decoded, and both operands of
    // the next ones come from the L2.
    let stage = Stage::of(problem.dtype);
    let products = if plan.wgmma { plan.n } else { 2 * plan.n };
    let bytes = 16 * BLOCK_TILES * stage.bytes / stage.k + 2 * 16 * plan.n;
    let block = products.max(DECODING).max(bytes / L2_BYTES) + 16;
    let blocks = plan.groups(problem.rows, problem.experts) * problem.blocks;
    blocks.div_ceil(problem.facts.multiprocessors.max(1) as usize) * block
}

/// Splits k into as many parts as keep a device busy: two blocks a multiprocessor. Their number depends
/// on the weight's shape, the device and the memory.
fn split(problem: &Problem<'_>, plan: Plan) -> Plan {
    let stages = stages(problem);
    let groups = plan.groups(problem.rows, None);
    let (adders, enough) = (problem.blocks * groups, 2 * problem.facts.multiprocessors as usize);
    let room = problem.scratch / (plan.partial_bytes() * adders).max(1);
    let splits = (enough / problem.blocks.max(1)).min(stages / SPLIT_STAGES).min(room);
    if splits < 2 || adders > COUNTERS {
        return plan;
    }
    let split_stages = stages.div_ceil(splits);
    Plan { splits: stages.div_ceil(split_stages), split_stages, ..plan }
}

impl Plan {
    /// Groups of rows, at most: each expert's last one may be part of a group.
    pub(super) fn groups(&self, rows: usize, experts: Option<usize>) -> usize {
        match experts {
            None => rows.div_ceil(self.n),
            Some(experts) => rows / self.n + experts.min(rows),
        }
    }

    /// Bytes of a block's sums.
    fn partial_bytes(&self) -> usize {
        16 * BLOCK_TILES * self.n * size_of::<f32>()
    }

    /// Threads of a block.
    pub(super) fn threads(&self) -> usize {
        match (self.wgmma, self.n) {
            (false, _) => 128,
            (true, 256) => 384,
            (true, _) => 288,
        }
    }

    /// Bytes of shared memory of a block: `MmaRun` in `matmul_mma.cuh`, `WgmmaPlan` in
    /// `matmul_wgmma.cuh`.
    pub(super) fn shared(&self, weight: &WeightInfo) -> usize {
        if self.wgmma { self.wgmma_shared(weight.dtype) } else { self.mma_shared(weight) }
    }

    fn wgmma_shared(&self, dtype: DType) -> usize {
        let stage = Stage::of(dtype);
        let blocks = if self.n <= 64 { 2 } else { 1 };
        let inputs = 4 * 128 * self.n;
        let rest = inputs + BLOCK_TILES * stage.table_bytes + BARRIER_BYTES;
        let planes = BLOCK_TILES * stage.bytes;
        let room = HOPPER_BYTES / blocks - RESERVED_BYTES;
        rest + (room.saturating_sub(rest) / planes).min(6) * planes
    }

    fn mma_shared(&self, weight: &WeightInfo) -> usize {
        let (stage, layout) = (Stage::of(weight.dtype), Layout::of(weight));
        // A tile's chunk, its headers, and the table of its scales, of a stage or of a chunk.
        let (chunk, header, table) = if layout.tile_k == 64 {
            let row = (stage.table_bytes / 64).saturating_sub(4) / 4;
            (layout.tile_bytes, 0, 16 * 4 * row)
        } else {
            let bits = layout.tile_bytes * 8 / (16 * layout.tile_k);
            let chunk = 128 * bits;
            (chunk, layout.tile_bytes - layout.tile_k / 64 * chunk, stage.table_bytes)
        };
        let stages = match (stage.group, self.n) {
            (0, 32) if chunk <= 2048 => 3,
            (0, _) => 2,
            (_, 32) => 4,
            _ => 3,
        };
        stages * (128 * self.n + BLOCK_TILES * chunk) + BLOCK_TILES * (header + table)
    }
}
