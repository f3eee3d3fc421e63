//! What attention needs to know about sequences: where the tokens of each lie in the paged KV cache.
//!
//! Which positions a row sees is [`realm_core::graph::ops::Mask`]; the kernels are the backends'. The
//! tests here run attention through whole backends: paged, ragged, grouped, windowed.

mod block_table;
#[cfg(test)]
mod tests;

pub use block_table::BlockTable;
