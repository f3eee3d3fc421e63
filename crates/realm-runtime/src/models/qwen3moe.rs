//! Qwen 3 with a mixture of experts: pre-norm decoder whose query and key heads are normed before they
//! rotate; a router takes some of many SwiGLU networks for each token (Yang et al. 2025, arXiv
//! 2505.09388).

use realm_core::graph::ops::{Activation, RopePairs};

use super::{
    Definition, Source,
    config::{Config, Experts},
    decoder::{Attend, Decoder},
};
use crate::RuntimeError;

/// The graph of a Qwen 3 MoE file.
pub(super) fn build(source: &Source<'_>) -> Result<Definition, RuntimeError> {
    let config = Config::read_any(source)?;
    let Some(experts) = Experts::read(source, &config)? else {
        return Err(source.error("expert_count is missing or 0"));
    };
    let frequencies = config.frequencies(source)?;
    let mut model = Decoder::new(source, config);
    let rope = model.graph.rope_table(frequencies);
    let attend = Attend { rope, pairs: RopePairs::Halves, window: None, soft_cap: None };

    let mut x = model.embed()?; // [tokens, hidden]
    for layer in 0..model.config.layers {
        model.enter(layer);
        let normed = model.norm(x, "attn_norm")?; // [tokens, hidden]
        let [q, k, v] = model.qkv(normed)?; // [tokens, heads · head_dim], twice [tokens, kv_heads · head_dim]
        let q = model.head_norm(q, "attn_q_norm")?; // [tokens, heads · head_dim]
        let k = model.head_norm(k, "attn_k_norm")?; // [tokens, kv_heads · head_dim]
        let attended = model.attend([q, k, v], attend)?; // [tokens, hidden]
        x = model.graph.add(x, attended);
        let normed = model.norm(x, "ffn_norm")?; // [tokens, hidden]
        let fed = model.mixture(normed, experts, Activation::Silu)?; // [tokens, hidden]
        x = model.graph.add(x, fed);
    }
    let logits = model.logits(x)?; // [outputs, vocabulary]
    Ok(model.finish(logits))
}
