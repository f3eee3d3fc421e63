//! F32, F16 and BF16: unquantized weights, a block of one.

use super::BlockFormat;
use super::bits::F16Le;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One IEEE 754 single-precision weight.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct F32(pub [u8; 4]);

/// One IEEE 754 half-precision weight.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct F16(pub F16Le);

/// One bfloat16 weight: the upper half of a single.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Bf16(pub [u8; 2]);

const _: () = assert!(size_of::<F32>() == 4 && size_of::<F16>() == 2 && size_of::<Bf16>() == 2);

impl BlockFormat for F32 {
    const NAME: &'static str = "F32";
    const GGUF_ID: u32 = 0;
    const LEN: usize = 1;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        out[0] = f32::from_le_bytes(self.0);
    }

    #[inline]
    fn encode(values: &[f32]) -> Self {
        Self(values[0].to_le_bytes())
    }
}

impl BlockFormat for F16 {
    const NAME: &'static str = "F16";
    const GGUF_ID: u32 = 1;
    const LEN: usize = 1;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        out[0] = self.0.to_f32();
    }

    /// Rounds to nearest, ties to even; magnitudes from 65520 on become infinite.
    #[inline]
    fn encode(values: &[f32]) -> Self {
        Self(F16Le::from_f32(values[0]))
    }
}

impl BlockFormat for Bf16 {
    const NAME: &'static str = "BF16";
    const GGUF_ID: u32 = 30;
    const LEN: usize = 1;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        out[0] = f32::from_bits(u32::from(u16::from_le_bytes(self.0)) << 16);
    }

    /// Rounds to nearest, ties to even.
    #[inline]
    fn encode(values: &[f32]) -> Self {
        Self(half::bf16::from_f32(values[0]).to_le_bytes())
    }
}
