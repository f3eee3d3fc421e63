//! Q5_0: 32 weights of 5 bits and one scale, 5.5 bits a weight.

use super::BlockFormat;
use super::bits::{F16_MAX, F16Le, array_mut, inverse, signed_max, tame};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `weight = d · (q − 16)`, q in 0..32.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Q5_0 {
    /// Scale.
    pub d: F16Le,
    /// Fifth bits: bit i of this little-endian word belongs to weight i (0..32).
    pub qh: [u8; 4],
    /// Lower four bits: weight j (0..16) in the low nibble of byte j, weight 16 + j in the high one.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<Q5_0>() == 22);

impl BlockFormat for Q5_0 {
    const NAME: &'static str = "Q5_0";
    const GGUF_ID: u32 = 6;
    const LEN: usize = 32;

    #[inline]
    fn decode(&self, out: &mut [f32]) {
        let out = array_mut::<32>(out);
        let d = self.d.to_f32();
        let q = unpack_5bit(&self.qs, self.qh);
        for (y, q) in out.iter_mut().zip(q) {
            *y = (i32::from(q) - 16) as f32 * d;
        }
    }

    /// The weight of largest magnitude becomes q = 0 exactly, whatever its sign.
    fn encode(values: &[f32]) -> Self {
        let x = tame::<32>(values);
        let d = (signed_max(&x) / -16.0).clamp(-F16_MAX, F16_MAX);
        let id = inverse(d);
        let (qs, qh) = pack_5bit(&x.map(|v| ((v * id + 16.5) as u8).min(31)));
        Self { d: F16Le::from_f32(d), qh, qs }
    }
}

/// The 32 quants (0..32) of a Q5_0 or Q5_1 block.
#[inline(always)]
pub(super) fn unpack_5bit(qs: &[u8; 16], qh: [u8; 4]) -> [u8; 32] {
    let high = u32::from_le_bytes(qh);
    std::array::from_fn(|i| {
        let low = if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 };
        low | ((high >> i & 1) << 4) as u8
    })
}

/// Inverse of [`unpack_5bit`].
pub(super) fn pack_5bit(q: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    let mut high = 0u32;
    for (i, &q) in q.iter().enumerate() {
        high |= u32::from(q >> 4 & 1) << i;
    }
    (std::array::from_fn(|j| q[j] & 15 | q[j + 16] << 4), high.to_le_bytes())
}
