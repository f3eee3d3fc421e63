//! Q4_0: 32 weights of 4 bits and one scale, 4.5 bits a weight.

use super::BlockFormat;
use super::bits::{F16_MAX, F16Le, array_mut, inverse, signed_max, tame};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · (q − 8)`, q in 0..16.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q4_0 {
    /// Scale.
    pub d: F16Le,
    /// Quants: weight j (0..16) in the low nibble of byte j, weight 16 + j in the high one.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Q4_0>() == 18);

impl BlockFormat for Q4_0 {
    const NAME: &'static str = "Q4_0";
    const GGUF_ID: u32 = 2;
    const LEN: usize = 32;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<32>(out);
        let d = self.d.to_f32();
        for (j, &q) in self.qs.iter().enumerate() {
            out[j] = (i32::from(q & 15) - 8) as f32 * d;
            out[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
        }
    }

    /// The weight of largest magnitude becomes q = 0 exactly, whatever its sign.
    fn encode(values: &[f32]) -> Self {
        let x = tame::<32>(values);
        let d = (signed_max(&x) / -8.0).clamp(-F16_MAX, F16_MAX);
        let id = inverse(d);
        let q = |v: f32| ((v * id + 8.5) as u8).min(15);
        Self { d: F16Le::from_f32(d), qs: std::array::from_fn(|j| q(x[j]) | q(x[j + 16]) << 4) }
    }
}
