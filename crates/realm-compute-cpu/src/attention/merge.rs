//! From peaks, totals and sums to results.
//!
//! A partial result is `[peak, total, factor, …]`, 16 numbers, and the sums.

use super::{math::exp2_of, simd::Simd};
use std::f32::consts::LOG2_E;

/// Numbers before the sums; 16 keep these aligned.
const HEAD: usize = 16;

/// What a span of the cache contributes to a row.
pub(super) struct Partial;

impl Partial {
    /// Numbers that one takes.
    pub(super) fn len(head_dim: usize) -> usize {
        HEAD + head_dim.next_multiple_of(16)
    }

    /// Fills a slot.
    pub(super) fn write(slot: &mut [f32], peak: f32, total: f32, sums: &[f32]) {
        (slot[0], slot[1]) = (peak, total);
        slot[HEAD..].copy_from_slice(sums);
    }

    /// Peak, total and sums of a slot.
    pub(super) fn read(slot: &[f32]) -> (f32, f32, &[f32]) {
        (slot[0], slot[1], &slot[HEAD..])
    }
}

/// Merges slots of `len` numbers, in order, into the first.
#[inline(always)]
pub(super) fn merge<S: Simd>(simd: S, slots: &mut [f32], len: usize) {
    let peak = slots.chunks_exact(len).map(|slot| slot[0]).fold(f32::NEG_INFINITY, f32::max);
    let base = finite_base(peak);
    let mut total = 0.0;
    for slot in slots.chunks_exact_mut(len) {
        slot[2] = exp2_of(simd, slot[0] - base);
        total += slot[1] * slot[2];
    }
    let (first, rest) = slots.split_at_mut(len);
    let factor = simd.splat(first[2]);
    for at in (HEAD..len).step_by(S::LANES) {
        let mut sum = simd.mul(simd.load(&first[at..]), factor);
        for slot in rest.chunks_exact(len) {
            sum = simd.mul_add(simd.load(&slot[at..]), simd.splat(slot[2]), sum);
        }
        simd.store(sum, &mut first[at..]);
    }
    (first[0], first[1]) = (peak, total);
}

/// Writes a row's result from its peak, total and sums; zeros where it saw nothing.
#[inline(always)]
pub(super) fn finish<S: Simd>(
    simd: S,
    (peak, total, sums): (f32, f32, &[f32]),
    sink: Option<f32>,
    out: &mut [f32],
) {
    if total == 0.0 {
        out.fill(0.0);
        return;
    }
    let mut factor = 1.0 / total;
    if let Some(sink) = sink {
        let sink = sink * LOG2_E;
        let base = finite_base(peak.max(sink));
        let kept = exp2_of(simd, peak - base);
        factor = kept / (total * kept + exp2_of(simd, sink - base));
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = sum * factor;
    }
}

/// The peak to subtract: any finite number where all scores are −∞.
fn finite_base(peak: f32) -> f32 {
    if peak == f32::NEG_INFINITY { 0.0 } else { peak }
}
