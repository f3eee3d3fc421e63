//! Products with chosen experts: rows are grouped by expert, so that each expert's matrix is read once
//! for all rows that chose it, and results go to where their rows want them. What an output's bits
//! depend on is as in the other products: its own row and its expert.

use std::{collections::TryReserveError, ops::Range};

use realm_core::graph::ops::Activation;

use super::{
    Activations, Matrix, Order, chunks,
    finish::{Gate, Place, Store, Sums},
    lanes, run_parts,
    strip::width,
};
use crate::{elementwise::Cpu, shared::SharedMut};

/// The slots of a step, grouped by expert.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Numbers of the slots (row · used + slot), expert after expert, in order within each.
    slots: Vec<u32>,
    /// Where each expert's slots start, and their end.
    starts: Vec<u32>,
}

impl Groups {
    /// Memory for `slots` slots and `count` experts.
    pub(crate) fn new(slots: usize, count: usize) -> Result<Self, TryReserveError> {
        let mut groups = Self::default();
        groups.slots.try_reserve_exact(slots)?;
        groups.starts.try_reserve_exact(count + 1)?;
        Ok(groups)
    }

    /// Bytes that memory for so many takes.
    pub(crate) fn bytes(slots: usize, count: usize) -> usize {
        if slots == 0 { 0 } else { (slots + count + 1) * size_of::<u32>() }
    }

    /// Groups slots whose experts are given as bits, all below `count`: a counting sort.
    ///
    /// # Panics
    /// Where a number of an expert is not below `count`.
    pub(crate) fn set(&mut self, experts: &[f32], count: usize) {
        self.starts.clear();
        self.starts.resize(count + 1, 0);
        for expert in experts {
            self.starts[expert.to_bits() as usize + 1] += 1;
        }
        for expert in 0..count {
            self.starts[expert + 1] += self.starts[expert];
        }
        self.slots.clear();
        self.slots.resize(experts.len(), 0);
        // Each start moves to its group's end, which is where the next one starts.
        for (slot, expert) in (0..).zip(experts) {
            let next = &mut self.starts[expert.to_bits() as usize];
            self.slots[*next as usize] = slot;
            *next += 1;
        }
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// The experts that have rows, cut into parts, for weights of `strips` strips each.
    fn parts(&self, strips: usize, threads: usize) -> Vec<Part> {
        let groups = || self.starts.windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
        let used = groups().filter(|rows| !rows.is_empty()).count();
        let parts = |(expert, rows): (usize, Range<usize>)| {
            let chunks = chunks(rows.len(), used * strips, threads);
            let first = rows.start;
            chunks.map(move |it| Part { expert, rows: it.start + first..it.end + first })
        };
        groups().enumerate().flat_map(parts).collect()
    }
}

/// Grouped rows that meet one expert.
struct Part {
    expert: usize,
    rows: Range<usize>,
}

/// The products of each slot with its expert: `output[slot] = input[slot / copies] · weight[e]ᵀ`,
/// `[slots, n]`. The input has a row for each `copies` slots.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn experts(
    cpu: Cpu<'_>,
    (groups, copies): (&Groups, usize),
    input: &Activations<'_>,
    weight: Matrix<'_>,
    output: &mut [f32],
) {
    let (width, n) = (width(cpu.isa), size(groups, input, copies, weight, output));
    let input = input.in_order(Order { places: &groups.slots, copies });
    let output = SharedMut::new(output);
    let strips = n.div_ceil(width);
    let parts = groups.parts(strips, cpu.pool.threads());
    run_parts(cpu, &parts, strips, |work, Part { expert, rows }, at| {
        let start = at * width;
        let weight = weight.part(expert * n..(expert + 1) * n);
        work.product(cpu.isa, &input, weight, rows.clone(), start, 0);
        let columns = start..(start + width).min(n);
        let (rows, order) = (rows.clone(), Some(&groups.slots[..]));
        let place = Place { width, rows, order, columns, stride: n, output };
        let [sums, _] = &mut work.sums;
        lanes::run(cpu.isa, Store { sums: Sums { sums, bias: None }, place });
    });
}

/// `output[slot] = activation(input[slot / copies] · gate[e]ᵀ) · (input[slot / copies] · up[e]ᵀ)`,
/// `[slots, n]`.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn gated_experts(
    cpu: Cpu<'_>,
    (groups, copies): (&Groups, usize),
    input: &Activations<'_>,
    [gate, up]: [Matrix<'_>; 2],
    activation: Activation,
    output: &mut [f32],
) {
    let (width, n) = (width(cpu.isa), size(groups, input, copies, gate, output));
    assert_eq!(size(groups, input, copies, up, output), n, "gate and up are of one size");
    let input = input.in_order(Order { places: &groups.slots, copies });
    let output = SharedMut::new(output);
    let strips = n.div_ceil(width);
    let parts = groups.parts(strips, cpu.pool.threads());
    run_parts(cpu, &parts, strips, |work, Part { expert, rows }, at| {
        let start = at * width;
        let matrix = expert * n..(expert + 1) * n;
        work.product(cpu.isa, &input, gate.part(matrix.clone()), rows.clone(), start, 0);
        work.product(cpu.isa, &input, up.part(matrix), rows.clone(), start, 1);
        let columns = start..(start + width).min(n);
        let (rows, order) = (rows.clone(), Some(&groups.slots[..]));
        let place = Place { width, rows, order, columns, stride: n, output };
        let [gates, ups] = &mut work.sums;
        let (gate, up) = (Sums { sums: gates, bias: None }, Sums { sums: ups, bias: None });
        lanes::run(cpu.isa, Gate { activation, gate, up, place });
    });
}

/// Elements of one expert's result, once all shapes are known to fit.
fn size(
    groups: &Groups,
    input: &Activations<'_>,
    copies: usize,
    weight: Matrix<'_>,
    output: &[f32],
) -> usize {
    let count = groups.starts.len().saturating_sub(1);
    let n = weight.rows / count.max(1);
    assert_eq!(n * count, weight.rows, "a matrix for each expert");
    assert_eq!(weight.cols, input.cols(), "columns of weight and input");
    assert_eq!(input.rows() * copies, groups.slots.len(), "a row of the input for its slots");
    assert_eq!(output.len(), groups.slots.len() * n, "a row of the output for each slot");
    n
}

#[cfg(test)]
mod tests {
    use realm_core::{DType, backend::Precision};

    use super::{
        super::{
            Half, Projection, Scratch, gated, linear,
            tests::{Random, Weight, sets},
        },
        *,
    };
    use crate::pool::Pool;

    /// Numbers of experts as the arena holds them.
    fn bits(experts: &[u32]) -> Vec<f32> {
        experts.iter().map(|&expert| f32::from_bits(expert)).collect()
    }

    #[test]
    fn slots_are_grouped_in_order() {
        let mut groups = Groups::new(8, 5).unwrap();
        groups.set(&bits(&[3, 0, 3, 1, 0, 3]), 5);
        assert_eq!(groups.slots, [1, 4, 3, 0, 2, 5]);
        assert_eq!(groups.starts, [0, 2, 3, 3, 6, 6]);
        assert_eq!(groups.parts(7, 2).len(), 3);
        groups.set(&bits(&[0; 900]), 1);
        let parts: Vec<_> = groups.parts(9, 1).into_iter().map(|part| part.rows).collect();
        assert_eq!(parts, [0..300, 300..600, 600..900]);
        groups.set(&[], 2);
        assert!(groups.parts(3, 2).is_empty() && groups.starts == [0; 3]);
    }

    /// Each slot has the bits that a product of its own row with its expert's matrix alone has.
    #[test]
    fn a_slot_is_what_its_expert_alone_makes_of_it() {
        let (count, used, rows, n, k) = (5, 2, 23, 35, 512);
        let mut random = Random(7);
        // Expert 4 has no rows, expert 3 most.
        let choices: Vec<u32> = (0..rows).flat_map(|row| [3, row % 3]).collect();
        let pool = Pool::new(3);
        for dtype in [DType::Q4_K, DType::Q8_0, DType::Q2_K, DType::F16, DType::F32] {
            let [gate, up] = [(); 2].map(|()| Weight::random(&mut random, dtype, count * n, k));
            let x = random.floats(rows as usize * k);
            for isa in sets() {
                for precision in [Precision::F32, Precision::BF16, Precision::Int8] {
                    let cpu = Cpu { pool: &pool, isa };
                    let mut groups = Groups::default();
                    groups.set(&bits(&choices), count);
                    let mut scratch = Scratch::default();
                    let input = scratch.prepare(cpu, &x, k, precision);
                    let [mut plain, mut gates] =
                        [(); 2].map(|()| vec![f32::NAN; choices.len() * n]);
                    experts(cpu, (&groups, used), &input, gate.matrix(), &mut plain);
                    let matrices = [gate.matrix(), up.matrix()];
                    let (by, silu) = ((&groups, used), Activation::Silu);
                    gated_experts(cpu, by, &input, matrices, silu, &mut gates);
                    for (slot, &expert) in choices.iter().enumerate() {
                        let part = expert as usize * n..(expert as usize + 1) * n;
                        let [gate, up] = matrices.map(|matrix| matrix.part(part.clone()));
                        let x = &x[slot / used * k..][..k];
                        let mut scratch = Scratch::default();
                        let input = scratch.prepare(cpu, x, k, precision);
                        let [mut alone, mut gated_alone] = [(); 2].map(|()| vec![f32::NAN; n]);
                        let product = Projection { weight: gate, bias: None, output: &mut alone };
                        linear(cpu, &input, &mut [product]);
                        let [gate, up] = [gate, up].map(|weight| Half { weight, bias: None });
                        gated(cpu, &input, gate, up, Activation::Silu, &mut gated_alone);
                        let name = format!("{dtype} {isa} {precision} slot {slot}");
                        assert!(alone == plain[slot * n..(slot + 1) * n], "{name}");
                        assert!(gated_alone == gates[slot * n..(slot + 1) * n], "{name}, gated");
                    }
                }
            }
        }
    }
}
