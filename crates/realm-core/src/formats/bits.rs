//! Small numeric pieces that all block formats share.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The largest finite half-precision value.
pub(crate) const F16_MAX: f32 = 65504.0;

/// Inputs of encoders whose scales are half precision are cut off here.
///
/// No such format reaches beyond 65504 × 128 × 32 ≈ 2.7e8, so nothing that can be stored is
/// lost, and every sum in the searches stays far from overflow.
const INPUT_LIMIT: f32 = 1e9;

/// A half-precision number as it lies in a block: little-endian, alignment 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct F16Le(pub [u8; 2]);

impl F16Le {
    /// The number whose IEEE 754 binary16 pattern is `bits`.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits.to_le_bytes())
    }

    /// The IEEE 754 binary16 pattern.
    pub const fn to_bits(self) -> u16 {
        u16::from_le_bytes(self.0)
    }

    /// The exact value in single precision.
    ///
    /// Branch-free integer arithmetic, so that loops over halves vectorise on every target.
    #[inline]
    pub const fn to_f32(self) -> f32 {
        let half = self.to_bits() as u32;
        let magnitude = half & 0x7fff;
        // The exponent's bias is 15 in a half and 127 in a single: 112 apart; infinities and NaNs
        // (exponent 31) must end at 255, another 112 up.
        let rebias = if magnitude >= 0x7c00 { 224 << 23 } else { 112 << 23 };
        let normal = (magnitude << 13) + rebias;
        let subnormal = (magnitude as f32 * (1.0 / 16_777_216.0)).to_bits();
        let bits = if magnitude < 0x0400 { subnormal } else { normal };
        f32::from_bits(bits | (half & 0x8000) << 16)
    }

    /// The nearest half (ties to even); infinite beyond the range of halves.
    #[inline]
    pub fn from_f32(value: f32) -> Self {
        Self(half::f16::from_f32(value).to_le_bytes())
    }

    /// The nearest finite half; zero for NaN.
    #[inline]
    pub fn from_f32_finite(value: f32) -> Self {
        Self::from_f32(nan_to_zero(value).clamp(-F16_MAX, F16_MAX))
    }
}

/// `out` as an array: lets the compiler drop the bounds checks of a decoder.
///
/// # Panics
/// If the length is not `N`.
#[inline(always)]
pub(crate) fn array_mut<const N: usize>(out: &mut [f32]) -> &mut [f32; N] {
    out.try_into().expect("a block's output has the format's length")
}

/// A copy of `values` that is safe to search over: NaN becomes 0, magnitudes end at 1e9.
///
/// # Panics
/// If the length is not `N`.
#[inline]
pub(crate) fn tame<const N: usize>(values: &[f32]) -> [f32; N] {
    let values: &[f32; N] = values.try_into().expect("a block's input has the format's length");
    values.map(|v| nan_to_zero(v.clamp(-INPUT_LIMIT, INPUT_LIMIT)))
}

/// `value`, or 0 for NaN.
#[inline]
pub(crate) fn nan_to_zero(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value }
}

/// `1 / value`, or 0 where that is not finite.
#[inline]
pub(crate) fn inverse(value: f32) -> f32 {
    let inverse = 1.0 / value;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The nearest whole number, ties to even, for |value| < 2²².
///
/// Adding 1.5·2²³ leaves no fraction bits: plain additions, where `f32::round_ties_even` would be
/// a library call on x86-64 without SSE4.1.
#[inline(always)]
pub(crate) fn round_even(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

/// The nearest whole number, ties away from zero, for |value| < 2²².
#[inline(always)]
pub(crate) fn round_away(value: f32) -> i32 {
    // The largest single below one half: adding 0.5 itself would round 0.49999997 up.
    const ALMOST_HALF: f32 = 0.499_999_97;
    (value + ALMOST_HALF.copysign(value)) as i32
}

/// The value of largest magnitude, sign kept; the first of equals; 0 for none.
#[inline]
pub(crate) fn signed_max(values: &[f32]) -> f32 {
    let mut best = 0.0f32;
    for &v in values {
        if v.abs() > best.abs() {
            best = v;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_converts() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) =
                (F16Le::from_bits(bits).to_f32(), half::f16::from_bits(bits).to_f32_const());
            if theirs.is_nan() {
                assert!(ours.is_nan(), "{bits:#06x}");
            } else {
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{bits:#06x}");
                assert_eq!(F16Le::from_f32(ours).to_bits(), bits);
            }
        }
    }

    #[test]
    fn finite_halves_saturate() {
        assert_eq!(F16Le::from_f32_finite(1e9).to_f32(), F16_MAX);
        assert_eq!(F16Le::from_f32_finite(f32::NEG_INFINITY).to_f32(), -F16_MAX);
        assert_eq!(F16Le::from_f32_finite(65519.0).to_f32(), F16_MAX);
        assert_eq!(F16Le::from_f32_finite(f32::NAN).to_bits(), 0);
    }

    #[test]
    fn rounding_matches_the_standard_library() {
        for i in -40_000i32..=40_000 {
            let base = i as f32 / 8.0;
            for v in [base, base.next_up(), base.next_down()] {
                assert_eq!(round_even(v), v.round_ties_even(), "{v:e}");
                assert_eq!(round_away(v), v.round() as i32, "{v:e}");
            }
        }
    }

    #[test]
    fn weird_numbers_are_tamed() {
        let tamed = tame::<5>(&[f32::NAN, f32::INFINITY, f32::MIN, -0.5, 1e-45]);
        assert_eq!(tamed, [0.0, 1e9, -1e9, -0.5, 1e-45]);
        assert_eq!([inverse(0.0), inverse(1e-45), inverse(-4.0)], [0.0, 0.0, -0.25]);
        assert_eq!([signed_max(&[]), signed_max(&[1.0, -3.0, 3.0])], [0.0, -3.0]);
    }
}
