//! Sixteen lanes of AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::{Lanes, Part};
use crate::isa::Avx512;

const N: usize = 16;

/// Evaluates intrinsics where a token says that the processor has them.
macro_rules! proved {
    ($($code:tt)*) => {
        // SAFETY: the token that the method is called on proves that the processor has the
        // instructions; memory is touched only through references to as many bytes.
        unsafe { $($code)* }
    };
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn enabled(lanes: Avx512, part: impl Part<N, Avx512>) {
    part.run(lanes);
}

impl Lanes<N> for Avx512 {
    type U = __m512i;
    type F = __m512;
    const ROWS: usize = 6;
    const NARROW: bool = false;

    fn part(self, part: impl Part<N, Self>) {
        proved!(enabled(self, part));
    }

    #[inline(always)]
    fn splat(self, x: u32) -> __m512i {
        proved!(_mm512_set1_epi32(x as i32))
    }

    #[inline(always)]
    fn words(self, bytes: [&[u8; 16]; N]) -> [__m512i; 4] {
        // Quarter q of column i holds row 4q + i, so the 4×4 transposition inside quarters leaves
        // the rows in order.
        let mut columns = [self.splat(0); 4];
        for (i, column) in columns.iter_mut().enumerate() {
            proved!({
                let quarter = |row: usize| _mm_loadu_si128(bytes[row].as_ptr().cast());
                let rows = _mm512_castsi128_si512(quarter(i));
                let rows = _mm512_inserti32x4::<1>(rows, quarter(4 + i));
                let rows = _mm512_inserti32x4::<2>(rows, quarter(8 + i));
                *column = _mm512_inserti32x4::<3>(rows, quarter(12 + i));
            });
        }
        let [a, b, c, d] = columns;
        proved!({
            let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        })
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        proved!(_mm512_and_si512(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        proved!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        proved!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn shl(self, a: __m512i, by: u32) -> __m512i {
        proved!(_mm512_sll_epi32(a, _mm_cvtsi32_si128(by as i32)))
    }

    #[inline(always)]
    fn shr(self, a: __m512i, by: u32) -> __m512i {
        proved!(_mm512_srl_epi32(a, _mm_cvtsi32_si128(by as i32)))
    }

    #[inline(always)]
    fn sar(self, a: __m512i, by: u32) -> __m512i {
        proved!(_mm512_sra_epi32(a, _mm_cvtsi32_si128(by as i32)))
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: __m512i) -> __m512i {
        proved!({
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, index)
        })
    }

    #[inline(always)]
    fn dot<const BITS: u32>(self, acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
        proved!(_mm512_dpbusd_epi32(acc, w, x))
    }

    #[inline(always)]
    fn widen(self, _: __m512i, sums: __m512i) -> __m512i {
        sums
    }

    #[inline(always)]
    fn float(self, a: __m512i) -> __m512 {
        proved!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn half(self, a: __m512i) -> __m512 {
        proved!(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)))
    }

    #[inline(always)]
    fn as_float(self, a: __m512i) -> __m512 {
        proved!(_mm512_castsi512_ps(a))
    }

    #[inline(always)]
    fn round_f16(self, a: __m512) -> __m512 {
        proved!(_mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)))
    }

    #[inline(always)]
    fn round_bf16(self, a: __m512) -> __m512 {
        proved!({
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), self.splat(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, self.splat(0x7fff)), odd);
            // NaN is made quiet instead: rounding could carry it to infinity or zero.
            let quiet = _mm512_or_si512(bits, self.splat(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let rounded = _mm512_mask_mov_epi32(rounded, nan, quiet);
            _mm512_castsi512_ps(_mm512_and_si512(rounded, self.splat(0xffff_0000)))
        })
    }

    #[inline(always)]
    fn splat_f(self, x: f32) -> __m512 {
        proved!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proved!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proved!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proved!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; N]) -> __m512i {
        proved!(_mm512_loadu_si512(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn store_words(self, a: __m512i, to: &mut [u32; N]) {
        proved!(_mm512_storeu_si512(to.as_mut_ptr().cast(), a));
    }

    #[inline(always)]
    fn load(self, from: &[f32; N]) -> __m512 {
        proved!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, a: __m512, to: &mut [f32; N]) {
        proved!(_mm512_storeu_ps(to.as_mut_ptr(), a));
    }

    #[inline(always)]
    fn prefetch(self, at: &u8) {
        proved!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()));
    }
}
