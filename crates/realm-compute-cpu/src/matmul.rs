//! Matrix products: `output[r, n] = Σₖ input[r, k] · weight[n, k] + bias[n]`, the weights read as
//! they lie in the model file.
//!
//! A *strip* is a few rows of the weight, a row a lane. Its weights are unpacked a tile of 256 columns at
//! a time and multiplied with all rows of the input (`kernels`). Formats meet kernels only in the
//! unpacked tile (`unpack`), instruction sets only in vectors (`lanes`).
//!
//! An output's bits depend on its own row of the input, the weight and the instruction set: not on
//! how many rows come along, on threads, or on where the strip lies.

mod activations;
mod experts;
mod finish;
mod kernels;
mod lanes;
mod strip;
#[cfg(test)]
mod tests;
mod unpack;

use std::{cell::RefCell, ops::Range};

use realm_core::{
    DType,
    graph::{WeightInfo, ops::Activation},
};

pub(crate) use activations::{Activations, Scratch};
pub(crate) use experts::{Groups, experts, gated_experts};

use crate::{elementwise::Cpu, isa::Isa, shared::SharedMut};
use activations::Order;
use finish::{Gate, Place, Store, Sums};
use strip::{Strip, width};
use unpack::{MAX_LANES, Tile};

/// Rows of the input that a task takes at most: a multiple of the kernels' rows; many, so that
/// unpacking costs little beside multiplying, and few enough that their sums stay in the core's cache.
const MAX_ROWS: usize = 384;

/// A weight as it lies in the model file.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    bytes: &'a [u8],
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl<'a> Matrix<'a> {
    /// The weight that `info` describes; `None` where `bytes` are not as many as it needs.
    pub(crate) fn new(info: &WeightInfo, bytes: &'a [u8]) -> Option<Self> {
        let fits = info.bytes() == Some(bytes.len());
        fits.then_some(Self { bytes, dtype: info.dtype, rows: info.rows, cols: info.cols })
    }

    /// Some of its rows.
    ///
    /// # Panics
    /// Where they leave the weight.
    fn part(self, rows: Range<usize>) -> Self {
        let row = self.bytes.len() / self.rows.max(1);
        Self { bytes: &self.bytes[rows.start * row..rows.end * row], rows: rows.len(), ..self }
    }
}

/// One product of a [`linear`].
pub(crate) struct Projection<'a> {
    /// `[n, k]`.
    pub(crate) weight: Matrix<'a>,
    /// `[n]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// `[rows, n]`; whatever it held is overwritten.
    pub(crate) output: &'a mut [f32],
}

/// One half of a [`gated`] product.
#[derive(Clone, Copy)]
pub(crate) struct Half<'a> {
    /// `[n, k]`.
    pub(crate) weight: Matrix<'a>,
    /// `[n]`.
    pub(crate) bias: Option<&'a [f32]>,
}

/// The products of one input with several weights, as one job.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn linear(cpu: Cpu<'_>, input: &Activations<'_>, projections: &mut [Projection<'_>]) {
    let rows = input.rows();
    let width = width(cpu.isa);
    let mut outputs = Vec::with_capacity(projections.len());
    let mut strips = 0;
    for projection in projections {
        let weight = projection.weight;
        check(input, weight, projection.bias);
        assert_eq!(projection.output.len(), rows * weight.rows, "a row of the output for each row");
        let first = strips;
        strips += weight.rows.div_ceil(width);
        let half = Half { weight, bias: projection.bias };
        outputs.push((first, half, SharedMut::new(&mut *projection.output)));
    }
    run(cpu, rows, strips, |work, rows, at| {
        let Some((first, half, output)) = outputs.iter().rev().find(|(first, ..)| *first <= at)
        else {
            return;
        };
        let (start, stride) = ((at - first) * width, half.weight.rows);
        work.product(cpu.isa, input, half.weight, rows.clone(), start, 0);
        let columns = start..(start + width).min(stride);
        let place = Place { width, rows, order: None, columns, stride, output: *output };
        let [sums, _] = &mut work.sums;
        lanes::run(cpu.isa, Store { sums: Sums { sums, bias: half.bias }, place });
    });
}

/// `output = activation(input · gateᵀ + bias) · (input · upᵀ + bias)`, `[rows, n]`.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn gated(
    cpu: Cpu<'_>,
    input: &Activations<'_>,
    gate: Half<'_>,
    up: Half<'_>,
    activation: Activation,
    output: &mut [f32],
) {
    let (n, width) = (gate.weight.rows, width(cpu.isa));
    check(input, gate.weight, gate.bias);
    check(input, up.weight, up.bias);
    assert_eq!(up.weight.rows, n, "gate and up are of one size");
    assert_eq!(output.len(), input.rows() * n, "a row of the output for each row");
    let output = SharedMut::new(output);
    run(cpu, input.rows(), n.div_ceil(width), |work, rows, at| {
        let start = at * width;
        work.product(cpu.isa, input, gate.weight, rows.clone(), start, 0);
        work.product(cpu.isa, input, up.weight, rows.clone(), start, 1);
        let columns = start..(start + width).min(n);
        let place = Place { width, rows, order: None, columns, stride: n, output };
        let [gates, ups] = &mut work.sums;
        let gate = Sums { sums: gates, bias: gate.bias };
        let up = Sums { sums: ups, bias: up.bias };
        lanes::run(cpu.isa, Gate { activation, gate, up, place });
    });
}

fn check(input: &Activations<'_>, weight: Matrix<'_>, bias: Option<&[f32]>) {
    assert_eq!(weight.cols, input.cols(), "columns of weight and input");
    assert!(bias.is_none_or(|bias| bias.len() == weight.rows), "a bias for each output");
}

/// A thread's memory for products.
struct Work {
    tiles: Box<[Tile; kernels::TILES]>,
    sums: [Vec<f32>; 2],
}

thread_local! {
    static WORK: RefCell<Work> = RefCell::new(Work {
        tiles: Box::new([const { Tile::new() }; kernels::TILES]),
        sums: [Vec::new(), Vec::new()],
    });
}

/// Calls `strip(work, rows of the input, strip)` so that every strip meets every row once.
fn run(
    cpu: Cpu<'_>,
    rows: usize,
    strips: usize,
    strip: impl Fn(&mut Work, Range<usize>, usize) + Sync,
) {
    let chunks: Vec<_> = chunks(rows, strips, cpu.pool.threads()).collect();
    run_parts(cpu, &chunks, strips, |work, rows, at| strip(work, rows.clone(), at));
}

/// The parts that rows are cut into where there are `strips` strips of weights to meet.
fn chunks(rows: usize, strips: usize, threads: usize) -> impl Iterator<Item = Range<usize>> {
    // Rows are split evenly, further where threads would otherwise have nothing to do, but not so
    // far that unpacking takes longer than multiplying.
    let wanted = (4 * threads).div_ceil(strips.max(1)).min(rows / 32);
    let chunks = rows.div_ceil(MAX_ROWS).max(wanted);
    let chunk = rows.div_ceil(chunks.max(1)).next_multiple_of(6);
    (0..rows).step_by(chunk.max(1)).map(move |start| start..(start + chunk).min(rows))
}

/// Calls `strip(work, part, strip)` so that each of `strips` strips meets every part once.
///
/// Neighbouring strips go to one task: they lie one after the other in memory.
fn run_parts<P: Sync>(
    cpu: Cpu<'_>,
    parts: &[P],
    strips: usize,
    strip: impl Fn(&mut Work, &P, usize) + Sync,
) {
    let starts = starts(parts.len() * strips, cpu.pool.threads());
    cpu.pool.run(starts.len() - 1, |task| {
        WORK.with_borrow_mut(|work| {
            for unit in starts[task]..starts[task + 1] {
                strip(work, &parts[unit / strips], unit % strips);
            }
        });
    });
}

/// Where the tasks start that `units` of work are cut into, and their end.
///
/// Tasks grow smaller (Polychronopoulos & Kuck 1987): long ones read memory in long runs, short ones
/// at the end let the threads finish together.
fn starts(units: usize, threads: usize) -> Vec<usize> {
    let mut starts = vec![0];
    let mut start = 0;
    while start < units {
        let share = if threads > 1 { (units - start) / (2 * threads) } else { units };
        start += share.max(1);
        starts.push(start);
    }
    starts
}

impl Work {
    /// The product of rows of the input with the strip of the weight that starts at row `start`:
    /// `[rows, width]`, kept in `sums[which]`.
    fn product(
        &mut self,
        isa: Isa,
        input: &Activations<'_>,
        weight: Matrix<'_>,
        rows: Range<usize>,
        start: usize,
        which: usize,
    ) {
        let sums = &mut self.sums[which];
        sums.clear();
        sums.resize(rows.len() * kernels::TILES * MAX_LANES, 0.0);
        sums.truncate(rows.len() * width(isa));
        Strip { weight, start, input, rows, tiles: &mut self.tiles, sums }.multiply(isa);
    }
}
