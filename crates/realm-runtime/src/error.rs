//! What can go wrong between a model file and its tokens.

use realm_core::{
    backend::{BackendError, Precision},
    cut::CutError,
    graph::GraphError,
};
use realm_gguf::GgufError;
use realm_tokenizer::TokenizerError;

use crate::SequenceId;

/// Any failure of the runtime, in one line that says what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The model file cannot be read.
    #[error(transparent)]
    File(#[from] GgufError),
    /// The file's tokenizer cannot be used.
    #[error("{path}: {source}")]
    Tokenizer {
        /// The file.
        path: String,
        /// What is wrong.
        source: TokenizerError,
    },
    /// An architecture that Realm has no model for.
    #[error("{path}: architecture {architecture:?} is not supported; supported are {supported}")]
    Architecture {
        /// The file.
        path: String,
        /// What the file says.
        architecture: String,
        /// Names of those there are.
        supported: String,
    },
    /// Metadata or tensors that make no model.
    #[error("{path}: {problem}")]
    Model {
        /// The file.
        path: String,
        /// What, where, and what was expected.
        problem: String,
    },
    /// A graph that does not fit together; shapes in the file contradict one another.
    #[error("{path}: {source}")]
    Graph {
        /// The file.
        path: String,
        /// The node.
        source: GraphError,
    },
    /// A model whose layers cannot go to two devices.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The device refused or failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No device as asked for.
    #[error("{0}")]
    Device(String),
    /// Weights, cache and work memory do not fit.
    #[error("{0}")]
    Memory(String),
    /// A prompt and its continuation do not fit the context.
    #[error(
        "the prompt has {prompt} tokens, the context holds {context}; shorten it or raise --ctx"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// Logits that are NaN or −∞ throughout.
    #[error(
        "the model's logits are not numbers ({precision} products); try --precision f32, or the file is damaged"
    )]
    NotNumbers {
        /// The precision in use.
        precision: Precision,
        /// The sequences that have no next token and were ended.
        sequences: Vec<SequenceId>,
    },
    /// A conversation for a model that has no chat template.
    #[error(
        "{path}: has no chat template; give one by --chat-template FILE, or continue plain text with `realm run`"
    )]
    NoChatTemplate {
        /// The file.
        path: String,
    },
    /// Logits that biases and penalties leave no token of.
    #[error("logit biases and penalties leave no token to choose; ban fewer tokens")]
    AllBanned {
        /// The sequences that have no next token and were ended.
        sequences: Vec<SequenceId>,
    },
    /// More sequences than may wait.
    #[error(
        "{waiting} sequences run or wait already and no more may; submit again when some have ended, or raise the queue's length ({queue})"
    )]
    QueueFull {
        /// Sequences that run or wait.
        waiting: usize,
        /// [`EngineOptions::queue`](crate::EngineOptions::queue).
        queue: usize,
    },
    /// A prompt that fits the context, with more tokens to generate than fit beside it.
    #[error(
        "{prompt} prompt tokens and {max_tokens} more exceed the context of {context}; raise --ctx or ask for fewer"
    )]
    TooManyTokens {
        /// Tokens of the prompt.
        prompt: usize,
        /// [`Request::max_tokens`](crate::Request::max_tokens).
        max_tokens: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// A prompt with a token that the model does not know.
    #[error("token id {id} is not in the vocabulary of {vocabulary}; give ids below that")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Number of tokens that there are.
        vocabulary: usize,
    },
    /// Running sequences leave too little of the KV cache.
    #[error(
        "the KV cache is full: {prompt} tokens are needed and {free} are free; wait for running sequences"
    )]
    CacheFull {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that the free blocks hold.
        free: usize,
    },
    /// A request that cannot be run.
    #[error("{0}")]
    Request(String),
}
