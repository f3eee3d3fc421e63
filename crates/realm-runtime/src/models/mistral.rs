//! Mistral 7B: Llama with a sliding window in every layer (Jiang et al. 2023, arXiv 2310.06825),
//! `attention.sliding_window`; later versions have no window. Most files name the architecture `llama`
//! and leave the window out.

use super::{Definition, Source, llama};
use crate::RuntimeError;

/// The graph of a Mistral file.
pub(super) fn build(source: &Source<'_>) -> Result<Definition, RuntimeError> {
    llama::build(source)
}
