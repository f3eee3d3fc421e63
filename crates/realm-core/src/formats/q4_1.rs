//! Q4_1: 32 weights of 4 bits, a scale and a minimum, 5 bits a weight.

use super::BlockFormat;
use super::bits::{F16Le, array_mut, tame};
use super::search::scale_and_min;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · q + m`, q in 0..16.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q4_1 {
    /// Scale.
    pub d: F16Le,
    /// Minimum: the value of q = 0.
    pub m: F16Le,
    /// Quants: weight j (0..16) in the low nibble of byte j, weight 16 + j in the high one.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Q4_1>() == 20);

impl BlockFormat for Q4_1 {
    const NAME: &'static str = "Q4_1";
    const GGUF_ID: u32 = 3;
    const LEN: usize = 32;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<32>(out);
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (j, &q) in self.qs.iter().enumerate() {
            out[j] = f32::from(q & 15) * d + m;
            out[j + 16] = f32::from(q >> 4) * d + m;
        }
    }

    /// The smallest weight becomes q = 0 and the largest q = 15.
    fn encode(values: &[f32]) -> Self {
        let x = tame::<32>(values);
        let (d, m, id) = scale_and_min(&x, 15.0);
        let q = |v: f32| (((v - m) * id + 0.5) as u8).min(15);
        Self {
            d: F16Le::from_f32(d),
            m: F16Le::from_f32(m),
            qs: std::array::from_fn(|j| q(x[j]) | q(x[j + 16]) << 4),
        }
    }
}
