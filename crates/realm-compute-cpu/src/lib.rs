//! Realm's CPU backend.
//!
//! [`CpuBackend`] runs graphs on plain Rust, AVX2 or AVX-512 kernels, chosen when it starts. Weights stay
//! where the model file is mapped; a worker pool spreads each op over the threads.

mod arena;
mod attention;
mod backend;
mod elementwise;
mod isa;
mod kv;
mod math;
mod matmul;
mod moe;
mod pool;
mod program;
mod roofline;
mod shared;
mod system;

pub use backend::{CpuBackend, CpuOptions};
pub use isa::IsaLimit;
pub use kv::KV_BLOCK_TOKENS;
pub use roofline::Roofline;
