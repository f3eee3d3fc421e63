//! Gemma 3, its text part: norms before and after attention and feed-forward, normed query and key
//! heads, five layers with a sliding window to one that sees everything, GeGLU, scaled embeddings (Gemma
//! Team 2025, arXiv 2503.19786). The windowed layers rotate faster than the others and are not scaled to
//! longer contexts. Norm weights in files already have the 1 added that the paper's norms add.

use realm_core::graph::ops::{Activation, RopePairs};

use super::{
    Definition, Source,
    config::{Config, Windows},
    decoder::{Attend, Decoder},
};
use crate::RuntimeError;

/// Layers of the 27B model, the one that scales its scores by its width.
const LARGEST: usize = 62;

/// The graph of a Gemma 3 file.
pub(super) fn build(source: &Source<'_>) -> Result<Definition, RuntimeError> {
    let mut config = Config::read(source)?;
    config.scale_of_largest_gemma(source, LARGEST)?;
    let everywhere = config.frequencies(source)?;
    let nearby = config.unscaled_frequencies(source, "rope.freq_base_swa")?;
    // The last layer of each six sees everything.
    let windows = Windows::read(source, 6, 0)?;
    let logit_cap = source.bound_or("final_logit_softcapping", 0.0)?;
    let mut model = Decoder::new(source, config);
    let everywhere = model.graph.rope_table(everywhere);
    let nearby = model.graph.rope_table(nearby);

    let embedded = model.embed()?; // [tokens, hidden]
    let mut x = model.graph.scale(embedded, (model.config.hidden as f32).sqrt());
    for layer in 0..model.config.layers {
        model.enter(layer);
        let window = windows.of(layer);
        let rope = if window.is_some() { nearby } else { everywhere };
        let attend = Attend { rope, pairs: RopePairs::Halves, window, soft_cap: None };
        let normed = model.norm(x, "attn_norm")?; // [tokens, hidden]
        let [q, k, v] = model.qkv(normed)?; // [tokens, heads · head_dim], twice [tokens, kv_heads · head_dim]
        let q = model.head_norm(q, "attn_q_norm")?; // [tokens, heads · head_dim]
        let k = model.head_norm(k, "attn_k_norm")?; // [tokens, kv_heads · head_dim]
        let attended = model.attend([q, k, v], attend)?; // [tokens, hidden]
        let attended = model.norm(attended, "post_attention_norm")?;
        x = model.graph.add(x, attended);
        let normed = model.norm(x, "ffn_norm")?; // [tokens, hidden]
        let fed = model.feed_forward(normed, Activation::GeluTanh)?; // [tokens, hidden]
        let fed = model.norm(fed, "post_ffw_norm")?;
        x = model.graph.add(x, fed);
    }
    let mut logits = model.logits(x)?; // [outputs, vocabulary]
    if let Some(cap) = logit_cap {
        logits = model.graph.soft_cap(logits, cap);
    }
    Ok(model.finish(logits))
}
