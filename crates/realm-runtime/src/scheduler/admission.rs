//! Letting sequences in: those that made room first, then those that wait, each in the order of arrival.

use realm_core::backend::KvPool;

use super::{NotNow, Scheduler, Sequence, Share};

impl Scheduler {
    /// Lets sequences in while there are places, rows and blocks. Beside what a sequence needs at once, a
    /// block for each running one that still grows stays free: otherwise they would push it out again at
    /// once.
    pub(super) fn admit(
        &mut self,
        shares: &mut Vec<Share>,
        left: &mut usize,
        quiet: bool,
        pool: &dyn KvPool,
    ) -> Result<(), NotNow> {
        let block_tokens = self.block_tokens;
        let grows = |sequence: &Sequence| usize::from(sequence.grows(block_tokens));
        let mut kept = self.running.values().map(grows).sum();
        while self.running.len() < self.sequences && *left > 0 {
            let again = !self.preempted.is_empty();
            let queue = if again { &mut self.preempted } else { &mut self.waiting };
            let Some((id, mut sequence)) = queue.pop_first() else { break };
            let entered = self.enter(&mut sequence, again, (*left, kept), (quiet, pool));
            let rows = *entered.as_ref().unwrap_or(&0);
            if rows == 0 {
                let queue = if again { &mut self.preempted } else { &mut self.waiting };
                queue.insert(id, sequence);
                return entered.map(|_| ());
            }
            *left -= rows;
            kept += grows(&sequence);
            shares.push(Share { sequence: id, rows, role: sequence.role() });
            self.running.insert(id, sequence);
        }
        Ok(())
    }

    /// Gives a sequence the blocks that it needs to run, and its number of rows, of `left`; none where
    /// too few blocks are free beside the `kept` ones. `again` says that it ran before.
    fn enter(
        &mut self,
        sequence: &mut Sequence,
        again: bool,
        (left, kept): (usize, usize),
        (quiet, pool): (bool, &dyn KvPool),
    ) -> Result<usize, NotNow> {
        let free = self.blocks.free();
        let room = free.saturating_sub(kept);
        if sequence.swapped.is_some() {
            return self.swap_in(sequence, (left, room), quiet, pool);
        }
        if room == 0 {
            return Ok(0);
        }
        let reused = match self.rules.prefix_cache {
            true => sequence.share_prefix(self.block_tokens, &mut self.blocks),
            false => 0,
        };
        // Idle blocks that are shared now are not free any more.
        let room = room.saturating_sub(free - self.blocks.free());
        let rows = sequence.due().min(left);
        let tokens = sequence.cached + rows;
        // One that lost its blocks comes back with room for all that it had, so that it does not lose
        // them once more on the way.
        let wanted = tokens.max(sequence.lost).div_ceil(self.block_tokens);
        let fits = wanted - sequence.table.blocks().len() <= room
            && sequence.table.grow(tokens, self.block_tokens, &mut self.blocks);
        if !fits {
            sequence.drop_cache(&mut self.blocks);
            return Ok(0);
        }
        self.counts.prompt_tokens += if again { 0 } else { sequence.prompt as u64 };
        self.counts.cached_prompt_tokens += reused as u64;
        tracing::debug!(sequence = sequence.id.0, reused, again, "admitted");
        Ok(rows)
    }
}
