//! The quantized formats' integers and scales, block by block; `realm_core::formats` says where they
//! lie.

use realm_core::formats::{
    F16Le, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8K,
    unpack_scales_mins,
};
use zerocopy::IntoBytes;

use super::quantized::Quants;

/// Fields of `WIDTH` bits: byte `b` of a run of `RUN` holds those of the run's weights b, RUN + b,
/// 2 RUN + b…, from its lowest bits up.
fn spread<const RUN: usize, const WIDTH: usize>(bytes: &[u8], out: &mut [u8]) {
    each_field::<RUN, WIDTH>(bytes, out, |to, field| *to = field);
}

/// As [`spread`], as further bits of integers of `place` bits.
fn spread_above<const RUN: usize, const WIDTH: usize>(bytes: &[u8], place: u32, out: &mut [u8]) {
    each_field::<RUN, WIDTH>(bytes, out, |to, field| *to |= field << place);
}

#[inline(always)]
fn each_field<const RUN: usize, const WIDTH: usize>(
    bytes: &[u8],
    out: &mut [u8],
    put: impl Fn(&mut u8, u8),
) {
    let (runs, _) = bytes.as_chunks::<RUN>();
    for (run, out) in runs.iter().zip(out.chunks_exact_mut(RUN * 8 / WIDTH)) {
        let (fields, _) = out.as_chunks_mut::<RUN>();
        for (at, fields) in fields.iter_mut().enumerate() {
            for (to, byte) in fields.iter_mut().zip(run) {
                put(to, byte >> (at * WIDTH) & ((1 << WIDTH) - 1));
            }
        }
    }
}

/// The fifth bits of Q5_0 and Q5_1: bit `i` of a word belongs to weight `i`.
fn fifth_bits(word: [u8; 4], out: &mut [u8]) {
    let word = u32::from_le_bytes(word);
    for (i, to) in out.iter_mut().enumerate() {
        *to |= ((word >> i & 1) << 4) as u8;
    }
}

/// Signed bytes, 128 added.
fn raised(bytes: &[i8], out: &mut [u8]) {
    for (to, byte) in out.iter_mut().zip(bytes) {
        *to = byte.cast_unsigned() ^ 0x80;
    }
}

/// Two parts of a header, one after the other.
fn join(first: &[u8], second: &[u8], out: &mut [u8]) {
    let (head, tail) = out.split_at_mut(first.len());
    head.copy_from_slice(first);
    tail.copy_from_slice(second);
}

/// d, dmin and the 6-bit scales and minima of Q4_K and Q5_K. Byte `i` of the words for groups 0 to 3 and
/// 4 to 7 has a scale and, above it, the upper two bits of the group's minimum; byte `i` of the last word
/// has the lower four bits of the minima of groups `i` and 4 + `i`.
fn six_bit_header(factors: &[F16Le; 2], packed: &[u8; 12], out: &mut [u8]) {
    let (scales, mins) = unpack_scales_mins(packed);
    let (head, words) = out.split_at_mut(4);
    head.copy_from_slice(factors.as_bytes());
    for group in 0..8 {
        words[group] = scales[group] | mins[group] >> 4 << 6;
    }
    for i in 0..4 {
        words[8 + i] = mins[i] & 15 | (mins[4 + i] & 15) << 4;
    }
}

impl Quants for Q4_0 {
    const LOW: usize = 4;
    const HIGH: usize = 0;
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const HEADER: [usize; 2] = [2, 0];

    fn integers(&self, out: &mut [u8]) {
        spread::<16, 4>(&self.qs, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        first.copy_from_slice(self.d.as_bytes());
    }
}

impl Quants for Q4_1 {
    const LOW: usize = 4;
    const HIGH: usize = 0;
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const HEADER: [usize; 2] = [4, 0];

    fn integers(&self, out: &mut [u8]) {
        spread::<16, 4>(&self.qs, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        join(self.d.as_bytes(), self.m.as_bytes(), first);
    }
}

impl Quants for Q5_0 {
    const LOW: usize = 4;
    const HIGH: usize = 1;
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const HEADER: [usize; 2] = [2, 0];

    fn integers(&self, out: &mut [u8]) {
        spread::<16, 4>(&self.qs, out);
        fifth_bits(self.qh, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        first.copy_from_slice(self.d.as_bytes());
    }
}

impl Quants for Q5_1 {
    const LOW: usize = 4;
    const HIGH: usize = 1;
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const HEADER: [usize; 2] = [4, 0];

    fn integers(&self, out: &mut [u8]) {
        spread::<16, 4>(&self.qs, out);
        fifth_bits(self.qh, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        join(self.d.as_bytes(), self.m.as_bytes(), first);
    }
}

impl Quants for Q8_0 {
    const LOW: usize = 8;
    const HIGH: usize = 0;
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const HEADER: [usize; 2] = [2, 0];

    fn integers(&self, out: &mut [u8]) {
        raised(&self.qs, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        first.copy_from_slice(self.d.as_bytes());
    }
}

impl Quants for Q2K {
    const LOW: usize = 2;
    const HIGH: usize = 0;
    const GROUP: usize = 16;
    const HAS_MIN: bool = true;
    const HEADER: [usize; 2] = [16, 4];

    fn integers(&self, out: &mut [u8]) {
        spread::<32, 2>(&self.qs, out);
    }

    fn header(&self, first: &mut [u8], second: &mut [u8]) {
        first.copy_from_slice(&self.scales);
        join(self.d.as_bytes(), self.dmin.as_bytes(), second);
    }
}

impl Quants for Q3K {
    const LOW: usize = 2;
    const HIGH: usize = 1;
    const GROUP: usize = 16;
    const HAS_MIN: bool = false;
    const HEADER: [usize; 2] = [12, 2];

    fn integers(&self, out: &mut [u8]) {
        spread::<32, 2>(&self.qs, out);
        spread_above::<32, 1>(&self.hmask, 2, out);
    }

    fn header(&self, first: &mut [u8], second: &mut [u8]) {
        first.copy_from_slice(&self.scales);
        second.copy_from_slice(self.d.as_bytes());
    }
}

impl Quants for Q4K {
    const LOW: usize = 4;
    const HIGH: usize = 0;
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const HEADER: [usize; 2] = [16, 0];

    fn integers(&self, out: &mut [u8]) {
        spread::<32, 4>(&self.qs, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        six_bit_header(&[self.d, self.dmin], &self.scales, first);
    }
}

impl Quants for Q5K {
    const LOW: usize = 4;
    const HIGH: usize = 1;
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const HEADER: [usize; 2] = [16, 0];

    fn integers(&self, out: &mut [u8]) {
        spread::<32, 4>(&self.qs, out);
        spread_above::<32, 1>(&self.qh, 4, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        six_bit_header(&[self.d, self.dmin], &self.scales, first);
    }
}

impl Quants for Q6K {
    const LOW: usize = 4;
    const HIGH: usize = 2;
    const GROUP: usize = 16;
    const HAS_MIN: bool = false;
    const HEADER: [usize; 2] = [16, 2];

    fn integers(&self, out: &mut [u8]) {
        spread::<64, 4>(&self.ql, out);
        spread_above::<32, 2>(&self.qh, 4, out);
    }

    fn header(&self, first: &mut [u8], second: &mut [u8]) {
        first.copy_from_slice(self.scales.as_bytes());
        second.copy_from_slice(self.d.as_bytes());
    }
}

/// Without its sums, which no product of a weight needs.
impl Quants for Q8K {
    const LOW: usize = 8;
    const HIGH: usize = 0;
    const GROUP: usize = 64;
    const HAS_MIN: bool = false;
    const HEADER: [usize; 2] = [4, 0];

    fn integers(&self, out: &mut [u8]) {
        raised(&self.qs, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        first.copy_from_slice(self.d.as_bytes());
    }
}

/// Indices of levels fill their words: a table is looked up by four nibbles side by side.
impl Quants for Iq4Nl {
    const LOW: usize = 4;
    const HIGH: usize = 0;
    const PLACE: usize = 0;
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const HEADER: [usize; 2] = [2, 0];

    fn integers(&self, out: &mut [u8]) {
        spread::<16, 4>(&self.qs, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        first.copy_from_slice(self.d.as_bytes());
    }
}

/// As [`Iq4Nl`]'s.
impl Quants for Iq4Xs {
    const LOW: usize = 4;
    const HIGH: usize = 0;
    const PLACE: usize = 0;
    const GROUP: usize = 32;
    const HAS_MIN: bool = false;
    const HEADER: [usize; 2] = [8, 0];

    fn integers(&self, out: &mut [u8]) {
        spread::<16, 4>(&self.qs, out);
    }

    fn header(&self, first: &mut [u8], _: &mut [u8]) {
        // d, scales_h and scales_l, as they lie in the block.
        first.copy_from_slice(&self.as_bytes()[..8]);
    }
}
