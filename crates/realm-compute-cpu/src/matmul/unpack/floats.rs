//! F32, F16 and BF16.

use realm_core::{
    BlockFormat,
    formats::{Bf16, F16, F32},
};
use zerocopy::IntoBytes;

use super::{Quants, Tile, Unpack};
use crate::matmul::lanes::Lanes;

/// A format whose weights are floats one after another.
pub(in crate::matmul) trait Floats: BlockFormat {
    /// Float `at` of those in the four words.
    fn float<const N: usize, L: Lanes<N>>(lanes: L, words: &[L::U; 4], at: usize) -> L::F;
}

impl Floats for F32 {
    #[inline(always)]
    fn float<const N: usize, L: Lanes<N>>(lanes: L, words: &[L::U; 4], at: usize) -> L::F {
        lanes.as_float(words[at])
    }
}

impl Floats for F16 {
    #[inline(always)]
    fn float<const N: usize, L: Lanes<N>>(lanes: L, words: &[L::U; 4], at: usize) -> L::F {
        let word = words[at / 2];
        lanes.half(if at.is_multiple_of(2) { word } else { lanes.shr(word, 16) })
    }
}

impl Floats for Bf16 {
    #[inline(always)]
    fn float<const N: usize, L: Lanes<N>>(lanes: L, words: &[L::U; 4], at: usize) -> L::F {
        let (word, upper) = (words[at / 2], lanes.splat(0xffff_0000));
        lanes.as_float(if at.is_multiple_of(2) {
            lanes.shl(word, 16)
        } else {
            lanes.and(word, upper)
        })
    }
}

/// Sixteen bytes of each row at a time.
#[inline(always)]
fn unpack<B: Floats, const N: usize, L: Lanes<N>>(lanes: L, rows: &[&[B]; N], tile: &mut Tile) {
    let per = 16 / B::BYTES;
    let len = rows[0].len();
    let floats = &mut tile.floats.as_chunks_mut::<N>().0[..len];
    let mut chunks = floats.chunks_exact_mut(per);
    for (at, chunk) in chunks.by_ref().enumerate() {
        let mut bytes = [&[0; 16]; N];
        for (bytes, row) in bytes.iter_mut().zip(rows) {
            *bytes = &row.as_bytes().as_chunks().0[at];
        }
        let words = lanes.words(bytes);
        for (at, float) in chunk.iter_mut().enumerate() {
            lanes.store(B::float(lanes, &words, at), float);
        }
    }
    let tail = chunks.into_remainder();
    if !tail.is_empty() {
        // What follows a row's last weight may not be in memory.
        let mut padded = [[0; 16]; N];
        let mut bytes = [&[0; 16]; N];
        for ((bytes, padded), row) in bytes.iter_mut().zip(&mut padded).zip(rows) {
            let rest = row[len - tail.len()..].as_bytes();
            padded[..rest.len()].copy_from_slice(rest);
            *bytes = padded;
        }
        let words = lanes.words(bytes);
        for (at, float) in tail.iter_mut().enumerate() {
            lanes.store(B::float(lanes, &words, at), float);
        }
    }
}

macro_rules! plain {
    ($($format:ty),*) => {$(
        impl Unpack for $format {
            const QUANTS: Option<Quants> = None;

            #[inline(always)]
            fn unpack<const N: usize, L: Lanes<N>>(
                lanes: L,
                rows: &[&[Self]; N],
                tile: &mut Tile,
            ) {
                unpack(lanes, rows, tile);
            }
        }
    )*};
}
plain!(F32, F16, Bf16);
