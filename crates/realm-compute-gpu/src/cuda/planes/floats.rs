//! F32, F16, BF16: fragments as the tensor cores take them.
//!
//! A chunk is four steps of 16 k. A lane (g = lane / 4, c = lane % 4) has four pairs of weights a step:
//! rows g and g + 8, k 2c and 2c + 1; the same rows, k 2c + 8 and 2c + 9. Pairs of 4 bytes lie side by
//! side, 16 bytes a lane; pairs of 8 bytes lie in two halves, 16 bytes a lane each.

use realm_core::{
    BlockFormat,
    formats::{Bf16, F16, F32},
};

use super::{CHUNK, Planes, TILE_ROWS};

/// Writes a chunk; `SIZE` is a weight's size in bytes, `zero` a weight of zero.
fn pack<F: BlockFormat, const SIZE: usize>(rows: &[&[F]; TILE_ROWS], tile: &mut [u8]) {
    tile.fill(0);
    for (row, weights) in rows.iter().enumerate() {
        let (g, lower) = (row % 8, row / 8);
        for (k, weight) in weights.iter().enumerate() {
            // Steps, then the pair's half of the step, its lane, its place in the pair.
            let (step, upper, c, at) = (k / 16, k / 8 % 2, k % 8 / 2, k % 2);
            let lane = 4 * g + c;
            let pair = match SIZE {
                2 => 128 * step + 4 * lane + 2 * upper + lower,
                _ => 128 * step + 64 * upper + 2 * lane + lower,
            };
            let to = (2 * pair + at) * SIZE;
            tile[to..to + SIZE].copy_from_slice(weight.as_bytes());
        }
    }
}

macro_rules! float_planes {
    ($($format:ident: $size:literal),*) => {$(
        impl Planes for $format {
            const TILE_BYTES: usize = CHUNK * $size;
            const STAGE_TILES: usize = 1;
            const TABLE_BYTES: usize = 0;

            fn pack_tile(rows: &[&[Self]; TILE_ROWS], tile: &mut [u8]) {
                pack::<Self, $size>(rows, tile);
            }
        }
    )*};
}
float_planes!(F32: 4, F16: 2, Bf16: 2);
