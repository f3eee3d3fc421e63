//! Q4_K: 256 weights of 4 bits in 8 groups with 6-bit scales and minima, 4.5 bits a weight.

use super::BlockFormat;
use super::bits::{F16Le, array_mut, tame};
use super::scales::{pack_scales_mins, unpack_scales_mins};
use super::search::{AffineSearch, magnitude_and_mean};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · scale[g] · q − dmin · min[g]`, q in 0..16, group g = weight / 32.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q4K {
    /// Scale of the scales.
    pub d: F16Le,
    /// Scale of the minima.
    pub dmin: F16Le,
    /// The groups' 6-bit scales and minima, see [`unpack_scales_mins`].
    pub scales: [u8; 12],
    /// Quants: weight 64·c + l (c 0..4, l 0..32) in the low nibble of byte 32·c + l,
    /// weight 64·c + 32 + l in its high nibble.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<Q4K>() == 144);

impl BlockFormat for Q4K {
    const NAME: &'static str = "Q4_K";
    const GGUF_ID: u32 = 12;
    const LEN: usize = 256;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<256>(out);
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let (scales, mins) = unpack_scales_mins(&self.scales);
        let (groups, _) = out.as_chunks_mut::<32>();
        let (chunks, _) = self.qs.as_chunks::<32>();
        for (g, y) in groups.iter_mut().enumerate() {
            let (dl, ml) = (d * f32::from(scales[g]), dmin * f32::from(mins[g]));
            let shift = g % 2 * 4;
            for (y, &q) in y.iter_mut().zip(&chunks[g / 2]) {
                *y = dl * f32::from(q >> shift & 15) - ml;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let x = tame::<256>(values);
        let search = AffineSearch { levels: 15.0, scale_levels: 63.0, first: -1.0, tries: 21 };
        let block = search.block::<32, 8>(&x, magnitude_and_mean);
        let mut qs = [0; 128];
        for (i, &q) in block.q.iter().enumerate() {
            qs[i / 64 * 32 + i % 32] |= q << (i / 32 % 2 * 4);
        }
        let scales = pack_scales_mins(&block.scales, &block.mins);
        Self { d: block.d, dmin: block.dmin, scales, qs }
    }
}
