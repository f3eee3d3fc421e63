//! Q8_0: 32 weights of 8 bits and one scale, 8.5 bits a weight.

use super::BlockFormat;
use super::bits::{F16_MAX, F16Le, array_mut, inverse, round_away, signed_max, tame};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · q`, q in −128..128 (encoders use −127..=127).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q8_0 {
    /// Scale.
    pub d: F16Le,
    /// Quants, one a weight, in order.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<Q8_0>() == 34);

impl BlockFormat for Q8_0 {
    const NAME: &'static str = "Q8_0";
    const GGUF_ID: u32 = 8;
    const LEN: usize = 32;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<32>(out);
        let d = self.d.to_f32();
        for (y, &q) in out.iter_mut().zip(&self.qs) {
            *y = f32::from(q) * d;
        }
    }

    /// The weight of largest magnitude becomes ±127.
    fn encode(values: &[f32]) -> Self {
        let x = tame::<32>(values);
        let d = (signed_max(&x).abs() / 127.0).min(F16_MAX);
        let id = inverse(d);
        Self {
            d: F16Le::from_f32(d),
            qs: x.map(|v| round_away((v * id).clamp(-127.0, 127.0)) as i8),
        }
    }
}
