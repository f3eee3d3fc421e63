//! A thread's work memory, kept between calls: no larger than a tile.

use crate::kv::KV_BLOCK_TOKENS;
use std::{cell::RefCell, ops::Range};

/// Keys of a tile that a row sees: `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// None.
    pub(super) const EMPTY: Self = Self { start: 0, end: 0 };

    /// Keys `start..end` of a tile.
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self { start: start as u16, end: end as u16 }
    }

    pub(super) fn start(self) -> usize {
        usize::from(self.start)
    }

    pub(super) fn end(self) -> usize {
        usize::from(self.end)
    }

    pub(super) fn is_empty(self) -> bool {
        self.start >= self.end
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start()..self.end()
    }

    /// The smallest that holds both.
    #[inline]
    pub(super) fn hull(self, other: Self) -> Self {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other,
            (_, true) => self,
            _ => Self { start: self.start.min(other.start), end: self.end.max(other.end) },
        }
    }
}

/// What a tile of query rows needs. Rows of matrices start at multiples of 16 elements where their
/// length is one.
pub(super) struct Scratch<'a> {
    /// Elements a row of `values` and `sums`: the head's size, rounded up to a multiple of 16.
    pub(super) stride: usize,
    /// A row each.
    pub(super) spans: &'a mut [Span],
    /// `[rows][head_dim]`, scaled.
    pub(super) query: &'a mut [f32],
    /// `[rows][KV_BLOCK_TOKENS]`: scores, then weights.
    pub(super) scores: &'a mut [f32],
    /// `[head_dim][KV_BLOCK_TOKENS]`.
    pub(super) keys: &'a mut [f32],
    /// `[KV_BLOCK_TOKENS][stride]`.
    pub(super) values: &'a mut [f32],
    /// `[rows][stride]`: weights times values so far.
    pub(super) sums: &'a mut [f32],
    /// `[rows][16]`: sums of weights so far, lanes apart.
    pub(super) totals: &'a mut [f32],
    /// `[rows]`: the largest score so far.
    pub(super) peaks: &'a mut [f32],
    /// `[rows]`: what `sums` are to be multiplied with before the next tile is added.
    pub(super) factors: &'a mut [f32],
}

#[derive(Default)]
struct Buffers {
    floats: Vec<f32>,
    spans: Vec<Span>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Calls `work` with this thread's memory, its contents undefined.
pub(super) fn with<R>(rows: usize, head_dim: usize, work: impl FnOnce(&mut Scratch<'_>) -> R) -> R {
    let stride = head_dim.next_multiple_of(16);
    let sizes = [
        rows * head_dim,
        rows * KV_BLOCK_TOKENS,
        head_dim * KV_BLOCK_TOKENS,
        KV_BLOCK_TOKENS * stride,
        rows * stride,
        rows * 16,
        rows,
        rows,
    ];
    BUFFERS.with_borrow_mut(|Buffers { floats, spans }| {
        let total: usize = sizes.iter().map(|size| size.next_multiple_of(16)).sum();
        if floats.len() < total + 16 {
            floats.resize(total + 16, 0.0);
        }
        if spans.len() < rows {
            spans.resize(rows, Span::EMPTY);
        }
        // Up to a cache line's start: vectors that cross lines load at half the speed.
        let skip = floats.as_ptr().align_offset(64).min(16);
        let mut rest = &mut floats[skip..];
        let [query, scores, keys, values, sums, totals, peaks, factors] = sizes.map(|size| {
            let (part, left) = std::mem::take(&mut rest).split_at_mut(size.next_multiple_of(16));
            rest = left;
            &mut part[..size]
        });
        let spans = &mut spans[..rows];
        work(&mut Scratch {
            stride,
            spans,
            query,
            scores,
            keys,
            values,
            sums,
            totals,
            peaks,
            factors,
        })
    })
}
