//! Who holds which blocks of the KV cache.

use realm_core::backend::BlockId;

/// Hands out the blocks of a KV pool. A block may be shared; it is free again when its last holder
/// lets go.
#[derive(Debug)]
pub struct BlockAllocator {
    /// Free blocks; the last one is handed out next, so that used memory stays small and warm.
    free: Vec<BlockId>,
    /// Holders of each block.
    holders: Vec<u32>,
}

impl BlockAllocator {
    /// All of `blocks` blocks are free.
    pub fn new(blocks: usize) -> Self {
        Self { free: (0..blocks as u32).rev().map(BlockId).collect(), holders: vec![0; blocks] }
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A block that nobody else holds; `None` where all are taken.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.holders[block.0 as usize] = 1;
        Some(block)
    }

    /// One more holder of a block that is held.
    pub fn share(&mut self, block: BlockId) {
        debug_assert!(self.holders[block.0 as usize] > 0, "{block:?} is free");
        self.holders[block.0 as usize] += 1;
    }

    /// One holder less.
    pub fn release(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.0 as usize];
        debug_assert!(*holders > 0, "{block:?} is free already");
        *holders = holders.saturating_sub(1);
        if *holders == 0 {
            self.free.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_when_the_last_holder_lets_go() {
        let mut blocks = BlockAllocator::new(2);
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        assert_ne!(a, b);
        assert_eq!(blocks.take(), None);
        blocks.share(a);
        blocks.release(a);
        assert_eq!(blocks.free(), 0);
        blocks.release(a);
        assert_eq!(blocks.take(), Some(a));
        blocks.release(b);
        assert_eq!(blocks.free(), 1);
    }
}
