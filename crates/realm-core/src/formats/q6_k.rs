//! Q6_K: 256 weights of 6 bits in 16 groups with 8-bit scales, 6.5625 bits a weight.

use super::BlockFormat;
use super::bits::{F16Le, array_mut, round_even, tame};
use super::search::SignedSearch;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · scale[g] · (q − 32)`, q in 0..64, group g = weight / 16.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q6K {
    /// Lower four bits: weight 128·h + 64·n + r (h 0..2, n 0..2, r 0..64) in nibble n (0 low,
    /// 1 high) of byte 64·h + r.
    pub ql: [u8; 128],
    /// Upper two bits: weight 128·h + 32·s + l (s 0..4, l 0..32) in bits 2s, 2s+1 of byte 32·h + l.
    pub qh: [u8; 64],
    /// Scale of each group of 16 weights.
    pub scales: [i8; 16],
    /// Scale of the scales.
    pub d: F16Le,
}

const _: () = assert!(size_of::<Q6K>() == 210);

impl BlockFormat for Q6K {
    const NAME: &'static str = "Q6_K";
    const GGUF_ID: u32 = 14;
    const LEN: usize = 256;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<256>(out);
        let d = self.d.to_f32();
        let (groups, _) = out.as_chunks_mut::<16>();
        let (lows, _) = self.ql.as_chunks::<16>();
        let (highs, _) = self.qh.as_chunks::<16>();
        for (g, (y, &scale)) in groups.iter_mut().zip(&self.scales).enumerate() {
            let dl = d * f32::from(scale);
            let (low, high) = (&lows[g / 8 * 4 + g % 4], &highs[g / 8 * 2 + g % 2]);
            let (nibble, shift) = (g / 4 % 2 * 4, g / 2 % 4 * 2);
            for (y, (&low, &high)) in y.iter_mut().zip(low.iter().zip(high)) {
                let q = low >> nibble & 15 | (high >> shift & 3) << 4;
                *y = dl * (i32::from(q) - 32) as f32;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let x = tame::<256>(values);
        let level = |v: f32| round_even(v.clamp(-32.0, 31.0));
        let search = SignedSearch { level, first: -32.9, step: 0.1, tries: 19 };
        let block = search.block::<16, 16>(&x, 128.0);
        let (mut ql, mut qh) = ([0; 128], [0; 64]);
        for (i, &level) in block.levels.iter().enumerate() {
            let q = (level + 32.0) as u8;
            ql[i / 128 * 64 + i % 64] |= (q & 15) << (i / 64 % 2 * 4);
            qh[i / 128 * 32 + i % 32] |= (q >> 4) << (i / 32 % 4 * 2);
        }
        Self { ql, qh, scales: block.scales, d: block.d }
    }
}
