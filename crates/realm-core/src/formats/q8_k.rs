//! Q8_K: 256 values of 8 bits, one single-precision scale and sums of 16; made for activations.

use super::BlockFormat;
use super::bits::{array_mut, nan_to_zero, round_even, signed_max};
use zerocopy::little_endian::{F32, I16};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `value = d · q`, q in −128..128 (the encoder uses −127..=127).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q8K {
    /// Scale.
    pub d: F32,
    /// Quants, one a value, in order.
    pub qs: [i8; 256],
    /// Sum of the quants of each group of 16: products with formats that have minima need it.
    pub bsums: [I16; 16],
}

const _: () = assert!(size_of::<Q8K>() == 292);

impl BlockFormat for Q8K {
    const NAME: &'static str = "Q8_K";
    const GGUF_ID: u32 = 15;
    const LEN: usize = 256;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<256>(out);
        let d = self.d.get();
        for (y, &q) in out.iter_mut().zip(&self.qs) {
            *y = d * f32::from(q);
        }
    }

    /// The value of largest magnitude becomes q = −127, whatever its sign. Blocks whose largest
    /// magnitude is below about 4e-37 become zero: the inverse scale would overflow.
    fn encode(values: &[f32]) -> Self {
        // Below f32::MAX, so that d · 127 cannot round up to infinity.
        const LIMIT: f32 = 3e38;
        let values: &[f32; 256] =
            values.try_into().expect("a block's input has the format's length");
        let x = values.map(|v| nan_to_zero(v.clamp(-LIMIT, LIMIT)));
        let inverse = -127.0 / signed_max(&x);
        if !inverse.is_finite() {
            return Self::new_zeroed();
        }
        let qs = x.map(|v| round_even(inverse * v) as i8);
        let (groups, _) = qs.as_chunks::<16>();
        Self {
            d: F32::new(1.0 / inverse),
            qs,
            bsums: std::array::from_fn(|g| I16::new(groups[g].iter().map(|&q| i16::from(q)).sum())),
        }
    }
}
