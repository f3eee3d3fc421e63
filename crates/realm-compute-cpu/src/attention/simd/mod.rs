//! Vectors of `f32`, one implementation an instruction set, so that a kernel is written once.
//!
//! The implementing types are the proofs of [`crate::isa`]: whoever holds one may call its methods.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::isa::Isa;
use scalar::Scalar;

/// The operations the attention kernels need on `LANES` numbers side by side.
///
/// Methods inline into the caller, which must run inside [`dispatch`] to be compiled for the
/// instruction set.
pub(crate) trait Simd: Copy {
    /// `LANES` numbers.
    type F: Copy;
    /// Numbers in a vector; divides 16.
    const LANES: usize;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// The first `LANES` numbers.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::F {
        let from = &from[..Self::LANES];
        // SAFETY: `from` has LANES numbers.
        unsafe { self.load_at(from.as_ptr()) }
    }
    /// Writes the first `LANES` numbers.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32]) {
        let to = &mut to[..Self::LANES];
        // SAFETY: `to` has LANES numbers.
        unsafe { self.store_at(v, to.as_mut_ptr()) }
    }
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_at(self, from: *const f32) -> Self::F;
    /// Writes `LANES` numbers.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store_at(self, v: Self::F, to: *mut f32);
    /// `LANES` half-precision numbers, little-endian.
    fn load_f16(self, from: &[u8]) -> Self::F;
    /// `LANES` bfloat16 numbers, little-endian.
    fn load_bf16(self, from: &[u8]) -> Self::F;
    /// `LANES` signed bytes.
    fn load_i8(self, from: &[u8]) -> Self::F;
    /// Rounds to half precision, ties to even, and writes `2 · LANES` bytes.
    fn store_f16(self, v: Self::F, to: &mut [u8]);

    /// Asks for the cache line where the bytes start.
    fn prefetch(self, from: &[u8]);

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a − b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each pair; `b` where one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Where `|x| < limit`, `a`, elsewhere `b`.
    fn where_below(self, x: Self::F, limit: f32, a: Self::F, b: Self::F) -> Self::F;
    /// Lanes `from..to` of `v`, `fill` in the others.
    fn keep(self, v: Self::F, from: usize, to: usize, fill: f32) -> Self::F;
    /// To the nearest integer; only for magnitudes below 2²².
    fn round(self, v: Self::F) -> Self::F;
    /// `v · 2ⁿ` for `v` in `0.5..2` and integers `n` in `−160..=127`; may give 0 where `n < −125`.
    fn scale_exp2(self, v: Self::F, n: Self::F) -> Self::F;
    /// The first lane.
    fn first(self, v: Self::F) -> f32;
    /// The largest lane.
    fn reduce_max(self, v: Self::F) -> f32;
    /// The sum of all lanes, in a fixed order.
    fn reduce_sum(self, v: Self::F) -> f32;
}

/// Work that is compiled once an instruction set.
pub(crate) trait Kernel {
    /// Does it. Implementations must be `#[inline(always)]`, and all that they call and that uses
    /// `simd`, too.
    fn run<S: Simd>(self, simd: S);
}

/// Runs a kernel on the instruction set in use.
pub(crate) fn dispatch(isa: Isa, kernel: impl Kernel) {
    match isa {
        Isa::Scalar => kernel.run(Scalar),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => avx2::run(proof, kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::run(proof, kernel),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2(_) | Isa::Avx512(_) => kernel.run(Scalar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::IsaLimit;
    use half::f16;

    struct Check;

    impl Kernel for Check {
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let numbers: Vec<f32> = (0..16).map(|i| i as f32 * 0.37 - 2.9).collect();
            let v = s.load(&numbers);
            let lanes = |v: S::F| {
                let mut out = [0.0; 16];
                s.store(v, &mut out);
                out[..S::LANES].to_vec()
            };
            let expected = |f: &dyn Fn(usize) -> f32| (0..S::LANES).map(f).collect::<Vec<_>>();
            assert_eq!(lanes(s.keep(v, 1, 3, -7.0)), {
                expected(&|i| if (1..3).contains(&i) { numbers[i] } else { -7.0 })
            });
            assert_eq!(lanes(s.round(v)), expected(&|i| numbers[i].round_ties_even()));
            assert_eq!(lanes(s.where_below(v, 1.5, s.splat(1.0), s.splat(2.0))), {
                expected(&|i| if numbers[i].abs() < 1.5 { 1.0 } else { 2.0 })
            });
            assert_eq!(s.reduce_max(v), numbers[S::LANES - 1]);
            let sum: f32 = numbers[..S::LANES].iter().sum();
            assert!((s.reduce_sum(v) - sum).abs() < 1e-5);
            assert_eq!(lanes(s.scale_exp2(s.splat(1.25), s.splat(-3.0)))[0], 0.15625);
            assert_eq!(lanes(s.scale_exp2(s.splat(1.25), s.splat(-160.0)))[0], 0.0);
            assert!(lanes(s.max(s.splat(1.0), s.splat(f32::NAN)))[0].is_nan());

            let mut bytes = [0; 32];
            s.store_f16(v, &mut bytes);
            let half = |i| f16::from_f32(numbers[i]);
            for i in 0..S::LANES {
                assert_eq!(bytes[2 * i..][..2], half(i).to_le_bytes());
            }
            assert_eq!(lanes(s.load_f16(&bytes)), expected(&|i| half(i).to_f32()));
            let bf = |i: usize| f32::from_bits(numbers[i].to_bits() & 0xffff_0000);
            for i in 0..16 {
                bytes[2 * i..][..2].copy_from_slice(&numbers[i].to_le_bytes()[2..]);
            }
            assert_eq!(lanes(s.load_bf16(&bytes)), expected(&bf));
            let bytes: Vec<u8> = (0..16).map(|i| (i * 17 + 120) as u8).collect();
            assert_eq!(lanes(s.load_i8(&bytes)), expected(&|i| f32::from(bytes[i] as i8)));
            let special = [0x0000, 0x8000, 0x0001, 0x83ff, 0x7bff, 0x7c00, 0xfc00, 0x7e00];
            let bytes: Vec<u8> =
                special.iter().cycle().take(16).flat_map(|h| u16::to_le_bytes(*h)).collect();
            for (i, x) in lanes(s.load_f16(&bytes)).into_iter().enumerate() {
                let exact = f16::from_bits(special[i % 8]).to_f32();
                assert!(x.to_bits() == exact.to_bits() || x.is_nan() && exact.is_nan());
            }
        }
    }

    #[test]
    fn every_instruction_set_means_the_same() {
        for limit in [IsaLimit::Scalar, IsaLimit::Avx2, IsaLimit::Avx512] {
            dispatch(Isa::detect(limit), Check);
        }
    }
}
