//! Mixtures of experts: each row by itself, slot after slot.

use std::cmp::Ordering;

use super::{
    ReferenceProgram,
    ops::{Values, activate},
};
use crate::graph::{
    Mixture, Weight,
    ops::{MoeGatedLinear, MoeLinear, MoeRoute, MoeSum},
};

impl ReferenceProgram {
    /// Numbers of experts are kept as numbers like any other.
    pub(super) fn moe_route(&self, op: &MoeRoute, values: &mut Values) {
        let (used, count) = (self.graph.value(op.experts).cols, self.graph.value(op.logits).cols);
        let (mut experts, mut weights) = (Vec::new(), Vec::new());
        for logits in values[op.logits.index()].chunks_exact(count) {
            let mut order: Vec<usize> = (0..count).collect();
            // Stable, so that of equals the first stays first.
            order.sort_by(|&a, &b| descending(logits[a], logits[b]));
            order.truncate(used);
            let taken = if op.normalized { order.clone() } else { (0..count).collect() };
            let most = logits[order[0]];
            let total: f64 = taken.iter().map(|&at| (logits[at] - most).exp()).sum();
            weights.extend(order.iter().map(|&at| (logits[at] - most).exp() / total));
            experts.extend(order.iter().map(|&at| at as f64));
        }
        values[op.experts.index()] = experts;
        values[op.weights.index()] = weights;
    }

    /// `x` times the matrix of one expert.
    fn expert(&self, mixture: Mixture, weight: Weight, expert: f64, x: &[f64]) -> Vec<f64> {
        let first = expert as usize * mixture.n;
        let rows = (first..first + mixture.n)
            .map(|row| &self.weight(weight)[row * x.len()..(row + 1) * x.len()]);
        rows.map(|row| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect()
    }

    pub(super) fn moe_gated_linear(&self, op: &MoeGatedLinear, values: &mut Values) {
        let mixture = self.graph.mixture(op.experts, op.output, op.gate);
        let k = self.graph.value(op.input).cols;
        let mut output = Vec::new();
        let choices = values[op.experts.index()].chunks_exact(mixture.used);
        for (x, choice) in values[op.input.index()].chunks_exact(k).zip(choices) {
            for &expert in choice {
                let gate = self.expert(mixture, op.gate, expert, x);
                let up = self.expert(mixture, op.up, expert, x);
                output.extend(gate.iter().zip(up).map(|(&g, u)| activate(op.activation, g) * u));
            }
        }
        values[op.output.index()] = output;
    }

    pub(super) fn moe_linear(&self, op: &MoeLinear, values: &mut Values) {
        let mixture = self.graph.mixture(op.experts, op.output, op.weight);
        let k = self.graph.weight(op.weight).cols;
        let slots = values[op.input.index()].chunks_exact(k).zip(&values[op.experts.index()]);
        let output = slots.flat_map(|(x, &expert)| self.expert(mixture, op.weight, expert, x));
        values[op.output.index()] = output.collect();
    }

    pub(super) fn moe_sum(&self, op: &MoeSum, values: &mut Values) {
        let (used, n) = (self.graph.value(op.weights).cols, self.graph.value(op.output).cols);
        let mut output = Vec::new();
        let weights = values[op.weights.index()].chunks_exact(used);
        for (slots, weights) in values[op.input.index()].chunks_exact(used * n).zip(weights) {
            for at in 0..n {
                let slots = slots.chunks_exact(n).zip(weights);
                output.push(slots.map(|(slot, weight)| weight * slot[at]).sum());
            }
        }
        values[op.output.index()] = output;
    }
}

/// Largest first, what is no number last.
fn descending(a: f64, b: f64) -> Ordering {
    a.is_nan().cmp(&b.is_nan()).then(b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}
