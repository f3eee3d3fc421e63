//! A sequence on its way, and what of it waits to be computed.

use realm_core::backend::Role;

use crate::{
    Request, SamplingParams, SequenceId,
    attention::BlockTable,
    kv_cache::{BlockAllocator, PrefixId},
    sampler::Said,
};

/// A sequence on its way.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) max_tokens: usize,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Prompt and what was generated.
    pub(crate) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache when the steps under way are done.
    pub(crate) cached: usize,
    /// Tokens that the steps under way choose: they follow `tokens`.
    pub(crate) choosing: usize,
    /// The output row of the last step under way that chooses one.
    pub(crate) output: u32,
    /// Its blocks; they cover `cached` tokens, but where those are swapped out.
    pub(crate) table: BlockTable,
    /// Tokens that the cache held before its blocks were dropped.
    pub(super) lost: usize,
    /// The contents of its blocks while it has none.
    pub(crate) swapped: Option<Vec<u8>>,
    /// What the penalties ask about, once they asked.
    said: Option<Said>,
    /// The tokens are chosen on the host.
    pub(crate) on_host: bool,
    /// Blocks that can be found again, and the beginning that they make.
    registered: usize,
    prefix: PrefixId,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, request: Request) -> Self {
        let Request { prompt, max_tokens, sampling, stop_tokens, logprobs } = request;
        Self {
            id,
            on_host: sampling.on_host(),
            sampling,
            stop_tokens,
            logprobs,
            max_tokens,
            prompt: prompt.len(),
            tokens: prompt,
            cached: 0,
            choosing: 0,
            output: 0,
            table: BlockTable::default(),
            lost: 0,
            swapped: None,
            said: None,
            registered: 0,
            prefix: PrefixId::EMPTY,
        }
    }

    /// Why its next rows are computed: prompts as a prefill, what was generated as a decode, also where
    /// it is computed again.
    pub(super) fn role(&self) -> Role {
        if self.cached < self.prompt { Role::Prefill } else { Role::Decode }
    }

    /// Rows that wait to be computed; none where the steps under way choose its last token, or one that
    /// only the host can tell.
    fn waiting(&self) -> usize {
        let unknown = self.on_host && self.choosing > 0;
        if unknown || self.generated() + self.choosing >= self.max_tokens {
            return 0;
        }
        self.tokens.len() + self.choosing - self.cached
    }

    /// Those of them that a step may hold: they have one role.
    pub(super) fn due(&self) -> usize {
        match self.role() {
            Role::Prefill => self.waiting().min(self.prompt - self.cached),
            Role::Decode => self.waiting(),
        }
    }

    /// Whether it may come to need more blocks than it has. The last generated token never enters the
    /// cache.
    pub(super) fn grows(&self, block_tokens: usize) -> bool {
        let most = self.prompt + self.max_tokens.saturating_sub(1);
        most > self.table.blocks().len() * block_tokens
    }

    /// Tokens generated so far.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Adds the token that a step chose.
    pub(crate) fn push(&mut self, token: u32) {
        self.choosing -= 1;
        self.tokens.push(token);
        if let Some(said) = &mut self.said {
            said.add(token);
        }
    }

    /// Counts what the penalties ask about, where they do and it is not counted yet: on first use, so
    /// that waiting sequences need no memory for it.
    pub(crate) fn count_said(&mut self) {
        if self.said.is_none() && self.sampling.penalizes() {
            self.said = Some(Said::new(&self.tokens, self.prompt));
        }
    }

    /// What was counted.
    pub(crate) fn said(&self) -> Option<&Said> {
        self.said.as_ref()
    }

    /// Shares the blocks that hold its beginning already. At least the prompt's last token is left to be
    /// computed: its row chooses the next one. Gives the number of tokens.
    pub(super) fn share_prefix(
        &mut self,
        block_tokens: usize,
        blocks: &mut BlockAllocator,
    ) -> usize {
        debug_assert!(self.cached == 0 && self.table.blocks().is_empty());
        let whole = (self.prompt - 1) / block_tokens;
        for tokens in self.tokens.chunks_exact(block_tokens).take(whole) {
            let Some((block, prefix)) = blocks.find(self.prefix, tokens) else { break };
            self.table.share(block, blocks);
            self.prefix = prefix;
            self.registered += 1;
        }
        self.cached = self.registered * block_tokens;
        self.cached
    }

    /// Lets others find the blocks of its first `computed` tokens that are full of prompt: a prefill
    /// made them. What a decode made is never shared.
    pub(super) fn register(
        &mut self,
        computed: usize,
        block_tokens: usize,
        blocks: &mut BlockAllocator,
    ) {
        let full = computed.min(self.prompt) / block_tokens;
        while self.registered < full {
            let at = self.registered;
            let tokens = &self.tokens[at * block_tokens..][..block_tokens];
            self.prefix = blocks.register(self.table.blocks()[at], self.prefix, tokens);
            self.registered += 1;
        }
    }

    /// The same for one that ran: it comes back when there is room for all that it had.
    pub(super) fn lose(&mut self, blocks: &mut BlockAllocator) {
        self.lost = self.lost.max(self.cached);
        self.drop_cache(blocks);
    }

    /// Gives its blocks back and forgets what they held: its tokens are to be computed again.
    pub(super) fn drop_cache(&mut self, blocks: &mut BlockAllocator) {
        self.table.release(blocks);
        self.swapped = None;
        (self.cached, self.registered, self.prefix) = (0, 0, PrefixId::EMPTY);
    }
}
