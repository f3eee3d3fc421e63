//! Text to token ids and back, for the vocabularies that GGUF files carry.
//!
//! The caller reads the metadata into a [`Vocab`] and builds a [`Tokenizer`] from it. GGUF files
//! are made for llama.cpp, so its ids are the right ones: where Hugging Face's `tokenizers` would
//! give others, this crate goes its own way.
//!
//! | kind (`tokenizer.ggml.model`) | what it is | merging by |
//! |---|---|---|
//! | `llama` | SentencePiece-BPE with byte fallback (Llama 2, Gemma, Phi-3) | own code, by score |
//! | `gpt2` | byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek, …) | `tokenizers`' BPE, by rank; own splitting |
//! | `bert` | WordPiece | own code, the longest token first |
//!
//! Every other kind, and every pre-tokenizer (`tokenizer.ggml.pre`) that is not among
//! [`supported_pre_tokenizers`], is an error that says so: wrong ids would only show as bad text. A
//! `gpt2` vocabulary that names no pre-tokenizer gets llama.cpp's fallback, `default`, which splits
//! at punctuation and numbers.
//!
//! ```
//! use realm_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, Vocab};
//!
//! let tokens = ["h", "e", "l", "o", "he", "ll", "hell", "Ġ", "<|end|>"];
//! let tokenizer = Tokenizer::new(Vocab {
//!     model: "gpt2".into(),
//!     pre: Some("gpt-2".into()),
//!     tokens: tokens.map(String::from).to_vec(),
//!     types: vec![1, 1, 1, 1, 1, 1, 1, 1, 3],
//!     merges: ["h e", "l l", "he ll"].map(String::from).to_vec(),
//!     ..Vocab::default()
//! })?;
//! let ids = tokenizer.encode("hello ", EncodeOptions::default())?;
//! assert_eq!(ids, [6, 3, 7]);
//! assert_eq!(tokenizer.decode(&ids, DecodeOptions::default())?, "hello ");
//! assert!(tokenizer.is_end_of_generation(8));
//! # Ok::<(), realm_tokenizer::TokenizerError>(())
//! ```
//!
//! [`chat`] makes the text of a conversation, by the template that the model's file carries.
#![forbid(unsafe_code)]

mod bpe;
mod byte_level;
pub mod chat;
mod decode;
mod error;
mod pretokenizer;
mod roles;
mod special;
mod spm;
mod tokenizer;
mod vocab;
mod wordpiece;

pub use decode::{DecodeOptions, DecodeStream};
pub use error::TokenizerError;
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use vocab::{TokenType, Vocab};

/// The pre-tokenizers (`tokenizer.ggml.pre`) that a `gpt2` vocabulary may name.
pub fn supported_pre_tokenizers() -> Vec<&'static str> {
    pretokenizer::names()
}
