//! Making room: the youngest sequence's blocks are swapped out to the host's memory or, where that is
//! used up, dropped: then its tokens are computed again, each in its role, which gives the same keys and
//! values. Either way its text stays the same.
//!
//! Blocks are moved only while no step is under way, so that none is read too early or written too late.

use realm_core::backend::KvPool;

use super::{NotNow, Scheduler, Sequence, Share};

impl Scheduler {
    /// Takes the blocks that the shares need, in the order of arrival. Where they run out the youngest
    /// sequence has as few rows as it has room for; where it has none the youngest one makes room, or
    /// stands still if it is that one itself. Whether any sequence lacked blocks.
    pub(super) fn take_blocks(
        &mut self,
        shares: &mut Vec<Share>,
        quiet: bool,
        pool: &dyn KvPool,
    ) -> Result<bool, NotNow> {
        let mut short = false;
        for at in 0..shares.len() {
            // Those behind it may have made room for it.
            while let Some(share) = shares.get_mut(at) {
                let Share { sequence: id, rows: wanted, .. } = *share;
                short |= self.shorten(share);
                let youngest = self.running.last_key_value().is_none_or(|(last, _)| *last == id);
                if share.rows > 0 || youngest {
                    break;
                }
                if !quiet {
                    return Err(NotNow);
                }
                share.rows = wanted;
                let gone = self.preempt_youngest(pool);
                shares.retain(|share| Some(share.sequence) != gone);
            }
        }
        shares.retain(|share| share.rows > 0);
        Ok(short)
    }

    /// Takes the blocks of a share and leaves it as many rows as there are blocks for; whether these are
    /// fewer.
    fn shorten(&mut self, share: &mut Share) -> bool {
        let Some(sequence) = self.running.get_mut(&share.sequence) else { return false };
        let blocks = sequence.table.blocks().len() + self.blocks.free();
        let rows = share.rows.min(blocks * self.block_tokens - sequence.cached);
        let tokens = sequence.cached + rows;
        let fits = sequence.table.grow(tokens, self.block_tokens, &mut self.blocks);
        debug_assert!(fits, "blocks were counted");
        std::mem::replace(&mut share.rows, rows) > rows
    }

    /// The youngest running sequence gives its blocks back. Which one it is.
    fn preempt_youngest(&mut self, pool: &dyn KvPool) -> Option<crate::SequenceId> {
        let (id, mut sequence) = self.running.pop_last()?;
        debug_assert_eq!(sequence.choosing, 0, "a step is under way");
        let swapped = self.swap_out(&mut sequence, pool);
        if !swapped {
            sequence.lose(&mut self.blocks);
            self.counts.dropped += 1;
        }
        let how = if swapped { "swapped out" } else { "to be computed again" };
        tracing::debug!(sequence = id.0, how, tokens = sequence.tokens.len(), "preempted");
        self.preempted.insert(id, sequence);
        Some(id)
    }

    /// Swaps a sequence's blocks out; `false` where the host's memory is used up or it failed.
    fn swap_out(&mut self, sequence: &mut Sequence, pool: &dyn KvPool) -> bool {
        let blocks = sequence.cached.div_ceil(self.block_tokens);
        let bytes = self.block_bytes.saturating_mul(blocks as u64);
        if blocks == 0 || self.swapped.saturating_add(bytes) > self.rules.swap_bytes {
            return false;
        }
        let left = self.rules.swap_bytes - self.swapped;
        let contents = match pool.swap_out(&sequence.table.blocks()[..blocks]) {
            Ok(contents) if contents.len() as u64 <= left => contents,
            // A pool may keep them in a wider type.
            Ok(_) => return false,
            Err(error) => {
                // Its tokens can be computed again.
                tracing::warn!(sequence = sequence.id.0, %error, "swapping out failed");
                self.counts.failed_swaps += 1;
                return false;
            }
        };
        self.swapped += contents.len() as u64;
        sequence.swapped = Some(contents);
        sequence.table.release(&mut self.blocks);
        self.counts.swapped_out += 1;
        true
    }

    /// Puts a sequence's contents into blocks again, where `room` has enough of them for these and the
    /// next row. Gives the rows, of `left`, that there are blocks for.
    pub(super) fn swap_in(
        &mut self,
        sequence: &mut Sequence,
        (left, room): (usize, usize),
        quiet: bool,
        pool: &dyn KvPool,
    ) -> Result<usize, NotNow> {
        let (cached, block_tokens) = (sequence.cached, self.block_tokens);
        if cached >= room * block_tokens {
            return Ok(0);
        }
        if !quiet {
            return Err(NotNow);
        }
        let rows = sequence.due().min(left).min(room * block_tokens - cached);
        let Some(contents) = sequence.swapped.as_deref() else { return Ok(0) };
        if !sequence.table.grow(cached + rows, block_tokens, &mut self.blocks) {
            return Ok(0);
        }
        let blocks = &sequence.table.blocks()[..cached.div_ceil(block_tokens)];
        let result = pool.swap_in(contents, blocks);
        self.forget_swapped(sequence);
        if let Err(error) = result {
            // The next step tells whether the device is lost; until then the tokens are computed again.
            tracing::warn!(sequence = sequence.id.0, %error, "swapping in failed");
            self.counts.failed_swaps += 1;
            sequence.lose(&mut self.blocks);
            return Ok(0);
        }
        tracing::debug!(sequence = sequence.id.0, tokens = cached, "swapped in");
        Ok(rows)
    }

    /// Frees the host memory of a sequence's contents.
    pub(super) fn forget_swapped(&mut self, sequence: &mut Sequence) {
        let bytes = sequence.swapped.take().map_or(0, |contents| contents.len() as u64);
        self.swapped -= bytes;
    }
}
