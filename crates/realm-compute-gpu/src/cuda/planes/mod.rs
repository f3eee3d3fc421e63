//! Planes: a weight's blocks rearranged, losslessly, into the order in which the kernels read them.
//!
//! The unit is a *tile* of 16 weight rows and [`Layout::tile_k`] k; tiles lie `[row tile][k tile]`,
//! each contiguous and a multiple of 16 bytes. A tile is chunks of 64 k, packed so that a lane of a
//! warp reads its fragments of four matrix products (m16n8k16) with one load or two, then the rows'
//! scales in as many bits as the format has; `kernels/cuda/formats.cuh` has the other half. Rows and k
//! are padded to whole tiles with zeros, whose scales are zero, too.

mod floats;
mod formats;
mod quantized;
#[cfg(test)]
mod tests;

use std::ops::Range;

use realm_core::{BlockFormat, DType, graph::WeightInfo, with_format};
use zerocopy::FromBytes;

/// Weight rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Weights along k of a chunk.
const CHUNK_K: usize = 64;
/// Weights of a chunk.
const CHUNK: usize = TILE_ROWS * CHUNK_K;

/// A format's tiles.
pub(crate) trait Planes: BlockFormat {
    /// Weights along k of a tile: a multiple of the block's and of 64.
    const TILE_K: usize = if Self::LEN > CHUNK_K { Self::LEN } else { CHUNK_K };
    /// Bytes of a tile, a multiple of 16.
    const TILE_BYTES: usize;
    /// Tiles that a warp fetches together.
    const STAGE_TILES: usize;
    /// Bytes of the scales of a stage, decoded, in a warp's shared memory.
    const TABLE_BYTES: usize;
    /// Weights that share a scale; 64 where more do, 0 where none.
    const GROUP: usize;

    /// Writes a tile: each row's blocks, of which the last tile of a row may lack some; a row that is
    /// not there has none.
    fn pack_tile(rows: &[&[Self]; TILE_ROWS], tile: &mut [u8]);
}

/// What a launch has to know of a format's tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stage {
    /// Weights along k of a stage.
    pub(crate) k: usize,
    /// Bytes of a stage.
    pub(crate) bytes: usize,
    /// Bytes of the stage's decoded scales.
    pub(crate) table_bytes: usize,
    /// As in [`Planes`].
    pub(crate) group: usize,
}

impl Stage {
    /// A format's stages.
    pub(crate) fn of(dtype: DType) -> Self {
        with_format!(dtype, F => Self {
            k: F::TILE_K * F::STAGE_TILES,
            bytes: F::TILE_BYTES * F::STAGE_TILES,
            table_bytes: F::TABLE_BYTES,
            group: <F as Planes>::GROUP,
        })
    }
}

/// How many tiles a weight has, and their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Weights along k of a tile.
    pub(crate) tile_k: usize,
    /// Bytes of a tile.
    pub(crate) tile_bytes: usize,
    /// Tiles along the rows.
    pub(crate) row_tiles: usize,
    /// Tiles along k.
    pub(crate) k_tiles: usize,
}

impl Layout {
    /// A weight's tiles.
    pub(crate) fn of(info: &WeightInfo) -> Self {
        let (tile_k, tile_bytes) = with_format!(info.dtype, F => (F::TILE_K, F::TILE_BYTES));
        Self {
            tile_k,
            tile_bytes,
            row_tiles: info.rows.div_ceil(TILE_ROWS),
            k_tiles: info.cols.div_ceil(tile_k),
        }
    }

    /// Number of tiles.
    pub(crate) fn tiles(&self) -> usize {
        self.row_tiles.saturating_mul(self.k_tiles)
    }

    /// Bytes of the planes.
    pub(crate) fn bytes(&self) -> usize {
        self.tiles().saturating_mul(self.tile_bytes)
    }
}

/// Packs some of a weight's tiles, in the order in which they lie, on `threads` threads. `data` has the
/// weight's blocks ([`WeightInfo::check`]), `out` the tiles' size.
pub(crate) fn pack(
    info: &WeightInfo,
    data: &[u8],
    tiles: Range<usize>,
    out: &mut [u8],
    threads: usize,
) {
    with_format!(info.dtype, F => pack_format::<F>(info, data, tiles, out, threads));
}

/// Fewest tiles that are worth a thread.
const TILES_A_THREAD: usize = 64;

fn pack_format<F: Planes>(
    info: &WeightInfo,
    data: &[u8],
    tiles: Range<usize>,
    out: &mut [u8],
    threads: usize,
) {
    let blocks = <[F]>::ref_from_bytes(data).expect("whole blocks");
    let weight = Weight { blocks, rows: info.rows, row_blocks: info.cols / F::LEN };
    let share = tiles.len().div_ceil(threads.max(1)).max(TILES_A_THREAD);
    let shares = out.chunks_mut(share * F::TILE_BYTES).zip(tiles.step_by(share));
    if shares.len() < 2 {
        shares.for_each(|(out, first)| weight.pack(first, out));
        return;
    }
    std::thread::scope(|scope| {
        for (out, first) in shares {
            scope.spawn(move || weight.pack(first, out));
        }
    });
}

/// A weight's blocks, row by row.
#[derive(Clone, Copy)]
struct Weight<'a, F> {
    blocks: &'a [F],
    rows: usize,
    row_blocks: usize,
}

impl<'a, F: Planes> Weight<'a, F> {
    /// Packs as many tiles as `out` holds, from tile `first` on.
    fn pack(&self, first: usize, out: &mut [u8]) {
        let k_tiles = (self.row_blocks * F::LEN).div_ceil(F::TILE_K);
        for (tile, out) in (first..).zip(out.chunks_exact_mut(F::TILE_BYTES)) {
            let (row_tile, k_tile) = (tile / k_tiles, tile % k_tiles);
            let rows = std::array::from_fn(|row| self.row(row_tile * TILE_ROWS + row, k_tile));
            F::pack_tile(&rows, out);
        }
    }

    fn row(&self, row: usize, k_tile: usize) -> &'a [F] {
        if row >= self.rows {
            return &[];
        }
        let blocks = F::TILE_K / F::LEN;
        let (start, end) = (k_tile * blocks, ((k_tile + 1) * blocks).min(self.row_blocks));
        &self.blocks[row * self.row_blocks..][start..end]
    }
}
