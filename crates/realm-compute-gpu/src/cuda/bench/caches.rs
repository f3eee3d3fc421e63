//! Rows of what reads and writes the KV cache.

use realm_core::{
    backend::{BackendError, KvPool, KvSpec, KvType, Precision},
    graph::{
        KvLayer, Rows,
        ops::{AttentionSpec, Mask, RopePairs},
    },
    rope::RopeFrequencies,
};
use zerocopy::IntoBytes;

use super::lab::Lab;
use crate::cuda::{
    gpu::Launch,
    kernels::{attention, flash, rope},
    kv::{CudaKvPool, KV_BLOCK_TOKENS},
    step::{Columns, Form},
};

/// Causal attention.
fn spec(heads: usize, head_dim: usize) -> AttentionSpec {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionSpec { heads, head_dim, scale, mask: Mask::CAUSAL, soft_cap: None, sinks: None }
}

impl Lab {
    /// Seconds in which `sequences` sequences attend to `context` tokens each, and the bytes of these
    /// tokens' keys and values.
    pub(super) fn attention(
        &mut self,
        kv: KvType,
        context: usize,
        sequences: usize,
    ) -> Result<(f64, usize), BackendError> {
        self.weights = None;
        let [heads, kv_heads, head_dim] = self.scale.heads;
        let row = kv.dtype().row_bytes(head_dim).unwrap_or(0);
        let bytes = 2 * sequences * context * kv_heads * row;
        let layers = self.sets(bytes);
        let blocks = sequences * context.div_ceil(KV_BLOCK_TOKENS);
        let cache = self.cache(kv, layers, blocks, head_dim)?;
        let step = self.step(sequences, context, KV_BLOCK_TOKENS, 0)?;
        let query = self.floats(sequences * heads * head_dim)?;
        let room = self.room(Form::BF16.data_bytes(sequences, heads * head_dim))?;
        let target = Columns::new(Form::BF16, heads * head_dim, room.address(), 0);
        let spec = spec(heads, head_dim);
        let splits = context.div_ceil(attention::SPLIT).max(1);
        let partials = self.room(attention::partial_bytes(&spec, sequences, splits))?;
        let count = self.scale.launches.max(layers);
        let one = |at: usize| -> Vec<Launch> {
            attention::attention(&attention::AttentionArgs {
                kv: &cache,
                layer: at % layers,
                spec: &spec,
                query: query.address(),
                sinks: None,
                view: &step.view,
                count: step.view.count(Rows::Tokens),
                rows: sequences,
                splits,
                total: sequences * splits,
                partials: partials.address(),
                partial_bytes: partials.bytes(),
                target,
            })
        };
        let launches: Vec<Launch> = (0..count).flat_map(one).collect();
        Ok((self.replayed(&launches)? / count as f64, bytes))
    }

    /// Seconds in which a prompt of `context` tokens attends to itself, causally.
    pub(super) fn prefill(&mut self, context: usize, head_dim: usize) -> Result<f64, BackendError> {
        self.weights = None;
        let [heads, ..] = self.scale.heads;
        let kv = self.cache(KvType::BF16, 1, context.div_ceil(KV_BLOCK_TOKENS), head_dim)?;
        let step = self.prompt(context, KV_BLOCK_TOKENS)?;
        let query = self.floats(context * heads * head_dim)?;
        let room = self.room(Form::BF16.data_bytes(context, heads * head_dim))?;
        let spec = spec(heads, head_dim);
        let launch = flash::flash(&flash::FlashArgs {
            kv: &kv,
            layer: 0,
            spec: &spec,
            query: query.address(),
            sinks: None,
            view: &step.view,
            rows: context,
            sequences: 1,
            precision: Precision::BF16,
            target: Columns::new(Form::BF16, heads * head_dim, room.address(), 0),
        })?;
        let launches = vec![launch; 4];
        Ok(self.replayed(&launches)? / launches.len() as f64)
    }

    /// Seconds of a row's rotation and write.
    pub(super) fn rope(&mut self) -> Result<f64, BackendError> {
        let [heads, kv_heads, head_dim] = self.scale.heads;
        let layers = self.scale.launches;
        let cache = self.cache(KvType::F16, layers, 1, head_dim)?;
        let step = self.step(1, 1, KV_BLOCK_TOKENS, 0)?;
        let [query, key, value] =
            [heads, kv_heads, kv_heads].map(|heads| self.floats(heads * head_dim));
        let (query, key, value) = (query?, key?, value?);
        let rotated = self.room(4 * heads * head_dim)?;
        let table = RopeFrequencies::new(500_000.0, head_dim);
        let frequencies = rope::Frequencies::new(&self.gpu, &table)?;
        let rotation = rope::Rotation {
            input: query.address(),
            output: rotated.address(),
            heads,
            head_dim,
            pairs: RopePairs::Adjacent,
            frequencies: &frequencies,
        };
        let one = |at: usize| {
            let layer = at % layers;
            let (key, value) = (key.address(), value.address());
            let write = rope::Write { kv: &cache, layer, key, value };
            rope::rope_kv_write(&rotation, &write, &step.view, 1)
        };
        let launches: Vec<Launch> = (0..self.short_launches()).map(one).collect();
        Ok(self.replayed(&launches)? / launches.len() as f64)
    }

    /// A cache of `layers` layers, all of its blocks filled with the same random numbers.
    fn cache(
        &mut self,
        kv_type: KvType,
        layers: usize,
        blocks: usize,
        head_dim: usize,
    ) -> Result<std::sync::Arc<CudaKvPool>, BackendError> {
        let [_, heads, _] = self.scale.heads;
        let layers = vec![KvLayer { heads, head_dim }; layers];
        let spec = KvSpec { layers, kv_type, blocks, block_tokens: KV_BLOCK_TOKENS };
        let cache = CudaKvPool::new(&self.gpu, &spec)?;
        let ids = Self::blocks(blocks);
        let block = spec.block_bytes()?;
        // Words that are small numbers whatever they are read as: f16 from 1/16 to 1, with either sign;
        // integers of 8 bits; scales of such integers.
        let word = |_| {
            let word = self.word();
            let number = |word: u64| 0x2c00 + (word & 0x8fff) as u16;
            [0, 16, 32, 48].map(|shift| number(word >> shift))
        };
        let words: Vec<_> = (0..block.div_ceil(8)).map(word).collect();
        cache.swap_in(&words.as_bytes()[..block], &ids[..1])?;
        for &id in &ids[1..] {
            cache.copy(ids[0], id)?;
        }
        Ok(cache)
    }
}
