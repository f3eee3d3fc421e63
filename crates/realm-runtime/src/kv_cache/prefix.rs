//! Which full blocks hold which beginnings.

use std::{collections::HashMap, sync::Arc};

use realm_core::backend::BlockId;

/// A beginning of whole blocks, by its tokens; never used again for other tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PrefixId(u64);

impl PrefixId {
    /// The beginning without tokens.
    pub const EMPTY: Self = Self(0);
}

/// Blocks by their tokens, and the beginnings that end with them.
type Followers = HashMap<Arc<[u32]>, (BlockId, PrefixId)>;

/// The blocks that can be found by what they hold. A block's key is the beginning before it and its own
/// tokens, compared one by one, so that no two beginnings are taken for one another. A beginning whose
/// block is forgotten gets another id when it comes again; what followed it is not found any more.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    /// The blocks behind each beginning.
    behind: HashMap<PrefixId, Followers>,
    /// The key of each block.
    keys: HashMap<BlockId, (PrefixId, Arc<[u32]>)>,
    /// Ids given out.
    ids: u64,
}

impl PrefixCache {
    /// The block of `tokens` behind `before`, and the beginning that ends with it.
    pub(super) fn find(&self, before: PrefixId, tokens: &[u32]) -> Option<(BlockId, PrefixId)> {
        self.behind.get(&before)?.get(tokens).copied()
    }

    /// Whether a block can be found.
    pub(super) fn knows(&self, block: BlockId) -> bool {
        self.keys.contains_key(&block)
    }

    /// Adds a block; where the same tokens have a block already, that one stays. Gives the beginning
    /// that ends with them.
    pub(super) fn insert(&mut self, block: BlockId, before: PrefixId, tokens: &[u32]) -> PrefixId {
        if let Some((_, id)) = self.find(before, tokens) {
            return id;
        }
        debug_assert!(!self.knows(block), "{block:?} holds other tokens");
        self.ids += 1;
        let (id, tokens) = (PrefixId(self.ids), Arc::from(tokens));
        self.behind.entry(before).or_default().insert(Arc::clone(&tokens), (block, id));
        self.keys.insert(block, (before, tokens));
        id
    }

    /// Takes out a block, where it is known.
    pub(super) fn forget(&mut self, block: BlockId) {
        let Some((before, tokens)) = self.keys.remove(&block) else { return };
        if let Some(blocks) = self.behind.get_mut(&before) {
            blocks.remove(&tokens);
            if blocks.is_empty() {
                self.behind.remove(&before);
            }
        }
    }
}
