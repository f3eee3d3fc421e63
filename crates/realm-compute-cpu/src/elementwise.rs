//! Ops that go over rows once: norms, rotations, activations, sums.

use std::ops::Range;

use realm_core::{
    DType,
    graph::ops::{Activation, RopePairs},
    rope::RopeFrequencies,
};

use crate::{
    isa::{Isa, vectorized},
    math,
    pool::Pool,
    shared::SharedMut,
};

/// Elements below which an op stays on the caller's thread: waking others costs more.
pub(crate) const SERIAL: usize = 16 * 1024;

/// Where and with what the ops run.
#[derive(Clone, Copy)]
pub(crate) struct Cpu<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) isa: Isa,
}

/// An op that makes one element of two.
type Binary = fn(Isa, &[f32], &[f32], &mut [f32]);

vectorized! {
    /// `output = left + right`.
    fn add(left: &[f32], right: &[f32], output: &mut [f32]) {
        for ((out, &l), &r) in output.iter_mut().zip(left).zip(right) {
            *out = l + r;
        }
    }

    fn scale(input: &[f32], factor: f32, output: &mut [f32]) {
        for (out, &x) in output.iter_mut().zip(input) {
            *out = x * factor;
        }
    }

    fn soft_cap(input: &[f32], cap: f32, output: &mut [f32]) {
        for (out, &x) in output.iter_mut().zip(input) {
            *out = cap * math::tanh(x / cap);
        }
    }

    // One loop an activation: a choice inside the loop would keep it from vectorising.
    fn silu(gate: &[f32], up: &[f32], output: &mut [f32]) {
        for ((out, &g), &u) in output.iter_mut().zip(gate).zip(up) {
            *out = math::activate(Activation::Silu, g) * u;
        }
    }

    fn gelu_tanh(gate: &[f32], up: &[f32], output: &mut [f32]) {
        for ((out, &g), &u) in output.iter_mut().zip(gate).zip(up) {
            *out = math::activate(Activation::GeluTanh, g) * u;
        }
    }

    fn gelu(gate: &[f32], up: &[f32], output: &mut [f32]) {
        for ((out, &g), &u) in output.iter_mut().zip(gate).zip(up) {
            *out = math::activate(Activation::Gelu, g) * u;
        }
    }

    fn rms_norm_row(row: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
        let mean = math::sum(row, |x| x * x) / row.len() as f32;
        let factor = 1.0 / (mean + epsilon).sqrt();
        for ((out, &x), &w) in output.iter_mut().zip(row).zip(weight) {
            *out = x * factor * w;
        }
    }

    fn layer_norm_row(
        row: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        epsilon: f32,
        output: &mut [f32],
    ) {
        let mean = math::sum(row, |x| x) / row.len() as f32;
        let variance = math::sum(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
        let factor = 1.0 / (variance + epsilon).sqrt();
        for ((out, &x), &w) in output.iter_mut().zip(row).zip(weight) {
            *out = (x - mean) * factor * w;
        }
        for (out, &b) in output.iter_mut().zip(bias.unwrap_or_default()) {
            *out += b;
        }
    }

    /// Rotates the heads of one row by `cos` and `sin`, a pair each.
    fn rotate(
        row: &[f32],
        head_dim: usize,
        pairs: RopePairs,
        cos: &[f32],
        sin: &[f32],
        output: &mut [f32],
    ) {
        let half = cos.len();
        for (x, out) in row.chunks_exact(head_dim).zip(output.chunks_exact_mut(head_dim)) {
            match pairs {
                RopePairs::Adjacent => rotate_adjacent(x, cos, sin, out),
                RopePairs::Halves => rotate_halves(x, cos, sin, out),
            }
            out[2 * half..].copy_from_slice(&x[2 * half..]);
        }
    }

    /// Decodes one row of blocks.
    fn decode_row(dtype: DType, row: &[u8], output: &mut [f32]) {
        dtype.decode(row, output);
    }
}

#[inline(always)]
fn rotate_adjacent(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let (x, _) = x.as_chunks::<2>();
    let (out, _) = out.as_chunks_mut::<2>();
    for (((out, [a, b]), cos), sin) in out.iter_mut().zip(x).zip(cos).zip(sin) {
        *out = [a * cos - b * sin, a * sin + b * cos];
    }
}

#[inline(always)]
fn rotate_halves(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let (a, b) = x[..2 * half].split_at(half);
    let (out_a, out_b) = out[..2 * half].split_at_mut(half);
    for at in 0..half {
        out_a[at] = a[at] * cos[at] - b[at] * sin[at];
        out_b[at] = a[at] * sin[at] + b[at] * cos[at];
    }
}

impl Cpu<'_> {
    /// Calls `piece(range, output[range])` for consecutive ranges of whole rows of `cols` elements, on
    /// all threads where it pays.
    fn pieces(
        &self,
        output: &mut [f32],
        cols: usize,
        piece: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) {
        let rows = output.len() / cols.max(1);
        let tasks = if output.len() < SERIAL { 1 } else { (self.pool.threads() * 4).min(rows) };
        let shared = SharedMut::new(output);
        self.pool.run(tasks, |task| {
            let range = rows * task / tasks * cols..rows * (task + 1) / tasks * cols;
            // SAFETY: the tasks' rows follow one another.
            piece(range.clone(), unsafe { shared.range(range) });
        });
    }

    /// Calls `row(number, output row)` for all rows of `cols`.
    pub(crate) fn rows(
        &self,
        output: &mut [f32],
        cols: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.pieces(output, cols, |range, output| {
            let rows = (range.start / cols..).zip(output.chunks_exact_mut(cols));
            rows.for_each(|(at, output)| row(at, output));
        });
    }

    fn binary(&self, op: Binary, left: &[f32], right: &[f32], output: &mut [f32]) {
        self.pieces(output, 1, |range, output| {
            op(self.isa, &left[range.clone()], &right[range], output);
        });
    }

    /// `left + right`.
    pub(crate) fn add(&self, left: &[f32], right: &[f32], output: &mut [f32]) {
        self.binary(add, left, right, output);
    }

    /// `factor · input`.
    pub(crate) fn scale(&self, input: &[f32], factor: f32, output: &mut [f32]) {
        self.pieces(output, 1, |range, output| scale(self.isa, &input[range], factor, output));
    }

    /// `cap · tanh(input / cap)`.
    pub(crate) fn soft_cap(&self, input: &[f32], cap: f32, output: &mut [f32]) {
        self.pieces(output, 1, |range, output| soft_cap(self.isa, &input[range], cap, output));
    }

    /// `activation(gate) · up`.
    pub(crate) fn glu(&self, activation: Activation, gate: &[f32], up: &[f32], output: &mut [f32]) {
        let op = match activation {
            Activation::Silu => silu,
            Activation::GeluTanh => gelu_tanh,
            Activation::Gelu => gelu,
        };
        self.binary(op, gate, up, output);
    }

    /// RMS norm of groups of `weight.len()` elements.
    pub(crate) fn rms_norm(&self, input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
        let group = weight.len();
        self.rows(output, group, |at, out| {
            rms_norm_row(self.isa, &input[at * group..][..group], weight, epsilon, out);
        });
    }

    /// Layer norm of rows of `weight.len()` elements.
    pub(crate) fn layer_norm(
        &self,
        input: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        epsilon: f32,
        output: &mut [f32],
    ) {
        let cols = weight.len();
        self.rows(output, cols, |at, out| {
            layer_norm_row(self.isa, &input[at * cols..][..cols], weight, bias, epsilon, out);
        });
    }

    /// Rotates heads by the rows' angles.
    pub(crate) fn rope(
        &self,
        input: &[f32],
        angles: &Angles,
        [heads, head_dim]: [usize; 2],
        pairs: RopePairs,
        output: &mut [f32],
    ) {
        let cols = heads * head_dim;
        self.rows(output, cols, |at, out| {
            let (cos, sin) = angles.row(at);
            rotate(self.isa, &input[at * cols..][..cols], head_dim, pairs, cos, sin, out);
        });
    }

    /// Rows `ids` of a table of `dtype` rows of `cols` elements, decoded.
    pub(crate) fn embed(
        &self,
        (dtype, table): (DType, &[u8]),
        ids: &[u32],
        cols: usize,
        output: &mut [f32],
    ) {
        let bytes = dtype.row_bytes(cols).unwrap_or(0);
        self.rows(output, cols, |at, out| {
            decode_row(self.isa, dtype, &table[ids[at] as usize * bytes..][..bytes], out);
        });
    }
}

/// Cosines and sines of a step's rows.
#[derive(Default)]
pub(crate) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Angles {
    /// Fills in the rows of a step.
    pub(crate) fn set(
        &mut self,
        frequencies: &RopeFrequencies,
        positions: impl Iterator<Item = u32>,
    ) {
        self.pairs = frequencies.inverse.len();
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            let start = self.cos.len();
            self.cos.resize(start + self.pairs, 0.0);
            self.sin.resize(start + self.pairs, 0.0);
            frequencies.fill(position, &mut self.cos[start..], &mut self.sin[start..]);
        }
    }

    fn row(&self, at: usize) -> (&[f32], &[f32]) {
        let range = at * self.pairs..(at + 1) * self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
