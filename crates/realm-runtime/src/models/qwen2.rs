//! Qwen 2 and 2.5: pre-norm decoder with biases on Q, K and V, rotary positions in halves and a SwiGLU
//! feed-forward; small sizes tie their embeddings (Yang et al. 2024, arXiv 2407.10671).

use realm_core::graph::ops::{Activation, RopePairs};

use super::{
    Definition, Source,
    config::Config,
    decoder::{Attend, Decoder},
};
use crate::RuntimeError;

/// The graph of a Qwen 2 file.
pub(super) fn build(source: &Source<'_>) -> Result<Definition, RuntimeError> {
    let config = Config::read(source)?;
    let frequencies = config.frequencies(source)?;
    let mut model = Decoder::new(source, config);
    let rope = model.graph.rope_table(frequencies);
    let attend = Attend { rope, pairs: RopePairs::Halves, window: None, soft_cap: None };

    let mut x = model.embed()?; // [tokens, hidden]
    for layer in 0..model.config.layers {
        model.enter(layer);
        let normed = model.norm(x, "attn_norm")?; // [tokens, hidden]
        let qkv = model.qkv(normed)?; // [tokens, heads · head_dim], twice [tokens, kv_heads · head_dim]
        let attended = model.attend(qkv, attend)?; // [tokens, hidden]
        x = model.graph.add(x, attended);
        let normed = model.norm(x, "ffn_norm")?; // [tokens, hidden]
        let fed = model.feed_forward(normed, Activation::Silu)?; // [tokens, hidden]
        x = model.graph.add(x, fed);
    }
    let logits = model.logits(x)?; // [outputs, vocabulary]
    Ok(model.finish(logits))
}
