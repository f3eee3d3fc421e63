//! A product's input, in the form that the kernels read. Prepared once for all weights that the
//! same input meets.

use realm_core::backend::Precision;

use crate::{elementwise::Cpu, shared::SharedMut};

/// Elements that share a scale when activations are quantized to 8 bits.
pub(super) const GROUP: usize = 32;

/// Words a quantized group takes: see [`QuantRow`].
const GROUP_WORDS: usize = GROUP / 4 + 7;

/// Elements below which preparing stays on the caller's thread.
const SERIAL: usize = 16 * 1024;

/// Memory for prepared activations.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    quants: Vec<u32>,
    rounded: Vec<f32>,
}

/// Rows of activations.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    floats: &'a [f32],
    quants: &'a [u32],
    rows: usize,
    cols: usize,
    precision: Precision,
}

/// One row, quantized in groups of 32: `x = scale · q`, q in −127..=127. Vectors follow one another
/// in a row's words.
#[derive(Clone, Copy)]
pub(super) struct QuantRow<'a> {
    /// Four quants a word, eight words a group.
    pub(super) quants: &'a [u32],
    /// A group's scale, as bits.
    pub(super) scales: &'a [u32],
    /// What the kernel needs for the weights' minima or zeros, a word each group of `GROUP` weights
    /// or each half: scale · Σq as bits of a float, or −Σq as an integer.
    pub(super) sums: &'a [u32],
}

impl Scratch {
    /// Memory for inputs of up to `elements` elements (rows · columns), all in all.
    pub(crate) fn new(elements: usize, precision: Precision) -> Self {
        let mut scratch = Self::default();
        match precision {
            Precision::Int8 | Precision::Auto => {
                scratch.quants.resize(elements.div_ceil(GROUP) * GROUP_WORDS, 0);
            }
            Precision::F16 | Precision::BF16 => scratch.rounded.resize(elements, 0.0),
            Precision::F32 => {}
        }
        scratch
    }

    /// Bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.quants[..]) + size_of_val(&self.rounded[..])
    }

    /// Prepares `x`, `[rows, cols]`, for products in `precision` (`Auto` is `Int8`). Takes more
    /// memory where there is too little.
    ///
    /// NaN and infinities make the whole group of 32 NaN where activations are quantized.
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub(crate) fn prepare<'a>(
        &'a mut self,
        cpu: Cpu<'_>,
        x: &'a [f32],
        cols: usize,
        precision: Precision,
    ) -> Activations<'a> {
        let rows = x.len() / cols.max(1);
        assert_eq!(x.len(), rows * cols, "activations are whole rows");
        let mut out = Activations { floats: x, quants: &[], rows, cols, precision };
        match precision {
            Precision::F32 => {}
            Precision::F16 | Precision::BF16 => {
                grow(&mut self.rounded, x.len());
                let rounded = &mut self.rounded[..x.len()];
                match precision {
                    Precision::F16 => cpu.each_row(x, cols, rounded, cols, |x, out| {
                        for (out, &x) in out.iter_mut().zip(x) {
                            *out = round_f16(x);
                        }
                    }),
                    _ => cpu.each_row(x, cols, rounded, cols, |x, out| {
                        for (out, &x) in out.iter_mut().zip(x) {
                            *out = round_bf16(x);
                        }
                    }),
                }
                out.floats = rounded;
            }
            // Quantized weights have whole groups; others are multiplied as floats.
            Precision::Int8 | Precision::Auto if cols.is_multiple_of(GROUP) => {
                let words = cols / GROUP * GROUP_WORDS;
                grow(&mut self.quants, rows * words);
                let quants = &mut self.quants[..rows * words];
                cpu.each_row(x, cols, quants, words, quantize_row);
                out.quants = quants;
            }
            Precision::Int8 | Precision::Auto => {}
        }
        out
    }
}

fn grow<T: Clone + Default>(vec: &mut Vec<T>, len: usize) {
    if vec.len() < len {
        vec.resize(len, T::default());
    }
}

impl Cpu<'_> {
    /// Calls `row(input row, output row)` for all rows, on all threads where it pays.
    fn each_row<T: Send>(
        &self,
        input: &[f32],
        in_cols: usize,
        output: &mut [T],
        out_cols: usize,
        row: impl Fn(&[f32], &mut [T]) + Sync,
    ) {
        let rows = input.len() / in_cols.max(1);
        let tasks = if input.len() < SERIAL { 1 } else { rows.min(4 * self.pool.threads()) };
        let shared = SharedMut::new(output);
        self.pool.run(tasks, |task| {
            self.isa.run(|| {
                for at in rows * task / tasks..rows * (task + 1) / tasks {
                    // SAFETY: every row belongs to one task.
                    let output = unsafe { shared.range(at * out_cols..(at + 1) * out_cols) };
                    row(&input[at * in_cols..(at + 1) * in_cols], output);
                }
            });
        });
    }
}

impl<'a> Activations<'a> {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Elements a row.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The type of the products' inputs.
    pub(super) fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether quantized weights are multiplied as integers.
    pub(super) fn quantized(&self) -> bool {
        matches!(self.precision, Precision::Int8 | Precision::Auto)
    }

    /// A row's elements, rounded to what `precision` computes with.
    #[inline(always)]
    pub(super) fn floats(&self, row: usize) -> &'a [f32] {
        &self.floats[row * self.cols..(row + 1) * self.cols]
    }

    /// A row's quants, with the sums for formats with minima (`min`), of groups or of their halves.
    #[inline(always)]
    pub(super) fn quant_row(&self, row: usize, halves: bool, min: bool) -> QuantRow<'a> {
        let groups = self.cols / GROUP;
        let words = &self.quants[row * groups * GROUP_WORDS..(row + 1) * groups * GROUP_WORDS];
        let (quants, words) = words.split_at(groups * (GROUP / 4));
        let (scales, words) = words.split_at(groups);
        let start = groups * (usize::from(halves) + 3 * usize::from(min));
        let sums = &words[start..start + groups * (1 + usize::from(halves))];
        QuantRow { quants, scales, sums }
    }
}

/// Quantizes a row. The same bits on every processor: no step is fused.
#[inline(always)]
fn quantize_row(x: &[f32], out: &mut [u32]) {
    let (groups, _) = x.as_chunks::<GROUP>();
    let count = groups.len();
    let (quants, out) = out.split_at_mut(count * (GROUP / 4));
    let (scales, out) = out.split_at_mut(count);
    let (sums, out) = out.split_at_mut(count);
    let (half_sums, out) = out.split_at_mut(2 * count);
    let (weighted, weighted_halves) = out.split_at_mut(count);
    let (quants, _) = quants.as_chunks_mut::<{ GROUP / 4 }>();
    for (at, (x, quants)) in groups.iter().zip(quants).enumerate() {
        let (scale, q) = quantize_group(x);
        let mut parts = [0i32; 2];
        for (part, q) in parts.iter_mut().zip(q.as_chunks::<{ GROUP / 2 }>().0) {
            *part = q.iter().map(|&q| i32::from(q)).sum();
        }
        for (word, q) in quants.iter_mut().zip(q.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(q.map(|q| q as u8));
        }
        let sum = parts[0] + parts[1];
        scales[at] = scale.to_bits();
        sums[at] = (-sum) as u32;
        weighted[at] = (scale * sum as f32).to_bits();
        for half in 0..2 {
            half_sums[2 * at + half] = (-parts[half]) as u32;
            weighted_halves[2 * at + half] = (scale * parts[half] as f32).to_bits();
        }
    }
}

/// Scale and quants of one group.
#[inline(always)]
fn quantize_group(x: &[f32; GROUP]) -> (f32, [i8; GROUP]) {
    /// The bits of infinity; above are those of NaN.
    const INFINITY: u32 = 0x7f80_0000;
    /// Adding 1.5 · 2²³ leaves the nearest integer in the lowest bits, ties to even.
    const ROUND: f32 = 12_582_912.0;
    // Magnitudes order as their bits do.
    let top = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    let max = f32::from_bits(top);
    let inverse = 127.0 / max;
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let scale = if top >= INFINITY { f32::NAN } else { max / 127.0 };
    let mut q = [0; GROUP];
    for (q, &x) in q.iter_mut().zip(x) {
        *q = (x * inverse + ROUND).to_bits() as i8;
    }
    (scale, q)
}

/// The nearest half-precision number, ties to even, infinite from 65520 on; without branches.
#[inline(always)]
fn round_f16(x: f32) -> f32 {
    /// The smallest normal half.
    const NORMAL: f32 = 1.0 / 16_384.0;
    let (bits, size) = (x.to_bits(), x.abs());
    // Of 23 fraction bits 10 stay; a carry goes to the exponent, as it should.
    let normal = f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff);
    // Singles from ½ to 1 are as far apart as subnormal halves.
    let small = ((size + 0.5) - 0.5).copysign(x);
    let finite = if size < NORMAL { small } else { normal };
    let rounded = if size >= 65_520.0 { f32::INFINITY.copysign(x) } else { finite };
    if x.is_nan() { x } else { rounded }
}

/// The nearest bfloat16 number, ties to even.
#[inline(always)]
fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // Rounding could carry NaN to infinity or zero.
    if x.is_nan() { x } else { f32::from_bits(rounded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut bits = 0u32;
        for _ in 0..400_000 {
            bits = bits.wrapping_add(10_739).wrapping_mul(0x0100_0193);
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert!(round_f16(x).is_nan() && round_bf16(x).is_nan());
                continue;
            }
            assert_eq!(round_f16(x).to_bits(), half::f16::from_f32(x).to_f32().to_bits(), "{x:e}");
            assert_eq!(round_bf16(x).to_bits(), half::bf16::from_f32(x).to_f32().to_bits(), "{x:e}");
        }
        for x in [65_519.99, 65_520.0, -65_520.0, 6.1e-5, 5.96e-8, 2.98e-8, -2.9e-8, 0.0, -0.0] {
            assert_eq!(round_f16(x).to_bits(), half::f16::from_f32(x).to_f32().to_bits(), "{x:e}");
        }
    }

    #[test]
    fn a_group_keeps_its_largest_element_and_shows_what_is_not_finite() {
        let mut x: [f32; GROUP] = std::array::from_fn(|at| at as f32 - 20.0);
        let (scale, q) = quantize_group(&x);
        assert_eq!((scale, q[0], q[20]), (20.0 / 127.0, -127, 0));
        for (x, q) in x.iter().zip(q) {
            assert!((x - scale * f32::from(q)).abs() <= scale * 0.5001);
        }
        assert_eq!(quantize_group(&[0.0; GROUP]), (0.0, [0; GROUP]));
        assert_eq!(quantize_group(&[1e-40; GROUP]).1, [0; GROUP]);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[7] = odd;
            assert!(quantize_group(&x).0.is_nan());
        }
    }
}
