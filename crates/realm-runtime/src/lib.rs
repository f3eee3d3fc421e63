//! Models, KV cache, scheduler, sampler and engine: everything between a model file and its tokens.
//!
//! [`Model::open`] reads a file's metadata and builds its graph; [`Engine::new`] puts it on a device;
//! [`Engine::submit`] and [`Engine::step`] run sequences side by side. [`text::Llm`] is all of it for one
//! text after the other.

pub mod attention;
pub mod device;
mod engine;
mod error;
pub mod kv_cache;
mod logits;
pub mod memory;
mod model;
pub mod models;
mod overflow;
mod placement;
mod request;
mod sampler;
mod scheduler;
mod split;
mod steps;
pub mod text;
mod vocab;

pub use engine::{Engine, EngineOptions, EngineStats, Progress, Upload};
pub use error::RuntimeError;
pub use model::Model;
pub use placement::{Loaded, Placement};
pub use realm_core::backend::{KvType, Precision};
pub use request::{Event, Finish, Request, SequenceId, TokenLogprobs};
pub use sampler::SamplingParams;
pub use split::SplitBackend;
pub use vocab::tokenizer;

/// The README's examples are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
