//! Elementary functions without branches, so that loops over them vectorise, and sums in a fixed order.

use realm_core::graph::ops::Activation;

/// eˣ to about 2e-7 of itself: the exponent split off, the rest by a polynomial (Cephes' expf
/// coefficients). 0 below −87.3, infinite where it exceeds f32.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with trailing zeros: n · HIGH is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 89.0);
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let n = (clamped * LOG2_E + ROUND) - ROUND;
    let r = (clamped - n * HIGH) - n * LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // 2ⁿ in two factors: n reaches 128, and one factor's exponent field holds 127 at most.
    let half = (n * 0.5) as i32;
    let rest = n as i32 - half;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    let result = p * power(half) * power(rest);
    if x < -87.3 { 0.0 } else { result }
}

/// tanh x.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// erf x to 1.5e-7 (Abramowitz & Stegun 7.1.26).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let p = 1.061_405_4 * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    (1.0 - p * t * exp(-size * size)).copysign(x)
}

/// A gated unit's non-linearity.
#[inline(always)]
pub(crate) fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + exp(-x)),
        Activation::GeluTanh => {
            const FACTOR: f32 = 0.797_884_6;
            // 0.5 · (1 + tanh u) is the logistic function of 2u.
            x / (1.0 + exp(-2.0 * FACTOR * (x + 0.044_715 * x * x * x)))
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
    }
}

const LANES: usize = 16;

/// The sum of `term` over a row, in an order that the row's length alone decides.
#[inline(always)]
pub(crate) fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, tail) = row.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += term(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane += term(x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for at in 0..width {
            lanes[at] += lanes[at + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for at in -90_000..88_720 {
            let x = at as f32 / 1000.0;
            let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
            let error = (found - exact).abs() / exact;
            assert!(error < 3e-7 || (x < -87.2 && found < 2e-38), "exp({x}) = {found}, {exact}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(100.0) > 1e38);
    }

    #[test]
    fn functions_keep_their_limits() {
        assert_eq!((tanh(50.0), tanh(-50.0)), (1.0, -1.0));
        assert!((erf(0.5) - 0.520_499_9).abs() < 1e-6);
        assert_eq!((erf(9.0), erf(-9.0)), (1.0, -1.0));
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            assert_eq!(activate(activation, 0.0), 0.0);
            assert_eq!(activate(activation, 60.0), 60.0);
            assert!(activate(activation, -60.0).abs() < 1e-6);
            assert!(activate(activation, -1e30).abs() < 1e-6);
        }
    }

    #[test]
    fn sums_take_in_every_element() {
        for len in [0, 1, 15, 16, 17, 100] {
            let row: Vec<f32> = (1..=len).map(|x| x as f32).collect();
            assert_eq!(sum(&row, |x| x), (len * (len + 1) / 2) as f32);
        }
    }
}
