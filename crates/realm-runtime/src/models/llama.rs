//! Llama 1 to 3, TinyLlama, Mistral without a window, SmolLM: pre-norm decoder with rotary positions,
//! grouped query heads and a SwiGLU feed-forward (Touvron et al. 2023, arXiv 2302.13971; Grattafiori et
//! al. 2024, arXiv 2407.21783). Tensor names and the order of rotated pairs are those of GGUF files.

use realm_core::{
    graph::{
        GraphBuilder, KvLayer, RopeId, Value, Weight,
        ops::{Activation, AttentionSpec, Mask, RopePairs},
    },
    rope::RopeFrequencies,
};

use super::{Definition, Source};
use crate::RuntimeError;

struct Config {
    layers: usize,
    hidden: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    epsilon: f32,
    scale: f32,
    vocabulary: usize,
    context: usize,
}

impl Config {
    fn read(source: &Source<'_>) -> Result<Self, RuntimeError> {
        let hidden = source.size("embedding_length")?;
        let heads = source.size("attention.head_count")?;
        let kv_heads = source.size_or("attention.head_count_kv", heads)?;
        let head_dim = source.size_or("attention.key_length", hidden / heads)?;
        let value_dim = source.size_or("attention.value_length", head_dim)?;
        let rotary_dim = source.size_or("rope.dimension_count", head_dim)?;
        let epsilon = source.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5);
        let scale = source.number("attention.scale")?.unwrap_or(1.0 / (head_dim as f64).sqrt());
        let problem = if !heads.is_multiple_of(kv_heads) {
            Some(format!("{heads} heads cannot share {kv_heads} KV heads"))
        } else if value_dim != head_dim || head_dim == 0 {
            Some(format!(
                "keys of {head_dim} with values of {value_dim} elements are not supported"
            ))
        } else if rotary_dim > head_dim || rotary_dim % 2 != 0 {
            Some(format!("cannot rotate {rotary_dim} elements of heads of {head_dim}"))
        } else if epsilon < 0.0 || scale <= 0.0 {
            Some(format!("an epsilon of {epsilon} and an attention scale of {scale} make no sense"))
        } else if source.size_or("expert_count", 1)? > 1 {
            Some("mixtures of experts are not supported yet".into())
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(source.error(problem));
        }
        Ok(Self {
            layers: source.size("block_count")?,
            hidden,
            feed_forward: source.size("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            rotary_dim,
            epsilon: epsilon as f32,
            scale: scale as f32,
            vocabulary: source.rows("token_embd.weight")?,
            context: source.size("context_length")?,
        })
    }
}

/// The graph of a Llama file.
pub(super) fn build(source: &Source<'_>) -> Result<Definition, RuntimeError> {
    let config = Config::read(source)?;
    let rope = frequencies(source, &config)?;
    let mut graph = GraphBuilder::new();
    let rope = graph.rope_table(rope);
    let mut llama = Llama { source, config: &config, graph: &mut graph, rope, layer: None };

    let (vocabulary, hidden) = (config.vocabulary, config.hidden);
    let table = llama.weight("token_embd.weight", vocabulary, hidden)?; // [vocabulary, hidden]
    let mut x = llama.graph.embed(table); // [tokens, hidden]
    for layer in 0..config.layers {
        llama.enter(Some(layer));
        let attended = llama.attention(x)?;
        x = llama.graph.add(x, attended);
        let fed = llama.feed_forward(x)?;
        x = llama.graph.add(x, fed);
    }
    llama.enter(None);
    let rows = llama.graph.gather_rows(x); // [outputs, hidden]
    let normed = llama.norm(rows, "output_norm")?;
    // Files with tied embeddings have no output matrix.
    let output =
        source.optional(llama.graph, "output.weight", [vocabulary, hidden])?.unwrap_or(table);
    let logits = llama.graph.linear(normed, output, None); // [outputs, vocabulary]
    Ok(Definition { builder: graph, logits, vocabulary, context: config.context })
}

/// Llama 3.1's stretched frequencies come as divisors in a tensor; linear scaling as a factor.
fn frequencies(source: &Source<'_>, config: &Config) -> Result<RopeFrequencies, RuntimeError> {
    let base = source.number("rope.freq_base")?.unwrap_or(10_000.0);
    if base <= 1.0 {
        return Err(source.error(format!("rope.freq_base is {base}")));
    }
    let rope = RopeFrequencies::new(base, config.rotary_dim);
    let factor = match source.text("rope.scaling.type")? {
        None | Some("none" | "llama3") => 1.0,
        Some("linear") => source.number("rope.scaling.factor")?.unwrap_or(1.0),
        Some(other) => return Err(source.error(format!("rope scaling {other:?} is not supported"))),
    };
    let divisors = source.values("rope_freqs.weight")?;
    let pairs = config.rotary_dim / 2;
    let divisors = divisors.unwrap_or_else(|| vec![1.0; pairs]);
    if divisors.len() != pairs || !divisors.iter().all(|d| *d > 0.0) || factor <= 0.0 {
        return Err(source.error(format!("rope_freqs.weight must hold {pairs} positive divisors")));
    }
    Ok(rope.divided(divisors.into_iter().map(|divisor| f64::from(divisor) * factor)))
}

struct Llama<'a> {
    source: &'a Source<'a>,
    config: &'a Config,
    graph: &'a mut GraphBuilder,
    rope: RopeId,
    layer: Option<usize>,
}

impl Llama<'_> {
    fn enter(&mut self, layer: Option<usize>) {
        self.layer = layer;
        self.graph.layer(layer);
    }

    /// A tensor's name in the current layer.
    fn name(&self, part: &str) -> String {
        self.layer.map_or(part.into(), |layer| format!("blk.{layer}.{part}"))
    }

    fn weight(&mut self, part: &str, rows: usize, cols: usize) -> Result<Weight, RuntimeError> {
        self.source.weight(self.graph, &self.name(part), [rows, cols])
    }

    fn norm(&mut self, x: Value, part: &str) -> Result<Value, RuntimeError> {
        let weight = self.weight(&format!("{part}.weight"), 1, self.config.hidden)?; // [1, hidden]
        Ok(self.graph.rms_norm(x, weight, self.config.epsilon))
    }

    /// `x · weightᵀ`, plus a bias where the file has one.
    fn linear(
        &mut self,
        x: Value,
        part: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Value, RuntimeError> {
        let weight = self.weight(&format!("{part}.weight"), rows, cols)?;
        let bias = self.name(&format!("{part}.bias"));
        let bias = self.source.optional(self.graph, &bias, [1, rows])?;
        Ok(self.graph.linear(x, weight, bias))
    }

    fn attention(&mut self, x: Value) -> Result<Value, RuntimeError> {
        let &Config { hidden, heads, kv_heads, head_dim, scale, .. } = self.config;
        let normed = self.norm(x, "attn_norm")?;
        let q = self.linear(normed, "attn_q", heads * head_dim, hidden)?; // [tokens, heads · head_dim]
        let k = self.linear(normed, "attn_k", kv_heads * head_dim, hidden)?; // [tokens, kv_heads · head_dim]
        let v = self.linear(normed, "attn_v", kv_heads * head_dim, hidden)?; // [tokens, kv_heads · head_dim]
        let q = self.graph.rope(q, heads, head_dim, RopePairs::Adjacent, self.rope);
        let k = self.graph.rope(k, kv_heads, head_dim, RopePairs::Adjacent, self.rope);
        let layer = self.graph.kv_layer(KvLayer { heads: kv_heads, head_dim });
        self.graph.kv_write(layer, k, v);
        let mask = Mask::CAUSAL;
        let spec = AttentionSpec { heads, head_dim, scale, mask, soft_cap: None, sinks: None };
        let attended = self.graph.attention(layer, q, spec); // [tokens, heads · head_dim]
        self.linear(attended, "attn_output", hidden, heads * head_dim)
    }

    fn feed_forward(&mut self, x: Value) -> Result<Value, RuntimeError> {
        let &Config { hidden, feed_forward, .. } = self.config;
        let normed = self.norm(x, "ffn_norm")?;
        let gate = self.linear(normed, "ffn_gate", feed_forward, hidden)?; // [tokens, feed_forward]
        let up = self.linear(normed, "ffn_up", feed_forward, hidden)?; // [tokens, feed_forward]
        let gated = self.graph.glu(gate, up, Activation::Silu);
        self.linear(gated, "ffn_down", hidden, feed_forward)
    }
}
