//! Gemma 2: norms before and after attention and feed-forward, soft caps on scores and logits, a sliding
//! window in every other layer, GeGLU, scaled embeddings (Gemma Team 2024, arXiv 2408.00118). Norm
//! weights in files already have the 1 added that the paper's norms add.

use realm_core::graph::ops::{Activation, RopePairs};

use super::{
    Definition, Source,
    config::{Config, Windows},
    decoder::{Attend, Decoder},
};
use crate::RuntimeError;

/// Layers of the 27B model, the one that scales its scores by its width.
const LARGEST: usize = 46;

/// The graph of a Gemma 2 file.
pub(super) fn build(source: &Source<'_>) -> Result<Definition, RuntimeError> {
    let mut config = Config::read(source)?;
    config.scale_of_largest_gemma(source, LARGEST)?;
    let frequencies = config.frequencies(source)?;
    // The first layer of each two has the window. The first files left it and the caps out.
    let windows = Windows::read(source, 2, 4096)?;
    let score_cap = source.bound_or("attn_logit_softcapping", 50.0)?;
    let logit_cap = source.bound_or("final_logit_softcapping", 30.0)?;
    let mut model = Decoder::new(source, config);
    let rope = model.graph.rope_table(frequencies);

    let embedded = model.embed()?; // [tokens, hidden]
    let mut x = model.graph.scale(embedded, (model.config.hidden as f32).sqrt());
    for layer in 0..model.config.layers {
        model.enter(layer);
        let window = windows.of(layer);
        let attend = Attend { rope, pairs: RopePairs::Halves, window, soft_cap: score_cap };
        let normed = model.norm(x, "attn_norm")?; // [tokens, hidden]
        let qkv = model.qkv(normed)?; // [tokens, heads · head_dim], twice [tokens, kv_heads · head_dim]
        let attended = model.attend(qkv, attend)?; // [tokens, hidden]
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
