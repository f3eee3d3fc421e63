//! A product's input, in the form that the kernels read. Prepared once for all weights that the
//! same input meets.

use std::ops::Range;

use realm_core::backend::Precision;

use super::{
    lanes::{self, Kernel, Lanes},
    unpack::TILE,
};
use crate::{elementwise::Cpu, shared::SharedMut};

/// Elements that share a scale when activations are quantized to 8 bits.
pub(super) const GROUP: usize = 32;

/// Groups of a row that lie together: as many as a tile of weights has. Then the next row's follow.
pub(super) const GROUPS: usize = TILE / GROUP;

/// Elements below which preparing stays on the caller's thread.
const SERIAL: usize = 16 * 1024;

/// Memory for prepared activations.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    groups: Vec<QuantGroup>,
    rounded: Vec<f32>,
}

/// Which rows are meant, in which order: row `i` is row `places[i] / copies` of those prepared.
#[derive(Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) places: &'a [u32],
    pub(super) copies: usize,
}

/// Rows of activations.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    floats: &'a [f32],
    groups: &'a [QuantGroup],
    rows: usize,
    cols: usize,
    precision: Precision,
    order: Option<Order<'a>>,
}

/// 32 quantized elements of a row, `x = scale · q` with q in −127..=127, and the sums of their
/// quants that products with weights' minima and offsets need. One cache line.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct QuantGroup {
    /// Four quants a word, the first in the lowest byte.
    pub(super) quants: [u32; GROUP / 4],
    /// What a quant of 1 stands for; NaN where an element is not finite.
    pub(super) scale: f32,
    /// −Σq.
    pub(super) minus_sum: i32,
    /// −Σq of each half.
    pub(super) minus_halves: [i32; 2],
    /// scale · Σq.
    pub(super) sum: f32,
    /// scale · Σq of each half.
    pub(super) halves: [f32; 2],
}

impl Scratch {
    /// Memory for inputs of up to `elements` elements (rows · columns); `None` where the system has
    /// none.
    pub(crate) fn new(elements: usize, precision: Precision) -> Option<Self> {
        let mut scratch = Self::default();
        match precision {
            Precision::Int8 | Precision::Auto => {
                scratch.groups.try_reserve_exact(elements / GROUP).ok()?;
            }
            Precision::F16 | Precision::BF16 => scratch.rounded.try_reserve_exact(elements).ok()?,
            Precision::F32 => {}
        }
        scratch.reserve(elements, precision);
        Some(scratch)
    }

    fn reserve(&mut self, elements: usize, precision: Precision) {
        match precision {
            Precision::Int8 | Precision::Auto => grow(&mut self.groups, elements / GROUP),
            Precision::F16 | Precision::BF16 => grow(&mut self.rounded, elements),
            Precision::F32 => {}
        }
    }

    /// Bytes it holds now.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        size_of_val(&self.groups[..]) + size_of_val(&self.rounded[..])
    }

    /// Bytes that memory for `elements` elements takes.
    pub(crate) fn bytes(elements: usize, precision: Precision) -> usize {
        match precision {
            Precision::Int8 | Precision::Auto => elements / GROUP * size_of::<QuantGroup>(),
            Precision::F16 | Precision::BF16 => elements * size_of::<f32>(),
            Precision::F32 => 0,
        }
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
        self.reserve(x.len(), precision);
        let mut out = Activations { floats: x, groups: &[], rows, cols, precision, order: None };
        match precision {
            Precision::F32 => {}
            Precision::F16 | Precision::BF16 => {
                let rounded = &mut self.rounded[..x.len()];
                round(cpu, x, precision, rounded);
                out.floats = rounded;
            }
            // Quantized weights have whole groups; others are multiplied as floats.
            Precision::Int8 | Precision::Auto if cols.is_multiple_of(GROUP) => {
                let groups = &mut self.groups[..rows * (cols / GROUP)];
                quantize(cpu, x, cols, groups);
                out.groups = groups;
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

/// Rounds elements to half precision or bfloat16, on all threads where it pays.
fn round(cpu: Cpu<'_>, x: &[f32], precision: Precision, rounded: &mut [f32]) {
    let tasks = if x.len() < SERIAL { 1 } else { 4 * cpu.pool.threads() };
    let rounded = SharedMut::new(rounded);
    cpu.pool.run(tasks, |task| {
        let range = x.len() * task / tasks..x.len() * (task + 1) / tasks;
        let x = &x[range.clone()];
        // SAFETY: the tasks' ranges follow one another.
        let rounded = unsafe { rounded.range(range) };
        lanes::run(cpu.isa, Round { x, precision, rounded });
    });
}

/// Rounds some of the elements.
struct Round<'a> {
    x: &'a [f32],
    precision: Precision,
    rounded: &'a mut [f32],
}

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run<const N: usize, L: Lanes<N>>(self, _: L) {
        let pairs = self.rounded.iter_mut().zip(self.x);
        // One loop a type: a choice inside it would keep it from vectorising.
        if self.precision == Precision::F16 {
            pairs.for_each(|(out, &x)| *out = round_f16(x));
        } else {
            pairs.for_each(|(out, &x)| *out = round_bf16(x));
        }
    }
}

/// Quantizes rows of `cols` elements, a multiple of 32, on all threads where it pays.
fn quantize(cpu: Cpu<'_>, x: &[f32], cols: usize, groups: &mut [QuantGroup]) {
    let rows = x.len() / cols.max(1);
    let tasks = if x.len() < SERIAL { 1 } else { rows.min(4 * cpu.pool.threads()) };
    let groups = &SharedMut::new(groups);
    cpu.pool.run(tasks, |task| {
        let rows = rows * task / tasks..rows * (task + 1) / tasks;
        lanes::run(cpu.isa, Quantize { x, cols, rows, groups });
    });
}

/// Quantizes some of the rows.
struct Quantize<'a> {
    x: &'a [f32],
    cols: usize,
    rows: Range<usize>,
    groups: &'a SharedMut<'a, QuantGroup>,
}

impl Kernel for Quantize<'_> {
    #[inline(always)]
    fn run<const N: usize, L: Lanes<N>>(self, _: L) {
        let all = self.x.len() / self.cols.max(1);
        for row in self.rows {
            let x = &self.x[row * self.cols..(row + 1) * self.cols];
            for (tile, x) in x.chunks(TILE).enumerate() {
                // SAFETY: every row belongs to one task.
                let groups = unsafe { self.groups.range(place(all, self.cols, row, tile)) };
                for (group, x) in groups.iter_mut().zip(x.as_chunks().0) {
                    *group = quantize_group(x);
                }
            }
        }
    }
}

/// Where the groups are that row `row` has in tile `tile`.
#[inline(always)]
fn place(rows: usize, cols: usize, row: usize, tile: usize) -> Range<usize> {
    let before = tile * GROUPS;
    let len = (cols / GROUP - before).min(GROUPS);
    let start = before * rows + row * len;
    start..start + len
}

impl<'a> Activations<'a> {
    /// Rows of these in another order, some of them several times. Places must lie within the rows.
    pub(super) fn in_order(self, order: Order<'a>) -> Self {
        Self { order: Some(order), ..self }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.order.map_or(self.rows, |order| order.places.len())
    }

    /// Where a row stands among those prepared.
    #[inline(always)]
    fn prepared(&self, row: usize) -> usize {
        match self.order {
            Some(Order { places, copies }) => places[row] as usize / copies,
            None => row,
        }
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
        let row = self.prepared(row);
        &self.floats[row * self.cols..(row + 1) * self.cols]
    }

    /// The groups of a row in tile `tile` of the columns.
    #[inline(always)]
    pub(super) fn groups(&self, row: usize, tile: usize) -> &'a [QuantGroup] {
        &self.groups[place(self.rows, self.cols, self.prepared(row), tile)]
    }
}

/// Quantizes a group: the same bits on every processor, as no step is fused.
#[inline(always)]
fn quantize_group(x: &[f32; GROUP]) -> QuantGroup {
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
    let mut q = [0i8; GROUP];
    for (q, &x) in q.iter_mut().zip(x) {
        *q = (x * inverse + ROUND).to_bits() as i8;
    }
    let mut out = QuantGroup { scale, ..QuantGroup::default() };
    for (word, q) in out.quants.iter_mut().zip(q.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(q.map(|q| q as u8));
    }
    let mut sums = [0i32; 2];
    for (sum, q) in sums.iter_mut().zip(q.as_chunks::<{ GROUP / 2 }>().0) {
        *sum = q.iter().map(|&q| i32::from(q)).sum();
    }
    out.minus_sum = -(sums[0] + sums[1]);
    out.minus_halves = sums.map(|sum| -sum);
    out.sum = scale * (sums[0] + sums[1]) as f32;
    out.halves = sums.map(|sum| scale * sum as f32);
    out
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
            assert_eq!(
                round_bf16(x).to_bits(),
                half::bf16::from_f32(x).to_f32().to_bits(),
                "{x:e}"
            );
        }
        for x in [65_519.99, 65_520.0, -65_520.0, 6.1e-5, 5.96e-8, 2.98e-8, -2.9e-8, 0.0, -0.0] {
            assert_eq!(round_f16(x).to_bits(), half::f16::from_f32(x).to_f32().to_bits(), "{x:e}");
        }
    }

    #[test]
    fn a_group_keeps_its_largest_element_and_shows_what_is_not_finite() {
        let mut x: [f32; GROUP] = std::array::from_fn(|at| at as f32 - 20.0);
        let group = quantize_group(&x);
        let q: Vec<i8> =
            group.quants.iter().flat_map(|word| word.to_le_bytes()).map(|q| q as i8).collect();
        assert_eq!((group.scale, q[0], q[20]), (20.0 / 127.0, -127, 0));
        for (x, &q) in x.iter().zip(&q) {
            assert!((x - group.scale * f32::from(q)).abs() <= group.scale * 0.5001);
        }
        let sum = |q: &[i8]| q.iter().map(|&q| i32::from(q)).sum::<i32>();
        assert_eq!(group.minus_halves, [-sum(&q[..16]), -sum(&q[16..])]);
        assert_eq!(group.minus_sum, -sum(&q));
        assert_eq!(
            (group.sum, group.halves[1]),
            (group.scale * sum(&q) as f32, group.scale * sum(&q[16..]) as f32)
        );
        assert_eq!(quantize_group(&[0.0; GROUP]).scale, 0.0);
        assert_eq!(quantize_group(&[1e-40; GROUP]).quants, [0; GROUP / 4]);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[7] = odd;
            assert!(quantize_group(&x).scale.is_nan());
        }
    }
}
