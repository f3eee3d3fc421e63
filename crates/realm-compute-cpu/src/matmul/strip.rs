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
fn columns<'a, F: Unpack, const N: usize>(rows: &[&'a [F]; N], k: &Range<usize>) -> [&'a [F]; N] {
    let mut parts = [&rows[0][..0]; N];
    for (part, row) in parts.iter_mut().zip(rows) {
        *part = &row[k.start / F::LEN..k.end / F::LEN];
    }
    parts
}

/// Asks for columns a little behind `k` of the tile that starts at `row`, from the next strip's
/// rows once these end: so many streams of few bytes each are too many for the processor to see.
#[inline(always)]
fn prefetch<F: Unpack, const N: usize, L: Lanes<N>>(
    lanes: L,
    weight: Matrix<'_>,
    row: usize,
    k: &Range<usize>,
) {
    const LINE: usize = 64;
    // About 500 bytes a row.
    let distance = if F::QUANTS.is_some() { 2 * TILE } else { TILE };
    let cols = weight.cols;
    let row_bytes = cols / F::LEN * F::BYTES;
    let ahead = k.start + distance;
    let next = (row + TILES * N, (ahead.max(cols) - cols).min(cols));
    let (row, ahead) = if ahead < cols { (row, ahead) } else { next };
    let bytes = k.len() / F::LEN * F::BYTES;
    for row in row..(row + N).min(weight.rows) {
        let start = row * row_bytes + ahead / F::LEN * F::BYTES;
        let end = (start + bytes).min(weight.bytes.len());
        for at in (start..end).step_by(LINE) {
            lanes.prefetch(&weight.bytes[at]);
        }
    }
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
        let rows: [[&[F]; N]; TILES] = [tile_rows(&strip, blocks, 0), tile_rows(&strip, blocks, 1)];
        for k in tile_columns(strip.weight.cols) {
            for (at, (rows, tile)) in rows.iter().zip(&mut *strip.tiles).enumerate() {
                prefetch::<F, N, L>(lanes, strip.weight, strip.start + at * N, &k);
                F::unpack(lanes, &columns(rows, &k), tile);
            }
            let product =
                Product { input: strip.input, rows: strip.rows.clone(), k, sums: &mut *strip.sums };
            let tiles = &*strip.tiles;
            // Only kernels that differ are compiled: bits matter where sums are narrow.
            let bits = if L::NARROW { quants.bits } else { 4 };
            macro_rules! multiply {
                ($halves:literal, $min:literal, $bits:literal, $shift:expr) => {{
                    type Kernel<'a, const N: usize> = Integers<'a, N, $halves, $min, $bits>;
                    lanes.part(Kernel::<N>::new(tiles, product, $shift));
                }};
            }
            match (quants.group, quants.zero, bits) {
                (16, Zero::Min, _) => multiply!(true, true, 4, 0),
                (16, Zero::Shift(shift), 5..) => multiply!(true, false, 6, shift),
                (16, Zero::Shift(shift), _) => multiply!(true, false, 4, shift),
                (_, Zero::Min, 5..) => multiply!(false, true, 5, 0),
                (_, Zero::Min, _) => multiply!(false, true, 4, 0),
                (_, Zero::Shift(shift), 6..) => multiply!(false, false, 8, shift),
                (_, Zero::Shift(shift), 5) => multiply!(false, false, 5, shift),
                (_, Zero::Shift(shift), _) => multiply!(false, false, 4, shift),
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
        let rows: [[&[F]; N]; TILES] = [tile_rows(&strip, blocks, 0), tile_rows(&strip, blocks, 1)];
        for k in tile_columns(strip.weight.cols) {
            for (at, (rows, tile)) in rows.iter().zip(&mut *strip.tiles).enumerate() {
                prefetch::<F, N, L>(lanes, strip.weight, strip.start + at * N, &k);
                tile.unpack_floats(lanes, &columns(rows, &k), strip.input.precision());
            }
            let product =
                Product { input: strip.input, rows: strip.rows.clone(), k, sums: &mut *strip.sums };
            lanes.part(Floats::new(strip.tiles, product));
        }
    }
}
