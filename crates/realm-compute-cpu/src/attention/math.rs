//! Exponential and hyperbolic tangent of vectors.
//!
//! Both polynomials are minimax fits (Remez) of the relative error over the range named, rounded to
//! `f32`.

use super::simd::Simd;

/// `2^x`, for `x` at most 127.
///
/// The relative error is below 2e-7; `2^0` is exactly 1. Below −125 the result may be 0 instead, and
/// is 0 from −160 on down to −∞. NaN gives NaN.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::F) -> S::F {
    let x = simd.max(simd.splat(-160.0), x);
    let n = simd.round(x);
    // (2^f − 1) / f for f in −½..½; error of 2^f: 2.6e-9.
    let f = simd.sub(x, n);
    let p = simd.splat(1.559_467_8e-4);
    let p = simd.mul_add(p, f, simd.splat(1.340_664_3e-3));
    let p = simd.mul_add(p, f, simd.splat(9.617_693e-3));
    let p = simd.mul_add(p, f, simd.splat(5.550_310_4e-2));
    let p = simd.mul_add(p, f, simd.splat(0.240_226_52));
    let p = simd.mul_add(p, f, simd.splat(0.693_147_24));
    let p = simd.mul_add(p, f, simd.splat(1.0));
    simd.scale_exp2(p, n)
}

/// [`exp2()`] of one number.
#[inline(always)]
pub(super) fn exp2_of<S: Simd>(simd: S, x: f32) -> f32 {
    simd.first(exp2(simd, simd.splat(x)))
}

/// `tanh x` with a relative error below 3e-7; ±1 for ±∞, NaN for NaN.
#[inline(always)]
pub(super) fn tanh<S: Simd>(simd: S, x: S::F) -> S::F {
    // (tanh x − x) / x³ as a polynomial in x², for |x| < 0.625; error of tanh: 4.4e-9.
    let z = simd.mul(x, x);
    let p = simd.splat(-5.704_987_3e-3);
    let p = simd.mul_add(p, z, simd.splat(2.063_908_8e-2));
    let p = simd.mul_add(p, z, simd.splat(-5.373_971_5e-2));
    let p = simd.mul_add(p, z, simd.splat(0.133_314_42));
    let p = simd.mul_add(p, z, simd.splat(-0.333_332_8));
    let small = simd.mul_add(simd.mul(p, z), x, x);
    // 1 − 2 / (e^2x + 1). From 10 on the result is 1 in single precision; −10 from below alike.
    let bound = simd.splat(-10.0);
    let low = simd.max(bound, x);
    let minus = simd.sub(simd.splat(0.0), low);
    let bounded = simd.sub(simd.splat(0.0), simd.max(bound, minus));
    let e = exp2(simd, simd.mul(bounded, simd.splat(2.0 * std::f32::consts::LOG2_E)));
    let quotient = simd.div(simd.splat(2.0), simd.add(e, simd.splat(1.0)));
    let large = simd.sub(simd.splat(1.0), quotient);
    simd.where_below(x, 0.625, small, large)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attention::simd::{Kernel, dispatch},
        isa::{Isa, IsaLimit},
    };

    struct Check;

    impl Kernel for Check {
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let first = |v: S::F| {
                let mut out = [0.0; 16];
                s.store(v, &mut out);
                out[0]
            };
            let relative = |x: f32, exact: f64| (f64::from(x) - exact).abs() / exact.abs();
            for i in -12_600..1_000 {
                let x = i as f32 * 0.009_876;
                let e = relative(first(exp2(s, s.splat(x))), f64::from(x).exp2());
                assert!(e < 2e-7, "2^{x}: {e}");
                let x = i as f32 * 0.000_987_6;
                if x != 0.0 {
                    let e = relative(first(tanh(s, s.splat(x))), f64::from(x).tanh());
                    assert!(e < 3e-7, "tanh {x}: {e}");
                }
            }
            assert_eq!(first(exp2(s, s.splat(0.0))), 1.0);
            for x in [-160.0, -1e30, f32::NEG_INFINITY] {
                assert_eq!(first(exp2(s, s.splat(x))), 0.0);
            }
            for x in [f32::INFINITY, 1e30, 20.0] {
                assert_eq!(first(tanh(s, s.splat(x))), 1.0);
                assert_eq!(first(tanh(s, s.splat(-x))), -1.0);
            }
            assert_eq!(first(tanh(s, s.splat(0.0))), 0.0);
            assert!(first(exp2(s, s.splat(f32::NAN))).is_nan());
            assert!(first(tanh(s, s.splat(f32::NAN))).is_nan());
        }
    }

    #[test]
    fn functions_are_precise_on_every_instruction_set() {
        for limit in [IsaLimit::Scalar, IsaLimit::Avx2, IsaLimit::Avx512] {
            dispatch(Isa::detect(limit), Check);
        }
    }
}
