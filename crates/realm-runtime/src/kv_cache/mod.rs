//! Who holds which blocks of the KV cache.
//!
//! A block that prompts filled to its end may be found again by sequences that begin alike
//! ([`BlockAllocator::find`]) and is then shared. Nobody writes to such a block: a sequence writes only
//! behind the tokens that it has, hence to blocks that it took itself and that are not full. So no block
//! has to be copied before it is written.

mod prefix;

use std::collections::BTreeMap;

use realm_core::backend::BlockId;

use prefix::PrefixCache;
pub use prefix::PrefixId;

/// Hands out the blocks of a KV pool. A block may be shared; when its last holder lets go it is free
/// again, or, where it can be found again, kept until it is needed.
#[derive(Debug)]
pub struct BlockAllocator {
    /// Free blocks; the last one is handed out next, so that used memory stays small and warm.
    free: Vec<BlockId>,
    /// Holders of each block.
    holders: Vec<u32>,
    prefixes: PrefixCache,
    /// Blocks that nobody holds and that can be found again, by when they were let go.
    idle: BTreeMap<u64, BlockId>,
    /// When each of them was let go.
    since: Vec<u64>,
    clock: u64,
}

impl BlockAllocator {
    /// All of `blocks` blocks are free.
    pub fn new(blocks: usize) -> Self {
        Self {
            free: (0..blocks as u32).rev().map(BlockId).collect(),
            holders: vec![0; blocks],
            prefixes: PrefixCache::default(),
            idle: BTreeMap::new(),
            since: vec![0; blocks],
            clock: 0,
        }
    }

    /// Blocks in all.
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    /// Whether there is no block at all.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Blocks that nobody holds: those that [`BlockAllocator::take`] can give.
    pub fn free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Those of them that can be found again.
    pub fn cached(&self) -> usize {
        self.idle.len()
    }

    /// A block that nobody else holds; `None` where all are taken. Blocks that can be found again go
    /// last, those first that were let go first.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.idle.pop_first()?;
                self.prefixes.forget(block);
                block
            }
        };
        self.holders[block.0 as usize] = 1;
        Some(block)
    }

    /// One more holder of a block that is held, or that was found.
    pub fn share(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.0 as usize];
        if *holders == 0 {
            let idle = self.idle.remove(&self.since[block.0 as usize]);
            debug_assert_eq!(idle, Some(block), "{block:?} is free");
        }
        *holders += 1;
    }

    /// One holder less.
    pub fn release(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.0 as usize];
        debug_assert!(*holders > 0, "{block:?} is free already");
        *holders = holders.saturating_sub(1);
        if *holders > 0 {
            return;
        }
        if self.prefixes.knows(block) {
            self.clock += 1;
            self.since[block.0 as usize] = self.clock;
            self.idle.insert(self.clock, block);
        } else {
            self.free.push(block);
        }
    }

    /// The block that holds `tokens` behind the prefix `before`, and the prefix that ends with it. All
    /// tokens are compared. The caller takes hold of it with [`BlockAllocator::share`].
    pub fn find(&self, before: PrefixId, tokens: &[u32]) -> Option<(BlockId, PrefixId)> {
        self.prefixes.find(before, tokens)
    }

    /// Lets a held block be found again: it is full of `tokens` behind the prefix `before`, and its
    /// contents are computed. Gives the prefix that ends with it. Where another block holds the same,
    /// that one is found as before.
    pub fn register(&mut self, block: BlockId, before: PrefixId, tokens: &[u32]) -> PrefixId {
        debug_assert!(self.holders[block.0 as usize] > 0, "{block:?} is free");
        self.prefixes.insert(block, before, tokens)
    }
}

#[cfg(test)]
mod tests;
