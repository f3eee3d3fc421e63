//! Models, KV cache, scheduler, sampler and engine: everything between a model file and its tokens.
//!
//! [`Model::open`] reads a file's metadata and builds its graph; [`Engine::new`] puts it on a device;
//! [`Engine::submit`] and [`Engine::step`] run sequences side by side.

pub mod attention;
pub mod device;
mod engine;
mod error;
pub mod kv_cache;
pub mod memory;
mod model;
pub mod models;
mod placement;
mod sampler;
mod scheduler;
mod split;
mod steps;
mod vocab;

pub use engine::{Engine, EngineOptions, Event, Finish, Progress, Request, SequenceId, Upload};
pub use error::RuntimeError;
pub use model::Model;
pub use placement::{Loaded, Placement};
pub use sampler::SamplingParams;
pub use split::SplitBackend;
pub use vocab::tokenizer;
