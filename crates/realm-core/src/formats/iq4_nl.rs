//! IQ4_NL: 32 weights as 4-bit indices into sixteen uneven levels, one scale, 4.5 bits a weight.

use super::BlockFormat;
use super::bits::{F16Le, array_mut, inverse, tame};
use super::search::SignedSearch;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The levels of IQ4_NL and IQ4_XS: dense around zero, as weights are.
pub const IQ4_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// `weight = d · IQ4_LEVELS[q]`, q in 0..16.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Iq4Nl {
    /// Scale.
    pub d: F16Le,
    /// Indices: weight j (0..16) in the low nibble of byte j, weight 16 + j in the high one.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Iq4Nl>() == 18);

impl BlockFormat for Iq4Nl {
    const NAME: &'static str = "IQ4_NL";
    const GGUF_ID: u32 = 20;
    const LEN: usize = 32;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<32>(out);
        let d = self.d.to_f32();
        for (j, &q) in self.qs.iter().enumerate() {
            out[j] = d * f32::from(IQ4_LEVELS[usize::from(q & 15)]);
            out[j + 16] = d * f32::from(IQ4_LEVELS[usize::from(q >> 4)]);
        }
    }

    fn encode(values: &[f32]) -> Self {
        let x = tame::<32>(values);
        let d = F16Le::from_f32_finite(search().group(&x));
        let id = inverse(d.to_f32());
        let q = |v: f32| index_of(nearest_level(v * id));
        Self { d, qs: std::array::from_fn(|j| q(x[j]) | q(x[j + 16]) << 4) }
    }
}

/// The search for the scale of a group: starts map the extreme weight near the extreme level.
pub(super) fn search() -> SignedSearch<impl Fn(f32) -> f32> {
    SignedSearch { level: nearest_level, first: -134.0, step: 1.0, tries: 15 }
}

/// The level nearest to `v`.
#[inline(always)]
pub(super) fn nearest_level(v: f32) -> f32 {
    let mut level = f32::from(IQ4_LEVELS[0]);
    for pair in IQ4_LEVELS.windows(2) {
        let (below, above) = (f32::from(pair[0]), f32::from(pair[1]));
        level += if v > (below + above) * 0.5 { above - below } else { 0.0 };
    }
    level
}

/// The index of a level.
#[inline(always)]
pub(super) fn index_of(level: f32) -> u8 {
    IQ4_LEVELS.iter().map(|&l| u8::from(f32::from(l) < level)).sum()
}
