//! Realm's CPU backend.

mod isa;
mod pool;

pub use isa::IsaLimit;
