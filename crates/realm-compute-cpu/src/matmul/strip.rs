//! One strip of a weight times rows of the input.

use std::ops::Range;

use realm_core::with_format;
use zerocopy::FromBytes;

use super::{
    Matrix,
    activations::Activations,
    kernels::{Floats, Integers, Product, TILES},
    lanes::{self, Kernel, Lanes},
    unpack::{Quants, TILE, Tile, Unpack, Zero},
};
use crate::isa::Isa;

/// Rows of the weight in a strip.
pub(super) fn width(isa: Isa) -> usize {
    match isa {
        Isa::Avx512(_) => 16 * TILES,
        _ => 8 * TILES,
    }
}

/// What is to be multiplied.
pub(super) struct Strip<'a> {
    pub(super) weight: Matrix<'a>,
    /// The strip's first row of the weight.
    pub(super) start: usize,
    pub(super) input: &'a Activations<'a>,
    /// Rows of the input.
    pub(super) rows: Range<usize>,
    pub(super) tiles: &'a mut [Tile; TILES],
    /// `[rows, width]`; the products are added.
    pub(super) sums: &'a mut [f32],
}

impl Strip<'_> {
    /// Adds the products. Rows of the strip beyond the weight's end get some other row's sums.
    pub(super) fn multiply(self, isa: Isa) {
        with_format!(self.weight.dtype, F => {
            let blocks = <[F]>::ref_from_bytes(self.weight.bytes).unwrap_or_default();
            match F::QUANTS.filter(|_| self.input.quantized()) {
                Some(quants) => lanes::run(isa, InIntegers { strip: self, blocks, quants }),
                None => lanes::run(isa, InFloats { strip: self, blocks }),
            }
        });
    }
}

/// The rows of tile `tile` of a strip.
#[inline(always)]
fn tile_rows<'a, F: Unpack, const N: usize>(
    strip: &Strip<'_>,
    blocks: &'a [F],
    tile: usize,
) -> [&'a [F]; N] {
    let per_row = strip.weight.cols / F::LEN;
    let mut rows = [&blocks[..0]; N];
    for (lane, row) in rows.iter_mut().enumerate() {
        // Beyond the end the last row stands in.
        let at = (strip.start + tile * N + lane).min(strip.weight.rows - 1);
        *row = &blocks[at * per_row..(at + 1) * per_row];
    }
    rows
}

/// The part of each row that holds columns `k`.
#[inline(always)]
fn columns<'a, F: Unpack, const N: usize>(
    rows: &[&'a [F]; N],
    k: &Range<usize>,
) -> [&'a [F]; N] {
    let mut parts = [&rows[0][..0]; N];
    for (part, row) in parts.iter_mut().zip(rows) {
        *part = &row[k.start / F::LEN..k.end / F::LEN];
    }
    parts
}

/// Ranges of at most [`TILE`] columns.
#[inline(always)]
fn tile_columns(cols: usize) -> impl Iterator<Item = Range<usize>> {
    (0..cols).step_by(TILE).map(move |start| start..(start + TILE).min(cols))
}

struct InIntegers<'a, F> {
    strip: Strip<'a>,
    blocks: &'a [F],
    quants: Quants,
}

impl<F: Unpack> Kernel for InIntegers<'_, F> {
    #[inline(always)]
    fn run<const N: usize, L: Lanes<N>>(self, lanes: L) {
        let Self { strip, blocks, quants } = self;
        let rows: [[&[F]; N]; TILES] =
            [tile_rows(&strip, blocks, 0), tile_rows(&strip, blocks, 1)];
        for k in tile_columns(strip.weight.cols) {
            for (tile, rows) in strip.tiles.iter_mut().zip(&rows) {
                F::unpack(lanes, &columns(rows, &k), tile);
            }
            let product = Product {
                tiles: strip.tiles,
                input: strip.input,
                rows: strip.rows.clone(),
                k,
                sums: &mut *strip.sums,
            };
            match (quants.group, quants.zero) {
                (16, Zero::Min) => {
                    lanes.part(Integers::<true, true, false> { product, shift: 0 });
                }
                (16, Zero::Shift(shift)) => {
                    lanes.part(Integers::<true, false, false> { product, shift });
                }
                (_, Zero::Min) => {
                    lanes.part(Integers::<false, true, false> { product, shift: 0 });
                }
                (_, Zero::Shift(shift @ 7)) => {
                    lanes.part(Integers::<false, false, true> { product, shift });
                }
                (_, Zero::Shift(shift)) => {
                    lanes.part(Integers::<false, false, false> { product, shift });
                }
            }
        }
    }
}

struct InFloats<'a, F> {
    strip: Strip<'a>,
    blocks: &'a [F],
}

impl<F: Unpack> Kernel for InFloats<'_, F> {
    #[inline(always)]
    fn run<const N: usize, L: Lanes<N>>(self, lanes: L) {
        let Self { strip, blocks } = self;
        let rows: [[&[F]; N]; TILES] =
            [tile_rows(&strip, blocks, 0), tile_rows(&strip, blocks, 1)];
        for k in tile_columns(strip.weight.cols) {
            for (tile, rows) in strip.tiles.iter_mut().zip(&rows) {
                tile.unpack_floats(lanes, &columns(rows, &k), strip.input.precision());
            }
            lanes.part(Floats {
                product: Product {
                    tiles: strip.tiles,
                    input: strip.input,
                    rows: strip.rows.clone(),
                    k,
                    sums: &mut *strip.sums,
                },
            });
        }
    }
}
