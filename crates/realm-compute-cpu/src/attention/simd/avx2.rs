//! Eight lanes of AVX2, FMA and F16C.

use super::{Kernel, Simd};
use crate::isa::Avx2;
use std::arch::x86_64::*;

const LANES: usize = 8;

/// Runs a kernel compiled for these instructions.
pub(super) fn run(proof: Avx2, kernel: impl Kernel) {
    // SAFETY: the proof says that the instructions exist.
    unsafe { enabled(proof, kernel) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enabled(proof: Avx2, kernel: impl Kernel) {
    kernel.run(proof);
}

impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m256 {
        // SAFETY: the proof says that the instructions exist; the caller vouches for the memory.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: __m256, to: *mut f32) {
        // SAFETY: the proof says that the instructions exist; the caller vouches for the memory.
        unsafe { _mm256_storeu_ps(to, v) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8]) -> __m256 {
        let from = &from[..2 * LANES];
        // SAFETY: the proof says that the instructions exist; the slice was cut to the bytes touched.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8]) -> __m256 {
        let from = &from[..2 * LANES];
        // SAFETY: the proof says that the instructions exist; the slice was cut to the bytes touched.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8]) -> __m256 {
        let from = &from[..LANES];
        // SAFETY: the proof says that the instructions exist; the slice was cut to the bytes touched.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store_f16(self, v: __m256, to: &mut [u8]) {
        let to = &mut to[..2 * LANES];
        // SAFETY: the proof says that the instructions exist; the slice was cut to the bytes touched.
        unsafe {
            _mm_storeu_si128(
                to.as_mut_ptr().cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v),
            );
        }
    }

    #[inline(always)]
    fn prefetch(self, from: &[u8]) {
        // SAFETY: prefetching changes nothing, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn where_below(self, x: __m256, limit: f32, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe {
            let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
            let below = _mm256_cmp_ps::<_CMP_LT_OQ>(size, _mm256_set1_ps(limit));
            _mm256_blendv_ps(b, a, below)
        }
    }

    #[inline(always)]
    fn keep(self, v: __m256, from: usize, to: usize, fill: f32) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe {
            let at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(from.min(LANES) as i32), at);
            let below = _mm256_cmpgt_epi32(_mm256_set1_epi32(to.min(LANES) as i32), at);
            let lanes = _mm256_castsi256_ps(_mm256_andnot_si256(before, below));
            _mm256_blendv_ps(_mm256_set1_ps(fill), v, lanes)
        }
    }

    #[inline(always)]
    fn round(self, v: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    fn scale_exp2(self, v: __m256, n: __m256) -> __m256 {
        // SAFETY: the proof says that the instructions exist.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            let scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent));
            // Not below, so that NaN stays.
            _mm256_and_ps(scaled, _mm256_cmp_ps::<_CMP_NLT_UQ>(n, _mm256_set1_ps(-125.0)))
        }
    }

    #[inline(always)]
    fn first(self, v: __m256) -> f32 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm256_cvtss_f32(v) }
    }

    #[inline(always)]
    fn reduce_max(self, v: __m256) -> f32 {
        // SAFETY: the proof says that the instructions exist.
        unsafe {
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn reduce_sum(self, v: __m256) -> f32 {
        // SAFETY: the proof says that the instructions exist.
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
}
