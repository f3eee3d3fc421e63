//! From a format's blocks to tiles: `N` rows of the weight side by side, a row a lane.
//!
//! All of a format's bits are taken apart in lanes, so one decoder serves every instruction set. The
//! kernels know formats only by their [`Quants`].

mod floats;
mod k_quants;
mod small;

use realm_core::{BlockFormat, backend::Precision};

use super::lanes::Lanes;

/// Weights of a row that are unpacked at a time: the longest block.
pub(super) const TILE: usize = 256;

/// How a quantized format's tile is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quants {
    /// Weights a scale: 16 or 32.
    pub(super) group: usize,
    /// Bits of a quant: at most 4 or 6 with groups of 16, 5 with minima.
    pub(super) bits: u32,
    /// What turns the unsigned quants into weights.
    pub(super) zero: Zero,
}

/// Where a format's zero lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zero {
    /// `weight = scale · q + min`.
    Min,
    /// `weight = scale · (q − 2^shift)`; the shift is 7 where quants have 8 bits.
    Shift(u32),
}

/// The most lanes that any vectors have.
pub(super) const MAX_LANES: usize = 16;

/// Up to [`TILE`] unpacked weights of each lane's row. Entries are vectors of as many lanes as the
/// kernel has; the rest is unused.
#[repr(align(64))]
pub(super) struct Tile {
    words: [u32; TILE / 4 * MAX_LANES],
    scales: [f32; TILE / 16 * MAX_LANES],
    mins: [f32; TILE / 16 * MAX_LANES],
    floats: [f32; TILE * MAX_LANES],
}

impl Tile {
    /// A tile of zeros.
    pub(super) const fn new() -> Self {
        Self {
            words: [0; TILE / 4 * MAX_LANES],
            scales: [0.0; TILE / 16 * MAX_LANES],
            mins: [0.0; TILE / 16 * MAX_LANES],
            floats: [0.0; TILE * MAX_LANES],
        }
    }

    /// Unsigned quants: lane `n` of word `j` holds weights `4j..4j+4` of row `n`.
    #[inline(always)]
    pub(super) fn words<const N: usize>(&self) -> &[[u32; N]] {
        self.words.as_chunks().0
    }

    /// A scale a group.
    #[inline(always)]
    pub(super) fn scales<const N: usize>(&self) -> &[[f32; N]] {
        self.scales.as_chunks().0
    }

    /// A minimum a group, where the format has minima.
    #[inline(always)]
    pub(super) fn mins<const N: usize>(&self) -> &[[f32; N]] {
        self.mins.as_chunks().0
    }

    /// Lane `n` of entry `k` is weight `k` of row `n`.
    #[inline(always)]
    pub(super) fn floats<const N: usize>(&self) -> &[[f32; N]] {
        self.floats.as_chunks().0
    }

    /// Turns the first `len` quants into floats.
    #[inline(always)]
    fn expand<const N: usize, L: Lanes<N>>(&mut self, lanes: L, quants: Quants, len: usize) {
        let mask = lanes.splat(0xff);
        let offset = match quants.zero {
            Zero::Min => lanes.splat_f(0.0),
            Zero::Shift(shift) => lanes.splat_f(-((1u32 << shift) as f32)),
        };
        let Self { words, scales, mins, floats } = self;
        let (words, scales, mins) = (words.as_chunks().0, scales.as_chunks().0, mins.as_chunks().0);
        let floats = floats.as_chunks_mut::<N>().0.as_chunks_mut::<4>().0;
        for (at, (floats, word)) in floats[..len / 4].iter_mut().zip(words).enumerate() {
            let word = lanes.load_words(word);
            let group = at * 4 / quants.group;
            let (scale, min) = (lanes.load(&scales[group]), lanes.load(&mins[group]));
            for (at, float) in floats.iter_mut().enumerate() {
                let q = lanes.float(lanes.and(lanes.shr(word, 8 * at as u32), mask));
                let value = match quants.zero {
                    Zero::Min => lanes.mul_add(q, scale, min),
                    Zero::Shift(_) => lanes.mul(lanes.add(q, offset), scale),
                };
                lanes.store(value, float);
            }
        }
    }

    /// Unpacks rows of at most [`TILE`] weights, all of one length, as floats rounded to what
    /// `precision` computes with.
    #[inline(always)]
    pub(super) fn unpack_floats<F: Unpack, const N: usize, L: Lanes<N>>(
        &mut self,
        lanes: L,
        rows: &[&[F]; N],
        precision: Precision,
    ) {
        F::unpack(lanes, rows, self);
        let len = rows[0].len() * F::LEN;
        if let Some(quants) = F::QUANTS {
            self.expand::<N, L>(lanes, quants, len);
        }
        let floats = &mut self.floats.as_chunks_mut::<N>().0[..len];
        match precision {
            Precision::F16 => {
                for float in floats {
                    lanes.store(lanes.round_f16(lanes.load(float)), float);
                }
            }
            Precision::BF16 => {
                for float in floats {
                    lanes.store(lanes.round_bf16(lanes.load(float)), float);
                }
            }
            Precision::F32 | Precision::Int8 | Precision::Auto => {}
        }
    }
}

/// A format that products can read.
pub(super) trait Unpack: BlockFormat {
    /// How its tiles are to be read; `None` where the format is one of plain floats.
    const QUANTS: Option<Quants>;

    /// Unpacks rows of at most [`TILE`] weights, all of one length: quants, scales and minima, or
    /// `floats` where there are no quants.
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&[Self]; N], tile: &mut Tile);
}

/// One quantized block of each row.
pub(super) trait QuantBlock: BlockFormat {
    /// How to read what [`QuantBlock::unpack`] writes.
    const QUANTS: Quants;

    /// Writes `LEN / 4` words of quants, `LEN / group` scales and, if the format has them, as many
    /// minima.
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&Self; N], out: Out<'_, N>);
}

/// A block's part of a tile.
pub(super) struct Out<'a, const N: usize> {
    words: &'a mut [[u32; N]],
    scales: &'a mut [[f32; N]],
    mins: &'a mut [[f32; N]],
}

impl<B: QuantBlock> Unpack for B {
    const QUANTS: Option<Quants> = Some(B::QUANTS);

    #[inline(always)]
    fn unpack<const N: usize, L: Lanes<N>>(lanes: L, rows: &[&[Self]; N], tile: &mut Tile) {
        let groups = B::LEN / B::QUANTS.group;
        for at in 0..rows[0].len() {
            let mut blocks = [&rows[0][at]; N];
            for (block, row) in blocks.iter_mut().zip(rows) {
                *block = &row[at];
            }
            let out = Out {
                words: &mut tile.words.as_chunks_mut().0[at * (B::LEN / 4)..][..B::LEN / 4],
                scales: &mut tile.scales.as_chunks_mut().0[at * groups..][..groups],
                mins: &mut tile.mins.as_chunks_mut().0[at * groups..][..groups],
            };
            <B as QuantBlock>::unpack(lanes, &blocks, out);
        }
    }
}

/// Words `0..4` of the 16 bytes from byte `at` on of each block.
#[inline(always)]
fn words_at<B: BlockFormat, const N: usize, L: Lanes<N>>(
    lanes: L,
    rows: &[&B; N],
    at: usize,
) -> [L::U; 4] {
    let mut bytes = [&[0; 16]; N];
    for (bytes, row) in bytes.iter_mut().zip(rows) {
        if let Some(found) = row.as_bytes()[at..].first_chunk() {
            *bytes = found;
        }
    }
    lanes.words(bytes)
}

/// The little-endian 16 bits at byte `at` of each block.
#[inline(always)]
fn half_at<B: BlockFormat, const N: usize, L: Lanes<N>>(
    lanes: L,
    rows: &[&B; N],
    at: usize,
) -> L::U {
    let mut words = [0; N];
    for (word, row) in words.iter_mut().zip(rows) {
        let bytes = row.as_bytes();
        *word = u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    }
    lanes.load_words(&words)
}

/// Byte `at` (0..4) of each lane.
#[inline(always)]
fn byte<const N: usize, L: Lanes<N>>(lanes: L, word: L::U, at: usize) -> L::U {
    lanes.and(lanes.shr(word, 8 * at as u32), lanes.splat(0xff))
}

/// Byte `at` (0..4) of each lane as a signed number.
#[inline(always)]
fn signed_byte<const N: usize, L: Lanes<N>>(lanes: L, word: L::U, at: usize) -> L::U {
    lanes.sar(lanes.shl(word, 24 - 8 * at as u32), 24)
}

/// `(word >> by) & mask`, the mask a byte.
#[inline(always)]
fn bits<const N: usize, L: Lanes<N>>(lanes: L, word: L::U, by: usize, mask: u8) -> L::U {
    lanes.and(lanes.shr(word, by as u32), lanes.splat(u32::from_ne_bytes([mask; 4])))
}

/// `low | (high << by)`, where no bits cross the bytes.
#[inline(always)]
fn join<const N: usize, L: Lanes<N>>(lanes: L, low: L::U, high: L::U, by: u32) -> L::U {
    lanes.or(low, lanes.shl(high, by))
}

/// The upper half of `low` and the lower half of `high`: a word that lies two bytes further on.
#[inline(always)]
fn straddle<const N: usize, L: Lanes<N>>(lanes: L, low: L::U, high: L::U) -> L::U {
    lanes.or(lanes.shr(low, 16), lanes.shl(high, 16))
}
