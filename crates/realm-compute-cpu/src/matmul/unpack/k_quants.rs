//! The formats with blocks of 256. Where each weight's bits lie is said at the structs in
//! `realm_core::formats`; a word here is four neighbouring bytes of a block.

use realm_core::formats::{IQ4_LEVELS, Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K, Q8K};

use super::{
    Out, QuantBlock, Quants, Zero, bits, byte, half_at, join, signed_byte, small::iq4_table,
    straddle, words_at,
};
use crate::matmul::lanes::Lanes;

/// Scales and minima of Q4_K and Q5_K, from a block's first 16 bytes.
#[inline(always)]
fn scales_and_mins<const N: usize, L: Lanes<N>>(
    lanes: L,
    [d, low, mins, high]: [L::U; 4],
    out: &mut Out<'_, N>,
) {
    let minus = lanes.splat_f(-1.0);
    let min_scale = lanes.mul(lanes.half(lanes.shr(d, 16)), minus);
    let scale = lanes.half(d);
    let scales =
        [bits(lanes, low, 0, 63), lanes.or(bits(lanes, high, 0, 15), bits(lanes, low, 2, 48))];
    let mins =
        [bits(lanes, mins, 0, 63), lanes.or(bits(lanes, high, 4, 15), bits(lanes, mins, 2, 48))];
    for group in 0..8 {
        let (s, m) = (scales[group / 4], mins[group / 4]);
        lanes.store(
            lanes.mul(lanes.float(byte(lanes, s, group % 4)), scale),
            &mut out.scales[group],
        );
        lanes.store(
            lanes.mul(lanes.float(byte(lanes, m, group % 4)), min_scale),
            &mut out.mins[group],
        );
    }
}

impl QuantBlock for Q4K {
    const QUANTS: Quants = Quants { group: 32, bits: 4, zero: Zero::Min };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], mut out: Out<'_, N>) {
        scales_and_mins(lanes, words_at(lanes, rows, 0), &mut out);
        for chunk in 0..8 {
            let words = words_at(lanes, rows, 16 + 16 * chunk);
            for (word, q) in words.into_iter().enumerate() {
                let at = chunk / 2 * 16 + chunk % 2 * 4 + word;
                lanes.store_words(bits(lanes, q, 0, 15), &mut out.words[at]);
                lanes.store_words(bits(lanes, q, 4, 15), &mut out.words[at + 8]);
            }
        }
    }
}

impl QuantBlock for Q5K {
    const QUANTS: Quants = Quants { group: 32, bits: 5, zero: Zero::Min };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], mut out: Out<'_, N>) {
        scales_and_mins(lanes, words_at(lanes, rows, 0), &mut out);
        let high = [words_at(lanes, rows, 16), words_at(lanes, rows, 32)];
        for chunk in 0..8 {
            let words = words_at(lanes, rows, 48 + 16 * chunk);
            for (word, q) in words.into_iter().enumerate() {
                let at = chunk / 2 * 16 + chunk % 2 * 4 + word;
                let fifth = high[chunk % 2][word];
                let group = chunk / 2 * 2;
                let (a, b) = (bits(lanes, q, 0, 15), bits(lanes, q, 4, 15));
                lanes.store_words(
                    join(lanes, a, bits(lanes, fifth, group, 1), 4),
                    &mut out.words[at],
                );
                lanes.store_words(
                    join(lanes, b, bits(lanes, fifth, group + 1, 1), 4),
                    &mut out.words[at + 8],
                );
            }
        }
    }
}

impl QuantBlock for Q6K {
    const QUANTS: Quants = Quants { group: 16, bits: 6, zero: Zero::Shift(5) };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        let scale = lanes.half(half_at(lanes, rows, 208));
        let scales = words_at(lanes, rows, 192);
        for group in 0..16 {
            let s = signed_byte(lanes, scales[group / 4], group % 4);
            lanes.store(lanes.mul(lanes.float(s), scale), &mut out.scales[group]);
        }
        for half in 0..2 {
            let high =
                [words_at(lanes, rows, 128 + 32 * half), words_at(lanes, rows, 144 + 32 * half)];
            for chunk in 0..4 {
                let low = words_at(lanes, rows, 64 * half + 16 * chunk);
                for (word, low) in low.into_iter().enumerate() {
                    let high = high[chunk % 2][word];
                    let at = 32 * half + 4 * chunk + word;
                    let shift = chunk / 2 * 2;
                    let (a, b) = (bits(lanes, low, 0, 15), bits(lanes, low, 4, 15));
                    lanes.store_words(
                        join(lanes, a, bits(lanes, high, shift, 3), 4),
                        &mut out.words[at],
                    );
                    lanes.store_words(
                        join(lanes, b, bits(lanes, high, shift + 4, 3), 4),
                        &mut out.words[at + 16],
                    );
                }
            }
        }
    }
}

impl QuantBlock for Q2K {
    const QUANTS: Quants = Quants { group: 16, bits: 2, zero: Zero::Min };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        let scale = lanes.half(half_at(lanes, rows, 80));
        let min_scale = lanes.mul(lanes.half(half_at(lanes, rows, 82)), lanes.splat_f(-1.0));
        let scales = words_at(lanes, rows, 0);
        for group in 0..16 {
            let both = scales[group / 4];
            let (s, m) = (bits(lanes, both, 0, 15), bits(lanes, both, 4, 15));
            lanes.store(
                lanes.mul(lanes.float(byte(lanes, s, group % 4)), scale),
                &mut out.scales[group],
            );
            lanes.store(
                lanes.mul(lanes.float(byte(lanes, m, group % 4)), min_scale),
                &mut out.mins[group],
            );
        }
        for chunk in 0..4 {
            let words = words_at(lanes, rows, 16 + 16 * chunk);
            for (word, q) in words.into_iter().enumerate() {
                let at = chunk / 2 * 32 + chunk % 2 * 4 + word;
                for shift in 0..4 {
                    lanes.store_words(bits(lanes, q, 2 * shift, 3), &mut out.words[at + 8 * shift]);
                }
            }
        }
    }
}

impl QuantBlock for Q3K {
    const QUANTS: Quants = Quants { group: 16, bits: 3, zero: Zero::Shift(2) };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        // The block's last 16 bytes: two of quants, the twelve of scales, d.
        let [a, b, c, d] = words_at(lanes, rows, 94);
        let scale = lanes.half(lanes.shr(d, 16));
        let [low, low2, high] =
            [straddle(lanes, a, b), straddle(lanes, b, c), straddle(lanes, c, d)];
        let offset = lanes.splat_f(-32.0);
        for group in 0..16 {
            let low = bits(lanes, [low, low2][group / 4 % 2], group / 8 * 4, 15);
            let high = bits(lanes, high, group / 4 * 2, 3);
            let s = byte(lanes, join(lanes, low, high, 4), group % 4);
            lanes
                .store(lanes.mul(lanes.add(lanes.float(s), offset), scale), &mut out.scales[group]);
        }
        let high = [words_at(lanes, rows, 0), words_at(lanes, rows, 16)];
        for chunk in 0..4 {
            let words = words_at(lanes, rows, 32 + 16 * chunk);
            for (word, q) in words.into_iter().enumerate() {
                let at = chunk / 2 * 32 + chunk % 2 * 4 + word;
                let third = high[chunk % 2][word];
                for shift in 0..4 {
                    let low = bits(lanes, q, 2 * shift, 3);
                    let third = bits(lanes, third, chunk / 2 * 4 + shift, 1);
                    lanes.store_words(join(lanes, low, third, 2), &mut out.words[at + 8 * shift]);
                }
            }
        }
    }
}

impl QuantBlock for Q8K {
    const QUANTS: Quants = Quants { group: 32, bits: 8, zero: Zero::Shift(7) };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        let [d, ..] = words_at(lanes, rows, 0);
        for scale in out.scales.iter_mut() {
            lanes.store(lanes.as_float(d), scale);
        }
        let sign = lanes.splat(0x8080_8080);
        for chunk in 0..16 {
            let words = words_at(lanes, rows, 4 + 16 * chunk);
            for (word, q) in words.into_iter().enumerate() {
                lanes.store_words(lanes.xor(q, sign), &mut out.words[4 * chunk + word]);
            }
        }
    }
}

impl QuantBlock for Iq4Xs {
    const QUANTS: Quants = Quants { group: 32, bits: 8, zero: Zero::Shift(7) };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        let [head, low, ..] = words_at(lanes, rows, 0);
        let (scale, offset) = (lanes.half(head), lanes.splat_f(-32.0));
        let (four, two) = (lanes.splat(15), lanes.splat(3));
        for group in 0..8 {
            let low = lanes.and(lanes.shr(low, 4 * group as u32), four);
            let high = lanes.and(lanes.shr(head, 16 + 2 * group as u32), two);
            let s = lanes.float(join(lanes, low, high, 4));
            lanes.store(lanes.mul(lanes.add(s, offset), scale), &mut out.scales[group]);
        }
        let table = iq4_table(&IQ4_LEVELS);
        for chunk in 0..8 {
            let words = words_at(lanes, rows, 8 + 16 * chunk);
            for (word, q) in words.into_iter().enumerate() {
                let at = 8 * chunk + word;
                lanes.store_words(lanes.lookup(&table, bits(lanes, q, 0, 15)), &mut out.words[at]);
                lanes.store_words(
                    lanes.lookup(&table, bits(lanes, q, 4, 15)),
                    &mut out.words[at + 4],
                );
            }
        }
    }
}
