//! The parts that decoders are built from, scoped to a layer: weights by the names of GGUF files, norms,
//! products, grouped attention over the KV cache, gated feed-forward. Shapes are `[rows, cols]`.

use std::ops::Range;

use realm_core::graph::{
    GraphBuilder, KvLayer, RopeId, Value, Weight,
    ops::{Activation, AttentionSpec, Mask, RopePairs},
};

use super::{
    Definition, Source,
    config::{Config, Experts},
};
use crate::RuntimeError;

/// A decoder under construction.
pub(super) struct Decoder<'a> {
    source: &'a Source<'a>,
    pub(super) config: Config,
    pub(super) graph: GraphBuilder,
    layer: Option<usize>,
}

/// How a layer attends.
#[derive(Clone, Copy)]
pub(super) struct Attend {
    /// Frequencies of the rotation.
    pub(super) rope: RopeId,
    /// Which elements rotate together.
    pub(super) pairs: RopePairs,
    /// Positions that a token sees, itself included; `None`: all.
    pub(super) window: Option<usize>,
    /// Bound of the scores.
    pub(super) soft_cap: Option<f32>,
}

impl<'a> Decoder<'a> {
    /// A decoder without a node.
    pub(super) fn new(source: &'a Source<'a>, config: Config) -> Self {
        Self { source, config, graph: GraphBuilder::new(), layer: None }
    }

    /// Goes on with a layer: its tensors are named `blk.LAYER.…` from now on.
    pub(super) fn enter(&mut self, layer: usize) {
        self.layer = Some(layer);
        self.graph.layer(self.layer);
    }

    /// A tensor's name in the current layer.
    fn name(&self, part: &str) -> String {
        self.layer.map_or(part.into(), |layer| format!("blk.{layer}.{part}"))
    }

    fn weight(&mut self, part: &str, rows: usize, cols: usize) -> Result<Weight, RuntimeError> {
        let name = self.name(part);
        self.source.weight(&mut self.graph, &name, [rows, cols])
    }

    /// The tokens' embeddings: `[tokens, hidden]`.
    pub(super) fn embed(&mut self) -> Result<Value, RuntimeError> {
        let (vocabulary, hidden) = (self.config.vocabulary, self.config.hidden);
        let table = self.weight("token_embd.weight", vocabulary, hidden)?;
        Ok(self.graph.embed(table))
    }

    /// RMS norm of whole rows: `[rows, hidden]` as before.
    pub(super) fn norm(&mut self, x: Value, part: &str) -> Result<Value, RuntimeError> {
        let weight = self.weight(&format!("{part}.weight"), 1, self.config.hidden)?;
        Ok(self.graph.rms_norm(x, weight, self.config.epsilon))
    }

    /// RMS norm of each head: `[tokens, heads · head_dim]` as before.
    pub(super) fn head_norm(&mut self, x: Value, part: &str) -> Result<Value, RuntimeError> {
        let head_dim = self.config.head_dim;
        let weight = self.weight(&format!("{part}.weight"), 1, head_dim)?;
        Ok(self.graph.rms_norm_groups(x, weight, self.config.epsilon, head_dim))
    }

    /// `x · weightᵀ`, plus a bias where the file has one: `[rows, outputs]`.
    pub(super) fn linear(
        &mut self,
        x: Value,
        part: &str,
        outputs: usize,
    ) -> Result<Value, RuntimeError> {
        let cols = self.graph.cols(x);
        let weight = self.weight(&format!("{part}.weight"), outputs, cols)?;
        let bias = self.name(&format!("{part}.bias"));
        let bias = self.source.optional(&mut self.graph, &bias, [1, outputs])?;
        Ok(self.graph.linear(x, weight, bias))
    }

    /// `x` times some rows of a tensor that holds several matrices, one below the other, `total` rows
    /// in all: `[rows, outputs]`.
    pub(super) fn linear_rows(
        &mut self,
        x: Value,
        part: &str,
        outputs: Range<usize>,
        total: usize,
    ) -> Result<Value, RuntimeError> {
        let (name, cols) = (self.name(&format!("{part}.weight")), self.graph.cols(x));
        let weight = self.source.rows_of(&mut self.graph, &name, outputs, [total, cols])?;
        Ok(self.graph.linear(x, weight, None))
    }

    /// Queries `[tokens, heads · head_dim]`, keys and values `[tokens, kv_heads · head_dim]`.
    pub(super) fn qkv(&mut self, x: Value) -> Result<[Value; 3], RuntimeError> {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        Ok([
            self.linear(x, "attn_q", heads * head_dim)?,
            self.linear(x, "attn_k", kv_heads * head_dim)?,
            self.linear(x, "attn_v", kv_heads * head_dim)?,
        ])
    }

    /// Rotates queries and keys, stores keys and values, attends to the cache and leads the heads back
    /// to `[tokens, hidden]`.
    pub(super) fn attend(
        &mut self,
        [q, k, v]: [Value; 3],
        attend: Attend,
    ) -> Result<Value, RuntimeError> {
        let Config { hidden, heads, kv_heads, head_dim, scale, .. } = self.config;
        let Attend { rope, pairs, window, soft_cap } = attend;
        let q = self.graph.rope(q, heads, head_dim, pairs, rope);
        let k = self.graph.rope(k, kv_heads, head_dim, pairs, rope);
        let layer = self.graph.kv_layer(KvLayer { heads: kv_heads, head_dim });
        self.graph.kv_write(layer, k, v);
        let mask = Mask { window, ..Mask::CAUSAL };
        let spec = AttentionSpec { heads, head_dim, scale, mask, soft_cap, sinks: None };
        let attended = self.graph.attention(layer, q, spec); // [tokens, heads · head_dim]
        self.linear(attended, "attn_output", hidden)
    }

    /// `down(activation(gate(x)) · up(x))`: `[tokens, hidden]`.
    pub(super) fn feed_forward(
        &mut self,
        x: Value,
        activation: Activation,
    ) -> Result<Value, RuntimeError> {
        let gate = self.linear(x, "ffn_gate", self.config.feed_forward)?; // [tokens, feed_forward]
        let up = self.linear(x, "ffn_up", self.config.feed_forward)?; // [tokens, feed_forward]
        let gated = self.graph.glu(gate, up, activation);
        self.linear(gated, "ffn_down", self.config.hidden)
    }

    /// The weighted sum of what the experts that each token takes make of it: `[tokens, hidden]`. The
    /// matrices of all experts stand in one tensor, one below the other.
    pub(super) fn mixture(
        &mut self,
        x: Value,
        experts: Experts,
        activation: Activation,
    ) -> Result<Value, RuntimeError> {
        let (Experts { count, used, feed_forward, normalized }, hidden) =
            (experts, self.config.hidden);
        let (inner, outer) = (count.saturating_mul(feed_forward), count.saturating_mul(hidden));
        let gate = self.weight("ffn_gate_exps.weight", inner, hidden)?;
        let up = self.weight("ffn_up_exps.weight", inner, hidden)?;
        let down = self.weight("ffn_down_exps.weight", outer, feed_forward)?;
        let logits = self.linear(x, "ffn_gate_inp", count)?; // [tokens, count]
        let [chosen, weights] = self.graph.moe_route(logits, used, normalized); // [tokens, used] both
        let chosen = (chosen, count);
        let gated = self.graph.moe_gated_linear(x, chosen, [gate, up], activation); // [tokens, used · feed_forward]
        let fed = self.graph.moe_linear(gated, chosen, down); // [tokens, used · hidden]
        Ok(self.graph.moe_sum(fed, weights))
    }

    /// The logits of the rows that are wanted: `[outputs, vocabulary]`.
    pub(super) fn logits(&mut self, x: Value) -> Result<Value, RuntimeError> {
        self.layer = None;
        self.graph.layer(None);
        let Config { vocabulary, hidden, .. } = self.config;
        let rows = self.graph.gather_rows(x); // [outputs, hidden]
        let normed = self.norm(rows, "output_norm")?;
        // Files with tied embeddings have no output matrix.
        let shape = [vocabulary, hidden];
        let output = match self.source.optional(&mut self.graph, "output.weight", shape)? {
            Some(output) => output,
            None => self.weight("token_embd.weight", vocabulary, hidden)?,
        };
        Ok(self.graph.linear(normed, output, None))
    }

    /// All of it, ending in these logits.
    pub(super) fn finish(self, logits: Value) -> Definition {
        let Config { vocabulary, context, .. } = self.config;
        Definition { builder: self.graph, logits, vocabulary, context }
    }
}
