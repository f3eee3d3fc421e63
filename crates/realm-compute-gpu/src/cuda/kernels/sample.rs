//! The launch of `kernels/cuda/sample.cu`: the next token of each output row.

use zerocopy::{Immutable, IntoBytes};

use crate::cuda::{gpu::Launch, step::StepView};

/// Threads a block, which takes a row.
const THREADS: u32 = 1024;

/// Chooses tokens as `realm_core::sampling::Sampler` does: `sampled[output]`, a `u32` each, for the
/// step's outputs, of which the launch is made for `outputs`.
///
/// `logits` is the address of f32 rows of `vocabulary` elements, aligned to 16 bytes.
pub(crate) fn sample(
    logits: u64,
    vocabulary: usize,
    outputs: usize,
    view: &StepView,
    sampled: u64,
) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        logits: u64,
        counts: u64,
        sampling: u64,
        sampled: u64,
        vocabulary: u32,
        unused: u32,
    }
    let parameters = Params {
        logits,
        counts: view.counts,
        sampling: view.sampling,
        sampled,
        vocabulary: vocabulary as u32,
        unused: 0,
    };
    Launch::new("sample", "sample", [outputs, 1], THREADS, &parameters)
}

#[cfg(test)]
mod tests;
