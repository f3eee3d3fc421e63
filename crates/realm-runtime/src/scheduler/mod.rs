//! Which sequences run in the next step, and with how many rows.
//!
//! Single decode rows are served first: they are few, and someone waits for each. What remains of the
//! step's token budget goes to chunks in the order of arrival: parts of prompts, and what was generated
//! by a sequence that lost its cache blocks.
//!
//! Blocks are taken as a sequence grows. Where none is left the youngest running sequence makes room
//! ([`preempt`]); if that is the one that lacks them, it stands still instead. Sequences that made room
//! come back before any that waits, in the order of arrival ([`admission`]). So those that run arrived
//! before those that made room, and these before those that wait.
//!
//! **Everything comes to an end.** While the oldest sequence runs it has at least one row in each step
//! that nothing precedes: there are no more running sequences than a step has rows, so that the single
//! rows of the others leave one; and all blocks but its own can be freed for it, which are enough, as no
//! sequence is longer than the pool. Where nothing runs, the oldest of the others finds all blocks free
//! and comes in. It has finitely many rows, hence it ends; then there is another oldest one.

mod admission;
mod preempt;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use realm_core::backend::{KvPool, KvSpec, Limits, Role};

use crate::{SequenceId, kv_cache::BlockAllocator, steps::UnderWay};

pub(crate) use sequence::Sequence;

/// Rows of one running sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) sequence: SequenceId,
    pub(crate) rows: usize,
    pub(crate) role: Role,
}

/// Sums since the engine was made.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_prompt_tokens: u64,
    pub(crate) swapped_out: u64,
    pub(crate) dropped: u64,
    pub(crate) failed_swaps: u64,
}

/// What the scheduler keeps to beside a step's limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Host memory for swapped-out blocks.
    pub(crate) swap_bytes: u64,
    /// Share the blocks of prompts that begin alike.
    pub(crate) prefix_cache: bool,
}

/// Waiting and running sequences. All maps are in the order of arrival.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: BTreeMap<SequenceId, Sequence>,
    running: BTreeMap<SequenceId, Sequence>,
    /// Those that made room for others.
    preempted: BTreeMap<SequenceId, Sequence>,
    /// Most rows of a step, at least as many as sequences.
    tokens: usize,
    /// Most sequences of a step.
    sequences: usize,
    rules: Rules,
    /// Tokens a KV block.
    pub(crate) block_tokens: usize,
    /// Bytes of a KV block.
    block_bytes: u64,
    pub(crate) blocks: BlockAllocator,
    /// Bytes of swapped-out blocks.
    swapped: u64,
    counts: Counts,
}

/// The next step is started only when nothing is under way: blocks have to be moved.
#[derive(Debug, PartialEq, Eq)]
struct NotNow;

impl Scheduler {
    pub(crate) fn new(limits: Limits, kv: &KvSpec, rules: Rules) -> Self {
        Self {
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            preempted: BTreeMap::new(),
            tokens: limits.tokens.max(limits.sequences),
            sequences: limits.sequences,
            rules,
            block_tokens: kv.block_tokens,
            block_bytes: kv.block_bytes().map_or(u64::MAX, |bytes| bytes as u64),
            blocks: BlockAllocator::new(kv.blocks),
            swapped: 0,
            counts: Counts::default(),
        }
    }

    pub(crate) fn submit(&mut self, sequence: Sequence) {
        self.waiting.insert(sequence.id, sequence);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.sequences() == 0
    }

    /// Sequences that run, wait, or made room.
    pub(crate) fn sequences(&self) -> usize {
        self.waiting.len() + self.running.len() + self.preempted.len()
    }

    /// Sequences that wait, that run, and that made room.
    pub(crate) fn numbers(&self) -> [usize; 3] {
        [self.waiting.len(), self.running.len(), self.preempted.len()]
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes of swapped-out blocks.
    pub(crate) fn swapped_bytes(&self) -> u64 {
        self.swapped
    }

    /// A running sequence.
    pub(crate) fn find(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.get_mut(&id)
    }

    /// A running sequence.
    pub(crate) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.get(&id)
    }

    /// Takes out a sequence that waits or made room; `false` where it does neither.
    pub(crate) fn unqueue(&mut self, id: SequenceId) -> bool {
        if let Some(mut sequence) = self.preempted.remove(&id) {
            self.forget_swapped(&mut sequence);
            return true;
        }
        self.waiting.remove(&id).is_some()
    }

    /// Takes out a sequence that runs; `false` where it does not. Its blocks are free again, but where
    /// the step under way still writes to them, when that is done.
    pub(crate) fn end(&mut self, id: SequenceId, under_way: Option<&mut UnderWay>) -> bool {
        let Some(Sequence { mut table, .. }) = self.running.remove(&id) else { return false };
        match under_way {
            Some(step) if step.computes(id) => step.hold(table),
            _ => table.release(&mut self.blocks),
        }
        true
    }

    /// Forgets all keys and values: every sequence that had some computes its tokens again, and none finds
    /// what another one computed. No step is under way.
    pub(crate) fn restart(&mut self) {
        self.preempted.append(&mut self.running);
        for sequence in self.preempted.values_mut() {
            sequence.lose(&mut self.blocks);
        }
        self.swapped = 0;
        debug_assert_eq!(self.blocks.free(), self.blocks.len(), "a block is still held");
        self.blocks = BlockAllocator::new(self.blocks.len());
    }

    /// The first `computed` tokens of a running sequence are in its cache blocks for good.
    pub(crate) fn computed(&mut self, id: SequenceId, computed: usize) {
        if let Some(sequence) = self.running.get_mut(&id).filter(|_| self.rules.prefix_cache) {
            sequence.register(computed, self.block_tokens, &mut self.blocks);
        }
    }

    /// The next step's rows: those that are a decode, then those of prompts. `quiet` says that no step is under way;
    /// otherwise no block's contents may be moved, and where that is needed there are no rows.
    pub(crate) fn plan(&mut self, quiet: bool, pool: &dyn KvPool) -> Vec<Share> {
        let mut left = self.tokens;
        let mut shares = self.rows(&mut left);
        let planned = match self.take_blocks(&mut shares, quiet, pool) {
            Ok(false) => self.admit(&mut shares, &mut left, quiet, pool),
            // Some sequence lacks blocks: the next ones must not take them away.
            Ok(true) => Ok(()),
            Err(NotNow) => Err(NotNow),
        };
        if planned.is_err() {
            return Vec::new();
        }
        // A stable sort keeps the order of arrival.
        shares.sort_by_key(|share| share.role == Role::Prefill);
        shares
    }

    /// Rows of the running sequences in the order of arrival, whatever blocks they need.
    fn rows(&self, left: &mut usize) -> Vec<Share> {
        let mut shares = Vec::with_capacity(self.running.len());
        let single = |share: &Share| share.role == Role::Decode && share.rows == 1;
        for sequence in self.running.values() {
            let (rows, role) = (sequence.due(), sequence.role());
            if rows > 0 {
                shares.push(Share { sequence: sequence.id, rows, role });
            }
        }
        *left -= shares.iter().filter(|share| single(share)).count();
        for share in shares.iter_mut().filter(|share| !single(share)) {
            share.rows = share.rows.min(*left);
            *left -= share.rows;
        }
        shares.retain(|share| share.rows > 0);
        shares
    }
}
