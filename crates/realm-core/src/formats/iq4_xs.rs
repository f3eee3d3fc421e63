//! IQ4_XS: IQ4_NL's levels in blocks of 256 with 6-bit scales for groups of 32, 4.25 bits a weight.

use super::BlockFormat;
use super::bits::{F16Le, array_mut, tame};
use super::iq4_nl::{IQ4_LEVELS, index_of, search};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · (scale[g] − 32) · IQ4_LEVELS[q]`, q in 0..16, group g = weight / 32.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Iq4Xs {
    /// Scale of the scales.
    pub d: F16Le,
    /// Upper two bits of the scales: group g in bits 2g, 2g+1 of this little-endian word.
    pub scales_h: [u8; 2],
    /// Lower four bits of the scales: group g in nibble g % 2 (0 low, 1 high) of byte g / 2.
    pub scales_l: [u8; 4],
    /// Indices: weight 32·g + j (g 0..8, j 0..16) in the low nibble of byte 16·g + j,
    /// weight 32·g + 16 + j in its high nibble.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<Iq4Xs>() == 136);

impl Iq4Xs {
    /// The groups' scales, offset taken off: −32..32.
    #[inline]
    pub fn unpack_scales(&self) -> [i8; 8] {
        let high = u16::from_le_bytes(self.scales_h);
        std::array::from_fn(|g| {
            let low = self.scales_l[g / 2] >> (g % 2 * 4) & 15;
            (low | ((high >> (2 * g) & 3) << 4) as u8) as i8 - 32
        })
    }
}

impl BlockFormat for Iq4Xs {
    const NAME: &'static str = "IQ4_XS";
    const GGUF_ID: u32 = 23;
    const LEN: usize = 256;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<256>(out);
        let d = self.d.to_f32();
        let scales = self.unpack_scales();
        let (groups, _) = out.as_chunks_mut::<32>();
        let (chunks, _) = self.qs.as_chunks::<16>();
        for (g, y) in groups.iter_mut().enumerate() {
            let dl = d * f32::from(scales[g]);
            for (j, &q) in chunks[g].iter().enumerate() {
                y[j] = dl * f32::from(IQ4_LEVELS[usize::from(q & 15)]);
                y[j + 16] = dl * f32::from(IQ4_LEVELS[usize::from(q >> 4)]);
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let x = tame::<256>(values);
        let block = search().block::<32, 8>(&x, 32.0);
        let (mut scales_h, mut scales_l) = (0, [0; 4]);
        for (g, &scale) in block.scales.iter().enumerate() {
            let scale = (scale + 32) as u8;
            scales_l[g / 2] |= (scale & 15) << (g % 2 * 4);
            scales_h |= u16::from(scale >> 4) << (2 * g);
        }
        let mut qs = [0; 128];
        for (i, &level) in block.levels.iter().enumerate() {
            qs[i / 32 * 16 + i % 16] |= index_of(level) << (i / 16 % 2 * 4);
        }
        Self { d: block.d, scales_h: scales_h.to_le_bytes(), scales_l, qs }
    }
}
