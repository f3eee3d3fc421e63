//! Online softmax (Dao et al. 2022, arXiv 2205.14135) of a tile of query rows over the tiles of one KV
//! head.
//!
//! The rows of a tile are positions × the query heads of the KV head's group, so keys and values are
//! decoded once for all of them. Scores are in units of log 2. What a row does in a tile of keys
//! depends on the keys that it sees there and on nothing else: a tile of which it sees nothing leaves
//! it untouched, and keys that it does not see are not multiplied with its weights.

use super::{
    load,
    math::{exp2, tanh},
    product::{Product, step},
    scratch::{Scratch, Span},
    simd::Simd,
};
use crate::kv::{KV_BLOCK_TOKENS, KvRead, Part};
use realm_core::{backend::SequenceRows, graph::ops::AttentionSpec};
use std::{f32::consts::LOG2_E, ops::Range};

/// Query rows of one sequence and one KV head.
pub(super) struct QueryTile<'a> {
    pub(super) cache: &'a KvRead<'a>,
    pub(super) layer: usize,
    pub(super) kv_head: usize,
    /// Query heads a KV head.
    pub(super) group: usize,
    pub(super) spec: &'a AttentionSpec,
    pub(super) sequence: &'a SequenceRows<'a>,
    /// Rows of the sequence, counted from its first in the batch.
    pub(super) rows: Range<usize>,
    /// `[tokens, heads · head_dim]`.
    pub(super) query: &'a [f32],
}

impl QueryTile<'_> {
    /// Positions in the cache that row `row` of the sequence sees.
    fn visible(&self, row: usize) -> Range<usize> {
        self.spec.mask.visible(self.sequence.cached + row, self.sequence.length())
    }

    /// Attends to positions `keys`. Leaves peaks, totals and sums in the scratch.
    #[inline(always)]
    pub(super) fn attend<S: Simd>(&self, simd: S, keys: Range<usize>, scratch: &mut Scratch<'_>) {
        self.gather(scratch);
        let tiles = keys.start / KV_BLOCK_TOKENS..keys.end.div_ceil(KV_BLOCK_TOKENS);
        for tile in tiles.clone() {
            let seen = self.spans(tile, &keys, scratch.spans);
            if seen.is_empty() {
                continue;
            }
            let (kv_type, head_dim) = (self.cache.kv_type(), self.spec.head_dim);
            let block = self.sequence.blocks[tile];
            let keys = self.cache.tile(self.layer, Part::Key, block, self.kv_head);
            load::keys(simd, kv_type, keys, seen.range(), scratch.keys);
            let rows = scratch.spans.len();
            let mut next =
                load::Prefetch::new(self.after(tile, tiles.end), rows + 2 * rows.div_ceil(6));
            scores(simd, scratch, head_dim, &mut next);
            for row in 0..rows {
                next.next(simd);
                softmax(simd, scratch, row, self.spec.soft_cap);
            }
            let values = self.cache.tile(self.layer, Part::Value, block, self.kv_head);
            let shape = (seen.range(), head_dim, scratch.stride);
            load::values(simd, kv_type, values, shape, scratch.values);
            sums(simd, scratch, &mut next);
        }
    }

    /// The tiles of keys and values that follow, if any.
    fn after(&self, tile: usize, end: usize) -> [&[u8]; 2] {
        if tile + 1 == end {
            return [&[], &[]];
        }
        let block = self.sequence.blocks[tile + 1];
        [Part::Key, Part::Value].map(|part| self.cache.tile(self.layer, part, block, self.kv_head))
    }

    /// Copies the query rows, scaled, and starts their sums.
    #[inline(always)]
    fn gather(&self, scratch: &mut Scratch<'_>) {
        let width = self.group * self.spec.head_dim;
        let factor = match self.spec.soft_cap {
            None => self.spec.scale * LOG2_E,
            Some(cap) => self.spec.scale / cap,
        };
        let row = self.spec.heads * self.spec.head_dim;
        let from = self.query.chunks_exact(row).skip(self.sequence.rows.start + self.rows.start);
        for (from, to) in from.zip(scratch.query.chunks_exact_mut(width)) {
            let from = &from[self.kv_head * width..][..width];
            for (to, from) in to.iter_mut().zip(from) {
                *to = from * factor;
            }
        }
        scratch.peaks.fill(f32::NEG_INFINITY);
        scratch.totals.fill(0.0);
        scratch.sums.fill(0.0);
    }

    /// What each row sees of a tile, within `keys`; gives what all together see.
    #[inline(always)]
    fn spans(&self, tile: usize, keys: &Range<usize>, spans: &mut [Span]) -> Span {
        let first = tile * KV_BLOCK_TOKENS;
        let (low, high) = (keys.start.max(first), keys.end.min(first + KV_BLOCK_TOKENS));
        let mut all = Span::EMPTY;
        for (row, spans) in self.rows.clone().zip(spans.chunks_exact_mut(self.group)) {
            let visible = self.visible(row);
            let (start, end) = (visible.start.max(low), visible.end.min(high));
            let span =
                if start < end { Span::new(start - first, end - first) } else { Span::EMPTY };
            all = all.hull(span);
            spans.fill(span);
        }
        all
    }
}

/// `scores = query · keysᵀ`, at least where a row sees the key.
#[inline(always)]
fn scores<S: Simd>(
    simd: S,
    scratch: &mut Scratch<'_>,
    head_dim: usize,
    next: &mut load::Prefetch<'_>,
) {
    let mut row = 0;
    while row < scratch.spans.len() {
        let rows = step(scratch.spans.len() - row);
        next.next(simd);
        let spans = &scratch.spans[row..row + rows];
        let seen = spans.iter().fold(Span::EMPTY, |all, span| all.hull(*span));
        if !seen.is_empty() {
            let start = seen.start() / S::LANES * S::LANES;
            let product = Product {
                a: &scratch.query[row * head_dim..],
                a_stride: head_dim,
                b: &scratch.keys[start..],
                b_stride: KV_BLOCK_TOKENS,
                c: &mut scratch.scores[row * KV_BLOCK_TOKENS + start..],
                c_stride: KV_BLOCK_TOKENS,
                rows,
                cols: (seen.end() - start).next_multiple_of(S::LANES),
                depth: head_dim,
            };
            product.set(simd);
        }
        row += rows;
    }
}

/// Turns a row's scores into weights `2^(score − peak)`, and brings its peak and total up to date.
/// The factor that its sums need is left in `factors`.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scratch: &mut Scratch<'_>, row: usize, soft_cap: Option<f32>) {
    let span = scratch.spans[row];
    if span.is_empty() {
        return;
    }
    let scores = &mut scratch.scores[row * KV_BLOCK_TOKENS..][..KV_BLOCK_TOKENS];
    let first = span.start() / S::LANES * S::LANES;
    let end = span.end().next_multiple_of(S::LANES);
    if let Some(cap) = soft_cap {
        let cap = simd.splat(cap * LOG2_E);
        for scores in scores[first..end].chunks_exact_mut(S::LANES) {
            simd.store(simd.mul(tanh(simd, simd.load(scores)), cap), scores);
        }
    }
    // Keys that the row does not see get a score of −∞, hence a weight of 0.
    for at in [first, end - S::LANES] {
        let (from, to) = (span.start().saturating_sub(at), span.end() - at);
        if from > 0 || to < S::LANES {
            let kept = simd.keep(simd.load(&scores[at..]), from, to, f32::NEG_INFINITY);
            simd.store(kept, &mut scores[at..]);
        }
    }
    let totals = &mut scratch.totals[row * 16..][..16];
    let state = (&mut scratch.peaks[row], totals, &mut scratch.factors[row]);
    // The same twice: a known length is unrolled and read once.
    match <&mut [f32; KV_BLOCK_TOKENS]>::try_from(&mut scores[first..end]) {
        Ok(scores) => weigh(simd, scores, state),
        Err(_) => weigh(simd, &mut scores[first..end], state),
    }
}

/// [`softmax`] of scores that count, given peak, total and factor.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    scores: &mut [f32],
    (peak, totals, factor): (&mut f32, &mut [f32], &mut f32),
) {
    let mut highest = simd.splat(f32::NEG_INFINITY);
    for scores in scores.chunks_exact(S::LANES) {
        highest = simd.max(highest, simd.load(scores));
    }
    let old = *peak;
    *peak = old.max(simd.reduce_max(highest));
    // Where all scores are −∞ so far, any finite number in place of the peak gives weights of 0.
    let base = simd.splat(if *peak == f32::NEG_INFINITY { 0.0 } else { *peak });
    // Mostly the peak stays. The shortcut changes no bits: `exp2` of 0 is 1.
    let mut scale = simd.splat(1.0);
    if *peak != old {
        scale = exp2(simd, simd.sub(simd.splat(old), base));
    }
    *factor = simd.first(scale);
    let mut total = simd.mul(simd.load(totals), scale);
    for scores in scores.chunks_exact_mut(S::LANES) {
        let weight = exp2(simd, simd.sub(simd.load(scores), base));
        simd.store(weight, scores);
        total = simd.add(total, weight);
    }
    simd.store(total, totals);
}

/// `sums = factor · sums + weights · values`, a row over the keys that it sees.
#[inline(always)]
fn sums<S: Simd>(simd: S, scratch: &mut Scratch<'_>, next: &mut load::Prefetch<'_>) {
    let mut row = 0;
    while row < scratch.spans.len() {
        let rows = step(scratch.spans.len() - row);
        next.next(simd);
        let span = scratch.spans[row];
        if scratch.spans[row..row + rows].iter().all(|other| *other == span) {
            if !span.is_empty() {
                weighted(simd, scratch, row..row + rows, span);
            }
        } else {
            mixed(simd, scratch, row..row + rows);
        }
        row += rows;
    }
}

/// As [`sums`], for rows that see different keys: first those that not all see, row by row, then the
/// common ones, then the rest; each row's keys stay in order.
#[inline(always)]
fn mixed<S: Simd>(simd: S, scratch: &mut Scratch<'_>, rows: Range<usize>) {
    let spans = &scratch.spans[rows.clone()];
    let start = spans.iter().map(|span| span.start()).max().unwrap_or(0);
    let end = spans.iter().map(|span| span.end()).min().unwrap_or(0).max(start);
    for row in rows.clone() {
        let span = scratch.spans[row];
        if !span.is_empty() {
            // Also where it sees nothing before the common part, for the factor's sake.
            let before = Span::new(span.start(), span.end().min(start));
            weighted(simd, scratch, row..row + 1, before);
        }
        scratch.factors[row] = 1.0;
    }
    if start < end {
        weighted(simd, scratch, rows.clone(), Span::new(start, end));
    }
    for row in rows {
        let span = scratch.spans[row];
        if span.end() > end.max(span.start()) {
            weighted(simd, scratch, row..row + 1, Span::new(end.max(span.start()), span.end()));
        }
    }
}

#[inline(always)]
fn weighted<S: Simd>(simd: S, scratch: &mut Scratch<'_>, rows: Range<usize>, keys: Span) {
    let stride = scratch.stride;
    let product = Product {
        a: &scratch.scores[rows.start * KV_BLOCK_TOKENS + keys.start()..],
        a_stride: KV_BLOCK_TOKENS,
        b: &scratch.values[keys.start() * stride..],
        b_stride: stride,
        c: &mut scratch.sums[rows.start * stride..],
        c_stride: stride,
        rows: rows.len(),
        cols: stride,
        depth: keys.end() - keys.start(),
    };
    product.add(simd, &scratch.factors[rows]);
}
