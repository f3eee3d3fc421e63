//! The blocks of one sequence.

use realm_core::backend::BlockId;

use crate::kv_cache::BlockAllocator;

/// The KV blocks of one sequence, in the order of its positions.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// The blocks: position `p` lies in block `p / block_tokens`, slot `p % block_tokens`.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Takes as many more blocks as `tokens` tokens need in all. Takes none where too few are free.
    #[must_use]
    pub fn grow(&mut self, tokens: usize, block_tokens: usize, free: &mut BlockAllocator) -> bool {
        let missing = tokens.div_ceil(block_tokens).saturating_sub(self.blocks.len());
        if missing > free.free() {
            return false;
        }
        self.blocks.extend((0..missing).map_while(|_| free.take()));
        true
    }

    /// Appends a block that was found: it is shared from now on.
    pub fn share(&mut self, block: BlockId, blocks: &mut BlockAllocator) {
        blocks.share(block);
        self.blocks.push(block);
    }

    /// Gives all blocks back, the last one first: a beginning is kept longer than what follows it.
    pub fn release(&mut self, free: &mut BlockAllocator) {
        for block in self.blocks.drain(..).rev() {
            free.release(block);
        }
    }
}
