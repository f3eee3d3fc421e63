//! Ops that go over rows once: norms, rotations, activations, sums.

use realm_core::{
    graph::ops::{Activation, RopePairs},
    rope::RopeFrequencies,
};

use crate::{isa::Isa, math, pool::Pool, shared::SharedMut};

/// Elements below which an op stays on the caller's thread: waking others costs more.
const SERIAL: usize = 16 * 1024;

/// Where and with what the ops run.
#[derive(Clone, Copy)]
pub(crate) struct Cpu<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) isa: Isa,
}

impl Cpu<'_> {
    /// Calls `row(number, output row)` for all rows of `cols`, on all threads where it pays.
    fn rows(&self, output: &mut [f32], cols: usize, row: impl Fn(usize, &mut [f32]) + Sync) {
        let rows = output.len() / cols.max(1);
        let tasks = if output.len() < SERIAL { 1 } else { (self.pool.threads() * 4).min(rows) };
        let shared = SharedMut::new(output);
        self.pool.run(tasks, |task| {
            let range = rows * task / tasks..rows * (task + 1) / tasks;
            self.isa.run(|| {
                for at in range {
                    // SAFETY: every row belongs to one task.
                    row(at, unsafe { shared.range(at * cols..(at + 1) * cols) });
                }
            });
        });
    }

    /// `output = term(left, right)`, element by element.
    pub(crate) fn zip(
        &self,
        left: &[f32],
        right: &[f32],
        output: &mut [f32],
        term: impl Fn(f32, f32) -> f32 + Sync,
    ) {
        const CHUNK: usize = 1024;
        let shared_len = output.len();
        let chunks = shared_len.div_ceil(CHUNK);
        let tasks = if shared_len < SERIAL { 1 } else { (self.pool.threads() * 4).min(chunks) };
        let shared = SharedMut::new(output);
        self.pool.run(tasks, |task| {
            let start = chunks * task / tasks * CHUNK;
            let end = (chunks * (task + 1) / tasks * CHUNK).min(shared_len);
            // SAFETY: the tasks' ranges of chunks follow one another.
            let output = unsafe { shared.range(start..end) };
            let pairs = left[start..end].iter().zip(&right[start..end]);
            self.isa.run(|| {
                for (out, (&l, &r)) in output.iter_mut().zip(pairs) {
                    *out = term(l, r);
                }
            });
        });
    }

    /// `activation(gate) · up`.
    pub(crate) fn glu(&self, activation: Activation, gate: &[f32], up: &[f32], output: &mut [f32]) {
        // One loop an activation: a choice inside the loop would keep it from vectorising.
        match activation {
            Activation::Silu => {
                self.zip(gate, up, output, |g, u| math::activate(Activation::Silu, g) * u);
            }
            Activation::GeluTanh => {
                self.zip(gate, up, output, |g, u| math::activate(Activation::GeluTanh, g) * u);
            }
            Activation::Gelu => {
                self.zip(gate, up, output, |g, u| math::activate(Activation::Gelu, g) * u);
            }
        }
    }

    /// RMS norm of groups of `weight.len()` elements.
    pub(crate) fn rms_norm(&self, input: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
        let group = weight.len();
        self.rows(output, group, |at, out| {
            let row = &input[at * group..(at + 1) * group];
            let mean = math::sum(row, |x| x * x) / group as f32;
            let factor = 1.0 / (mean + epsilon).sqrt();
            for ((out, &x), &w) in out.iter_mut().zip(row).zip(weight) {
                *out = x * factor * w;
            }
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
            let row = &input[at * cols..(at + 1) * cols];
            let mean = math::sum(row, |x| x) / cols as f32;
            let variance = math::sum(row, |x| (x - mean) * (x - mean)) / cols as f32;
            let factor = 1.0 / (variance + epsilon).sqrt();
            for ((out, &x), &w) in out.iter_mut().zip(row).zip(weight) {
                *out = (x - mean) * factor * w;
            }
            for (out, &b) in out.iter_mut().zip(bias.unwrap_or_default()) {
                *out += b;
            }
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
        let (cols, half) = (heads * head_dim, angles.pairs);
        self.rows(output, cols, |at, out| {
            let (cos, sin) = angles.row(at);
            let row = &input[at * cols..(at + 1) * cols];
            for (x, out) in row.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
                match pairs {
                    RopePairs::Adjacent => rotate_adjacent(x, cos, sin, out),
                    RopePairs::Halves => {
                        let (a, b) = x[..2 * half].split_at(half);
                        let (out_a, out_b) = out[..2 * half].split_at_mut(half);
                        for at in 0..half {
                            out_a[at] = a[at] * cos[at] - b[at] * sin[at];
                            out_b[at] = a[at] * sin[at] + b[at] * cos[at];
                        }
                    }
                }
                out[2 * half..].copy_from_slice(&x[2 * half..]);
            }
        });
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
