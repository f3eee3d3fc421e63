//! Llama 1 to 3, TinyLlama, SmolLM and what else is stored as such: pre-norm decoder with rotary
//! positions, grouped query heads and a SwiGLU feed-forward (Touvron et al. 2023, arXiv 2302.13971;
//! Grattafiori et al. 2024, arXiv 2407.21783). With `expert_count` the feed-forward is a mixture of
//! experts, as in Mixtral (Jiang et al. 2024, arXiv 2401.04088). The order of rotated pairs is that of GGUF files, whose
//! converters permute the rows of Q and K for it.

use realm_core::graph::ops::{Activation, RopePairs};

use super::{
    Definition, Source,
    config::{Config, Experts, window},
    decoder::{Attend, Decoder},
};
use crate::RuntimeError;

/// The graph of a Llama file.
pub(super) fn build(source: &Source<'_>) -> Result<Definition, RuntimeError> {
    let config = Config::read_any(source)?;
    let experts = Experts::read(source, &config)?;
    let frequencies = config.frequencies(source)?;
    let mut model = Decoder::new(source, config);
    let rope = model.graph.rope_table(frequencies);
    let attend =
        Attend { rope, pairs: RopePairs::Adjacent, window: window(source)?, soft_cap: None };

    let mut x = model.embed()?; // [tokens, hidden]
    for layer in 0..model.config.layers {
        model.enter(layer);
        let normed = model.norm(x, "attn_norm")?; // [tokens, hidden]
        let qkv = model.qkv(normed)?; // [tokens, heads · head_dim], twice [tokens, kv_heads · head_dim]
        let attended = model.attend(qkv, attend)?; // [tokens, hidden]
        x = model.graph.add(x, attended);
        let normed = model.norm(x, "ffn_norm")?; // [tokens, hidden]
        let fed = match experts {
            Some(experts) => model.mixture(normed, experts, Activation::Silu)?, // [tokens, hidden]
            None => model.feed_forward(normed, Activation::Silu)?,              // [tokens, hidden]
        };
        x = model.graph.add(x, fed);
    }
    let logits = model.logits(x)?; // [outputs, vocabulary]
    Ok(model.finish(logits))
}
