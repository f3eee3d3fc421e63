//! The formats with blocks of 32. Where each weight's bits lie is said at the structs in
//! `realm_core::formats`; a word here is four neighbouring bytes of a block.

use realm_core::formats::{IQ4_LEVELS, Iq4Nl, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

use super::{Out, QuantBlock, Quants, Zero, bits, half_at, join, straddle, words_at};
use crate::matmul::lanes::Lanes;

/// IQ4's levels as unsigned quants.
pub(super) const fn iq4_table(levels: &[i8; 16]) -> [u8; 16] {
    let mut table = [0; 16];
    let mut at = 0;
    while at < 16 {
        table[at] = levels[at] as u8 ^ 0x80;
        at += 1;
    }
    table
}

/// The nibbles of 16 bytes: the low ones are weights 0..16, the high ones weights 16..32.
#[inline(always)]
fn nibbles<const N: usize, L: Lanes<N>>(lanes: L, words: [L::U; 4], out: &mut [[u32; N]]) {
    for (at, word) in words.into_iter().enumerate() {
        lanes.store_words(bits(lanes, word, 0, 15), &mut out[at]);
        lanes.store_words(bits(lanes, word, 4, 15), &mut out[at + 4]);
    }
}

/// Adds the fifth bits: bit `i` of `high` to weight `i`.
#[inline(always)]
fn fifth_bits<const N: usize, L: Lanes<N>>(lanes: L, high: L::U, out: &mut [[u32; N]]) {
    for (at, out) in out.iter_mut().enumerate() {
        // Bits 0..4 spread to bit 0 of bytes 0..4: the copies' other bits are masked away.
        let four = lanes.and(lanes.shr(high, 4 * at as u32), lanes.splat(15));
        let pairs = lanes.or(four, lanes.shl(four, 14));
        let spread = lanes.or(pairs, lanes.shl(pairs, 7));
        let low = lanes.load_words(out);
        lanes.store_words(join(lanes, low, bits(lanes, spread, 0, 1), 4), out);
    }
}

impl QuantBlock for Q4_0 {
    const QUANTS: Quants = Quants { group: 32, bits: 4, zero: Zero::Shift(3) };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        lanes.store(lanes.half(half_at(lanes, rows, 0)), &mut out.scales[0]);
        nibbles(lanes, words_at(lanes, rows, 2), out.words);
    }
}

impl QuantBlock for Q4_1 {
    const QUANTS: Quants = Quants { group: 32, bits: 4, zero: Zero::Min };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        let [head, ..] = words_at(lanes, rows, 0);
        lanes.store(lanes.half(head), &mut out.scales[0]);
        lanes.store(lanes.half(lanes.shr(head, 16)), &mut out.mins[0]);
        nibbles(lanes, words_at(lanes, rows, 4), out.words);
    }
}

impl QuantBlock for Q5_0 {
    const QUANTS: Quants = Quants { group: 32, bits: 5, zero: Zero::Shift(4) };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        let [head, next, ..] = words_at(lanes, rows, 0);
        lanes.store(lanes.half(head), &mut out.scales[0]);
        nibbles(lanes, words_at(lanes, rows, 6), out.words);
        fifth_bits(lanes, straddle(lanes, head, next), out.words);
    }
}

impl QuantBlock for Q5_1 {
    const QUANTS: Quants = Quants { group: 32, bits: 5, zero: Zero::Min };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        let [head, high, ..] = words_at(lanes, rows, 0);
        lanes.store(lanes.half(head), &mut out.scales[0]);
        lanes.store(lanes.half(lanes.shr(head, 16)), &mut out.mins[0]);
        nibbles(lanes, words_at(lanes, rows, 8), out.words);
        fifth_bits(lanes, high, out.words);
    }
}

impl QuantBlock for Q8_0 {
    const QUANTS: Quants = Quants { group: 32, bits: 8, zero: Zero::Shift(7) };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        lanes.store(lanes.half(half_at(lanes, rows, 0)), &mut out.scales[0]);
        let sign = lanes.splat(0x8080_8080);
        for chunk in 0..2 {
            let words = words_at(lanes, rows, 2 + 16 * chunk);
            for (word, q) in words.into_iter().enumerate() {
                lanes.store_words(lanes.xor(q, sign), &mut out.words[4 * chunk + word]);
            }
        }
    }
}

impl QuantBlock for Iq4Nl {
    const QUANTS: Quants = Quants { group: 32, bits: 8, zero: Zero::Shift(7) };

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>) {
        lanes.store(lanes.half(half_at(lanes, rows, 0)), &mut out.scales[0]);
        let table = iq4_table(&IQ4_LEVELS);
        nibbles(lanes, words_at(lanes, rows, 2), out.words);
        for word in out.words.iter_mut() {
            lanes.store_words(lanes.lookup(&table, lanes.load_words(word)), word);
        }
    }
}
