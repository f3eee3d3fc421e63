//! Quantized block formats: layout, scalar decoding and encoding.
//!
//! The layouts are those of tensors in GGUF files (GGML's naming). A format is one file with a
//! `#[repr(C)]` block and its [`BlockFormat`] implementation, and one line in [`formats!`](crate::formats!).

mod bits;
mod floats;
mod iq4_nl;
mod iq4_xs;
mod list;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_k;
mod scales;
mod search;
#[cfg(test)]
mod tests;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use bits::F16Le;
pub use floats::{Bf16, F16, F32};
pub use iq4_nl::{IQ4_LEVELS, Iq4Nl};
pub use iq4_xs::Iq4Xs;
pub use list::DType;
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5K;
pub use q6_k::Q6K;
pub use q8_0::Q8_0;
pub use q8_k::Q8K;
pub use scales::{pack_scales_mins, unpack_scales_mins};

/// A weight format: `LEN` weights stored in one block of `BYTES` bytes.
///
/// Blocks are `#[repr(C)]`, alignment 1, little-endian, laid out as in GGUF files.
pub trait BlockFormat:
    FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy + Send + Sync + 'static
{
    /// The name GGUF tools use, for example `Q4_K`.
    const NAME: &'static str;
    /// The tensor type number in GGUF files.
    const GGUF_ID: u32;
    /// Weights in a block.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize = size_of::<Self>();

    /// Writes the block's `LEN` weights to `out` (`out.len() == LEN`).
    fn decode(&self, out: &mut [f32]);
    /// The block that represents `values` (`values.len() == LEN`) best.
    ///
    /// Never panics on values: quantized formats take NaN as 0, cut infinities and magnitudes off
    /// at their range and write finite scales only; float formats keep NaN and infinities.
    fn encode(values: &[f32]) -> Self;
}

/// Decodes whole blocks: `bytes` holds `out.len() / F::LEN` of them.
///
/// # Panics
/// If `out.len()` is not a multiple of `F::LEN`, or `bytes` does not have exactly the blocks' size.
pub fn decode_row<F: BlockFormat>(bytes: &[u8], out: &mut [f32]) {
    let blocks = <[F]>::ref_from_bytes(bytes).ok();
    let blocks = blocks.filter(|blocks| Some(out.len()) == blocks.len().checked_mul(F::LEN));
    let Some(blocks) = blocks else {
        panic!("{}: {} bytes do not decode to {} values", F::NAME, bytes.len(), out.len())
    };
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(F::LEN)) {
        block.decode(out);
    }
}

/// Encodes whole blocks: `out` holds `values.len() / F::LEN` of them.
///
/// # Panics
/// If `values.len()` is not a multiple of `F::LEN`, or `out` does not have exactly the blocks' size.
pub fn encode_row<F: BlockFormat>(values: &[f32], out: &mut [u8]) {
    let bytes = out.len();
    let blocks = <[F]>::mut_from_bytes(out).ok();
    let blocks = blocks.filter(|blocks| Some(values.len()) == blocks.len().checked_mul(F::LEN));
    let Some(blocks) = blocks else {
        panic!("{}: {} values do not encode to {bytes} bytes", F::NAME, values.len())
    };
    for (block, values) in blocks.iter_mut().zip(values.chunks_exact(F::LEN)) {
        *block = F::encode(values);
    }
}
