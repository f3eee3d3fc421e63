//! What is asked of the engine, and what it answers.

use crate::SamplingParams;

/// A sequence of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate, at least one.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: SamplingParams,
    /// Tokens that end the sequence.
    pub stop_tokens: Vec<u32>,
    /// Give the log-probabilities of each chosen token and of so many of the likeliest; `None` gives
    /// none. Logits are read back for this, which costs a little.
    pub logprobs: Option<usize>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It generated one of its stop tokens.
    Stop,
    /// It generated as many tokens as were asked for.
    Length,
}

/// Natural logarithms of the model's own probabilities: before penalties, bias, temperature and
/// filters.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// A token of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Whose.
    pub sequence: SequenceId,
    /// The token; a stop token too.
    pub token: u32,
    /// Set with the last token.
    pub finish: Option<Finish>,
    /// Set where [`Request::logprobs`] asks for them.
    pub logprobs: Option<TokenLogprobs>,
}
