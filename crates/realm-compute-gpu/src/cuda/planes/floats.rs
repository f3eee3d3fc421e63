//! F32, F16, BF16: fragments as the tensor cores take them.
//!
//! A chunk is four steps of 16 k. A lane (g = lane / 4, c = lane % 4) has four pairs of weights a step:
//! rows g and g + 8, k 2c and 2c + 1; the same rows, k 2c + 8 and 2c + 9. Pairs of 4 bytes lie side by
//! side, 16 bytes a lane; pairs of 8 bytes lie in two halves, 16 bytes a lane each.

use realm_core::{
    BlockFormat,
    formats::{Bf16, F16, F32},
};
use zerocopy::IntoBytes;

use super::{CHUNK, CHUNK_K, Planes, TILE_ROWS};

/// Writes a chunk of weights of `SIZE` bytes, `PAIR` two of them.
fn pack<F: BlockFormat, const SIZE: usize, const PAIR: usize>(
    rows: &[&[F]; TILE_ROWS],
    tile: &mut [u8],
) {
    let (to, _) = tile.as_chunks_mut::<PAIR>();
    for (row, weights) in rows.iter().enumerate() {
        let weights = weights.as_bytes();
        let mut pairs = [[0; PAIR]; CHUNK_K / 2];
        pairs.as_flattened_mut()[..weights.len()].copy_from_slice(weights);
        for (at, pair) in pairs.iter().enumerate() {
            to[place::<SIZE>(row, at)] = *pair;
        }
    }
}

/// Where pair `pair` of a row lies, in pairs.
#[inline(always)]
fn place<const SIZE: usize>(row: usize, pair: usize) -> usize {
    let (step, upper, lane) = (pair / 8, pair / 4 % 2, row % 8 * 4 + pair % 4);
    match SIZE {
        2 => 128 * step + 4 * lane + 2 * upper + row / 8,
        _ => 128 * step + 64 * upper + 2 * lane + row / 8,
    }
}

macro_rules! float_planes {
    ($($format:ident: $size:literal),*) => {$(
        impl Planes for $format {
            const TILE_BYTES: usize = CHUNK * $size;
            const STAGE_TILES: usize = 1;
            const TABLE_BYTES: usize = 0;
            const GROUP: usize = 0;

            fn pack_tile(rows: &[&[Self]; TILE_ROWS], tile: &mut [u8]) {
                pack::<Self, $size, { 2 * $size }>(rows, tile);
            }
        }
    )*};
}
float_planes!(F32: 4, F16: 2, Bf16: 2);
