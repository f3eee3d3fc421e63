//! The one matrix product of attention: `C = A · B` and `C = diag(f) · C + A · B`, where B's rows
//! are vectors. Scores are `query · keysᵀ`, the keys lying transposed; sums are `weights · values`.
//!
//! An element of C is one chain of multiply-adds over the depth, in order, so its bits do not depend
//! on how the kernel tiles C.

use super::simd::Simd;

/// Where the operands lie. All strides count elements.
pub(super) struct Product<'a> {
    /// `[rows, depth]`.
    pub(super) a: &'a [f32],
    /// Elements between rows of A.
    pub(super) a_stride: usize,
    /// `[depth, cols]`.
    pub(super) b: &'a [f32],
    /// Elements between rows of B.
    pub(super) b_stride: usize,
    /// `[rows, cols]`.
    pub(super) c: &'a mut [f32],
    /// Elements between rows of C.
    pub(super) c_stride: usize,
    /// Rows of A and C.
    pub(super) rows: usize,
    /// Columns of B and C: a multiple of the vector length.
    pub(super) cols: usize,
    /// Columns of A, rows of B.
    pub(super) depth: usize,
}

/// How many of the rows that are left the kernel takes together.
pub(super) fn step(left: usize) -> usize {
    match left {
        8 => 4,
        6.. => 6,
        4.. => 4,
        2.. => 2,
        _ => left,
    }
}

impl Product<'_> {
    /// `C = A · B`.
    #[inline(always)]
    pub(super) fn set<S: Simd>(self, simd: S) {
        self.run::<S, false>(simd, &[]);
    }

    /// `C = diag(factors) · C + A · B`.
    #[inline(always)]
    pub(super) fn add<S: Simd>(self, simd: S, factors: &[f32]) {
        self.run::<S, true>(simd, factors);
    }

    #[inline(always)]
    fn run<S: Simd, const ADD: bool>(mut self, simd: S, factors: &[f32]) {
        let Self { rows, cols, depth, .. } = self;
        if rows == 0 || cols == 0 {
            return;
        }
        assert!(cols.is_multiple_of(S::LANES) && (!ADD || factors.len() >= rows));
        assert!(self.a.len() >= (rows - 1) * self.a_stride + depth);
        assert!(depth == 0 || self.b.len() >= (depth - 1) * self.b_stride + cols);
        assert!(self.c.len() >= (rows - 1) * self.c_stride + cols);
        let mut row = 0;
        while row < rows {
            let taken = step(rows - row);
            // SAFETY: the operands' sizes are checked above, and `row + taken <= rows`.
            unsafe {
                match taken {
                    6 => self.rows::<S, ADD, 6>(simd, row, factors),
                    4 => self.rows::<S, ADD, 4>(simd, row, factors),
                    2 => self.rows::<S, ADD, 2>(simd, row, factors),
                    _ => self.rows::<S, ADD, 1>(simd, row, factors),
                }
            }
            row += taken;
        }
    }

    /// # Safety
    /// The operands must have the sizes that [`Self::run`] checks, and M rows from `row` on.
    #[inline(always)]
    unsafe fn rows<S: Simd, const ADD: bool, const M: usize>(
        &mut self,
        simd: S,
        row: usize,
        factors: &[f32],
    ) {
        let mut col = 0;
        // As many accumulators as the registers hold: 32 where vectors have 16 lanes, else 16.
        while S::LANES == 16 && col + 4 * S::LANES <= self.cols {
            // SAFETY: as the caller says; the columns fit.
            unsafe { self.block::<S, ADD, M, 4>(simd, row, col, factors) };
            col += 4 * S::LANES;
        }
        while col + 2 * S::LANES <= self.cols {
            // SAFETY: as above.
            unsafe { self.block::<S, ADD, M, 2>(simd, row, col, factors) };
            col += 2 * S::LANES;
        }
        if col < self.cols {
            // SAFETY: as above.
            unsafe { self.block::<S, ADD, M, 1>(simd, row, col, factors) };
        }
    }

    /// M rows × N vectors of C.
    ///
    /// # Safety
    /// As for [`Self::rows`], and N vectors from `col` on.
    #[expect(
        clippy::needless_range_loop,
        reason = "i and j name a row and a vector of C throughout"
    )]
    #[inline(always)]
    unsafe fn block<S: Simd, const ADD: bool, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        col: usize,
        factors: &[f32],
    ) {
        let (a_stride, b_stride, c_stride) = (self.a_stride, self.b_stride, self.c_stride);
        // SAFETY: the caller vouches for M rows from `row`, N vectors from `col`, and the depth.
        unsafe {
            let a = self.a.as_ptr().add(row * a_stride);
            let b = self.b.as_ptr().add(col);
            let c = self.c.as_mut_ptr().add(row * c_stride + col);
            let mut sums = [[simd.splat(0.0); N]; M];
            if ADD {
                for i in 0..M {
                    let factor = simd.splat(*factors.get_unchecked(row + i));
                    for j in 0..N {
                        let old = simd.load_at(c.add(i * c_stride + j * S::LANES));
                        sums[i][j] = simd.mul(old, factor);
                    }
                }
            }
            for k in 0..self.depth {
                let mut vectors = [simd.splat(0.0); N];
                for j in 0..N {
                    vectors[j] = simd.load_at(b.add(k * b_stride + j * S::LANES));
                }
                for i in 0..M {
                    let x = simd.splat(*a.add(i * a_stride + k));
                    for j in 0..N {
                        sums[i][j] = simd.mul_add(x, vectors[j], sums[i][j]);
                    }
                }
            }
            for i in 0..M {
                for j in 0..N {
                    simd.store_at(sums[i][j], c.add(i * c_stride + j * S::LANES));
                }
            }
        }
    }
}
