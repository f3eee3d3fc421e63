//! What happens to a strip's sums: biases, the gated unit's activation, the way to the output.

use std::ops::Range;

use realm_core::graph::ops::Activation;

use super::lanes::{Kernel, Lanes};
use crate::{math, shared::SharedMut};

/// A strip's sums, `[rows, width]`, and what is to be added to each row.
pub(super) struct Sums<'a> {
    pub(super) sums: &'a mut [f32],
    pub(super) bias: Option<&'a [f32]>,
}

impl Sums<'_> {
    #[inline(always)]
    fn add_bias(&mut self, width: usize, columns: &Range<usize>) {
        let Some(bias) = self.bias else { return };
        let bias = &bias[columns.clone()];
        for sums in self.sums.chunks_exact_mut(width) {
            for (sum, bias) in sums.iter_mut().zip(bias) {
                *sum += bias;
            }
        }
    }
}

/// Where a strip's results go.
pub(super) struct Place<'a> {
    /// Sums a row of the strip; those beyond `columns` are of no use.
    pub(super) width: usize,
    /// Rows of the input: those of the output, unless `order` says where they go.
    pub(super) rows: Range<usize>,
    /// The output's row for each of the input, no two alike.
    pub(super) order: Option<&'a [u32]>,
    /// Columns of the output.
    pub(super) columns: Range<usize>,
    /// Elements a row of the output.
    pub(super) stride: usize,
    pub(super) output: SharedMut<'a, f32>,
}

impl Place<'_> {
    /// The output's part for each row of the strip.
    #[inline(always)]
    fn rows(&self) -> impl Iterator<Item = &mut [f32]> {
        self.rows.clone().map(|row| {
            let start = self.order.map_or(row, |order| order[row] as usize) * self.stride;
            let range = start + self.columns.start..start + self.columns.end;
            // SAFETY: each strip of each row belongs to one task, and is handed out once.
            unsafe { self.output.range(range) }
        })
    }
}

/// `output = sums + bias`.
pub(super) struct Store<'a> {
    pub(super) sums: Sums<'a>,
    pub(super) place: Place<'a>,
}

impl Kernel for Store<'_> {
    #[inline(always)]
    fn run<const N: usize, L: Lanes<N>>(self, _: L) {
        let Self { mut sums, place } = self;
        sums.add_bias(place.width, &place.columns);
        for (sums, output) in sums.sums.chunks_exact(place.width).zip(place.rows()) {
            output.copy_from_slice(&sums[..output.len()]);
        }
    }
}

/// `output = activation(gate + bias) · (up + bias)`.
pub(super) struct Gate<'a> {
    pub(super) activation: Activation,
    pub(super) gate: Sums<'a>,
    pub(super) up: Sums<'a>,
    pub(super) place: Place<'a>,
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    fn run<const N: usize, L: Lanes<N>>(self, _: L) {
        let Self { activation, mut gate, mut up, place } = self;
        gate.add_bias(place.width, &place.columns);
        up.add_bias(place.width, &place.columns);
        let gate = gate.sums.chunks_exact(place.width);
        let up = up.sums.chunks_exact(place.width);
        // One loop an activation: a choice inside the loop would keep it from vectorising.
        macro_rules! each {
            ($activation:expr) => {
                for ((gate, up), output) in gate.zip(up).zip(place.rows()) {
                    for (output, (&gate, &up)) in output.iter_mut().zip(gate.iter().zip(up)) {
                        *output = math::activate($activation, gate) * up;
                    }
                }
            };
        }
        match activation {
            Activation::Silu => each!(Activation::Silu),
            Activation::GeluTanh => each!(Activation::GeluTanh),
            Activation::Gelu => each!(Activation::Gelu),
        }
    }
}
