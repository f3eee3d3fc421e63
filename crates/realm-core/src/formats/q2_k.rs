//! Q2_K: 256 weights of 2 bits in 16 groups with 4-bit scales and minima, 2.625 bits a weight.

use super::BlockFormat;
use super::bits::{F16Le, array_mut, tame};
use super::search::AffineSearch;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · scale[g] · q − dmin · min[g]`, q in 0..4, group g = weight / 16.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q2K {
    /// Scale (low nibble) and minimum (high nibble) of each group of 16 weights.
    pub scales: [u8; 16],
    /// Quants: weight 128·h + 32·s + l (h 0..2, s 0..4, l 0..32) in bits 2s, 2s+1 of byte 32·h + l.
    pub qs: [u8; 64],
    /// Scale of the scales.
    pub d: F16Le,
    /// Scale of the minima.
    pub dmin: F16Le,
}

const _: () = assert!(size_of::<Q2K>() == 84);

impl BlockFormat for Q2K {
    const NAME: &'static str = "Q2_K";
    const GGUF_ID: u32 = 10;
    const LEN: usize = 256;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<256>(out);
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let (groups, _) = out.as_chunks_mut::<16>();
        let (halves, _) = self.qs.as_chunks::<16>();
        for (g, (y, &scale)) in groups.iter_mut().zip(&self.scales).enumerate() {
            let (dl, ml) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
            let (qs, shift) = (&halves[g / 8 * 2 + g % 2], g / 2 % 4 * 2);
            for (y, &q) in y.iter_mut().zip(qs) {
                *y = dl * f32::from(q >> shift & 3) - ml;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let x = tame::<256>(values);
        let search = AffineSearch { levels: 3.0, scale_levels: 15.0, first: -0.5, tries: 16 };
        let block = search.block::<16, 16>(&x, |x| x.map(f32::abs));
        let mut qs = [0; 64];
        for (i, &q) in block.q.iter().enumerate() {
            qs[i / 128 * 32 + i % 32] |= q << (i / 32 % 4 * 2);
        }
        Self {
            scales: std::array::from_fn(|g| block.scales[g] | block.mins[g] << 4),
            qs,
            d: block.d,
            dmin: block.dmin,
        }
    }
}
