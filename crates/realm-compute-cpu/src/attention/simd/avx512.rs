//! Sixteen lanes of AVX-512.

use super::{Kernel, Simd};
use crate::isa::Avx512;
use std::arch::x86_64::*;

const LANES: usize = 16;

/// Runs a kernel compiled for these instructions.
pub(super) fn run(proof: Avx512, kernel: impl Kernel) {
    // SAFETY: the proof says that the instructions exist.
    unsafe { enabled(proof, kernel) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn enabled(proof: Avx512, kernel: impl Kernel) {
    kernel.run(proof);
}

impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m512 {
        // SAFETY: the proof says that the instructions exist; the caller vouches for the memory.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: __m512, to: *mut f32) {
        // SAFETY: the proof says that the instructions exist; the caller vouches for the memory.
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8]) -> __m512 {
        let from = &from[..2 * LANES];
        // SAFETY: the proof says that the instructions exist; the slice was cut to the bytes touched.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8]) -> __m512 {
        let from = &from[..2 * LANES];
        // SAFETY: the proof says that the instructions exist; the slice was cut to the bytes touched.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8]) -> __m512 {
        let from = &from[..LANES];
        // SAFETY: the proof says that the instructions exist; the slice was cut to the bytes touched.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store_f16(self, v: __m512, to: &mut [u8]) {
        let to = &mut to[..2 * LANES];
        // SAFETY: the proof says that the instructions exist; the slice was cut to the bytes touched.
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), half);
        }
    }

    #[inline(always)]
    fn prefetch(self, from: &[u8]) {
        // SAFETY: prefetching changes nothing, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn where_below(self, x: __m512, limit: f32, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(limit));
            _mm512_mask_blend_ps(below, b, a)
        }
    }

    #[inline(always)]
    fn keep(self, v: __m512, from: usize, to: usize, fill: f32) -> __m512 {
        let lanes = ((1u32 << to.min(LANES)) - 1) & !((1u32 << from.min(LANES)) - 1);
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_mask_blend_ps(lanes as u16, _mm512_set1_ps(fill), v) }
    }

    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    fn scale_exp2(self, v: __m512, n: __m512) -> __m512 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_scalef_ps(v, n) }
    }

    #[inline(always)]
    fn first(self, v: __m512) -> f32 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_cvtss_f32(v) }
    }

    #[inline(always)]
    fn reduce_max(self, v: __m512) -> f32 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn reduce_sum(self, v: __m512) -> f32 {
        // SAFETY: the proof says that the instructions exist.
        unsafe { _mm512_reduce_add_ps(v) }
    }
}
