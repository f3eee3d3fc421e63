//! Which sequences run in the next step, and with how many rows.
//!
//! Decode rows come first: they are few, and someone waits for each. What remains of the step's token
//! budget goes to prompts in the order of their arrival, cut into chunks.

use std::collections::VecDeque;

use realm_core::backend::Role;

use crate::{
    attention::BlockTable,
    engine::{Request, SequenceId},
    kv_cache::BlockAllocator,
    steps::UnderWay,
};

/// A sequence on its way.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) request: Request,
    /// Prompt and what was generated.
    pub(crate) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache when the steps under way are done.
    pub(crate) cached: usize,
    /// Tokens that the steps under way choose: they follow `tokens`.
    pub(crate) choosing: usize,
    /// The output row of the last step under way that chooses one.
    pub(crate) output: u32,
    pub(crate) table: BlockTable,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, request: Request) -> Self {
        let tokens = request.prompt.clone();
        let table = BlockTable::default();
        Self { id, request, tokens, cached: 0, choosing: 0, output: 0, table }
    }

    /// Tokens that it may come to hold in the cache. The last generated one never enters it.
    fn most_cached(&self) -> usize {
        self.request.prompt.len() + self.request.max_tokens.saturating_sub(1)
    }

    fn role(&self) -> Role {
        if self.cached < self.request.prompt.len() { Role::Prefill } else { Role::Decode }
    }

    /// Rows that wait to be computed; none where the steps under way choose its last token.
    fn due(&self) -> usize {
        if self.generated() + self.choosing >= self.request.max_tokens {
            return 0;
        }
        self.tokens.len() + self.choosing - self.cached
    }

    /// Tokens generated so far.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }
}

/// Rows of one running sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Position in [`Scheduler::running`].
    pub(crate) sequence: usize,
    pub(crate) rows: usize,
    pub(crate) role: Role,
}

/// Waiting and running sequences.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Sequence>,
    pub(crate) running: Vec<Sequence>,
    /// Most rows of a step.
    pub(crate) tokens: usize,
    /// Most sequences of a step.
    pub(crate) sequences: usize,
    /// Tokens a KV block.
    pub(crate) block_tokens: usize,
    pub(crate) blocks: BlockAllocator,
}

impl Scheduler {
    pub(crate) fn new(tokens: usize, sequences: usize, block_tokens: usize, blocks: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            tokens,
            sequences,
            block_tokens,
            blocks: BlockAllocator::new(blocks),
        }
    }

    pub(crate) fn submit(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// A running sequence.
    pub(crate) fn find(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|sequence| sequence.id == id)
    }

    /// Takes out a sequence that waits; `false` where it does not.
    pub(crate) fn unqueue(&mut self, id: SequenceId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|sequence| sequence.id != id);
        self.waiting.len() < before
    }

    /// Takes out a sequence that runs; `false` where it does not. Its blocks are free again, but where
    /// the step under way still writes to them, when that is done.
    pub(crate) fn end(&mut self, id: SequenceId, under_way: Option<&mut UnderWay>) -> bool {
        let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else {
            return false;
        };
        let mut table = self.running.remove(at).table;
        match under_way {
            Some(step) if step.computes(id) => step.hold(table),
            _ => table.release(&mut self.blocks),
        }
        true
    }

    /// Lets waiting sequences in, first come first served, while blocks for all their tokens are free:
    /// a running sequence never lacks a block.
    fn admit(&mut self) {
        while self.running.len() < self.sequences
            && let Some(mut next) = self.waiting.pop_front()
        {
            if !next.table.grow(next.most_cached(), self.block_tokens, &mut self.blocks) {
                self.waiting.push_front(next);
                return;
            }
            self.running.push(next);
        }
    }

    /// The next step's rows: decoding sequences, then chunks of prompts.
    pub(crate) fn plan(&mut self) -> Vec<Share> {
        self.admit();
        let mut left = self.tokens;
        let mut shares = Vec::new();
        for role in [Role::Decode, Role::Prefill] {
            for (at, sequence) in self.running.iter().enumerate() {
                let rows = sequence.due().min(left);
                if rows == 0 || sequence.role() != role {
                    continue;
                }
                left -= rows;
                shares.push(Share { sequence: at, rows, role });
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingParams;

    fn request(prompt: usize, max_tokens: usize) -> Request {
        Request {
            prompt: vec![1; prompt],
            max_tokens,
            sampling: SamplingParams::GREEDY,
            stop_tokens: vec![],
        }
    }

    #[test]
    fn decode_comes_first_and_prompts_are_cut() {
        let mut scheduler = Scheduler::new(10, 4, 4, 100);
        scheduler.submit(Sequence::new(SequenceId(0), request(25, 5)));
        scheduler.submit(Sequence::new(SequenceId(1), request(3, 5)));
        let share = |sequence, rows, role| Share { sequence, rows, role };
        assert_eq!(scheduler.plan(), [share(0, 10, Role::Prefill)]);
        scheduler.running[0].cached = 20;
        assert_eq!(scheduler.plan(), [share(0, 5, Role::Prefill), share(1, 3, Role::Prefill)]);
        scheduler.running[1].cached = 3;
        scheduler.running[1].tokens.push(7);
        assert_eq!(scheduler.plan(), [share(1, 1, Role::Decode), share(0, 5, Role::Prefill)]);
    }

    #[test]
    fn a_sequence_waits_until_all_its_blocks_are_free() {
        let mut scheduler = Scheduler::new(10, 4, 4, 5);
        // 8 + 5 − 1 tokens take three blocks of four.
        scheduler.submit(Sequence::new(SequenceId(0), request(8, 5)));
        scheduler.submit(Sequence::new(SequenceId(1), request(8, 5)));
        scheduler.submit(Sequence::new(SequenceId(2), request(1, 1)));
        scheduler.plan();
        assert_eq!(scheduler.running.len(), 1);
        assert_eq!(scheduler.blocks.free(), 2);
        assert!(scheduler.end(SequenceId(0), None));
        scheduler.plan();
        assert_eq!(scheduler.running.len(), 2);
        assert!(scheduler.end(SequenceId(1), None) && scheduler.end(SequenceId(2), None));
        assert!(!scheduler.end(SequenceId(2), None));
        assert!(scheduler.is_idle());
        assert_eq!(scheduler.blocks.free(), 5);
    }

    #[test]
    fn rows_of_tokens_under_way_are_planned_up_to_the_last() {
        let mut scheduler = Scheduler::new(10, 4, 4, 100);
        scheduler.submit(Sequence::new(SequenceId(0), request(3, 2)));
        let share = |rows, role| Share { sequence: 0, rows, role };
        assert_eq!(scheduler.plan(), [share(3, Role::Prefill)]);
        (scheduler.running[0].cached, scheduler.running[0].choosing) = (3, 1);
        assert_eq!(scheduler.plan(), [share(1, Role::Decode)]);
        // The second token, the last one, is under way.
        (scheduler.running[0].cached, scheduler.running[0].choosing) = (4, 2);
        assert_eq!(scheduler.plan(), []);
    }

    #[test]
    fn a_waiting_sequence_can_be_taken_out() {
        let mut scheduler = Scheduler::new(10, 1, 4, 100);
        scheduler.submit(Sequence::new(SequenceId(0), request(3, 2)));
        scheduler.submit(Sequence::new(SequenceId(1), request(3, 2)));
        scheduler.plan();
        assert!(scheduler.unqueue(SequenceId(1)) && !scheduler.unqueue(SequenceId(1)));
        assert!(!scheduler.unqueue(SequenceId(0)));
    }
}
