//! Eight lanes of AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::{Lanes, Part};
use crate::isa::Avx2;

const N: usize = 8;

/// Evaluates intrinsics where a token says that the processor has them.
macro_rules! proved {
    ($($code:tt)*) => {
        // SAFETY: the token that the method is called on proves that the processor has the
        // instructions; memory is touched only through references to as many bytes.
        unsafe { $($code)* }
    };
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enabled(lanes: Avx2, part: impl Part<N, Avx2>) {
    part.run(lanes);
}

impl Lanes<N> for Avx2 {
    type U = __m256i;
    type F = __m256;
    const ROWS: usize = 2;
    const NARROW: bool = true;

    fn part(self, part: impl Part<N, Self>) {
        proved!(enabled(self, part));
    }

    #[inline(always)]
    fn splat(self, x: u32) -> __m256i {
        proved!(_mm256_set1_epi32(x as i32))
    }

    #[inline(always)]
    fn words(self, bytes: [&[u8; 16]; N]) -> [__m256i; 4] {
        // Half h of column i holds row 4h + i, so the 4×4 transposition inside halves leaves the
        // rows in order.
        let mut columns = [self.splat(0); 4];
        for (i, column) in columns.iter_mut().enumerate() {
            proved!({
                let half = |row: usize| _mm_loadu_si128(bytes[row].as_ptr().cast());
                *column =
                    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(half(i)), half(4 + i));
            });
        }
        let [a, b, c, d] = columns;
        proved!({
            let (ab, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        })
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        proved!(_mm256_and_si256(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        proved!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        proved!(_mm256_xor_si256(a, b))
    }

    #[inline(always)]
    fn shl(self, a: __m256i, by: u32) -> __m256i {
        proved!(_mm256_sll_epi32(a, _mm_cvtsi32_si128(by as i32)))
    }

    #[inline(always)]
    fn shr(self, a: __m256i, by: u32) -> __m256i {
        proved!(_mm256_srl_epi32(a, _mm_cvtsi32_si128(by as i32)))
    }

    #[inline(always)]
    fn sar(self, a: __m256i, by: u32) -> __m256i {
        proved!(_mm256_sra_epi32(a, _mm_cvtsi32_si128(by as i32)))
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: __m256i) -> __m256i {
        proved!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, index)
        })
    }

    #[inline(always)]
    fn dot<const BITS: u32>(self, acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        proved!({
            if BITS < 8 {
                return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
            }
            // With w − 128 as sign and size the pairs' sums stay below 2 · 128 · 127.
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi16(acc, pairs)
        })
    }

    #[inline(always)]
    fn widen(self, acc: __m256i, pairs: __m256i) -> __m256i {
        proved!(_mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
    }

    #[inline(always)]
    fn float(self, a: __m256i) -> __m256 {
        proved!(_mm256_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn half(self, a: __m256i) -> __m256 {
        proved!({
            let low = _mm256_and_si256(a, self.splat(0xffff));
            // Packs inside halves; the permutation brings the two together.
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(low, low));
            _mm256_cvtph_ps(_mm256_castsi256_si128(packed))
        })
    }

    #[inline(always)]
    fn as_float(self, a: __m256i) -> __m256 {
        proved!(_mm256_castsi256_ps(a))
    }

    #[inline(always)]
    fn round_f16(self, a: __m256) -> __m256 {
        proved!(_mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)))
    }

    #[inline(always)]
    fn round_bf16(self, a: __m256) -> __m256 {
        proved!({
            let bits = _mm256_castps_si256(a);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), self.splat(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, self.splat(0x7fff)), odd);
            // NaN is made quiet instead: rounding could carry it to infinity or zero.
            let quiet = _mm256_or_si256(bits, self.splat(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
            let rounded = _mm256_blendv_epi8(rounded, quiet, nan);
            _mm256_castsi256_ps(_mm256_and_si256(rounded, self.splat(0xffff_0000)))
        })
    }

    #[inline(always)]
    fn splat_f(self, x: f32) -> __m256 {
        proved!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proved!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proved!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proved!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; N]) -> __m256i {
        proved!(_mm256_loadu_si256(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn store_words(self, a: __m256i, to: &mut [u32; N]) {
        proved!(_mm256_storeu_si256(to.as_mut_ptr().cast(), a));
    }

    #[inline(always)]
    fn load(self, from: &[f32; N]) -> __m256 {
        proved!(_mm256_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, a: __m256, to: &mut [f32; N]) {
        proved!(_mm256_storeu_ps(to.as_mut_ptr(), a));
    }

    #[inline(always)]
    fn prefetch(self, at: &u8) {
        proved!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()));
    }
}
