//! Phi 3, 3.5 and Phi 4: pre-norm decoder with SwiGLU feed-forward, whose files hold Q, K and V in one
//! tensor and gate and up in another (Abdin et al. 2024, arXiv 2404.14219). Some rotate a part of each
//! head only; some have a sliding window.
//!
//! Models for long contexts (LongRoPE, Ding et al. 2024, arXiv 2402.13753) come with two sets of rope
//! divisors: short ones, for the context of the first training, and long ones. A model that switched
//! between them as a sequence grows would have to compute its cache anew; this one takes the short ones
//! and its context ends where they do, at `rope.scaling.original_context_length`.

use realm_core::{
    graph::ops::{Activation, RopePairs},
    rope::RopeFrequencies,
};

use super::{
    Definition, Source,
    config::{Config, magnitude, window},
    decoder::{Attend, Decoder},
};
use crate::RuntimeError;

/// The graph of a Phi 3 file.
pub(super) fn build(source: &Source<'_>) -> Result<Definition, RuntimeError> {
    let mut config = Config::read(source)?;
    let frequencies = frequencies(source, &mut config)?;
    let Config { heads, kv_heads, head_dim, feed_forward, hidden, .. } = config;
    // Rows of the tensor with Q, K and V, in this order.
    let keys = heads.saturating_mul(head_dim);
    let values = keys.saturating_add(kv_heads.saturating_mul(head_dim));
    let all = values.saturating_add(kv_heads.saturating_mul(head_dim));
    let gate_and_up = feed_forward.saturating_mul(2);
    let mut model = Decoder::new(source, config);
    let rope = model.graph.rope_table(frequencies);
    let attend = Attend { rope, pairs: RopePairs::Halves, window: window(source)?, soft_cap: None };

    let mut x = model.embed()?; // [tokens, hidden]
    for layer in 0..model.config.layers {
        model.enter(layer);
        let normed = model.norm(x, "attn_norm")?; // [tokens, hidden]
        let q = model.linear_rows(normed, "attn_qkv", 0..keys, all)?; // [tokens, heads · head_dim]
        let k = model.linear_rows(normed, "attn_qkv", keys..values, all)?; // [tokens, kv_heads · head_dim]
        let v = model.linear_rows(normed, "attn_qkv", values..all, all)?; // [tokens, kv_heads · head_dim]
        let attended = model.attend([q, k, v], attend)?; // [tokens, hidden]
        x = model.graph.add(x, attended);
        let normed = model.norm(x, "ffn_norm")?; // [tokens, hidden]
        let gate = model.linear_rows(normed, "ffn_up", 0..feed_forward, gate_and_up)?; // [tokens, feed_forward]
        let up = model.linear_rows(normed, "ffn_up", feed_forward..gate_and_up, gate_and_up)?; // the same
        let gated = model.graph.glu(gate, up, Activation::Silu);
        let fed = model.linear(gated, "ffn_down", hidden)?; // [tokens, hidden]
        x = model.graph.add(x, fed);
    }
    let logits = model.logits(x)?; // [outputs, vocabulary]
    Ok(model.finish(logits))
}

/// The frequencies; with LongRoPE's short divisors the context ends where those do.
fn frequencies(source: &Source<'_>, config: &mut Config) -> Result<RopeFrequencies, RuntimeError> {
    let Some(short) = config.divisors(source, "rope_factors_short.weight")? else {
        return config.frequencies(source);
    };
    source.leave_out("rope_factors_long.weight");
    if let Some(scaling) = source.text("rope.scaling.type")?.filter(|name| *name != "longrope") {
        let problem = "does not go with rope_factors_short.weight";
        return Err(source.error(format!("rope scaling {scaling:?} {problem}")));
    }
    let original = source.size_or("rope.scaling.original_context_length", config.context)?;
    config.context = config.context.min(original);
    let rope = config.unscaled_frequencies(source, "rope.freq_base")?;
    Ok(RopeFrequencies { magnitude: magnitude(source)?, ..rope.divided(short) })
}
