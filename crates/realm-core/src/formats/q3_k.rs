//! Q3_K: 256 weights of 3 bits in 16 groups with 6-bit scales, 3.4375 bits a weight.

use super::BlockFormat;
use super::bits::{F16Le, array_mut, round_even, tame};
use super::search::SignedSearch;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · (scale[g] − 32) · (q − 4)`, q in 0..8, group g = weight / 16.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q3K {
    /// Third bits: weight 32·b + l (b 0..8, l 0..32) in bit b of byte l.
    pub hmask: [u8; 32],
    /// Lower two bits: weight 128·h + 32·s + l in bits 2s, 2s+1 of byte 32·h + l.
    pub qs: [u8; 64],
    /// The groups' 6-bit scales, see [`Q3K::unpack_scales`].
    pub scales: [u8; 12],
    /// Scale of the scales.
    pub d: F16Le,
}

const _: () = assert!(size_of::<Q3K>() == 110);

impl Q3K {
    /// The groups' scales, offset taken off: −32..32.
    ///
    /// Bytes 0..8 hold the lower four bits (groups 0..8 in the low nibbles, 8..16 in the high
    /// ones), bytes 8..12 the upper two (group g in bits 2·(g/4).. of byte 8 + g % 4).
    #[inline]
    pub fn unpack_scales(&self) -> [i8; 16] {
        let s = &self.scales;
        std::array::from_fn(|g| {
            let low = if g < 8 { s[g] & 15 } else { s[g - 8] >> 4 };
            let high = s[8 + g % 4] >> (g / 4 * 2) & 3;
            (low | high << 4) as i8 - 32
        })
    }

    /// Inverse of [`Q3K::unpack_scales`].
    fn pack_scales(scales: &[i8; 16]) -> [u8; 12] {
        let mut packed = [0; 12];
        for (g, &scale) in scales.iter().enumerate() {
            let scale = (scale + 32) as u8;
            packed[g % 8] |= (scale & 15) << (g / 8 * 4);
            packed[8 + g % 4] |= (scale >> 4) << (g / 4 * 2);
        }
        packed
    }
}

impl BlockFormat for Q3K {
    const NAME: &'static str = "Q3_K";
    const GGUF_ID: u32 = 11;
    const LEN: usize = 256;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<256>(out);
        let d = self.d.to_f32();
        let (groups, _) = out.as_chunks_mut::<16>();
        let (lows, _) = self.qs.as_chunks::<16>();
        let (highs, _) = self.hmask.as_chunks::<16>();
        for (g, (y, scale)) in groups.iter_mut().zip(self.unpack_scales()).enumerate() {
            let dl = d * f32::from(scale);
            let (low, high) = (&lows[g / 8 * 2 + g % 2], &highs[g % 2]);
            let (shift, bit) = (g / 2 % 4 * 2, g / 2);
            for (y, (&low, &high)) in y.iter_mut().zip(low.iter().zip(high)) {
                let q = low >> shift & 3 | (high >> bit & 1) << 2;
                *y = dl * (i32::from(q) - 4) as f32;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let x = tame::<256>(values);
        let level = |v: f32| round_even(v.clamp(-4.0, 3.0));
        let search = SignedSearch { level, first: -4.9, step: 0.1, tries: 19 };
        let block = search.block::<16, 16>(&x, 32.0);
        let (mut qs, mut hmask) = ([0; 64], [0; 32]);
        for (i, &level) in block.levels.iter().enumerate() {
            let q = (level + 4.0) as u8;
            qs[i / 128 * 32 + i % 32] |= (q & 3) << (i / 32 % 4 * 2);
            hmask[i % 32] |= (q >> 2) << (i / 32);
        }
        Self { hmask, qs, scales: Self::pack_scales(&block.scales), d: block.d }
    }
}
