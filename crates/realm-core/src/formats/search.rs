//! Searches for the scales and minima of groups of weights.
//!
//! All follow one scheme: rounding is tried at a range of starting scales around the one that maps
//! the extreme weight to the extreme level; for the levels each start yields, the best scale (and
//! minimum) follows in closed form by weighted least squares; the start with the smallest error
//! wins. The groups' scales are then themselves rounded to multiples of one half-precision step,
//! and the weights are rounded anew against what a decoder will see; for each group the better one
//! of rounding its scale (and minimum) down or up is kept.

use super::bits::{F16_MAX, F16Le, inverse, round_even, signed_max};

/// Groups whose spread is below this are constant to every half-precision step (2⁻²⁴ ≈ 6e-8).
const NEGLIGIBLE: f32 = 1e-12;

/// Scale, minimum and inverse scale that map `x` onto `0..=levels`: the smallest value to 0, the
/// largest to `levels`. Scale and minimum stay within half precision.
pub(super) fn scale_and_min(x: &[f32; 32], levels: f32) -> (f32, f32, f32) {
    let (min, max) = range(x);
    let d = ((max - min) / levels).min(F16_MAX);
    (d, min.clamp(-F16_MAX, F16_MAX), inverse(d))
}

/// A block of 256 weights as `d · scales[g] · q − dmin · mins[g]`.
pub(super) struct AffineBlock<const G: usize> {
    pub(super) d: F16Le,
    pub(super) dmin: F16Le,
    pub(super) scales: [u8; G],
    pub(super) mins: [u8; G],
    pub(super) q: [u8; 256],
}

/// How to search for an [`AffineBlock`].
pub(super) struct AffineSearch {
    /// Largest quant.
    pub(super) levels: f32,
    /// Largest scale and minimum of a group.
    pub(super) scale_levels: f32,
    /// Starts: level spans `levels + first`, then `tries − 1` more, 0.1 apart.
    pub(super) first: f32,
    /// Number of starts.
    pub(super) tries: u8,
}

impl AffineSearch {
    /// The block for `x`: `G` groups of `N` weights, each weight's squared error counted by
    /// `importance`.
    pub(super) fn block<const N: usize, const G: usize>(
        &self,
        x: &[f32; 256],
        importance: impl Fn(&[f32; N]) -> [f32; N],
    ) -> AffineBlock<G> {
        const { assert!(N * G == 256) };
        let (groups, _) = x.as_chunks::<N>();
        let fits: [_; G] = std::array::from_fn(|g| self.group(&groups[g], &importance(&groups[g])));
        let max = fits.iter().fold((0f32, 0f32), |m, fit| (m.0.max(fit.0), m.1.max(fit.1)));
        let d = covering_step(max.0, self.scale_levels);
        let dmin = covering_step(max.1, self.scale_levels);
        let (mut scales, mut mins, mut q) = ([0; G], [0; G], [0; 256]);
        for (g, q) in q.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            let steps = (fits[g].0 * inverse(d.to_f32()), fits[g].1 * inverse(dmin.to_f32()));
            let w = importance(&groups[g]);
            let mut best_error = f32::INFINITY;
            for (scale, min) in self.roundings(steps) {
                let (dl, ml) = (d.to_f32() * scale, dmin.to_f32() * min);
                let id = inverse(dl);
                let levels = groups[g].map(|v| round_even(((v + ml) * id).clamp(0.0, self.levels)));
                let error = squared_error(&groups[g], &w, &levels, dl, -ml);
                if error < best_error {
                    best_error = error;
                    (scales[g], mins[g]) = (scale as u8, min as u8);
                    *q = levels.map(|l| l as u8);
                }
            }
        }
        AffineBlock { d, dmin, scales, mins, q }
    }

    /// A scale and a minimum, in steps, each rounded down and up.
    fn roundings(&self, (scale, min): (f32, f32)) -> [(f32, f32); 4] {
        let limit = |v: f32| v.clamp(0.0, self.scale_levels);
        let (s0, s1) = (limit(scale.trunc()), limit(scale.trunc() + 1.0));
        let (m0, m1) = (limit(min.trunc()), limit(min.trunc() + 1.0));
        [(s0, m0), (s0, m1), (s1, m0), (s1, m1)]
    }

    /// Scale and subtracted minimum, both ≥ 0, that minimise Σ w·(scale·q − min − x)².
    fn group<const N: usize>(&self, x: &[f32; N], w: &[f32; N]) -> (f32, f32) {
        let (lo, hi) = range(x);
        let lo = lo.min(0.0);
        if hi - lo < NEGLIGIBLE {
            return (0.0, -lo);
        }
        let sum_w = sum::<N>(|i| w[i]);
        let sum_x = sum::<N>(|i| w[i] * x[i]);
        let quantize = |id: f32| x.map(|v| round_even(((v - lo) * id).clamp(0.0, self.levels)));

        let mut best = ((hi - lo) / self.levels, lo);
        let mut best_error =
            squared_error(x, w, &quantize(self.levels / (hi - lo)), best.0, best.1);
        for k in 0..self.tries {
            let span = self.levels + self.first + 0.1 * f32::from(k);
            let q = quantize(span / (hi - lo));
            let sum_q = sum::<N>(|i| w[i] * q[i]);
            let sum_qq = sum::<N>(|i| w[i] * q[i] * q[i]);
            let sum_qx = sum::<N>(|i| w[i] * q[i] * x[i]);
            let det = sum_w * sum_qq - sum_q * sum_q;
            let mut min = (sum_qq * sum_x - sum_q * sum_qx) / det;
            let mut scale = (sum_w * sum_qx - sum_x * sum_q) / det;
            if min > 0.0 {
                // The format subtracts its minimum: it cannot be above zero.
                (scale, min) = (sum_qx / sum_qq, 0.0);
            }
            let this = squared_error(x, w, &q, scale, min);
            // False for the NaNs of a singular system.
            if this < best_error && scale > 0.0 {
                (best, best_error) = ((scale, min), this);
            }
        }
        (best.0, -best.1)
    }
}

/// Importance in Q4_K and Q5_K: a weight's magnitude plus the group's root mean square, so that
/// small weights count too.
pub(super) fn magnitude_and_mean(x: &[f32; 32]) -> [f32; 32] {
    let rms = (sum::<32>(|i| x[i] * x[i]) / 32.0).sqrt();
    x.map(|v| rms + v.abs())
}

/// A block of 256 weights as `d · scales[g] · level(q)`.
pub(super) struct SignedBlock<const G: usize> {
    pub(super) d: F16Le,
    pub(super) scales: [i8; G],
    /// The weights' levels (not their indices).
    pub(super) levels: [f32; 256],
}

/// How to search for scales of levels around zero.
pub(super) struct SignedSearch<L> {
    /// The level nearest to a value: any monotonic choice among fixed levels, finite input.
    pub(super) level: L,
    /// Where starts map the weight of largest magnitude to; the best one is kept.
    pub(super) first: f32,
    /// Distance of the starts.
    pub(super) step: f32,
    /// Number of starts.
    pub(super) tries: u8,
}

impl<L: Fn(f32) -> f32> SignedSearch<L> {
    /// The block for `x`: `G` groups of `N` weights, scales in `-scale_levels..scale_levels`.
    pub(super) fn block<const N: usize, const G: usize>(
        &self,
        x: &[f32; 256],
        scale_levels: f32,
    ) -> SignedBlock<G> {
        const { assert!(N * G == 256) };
        let (groups, _) = x.as_chunks::<N>();
        let fits: [f32; G] = std::array::from_fn(|g| self.group(&groups[g]));
        let max = signed_max(&fits);
        // The largest scale takes the one level more that negative numbers have. (Subtracted from
        // zero, so that a block of zeros has a positive zero.)
        let step = 0.0 - covering_step(max.abs(), scale_levels).to_f32() * max.signum();
        let id = inverse(step);
        let (mut scales, mut levels) = ([0; G], [0.0; 256]);
        for (g, levels) in levels.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            let x = &groups[g];
            let w = importance(x, signed_max(x));
            let down = (fits[g] * id).floor();
            let mut best_error = f32::INFINITY;
            for scale in [down, down + 1.0] {
                let scale = scale.clamp(-scale_levels, scale_levels - 1.0);
                let dl = step * scale;
                let id = inverse(dl);
                let these = x.map(|v| (self.level)(v * id));
                let error = squared_error(x, &w, &these, dl, 0.0);
                if error < best_error {
                    best_error = error;
                    (scales[g], *levels) = (scale as i8, these);
                }
            }
        }
        SignedBlock { d: F16Le::from_f32(step), scales, levels }
    }

    /// The scale that minimises Σ w·(scale·level − x)², w as in [`importance`].
    pub(super) fn group<const N: usize>(&self, x: &[f32; N]) -> f32 {
        let max = signed_max(x);
        if max.abs() < NEGLIGIBLE {
            return 0.0;
        }
        let w = importance(x, max);
        let (mut best, mut best_gain) = (0.0, 0.0);
        for k in 0..self.tries {
            let id = (self.first + self.step * f32::from(k)) / max;
            let q = x.map(|v| (self.level)(v * id));
            let sum_qx = sum::<N>(|i| w[i] * q[i] * x[i]);
            let sum_qq = sum::<N>(|i| w[i] * q[i] * q[i]);
            let scale = sum_qx / sum_qq;
            // How much less than Σ w·x² the error is; NaN where all levels are zero.
            let gain = scale * sum_qx;
            if gain > best_gain {
                (best, best_gain) = (scale, gain);
            }
        }
        best
    }
}

/// Importance around zero: √(2·mean square + square), relative to the largest weight `max` so that
/// nothing over- or underflows. Large weights count for more, small ones not for nothing.
#[inline(always)]
fn importance<const N: usize>(x: &[f32; N], max: f32) -> [f32; N] {
    let id = inverse(max);
    let squares = x.map(|v| (v * id) * (v * id));
    let mean = sum::<N>(|i| squares[i]) / N as f32;
    squares.map(|s| (2.0 * mean + s).sqrt())
}

/// The half-precision step of which `levels` (rounded) make `max`: the nearest, or the next above
/// where the nearest would fall short, as it can among subnormal halves.
fn covering_step(max: f32, levels: f32) -> F16Le {
    let step = F16Le::from_f32_finite(max / levels);
    if step.to_f32() * (levels + 0.5) < max && step.to_f32() < F16_MAX {
        F16Le::from_bits(step.to_bits() + 1)
    } else {
        step
    }
}

/// Σ w·(scale·q + min − x)².
#[inline(always)]
fn squared_error<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    q: &[f32; N],
    scale: f32,
    min: f32,
) -> f32 {
    sum::<N>(|i| {
        let e = scale * q[i] + min - x[i];
        w[i] * e * e
    })
}

/// Smallest and largest of `x`.
fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)))
}

/// Σ f(i), i in 0..N, in eight interleaved partial sums so that it vectorises.
#[inline(always)]
fn sum<const N: usize>(f: impl Fn(usize) -> f32) -> f32 {
    const { assert!(N.is_multiple_of(8)) };
    let mut lanes = [0.0f32; 8];
    for base in (0..N).step_by(8) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(base + lane);
        }
    }
    let four: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The least Σ w·(scale·q + min − x)² over a dense grid of ranges `lo..=hi` mapped to the levels.
    fn best_by_grid(x: &[f32; 32], w: &[f32; 32], levels: f32) -> f32 {
        let (lo, hi) = range(x);
        let spread = hi - lo.min(0.0);
        let mut best = f32::INFINITY;
        for shift in 0..60 {
            let min = (lo.min(0.0) + spread * (shift as f32 - 20.0) * 0.01).min(0.0);
            for cut in 0..60 {
                let scale = (hi - min + spread * (cut as f32 - 40.0) * 0.01) / levels;
                let q = x.map(|v| ((v - min) / scale).round().clamp(0.0, levels));
                best = best.min(squared_error(x, w, &q, scale, min));
            }
        }
        best
    }

    /// 64 groups of bell-shaped weights around `offset`.
    fn groups<const N: usize>(seed: u64, offset: f32) -> Vec<[f32; N]> {
        // Knuth's linear congruential generator; the sum of four uniforms is nearly normal.
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut group = || std::array::from_fn(|_| offset + (0..4).map(|_| uniform()).sum::<f32>());
        (0..64).map(|_| group()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn affine_fits_are_near_the_best(
            seed in any::<u64>(),
            offset in -1.5f32..1.5,
            levels in prop::sample::select(vec![3.0f32, 15.0, 31.0]),
        ) {
            let first = if levels == 15.0 { -1.0 } else { -0.5 };
            let search = AffineSearch { levels, scale_levels: 63.0, first, tries: 21 };
            let (mut total, mut best) = (0.0, 0.0);
            for x in groups::<32>(seed, offset) {
                let w = magnitude_and_mean(&x);
                let (scale, min) = search.group(&x, &w);
                prop_assert!(scale > 0.0 && min >= 0.0, "{scale} {min}");
                let q = x.map(|v| ((v + min) / scale).round().clamp(0.0, levels));
                total += squared_error(&x, &w, &q, scale, -min);
                best += best_by_grid(&x, &w, levels);
            }
            prop_assert!(total <= 1.2 * best, "{} times the best", total / best);
        }

        #[test]
        fn signed_fits_are_near_the_best(
            seed in any::<u64>(),
            range in prop::sample::select(vec![4.0f32, 32.0]),
        ) {
            let level = |v: f32| round_even(v.clamp(-range, range - 1.0));
            let search = SignedSearch { level, first: -range - 0.9, step: 0.1, tries: 19 };
            let (mut total, mut best) = (0.0, 0.0);
            for x in groups::<16>(seed, 0.0) {
                let max = signed_max(&x);
                let w = importance(&x, max);
                let error = |scale: f32| {
                    squared_error(&x, &w, &x.map(|v| level(v / scale)), scale, 0.0)
                };
                total += error(search.group(&x));
                best += (0..400)
                    .map(|k| error(-max / (range * (0.7 + k as f32 * 0.0015))))
                    .fold(f32::INFINITY, f32::min);
            }
            prop_assert!(total <= 1.25 * best, "{} times the best", total / best);
        }
    }

    #[test]
    fn steps_cover_the_largest_scale() {
        for exponent in -40..19 {
            for mantissa in [1.0, 1.3, 1.49, 1.51, 1.99] {
                let max = mantissa * 2f32.powi(exponent);
                for levels in [15.0, 32.0, 63.0, 128.0] {
                    let step = covering_step(max, levels).to_f32();
                    let reached = round_even((max / step).min(levels)) * step;
                    let tolerance = (0.51 * step).max(max * 0.0005);
                    assert!((reached - max).abs() <= tolerance, "{max:e} in {levels}: {step:e}");
                }
            }
        }
        assert_eq!(covering_step(1e9, 63.0).to_f32(), F16_MAX);
        assert_eq!(covering_step(0.0, 63.0).to_bits(), 0);
    }
}
