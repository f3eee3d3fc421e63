//! Plain Rust, written so that the compiler can use whatever vectors the target has.

use super::Simd;
use realm_core::formats::F16Le;

/// Eight lanes of plain Rust. Needs no proof.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scalar;

const LANES: usize = 8;
type F = [f32; LANES];

/// Adding and subtracting this (1.5 · 2²³) rounds to an integer.
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> F {
    let mut out = [0.0; LANES];
    for (i, out) in out.iter_mut().enumerate() {
        *out = f(i);
    }
    out
}

#[inline(always)]
fn pair(from: &[u8], i: usize) -> [u8; 2] {
    [from[2 * i], from[2 * i + 1]]
}

impl Simd for Scalar {
    type F = F;
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> F {
        // SAFETY: the caller vouches for LANES readable numbers.
        unsafe { from.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_at(self, v: F, to: *mut f32) {
        // SAFETY: the caller vouches for LANES writable numbers.
        unsafe { to.cast::<F>().write_unaligned(v) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8]) -> F {
        let from = &from[..2 * LANES];
        each(|i| F16Le(pair(from, i)).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8]) -> F {
        let from = &from[..2 * LANES];
        each(|i| f32::from_bits(u32::from(u16::from_le_bytes(pair(from, i))) << 16))
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8]) -> F {
        let from = &from[..LANES];
        each(|i| f32::from(from[i] as i8))
    }

    #[inline(always)]
    fn store_f16(self, v: F, to: &mut [u8]) {
        for (to, v) in to[..2 * LANES].chunks_exact_mut(2).zip(v) {
            to.copy_from_slice(&F16Le::from_f32(v).0);
        }
    }

    #[inline(always)]
    fn prefetch(self, _from: &[u8]) {}

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: F, b: F, c: F) -> F {
        // Without the instruction `f32::mul_add` is a library call.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            each(|i| a[i].mul_add(b[i], c[i]))
        } else {
            each(|i| a[i] * b[i] + c[i])
        }
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn where_below(self, x: F, limit: f32, a: F, b: F) -> F {
        each(|i| if x[i].abs() < limit { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn keep(self, v: F, from: usize, to: usize, fill: f32) -> F {
        each(|i| if i >= from && i < to { v[i] } else { fill })
    }

    #[inline(always)]
    fn round(self, v: F) -> F {
        each(|i| (v[i] + ROUNDER) - ROUNDER)
    }

    #[inline(always)]
    fn scale_exp2(self, v: F, n: F) -> F {
        each(|i| {
            // The integer stands in the low bits of the sum; they end up in the exponent.
            let shift = (n[i] + ROUNDER).to_bits() << 23;
            let scaled = f32::from_bits(v[i].to_bits().wrapping_add(shift));
            if n[i] < -125.0 { 0.0 } else { scaled }
        })
    }

    #[inline(always)]
    fn first(self, v: F) -> f32 {
        v[0]
    }

    #[inline(always)]
    fn reduce_max(self, v: F) -> f32 {
        let v: [f32; 4] = std::array::from_fn(|i| if v[i] > v[i + 4] { v[i] } else { v[i + 4] });
        v[0].max(v[2]).max(v[1].max(v[3]))
    }

    #[inline(always)]
    fn reduce_sum(self, v: F) -> f32 {
        let v: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (v[0] + v[2]) + (v[1] + v[3])
    }
}
