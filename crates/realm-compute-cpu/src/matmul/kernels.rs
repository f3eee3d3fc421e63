//! The two product kernels: integers and floats. Both multiply [`TILES`] unpacked tiles with a few
//! rows of activations at a time.
//!
//! An output is one lane of one accumulator: its sum over a tile's weights runs in order of k, and
//! the tiles' sums are added in order. So its bits do not depend on the rows or lanes beside it.

use std::ops::Range;

use super::{
    activations::{Activations, GROUP, QuantRow},
    lanes::{Lanes, Part},
    unpack::Tile,
};

/// Tiles that a kernel multiplies side by side: a strip of `TILES · N` outputs.
pub(super) const TILES: usize = 2;

/// What a kernel works on.
pub(super) struct Product<'a> {
    /// Unpacked weights.
    pub(super) tiles: &'a [Tile; TILES],
    /// Their inputs.
    pub(super) input: &'a Activations<'a>,
    /// Rows of the input.
    pub(super) rows: Range<usize>,
    /// The tiles' place along k.
    pub(super) k: Range<usize>,
    /// `[rows, TILES · N]`: the products are added here.
    pub(super) sums: &'a mut [f32],
}

/// Rows out of `left` that are taken together, at most `most`; a rest smaller than that is shared
/// out evenly.
#[inline(always)]
fn rows_together(left: usize, most: usize) -> usize {
    if left >= 2 * most || left == most {
        most
    } else if left > most {
        left.div_ceil(2)
    } else {
        left
    }
}

/// Calls `$call::<ROWS>` for all rows.
macro_rules! for_rows {
    ($product:expr, $most:expr, $rows:ident => $call:ident::<$N:ident, $L:ident, $(const $flag:ident,)* ROWS>($($arg:expr),*)) => {
        let mut start = $product.rows.start;
        while start < $product.rows.end {
            let $rows = start..start + rows_together($product.rows.end - start, $most);
            start = $rows.end;
            match $rows.len() {
                1 => $call::<$N, $L, $($flag,)* 1>($($arg),*),
                2 => $call::<$N, $L, $($flag,)* 2>($($arg),*),
                3 if $most >= 3 => $call::<$N, $L, $($flag,)* 3>($($arg),*),
                4 if $most >= 4 => $call::<$N, $L, $($flag,)* 4>($($arg),*),
                5 if $most >= 5 => $call::<$N, $L, $($flag,)* 5>($($arg),*),
                _ if $most >= 6 => $call::<$N, $L, $($flag,)* 6>($($arg),*),
                rows => unreachable!("{rows} rows at once"),
            }
        }
    };
}

/// Quantized weights times quantized activations.
///
/// `HALVES`: weights have a scale each 16, not 32. `MIN`: they have minima instead of a zero at
/// `2^shift`. `WIDE`: quants may exceed 127.
pub(super) struct Integers<'a, const HALVES: bool, const MIN: bool, const WIDE: bool> {
    /// What to multiply.
    pub(super) product: Product<'a>,
    /// The weights' zero is `2^shift`, unless `MIN`.
    pub(super) shift: u32,
}

impl<const N: usize, L: Lanes<N>, const HALVES: bool, const MIN: bool, const WIDE: bool> Part<N, L>
    for Integers<'_, HALVES, MIN, WIDE>
{
    #[inline(always)]
    fn run(self, lanes: L) {
        let Self { mut product, shift } = self;
        for_rows!(product, L::ROWS, rows =>
            integers::<N, L, const HALVES, const MIN, const WIDE, ROWS>(lanes, &mut product, rows, shift));
    }
}

#[inline(always)]
fn integers<
    const N: usize,
    L: Lanes<N>,
    const HALVES: bool,
    const MIN: bool,
    const WIDE: bool,
    const ROWS: usize,
>(
    lanes: L,
    product: &mut Product<'_>,
    rows: Range<usize>,
    shift: u32,
) {
    let parts = 1 + usize::from(HALVES);
    let groups = product.k.start / GROUP..product.k.end / GROUP;
    let mut x = [QuantRow { quants: &[], scales: &[], sums: &[] }; ROWS];
    for (at, x) in x.iter_mut().enumerate() {
        let row = product.input.quant_row(rows.start + at, HALVES, MIN);
        x.quants = &row.quants[groups.start * 8..groups.end * 8];
        x.scales = &row.scales[groups.clone()];
        x.sums = &row.sums[groups.start * parts..groups.end * parts];
    }
    let [tile, tile2] = product.tiles;
    let words = [tile.words::<N>(), tile2.words::<N>()];
    let scales = [tile.scales::<N>(), tile2.scales::<N>()];
    let mins = [tile.mins::<N>(), tile2.mins::<N>()];
    let mut sums = [[lanes.splat_f(0.0); TILES]; ROWS];
    for group in 0..groups.len() {
        let mut scaled = [[lanes.splat_f(0.0); TILES]; ROWS];
        for part in 0..parts {
            let at = group * parts + part;
            let mut dots = [[lanes.splat(0); TILES]; ROWS];
            if !MIN {
                for (dots, x) in dots.iter_mut().zip(&x) {
                    *dots = [lanes.shl(lanes.splat(x.sums[at]), shift); TILES];
                }
            }
            let first = at * 8 / parts;
            for word in first..first + 8 / parts {
                let w = [lanes.load_words(&words[0][word]), lanes.load_words(&words[1][word])];
                for (dots, x) in dots.iter_mut().zip(&x) {
                    let x = lanes.splat(x.quants[word]);
                    for (dot, w) in dots.iter_mut().zip(w) {
                        *dot = lanes.dot::<WIDE>(*dot, w, x);
                    }
                }
            }
            let scale = [lanes.load(&scales[0][at]), lanes.load(&scales[1][at])];
            for row in 0..ROWS {
                for tile in 0..TILES {
                    let dot = lanes.float(dots[row][tile]);
                    scaled[row][tile] = if part == 0 {
                        lanes.mul(dot, scale[tile])
                    } else {
                        lanes.mul_add(dot, scale[tile], scaled[row][tile])
                    };
                }
            }
        }
        for row in 0..ROWS {
            let scale = lanes.splat_f(f32::from_bits(x[row].scales[group]));
            for tile in 0..TILES {
                sums[row][tile] = lanes.mul_add(scaled[row][tile], scale, sums[row][tile]);
            }
        }
        if MIN {
            for at in group * parts..(group + 1) * parts {
                let min = [lanes.load(&mins[0][at]), lanes.load(&mins[1][at])];
                for row in 0..ROWS {
                    let x = lanes.splat_f(f32::from_bits(x[row].sums[at]));
                    for tile in 0..TILES {
                        sums[row][tile] = lanes.mul_add(min[tile], x, sums[row][tile]);
                    }
                }
            }
        }
    }
    add_sums(lanes, product, rows, &sums);
}

/// Weights unpacked to floats times activations as floats.
pub(super) struct Floats<'a> {
    /// What to multiply.
    pub(super) product: Product<'a>,
}

impl<const N: usize, L: Lanes<N>> Part<N, L> for Floats<'_> {
    #[inline(always)]
    fn run(self, lanes: L) {
        let Self { mut product } = self;
        for_rows!(product, L::ROWS, rows => floats::<N, L, ROWS>(lanes, &mut product, rows));
    }
}

#[inline(always)]
fn floats<const N: usize, L: Lanes<N>, const ROWS: usize>(
    lanes: L,
    product: &mut Product<'_>,
    rows: Range<usize>,
) {
    let k = product.k.clone();
    let len = k.len();
    let mut x = [&[0.0f32][..0]; ROWS];
    for (at, x) in x.iter_mut().enumerate() {
        *x = &product.input.floats(rows.start + at)[k.start..k.start + len];
    }
    let [tile, tile2] = product.tiles;
    let (weights, weights2) = (&tile.floats::<N>()[..len], &tile2.floats::<N>()[..len]);
    let mut sums = [[lanes.splat_f(0.0); TILES]; ROWS];
    for k in 0..len {
        let w = [lanes.load(&weights[k]), lanes.load(&weights2[k])];
        for (sums, x) in sums.iter_mut().zip(&x) {
            let x = lanes.splat_f(x[k]);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = lanes.mul_add(w, x, *sum);
            }
        }
    }
    add_sums(lanes, product, rows, &sums);
}

#[inline(always)]
fn add_sums<const N: usize, L: Lanes<N>, const ROWS: usize>(
    lanes: L,
    product: &mut Product<'_>,
    rows: Range<usize>,
    sums: &[[L::F; TILES]; ROWS],
) {
    let start = rows.start - product.rows.start;
    let (out, _) = product.sums.as_chunks_mut::<N>();
    let out = &mut out[start * TILES..(start + ROWS) * TILES];
    for (out, sums) in out.chunks_exact_mut(TILES).zip(sums) {
        for (out, &sum) in out.iter_mut().zip(sums) {
            lanes.store(lanes.add(lanes.load(out), sum), out);
        }
    }
}
