//! Q5_1: 32 weights of 5 bits, a scale and a minimum, 6 bits a weight.

use super::BlockFormat;
use super::bits::{F16Le, array_mut, tame};
use super::q5_0::{pack_5bit, unpack_5bit};
use super::search::scale_and_min;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · q + m`, q in 0..32.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q5_1 {
    /// Scale.
    pub d: F16Le,
    /// Minimum: the value of q = 0.
    pub m: F16Le,
    /// Fifth bits: bit i of this little-endian word belongs to weight i (0..32).
    pub qh: [u8; 4],
    /// Lower four bits: weight j (0..16) in the low nibble of byte j, weight 16 + j in the high one.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Q5_1>() == 24);

impl BlockFormat for Q5_1 {
    const NAME: &'static str = "Q5_1";
    const GGUF_ID: u32 = 7;
    const LEN: usize = 32;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<32>(out);
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        let q = unpack_5bit(&self.qs, self.qh);
        for (y, q) in out.iter_mut().zip(q) {
            *y = f32::from(q) * d + m;
        }
    }

    /// The smallest weight becomes q = 0 and the largest q = 31.
    fn encode(values: &[f32]) -> Self {
        let x = tame::<32>(values);
        let (d, m, id) = scale_and_min(&x, 31.0);
        let (qs, qh) = pack_5bit(&x.map(|v| (((v - m) * id + 0.5) as u8).min(31)));
        Self { d: F16Le::from_f32(d), m: F16Le::from_f32(m), qh, qs }
    }
}
