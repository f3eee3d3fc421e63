//! The two product kernels: integers and floats. Both multiply [`TILES`] unpacked tiles with a few
//! rows of activations at a time.
//!
//! An output is one lane of one accumulator: its sum over a tile's weights runs in order of k, and
//! the tiles' sums are added in order. So its bits do not depend on the rows or lanes beside it.

use std::ops::Range;

use super::{
    activations::{Activations, GROUP, QuantGroup},
    lanes::{Lanes, Part},
    unpack::{TILE, Tile},
};

/// Tiles that a kernel multiplies side by side: a strip of `TILES · N` outputs.
pub(super) const TILES: usize = 2;

/// What a kernel works on: the tiles' vectors `V`, and what they meet.
pub(super) struct Product<'a> {
    /// Their inputs.
    pub(super) input: &'a Activations<'a>,
    /// Rows of the input.
    pub(super) rows: Range<usize>,
    /// The tiles' place along k: a whole tile, or the last one.
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

/// Evaluates an expression for all rows, a few at a time: their range is `$rows`, their number the
/// constant `$ROWS`.
macro_rules! for_rows {
    ($all:expr, $most:expr, $rows:ident, $ROWS:ident => $body:expr) => {
        let all = $all.clone();
        let mut start = all.start;
        while start < all.end {
            let $rows = start..start + rows_together(all.end - start, $most);
            start = $rows.end;
            macro_rules! with {
                ($count:literal) => {{
                    const $ROWS: usize = $count;
                    $body;
                }};
            }
            match $rows.len() {
                1 => with!(1),
                2 => with!(2),
                3 if $most >= 3 => with!(3),
                4 if $most >= 4 => with!(4),
                5 if $most >= 5 => with!(5),
                _ if $most >= 6 => with!(6),
                rows => unreachable!("{rows} rows at once"),
            }
        }
    };
}

/// Quantized weights times quantized activations.
///
/// `HALVES`: weights have a scale each 16, not 32. `MIN`: they have minima instead of a zero at
/// `2^shift`.
pub(super) struct Integers<'a, const N: usize, const HALVES: bool, const MIN: bool, const BITS: u32>
{
    product: Product<'a>,
    words: [&'a [[[u32; N]; GROUP / 4]]; TILES],
    scales: [&'a [[f32; N]]; TILES],
    mins: [&'a [[f32; N]]; TILES],
    shift: u32,
}

impl<'a, const N: usize, const HALVES: bool, const MIN: bool, const BITS: u32>
    Integers<'a, N, HALVES, MIN, BITS>
{
    /// The product with unpacked tiles. The weights' zero is `2^shift`, unless `MIN`.
    #[inline(always)]
    pub(super) fn new(tiles: &'a [Tile; TILES], product: Product<'a>, shift: u32) -> Self {
        // The kernel is to see slices, not arrays: told how few groups there can be at most, the
        // compiler unrolls over all of them, and the code no longer fits into caches.
        let [a, b] = tiles;
        let groups = product.k.len() / GROUP;
        let scales = groups * (1 + usize::from(HALVES));
        let mins = if MIN { scales } else { 0 };
        Self {
            words: [&a.words().as_chunks().0[..groups], &b.words().as_chunks().0[..groups]],
            scales: [&a.scales()[..scales], &b.scales()[..scales]],
            mins: [&a.mins()[..mins], &b.mins()[..mins]],
            product,
            shift,
        }
    }

    #[inline(always)]
    fn block<L: Lanes<N>, const ROWS: usize>(&mut self, lanes: L, rows: Range<usize>) {
        let groups = self.words[0].len();
        let words = [self.words[0], &self.words[1][..groups]];
        let mut x = [&[][..]; ROWS];
        for (at, x) in x.iter_mut().enumerate() {
            let tile = self.product.k.start / TILE;
            *x = &self.product.input.groups(rows.start + at, tile)[..groups];
        }
        let mut sums = [[lanes.splat_f(0.0); TILES]; ROWS];
        for group in 0..groups {
            let mut x_group = [&x[0][group]; ROWS];
            for (x_group, x) in x_group.iter_mut().zip(&x) {
                *x_group = &x[group];
            }
            let words = [&words[0][group], &words[1][group]];
            let scaled = self.dots(lanes, group, words, x_group);
            for row in 0..ROWS {
                let scale = lanes.splat_f(x_group[row].scale);
                for tile in 0..TILES {
                    sums[row][tile] = lanes.mul_add(scaled[row][tile], scale, sums[row][tile]);
                }
            }
            if MIN {
                self.minima(lanes, group, x_group, &mut sums);
            }
        }
        add_sums(lanes, &mut self.product, rows, &sums);
    }

    /// A group's products, multiplied with the weights' scales but not the activations'.
    #[inline(always)]
    fn dots<L: Lanes<N>, const ROWS: usize>(
        &self,
        lanes: L,
        group: usize,
        words: [&[[u32; N]; GROUP / 4]; TILES],
        x: [&QuantGroup; ROWS],
    ) -> [[L::F; TILES]; ROWS] {
        let parts = 1 + usize::from(HALVES);
        let mut scaled = [[lanes.splat_f(0.0); TILES]; ROWS];
        for part in 0..parts {
            let mut dots = [[lanes.splat(0); TILES]; ROWS];
            let signed = L::NARROW && BITS == 8;
            if !(MIN || signed) {
                for (dots, x) in dots.iter_mut().zip(&x) {
                    let sum = if HALVES { x.minus_halves[part] } else { x.minus_sum };
                    *dots = [lanes.shl(lanes.splat(sum as u32), self.shift); TILES];
                }
            }
            let (first, last) = (part * 8 / parts, (part + 1) * 8 / parts);
            let together = L::together(BITS).min(8 / parts);
            for start in (first..last).step_by(together) {
                let mut some = if L::NARROW { [[lanes.splat(0); TILES]; ROWS] } else { dots };
                for at in 0..together {
                    let at = start + at;
                    let w = [lanes.load_words(&words[0][at]), lanes.load_words(&words[1][at])];
                    for (some, x) in some.iter_mut().zip(&x) {
                        let x = lanes.splat(x.quants[at]);
                        for (some, w) in some.iter_mut().zip(w) {
                            *some = lanes.dot::<BITS>(*some, w, x);
                        }
                    }
                }
                for (dots, some) in dots.iter_mut().zip(some) {
                    for (dot, some) in dots.iter_mut().zip(some) {
                        *dot = if L::NARROW { lanes.widen(*dot, some) } else { some };
                    }
                }
            }
            for tile in 0..TILES {
                let scale = lanes.load(&self.scales[tile][group * parts + part]);
                for row in 0..ROWS {
                    let dot = lanes.float(dots[row][tile]);
                    scaled[row][tile] = if part == 0 {
                        lanes.mul(dot, scale)
                    } else {
                        lanes.mul_add(dot, scale, scaled[row][tile])
                    };
                }
            }
        }
        scaled
    }

    /// Adds the products of the weights' minima with the activations' sums.
    #[inline(always)]
    fn minima<L: Lanes<N>, const ROWS: usize>(
        &self,
        lanes: L,
        group: usize,
        x: [&QuantGroup; ROWS],
        sums: &mut [[L::F; TILES]; ROWS],
    ) {
        let parts = 1 + usize::from(HALVES);
        for part in 0..parts {
            for tile in 0..TILES {
                let min = lanes.load(&self.mins[tile][group * parts + part]);
                for (sums, x) in sums.iter_mut().zip(&x) {
                    let x = lanes.splat_f(if HALVES { x.halves[part] } else { x.sum });
                    sums[tile] = lanes.mul_add(min, x, sums[tile]);
                }
            }
        }
    }
}

impl<const N: usize, L: Lanes<N>, const HALVES: bool, const MIN: bool, const BITS: u32> Part<N, L>
    for Integers<'_, N, HALVES, MIN, BITS>
{
    #[inline(always)]
    fn run(mut self, lanes: L) {
        for_rows!(self.product.rows, L::ROWS, rows, ROWS => self.block::<L, ROWS>(lanes, rows));
    }
}

/// Weights unpacked to floats times activations as floats.
pub(super) struct Floats<'a, const N: usize> {
    product: Product<'a>,
    weights: [&'a [[f32; N]]; TILES],
}

impl<'a, const N: usize> Floats<'a, N> {
    /// The product with unpacked tiles.
    #[inline(always)]
    pub(super) fn new(tiles: &'a [Tile; TILES], product: Product<'a>) -> Self {
        let [a, b] = tiles;
        let len = product.k.len();
        Self { product, weights: [&a.floats()[..len], &b.floats()[..len]] }
    }

    #[inline(always)]
    fn block<L: Lanes<N>, const ROWS: usize>(&mut self, lanes: L, rows: Range<usize>) {
        let k = self.product.k.start;
        let len = self.weights[0].len();
        let weights = [self.weights[0], &self.weights[1][..len]];
        let mut x = [&[][..]; ROWS];
        for (at, x) in x.iter_mut().enumerate() {
            *x = &self.product.input.floats(rows.start + at)[k..k + len];
        }
        // Even and odd columns are summed apart: with one chain of additions an output the processor
        // would wait for each.
        let mut sums = [[[lanes.splat_f(0.0); TILES]; ROWS]; 2];
        for pair in 0..len / 2 {
            for (odd, sums) in sums.iter_mut().enumerate() {
                multiply_column(lanes, weights, x, 2 * pair + odd, sums);
            }
        }
        if !len.is_multiple_of(2) {
            multiply_column(lanes, weights, x, len - 1, &mut sums[0]);
        }
        let [mut sums, odd] = sums;
        for (sums, odd) in sums.iter_mut().zip(odd) {
            for (sum, odd) in sums.iter_mut().zip(odd) {
                *sum = lanes.add(*sum, odd);
            }
        }
        add_sums(lanes, &mut self.product, rows, &sums);
    }
}

/// Adds the products of one column.
#[inline(always)]
fn multiply_column<const N: usize, L: Lanes<N>, const ROWS: usize>(
    lanes: L,
    weights: [&[[f32; N]]; TILES],
    x: [&[f32]; ROWS],
    k: usize,
    sums: &mut [[L::F; TILES]; ROWS],
) {
    let w = [lanes.load(&weights[0][k]), lanes.load(&weights[1][k])];
    for (sums, x) in sums.iter_mut().zip(x) {
        let x = lanes.splat_f(x[k]);
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = lanes.mul_add(w, x, *sum);
        }
    }
}

impl<const N: usize, L: Lanes<N>> Part<N, L> for Floats<'_, N> {
    #[inline(always)]
    fn run(mut self, lanes: L) {
        for_rows!(self.product.rows, L::ROWS, rows, ROWS => self.block::<L, ROWS>(lanes, rows));
    }
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
