//! Eight lanes of plain Rust.

use realm_core::formats::F16Le;

use super::{Lanes, Part};

const N: usize = 8;

/// Needs no proof.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

/// Applies an expression lane by lane. Plain loops: closures handed to `map` are not always inlined.
macro_rules! each {
    ($($x:ident),* => $term:expr) => {{
        let mut out = [Default::default(); N];
        for at in 0..N {
            $(let $x = $x[at];)*
            out[at] = $term;
        }
        out
    }};
}

impl Lanes<N> for Portable {
    type U = [u32; N];
    type F = [f32; N];
    const ROWS: usize = 2;
    const NARROW: bool = false;

    fn part(self, part: impl Part<N, Self>) {
        part.run(self);
    }

    #[inline(always)]
    fn splat(self, x: u32) -> [u32; N] {
        [x; N]
    }

    #[inline(always)]
    fn words(self, bytes: [&[u8; 16]; N]) -> [[u32; N]; 4] {
        let mut out = [[0; N]; 4];
        for (lane, bytes) in bytes.into_iter().enumerate() {
            let (words, _) = bytes.as_chunks::<4>();
            for (out, word) in out.iter_mut().zip(words) {
                out[lane] = u32::from_le_bytes(*word);
            }
        }
        out
    }

    #[inline(always)]
    fn and(self, a: [u32; N], b: [u32; N]) -> [u32; N] {
        each!(a, b => a & b)
    }

    #[inline(always)]
    fn or(self, a: [u32; N], b: [u32; N]) -> [u32; N] {
        each!(a, b => a | b)
    }

    #[inline(always)]
    fn xor(self, a: [u32; N], b: [u32; N]) -> [u32; N] {
        each!(a, b => a ^ b)
    }

    #[inline(always)]
    fn shl(self, a: [u32; N], by: u32) -> [u32; N] {
        each!(a => a << (by & 31))
    }

    #[inline(always)]
    fn shr(self, a: [u32; N], by: u32) -> [u32; N] {
        each!(a => a >> (by & 31))
    }

    #[inline(always)]
    fn sar(self, a: [u32; N], by: u32) -> [u32; N] {
        each!(a => (a as i32 >> (by & 31)) as u32)
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: [u32; N]) -> [u32; N] {
        each!(index => {
            let [a, b, c, d] = index.to_le_bytes();
            let entry = |index: u8| table[usize::from(index & 15)];
            u32::from_le_bytes([entry(a), entry(b), entry(c), entry(d)])
        })
    }

    #[inline(always)]
    fn dot<const BITS: u32>(self, acc: [u32; N], w: [u32; N], x: [u32; N]) -> [u32; N] {
        each!(acc, w, x => {
            let mut sum = acc;
            for byte in 0..4 {
                let (w, x) = ((w >> (8 * byte)) as u8, (x >> (8 * byte)) as i8);
                sum = sum.wrapping_add((i32::from(w) * i32::from(x)) as u32);
            }
            sum
        })
    }

    #[inline(always)]
    fn widen(self, _: [u32; N], sums: [u32; N]) -> [u32; N] {
        sums
    }

    #[inline(always)]
    fn float(self, a: [u32; N]) -> [f32; N] {
        each!(a => a as i32 as f32)
    }

    #[inline(always)]
    fn half(self, a: [u32; N]) -> [f32; N] {
        each!(a => F16Le::from_bits(a as u16).to_f32())
    }

    #[inline(always)]
    fn as_float(self, a: [u32; N]) -> [f32; N] {
        each!(a => f32::from_bits(a))
    }

    #[inline(always)]
    fn round_f16(self, a: [f32; N]) -> [f32; N] {
        each!(a => F16Le::from_f32(a).to_f32())
    }

    #[inline(always)]
    fn round_bf16(self, a: [f32; N]) -> [f32; N] {
        each!(a => half::bf16::from_f32(a).to_f32())
    }

    #[inline(always)]
    fn splat_f(self, x: f32) -> [f32; N] {
        [x; N]
    }

    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each!(a, b => a + b)
    }

    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each!(a, b => a * b)
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        // Without the instruction `f32::mul_add` would be a slow library call.
        each!(a, b, c => a * b + c)
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; N]) -> [u32; N] {
        *from
    }

    #[inline(always)]
    fn store_words(self, a: [u32; N], to: &mut [u32; N]) {
        *to = a;
    }

    #[inline(always)]
    fn load(self, from: &[f32; N]) -> [f32; N] {
        *from
    }

    #[inline(always)]
    fn store(self, a: [f32; N], to: &mut [f32; N]) {
        *to = a;
    }

    #[inline(always)]
    fn prefetch(self, _: &u8) {}
}
