//! Vectors of `N` lanes of 32 bits. In products a lane is an output: one row of the weight.
//!
//! A decoder or kernel is written once over [`Lanes`] and compiled for each instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::isa::Isa;

/// What runs on any vectors. Implementations are `#[inline(always)]`, so that they are compiled for
/// the instructions of the vectors they run on.
pub(super) trait Kernel {
    /// Runs on these vectors.
    fn run<const N: usize, L: Lanes<N>>(self, lanes: L);
}

/// What runs on vectors of one kind.
pub(super) trait Part<const N: usize, L: Lanes<N>> {
    /// Runs as a function of its own, compiled for the vectors' instructions.
    fn run(self, lanes: L);
}

/// Runs a kernel on the best vectors of an instruction set.
pub(super) fn run(isa: Isa, kernel: impl Kernel) {
    struct Whole<K>(K);
    impl<const N: usize, L: Lanes<N>, K: Kernel> Part<N, L> for Whole<K> {
        #[inline(always)]
        fn run(self, lanes: L) {
            self.0.run(lanes);
        }
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => proof.part(Whole(kernel)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => proof.part(Whole(kernel)),
        _ => portable::Portable.part(Whole(kernel)),
    }
}

/// Operations on vectors. The implementing value proves that the processor has the instructions.
pub(super) trait Lanes<const N: usize>: Copy {
    /// 32 bits a lane: an integer, or four bytes, the first in the lowest bits.
    type U: Copy;
    /// A single-precision number a lane.
    type F: Copy;
    /// Rows of activations that a product kernel takes together.
    const ROWS: usize;
    /// Whether [`Lanes::dot`] sums in 16 bits.
    const NARROW: bool;

    /// Runs `part`, compiled for these instructions.
    fn part(self, part: impl Part<N, Self>);

    /// The same in every lane.
    fn splat(self, x: u32) -> Self::U;
    /// Four words of each lane: word `j` of the result holds bytes `4j..4j+4` of every lane's bytes.
    fn words(self, bytes: [&[u8; 16]; N]) -> [Self::U; 4];
    /// `a & b`.
    fn and(self, a: Self::U, b: Self::U) -> Self::U;
    /// `a | b`.
    fn or(self, a: Self::U, b: Self::U) -> Self::U;
    /// `a ^ b`.
    fn xor(self, a: Self::U, b: Self::U) -> Self::U;
    /// `a << by`, for `by` below 32.
    fn shl(self, a: Self::U, by: u32) -> Self::U;
    /// `a >> by`, zeros coming in, for `by` below 32.
    fn shr(self, a: Self::U, by: u32) -> Self::U;
    /// `a >> by`, copies of the sign coming in, for `by` below 32.
    fn sar(self, a: Self::U, by: u32) -> Self::U;
    /// Each byte, below 16, replaced by that entry of the table.
    fn lookup(self, table: &[u8; 16], index: Self::U) -> Self::U;
    /// `acc + Σ wᵢ xᵢ` over four unsigned bytes of `w`, below `2^BITS`, and four signed ones of `x`,
    /// none of them −128. Where `NARROW`, `acc` holds two sums of 16 bits, which [`Lanes::together`]
    /// products fill and [`Lanes::widen`] adds up, and with 8 bits 128 is taken off each `wᵢ`.
    fn dot<const BITS: u32>(self, acc: Self::U, w: Self::U, x: Self::U) -> Self::U;
    /// `acc` plus both 16-bit sums of `pairs`, where `NARROW`.
    fn widen(self, acc: Self::U, pairs: Self::U) -> Self::U;
    /// How many products of that many bits fit into 16-bit sums, where `NARROW`.
    fn together(bits: u32) -> usize {
        match bits {
            0..=4 if Self::NARROW => 8,
            5 if Self::NARROW => 4,
            6 if Self::NARROW => 2,
            _ if Self::NARROW => 1,
            _ => 8,
        }
    }

    /// Signed integers to floats.
    fn float(self, a: Self::U) -> Self::F;
    /// The half-precision number in each lane's lower 16 bits.
    fn half(self, a: Self::U) -> Self::F;
    /// The bits taken as single-precision numbers.
    fn as_float(self, a: Self::U) -> Self::F;
    /// The nearest half-precision numbers.
    fn round_f16(self, a: Self::F) -> Self::F;
    /// The nearest bfloat16 numbers (ties to even).
    fn round_bf16(self, a: Self::F) -> Self::F;
    /// The same in every lane.
    fn splat_f(self, x: f32) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// From memory.
    fn load_words(self, from: &[u32; N]) -> Self::U;
    /// To memory.
    fn store_words(self, a: Self::U, to: &mut [u32; N]);
    /// From memory.
    fn load(self, from: &[f32; N]) -> Self::F;
    /// To memory.
    fn store(self, a: Self::F, to: &mut [f32; N]);

    /// Starts to bring a line of memory closer.
    fn prefetch(self, at: &u8);
}
