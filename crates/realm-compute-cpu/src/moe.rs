//! Mixtures of experts beside their products: the choice of experts and the sum of their results.

use std::cmp::Ordering;

use crate::{
    elementwise::{Cpu, SERIAL},
    isa::vectorized,
    math,
    shared::SharedMut,
};

/// A choice of experts, as [`realm_core::graph::ops::MoeRoute`] defines it.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// All experts.
    pub(crate) count: usize,
    /// Experts that a row takes, 1 to `count`.
    pub(crate) used: usize,
    pub(crate) normalized: bool,
}

impl Route {
    /// Chooses for one row.
    fn row(self, logits: &[f32], experts: &mut [f32], weights: &mut [f32]) {
        let mut last = None;
        for (expert, weight) in experts.iter_mut().zip(&mut *weights) {
            // Each is the first of those that come after the one before it.
            let candidates = (0..).zip(logits).map(|(at, &logit)| (logit, at));
            let after = candidates.filter(|&it| last.is_none_or(|last| order(last, it).is_lt()));
            let Some((logit, at)) = after.min_by(|&a, &b| order(a, b)) else { return };
            last = Some((logit, at));
            (*expert, *weight) = (f32::from_bits(at), logit);
        }
        let most = weights[0];
        let exp = |logit: &f32| math::exp(logit - most);
        let total: f32 = if self.normalized { &*weights } else { logits }.iter().map(exp).sum();
        weights.iter_mut().for_each(|weight| *weight = exp(weight) / total);
    }
}

/// Which of two experts, a logit and a number each, comes first.
fn order(a: (f32, u32), b: (f32, u32)) -> Ordering {
    let numbers = a.0.is_nan().cmp(&b.0.is_nan());
    numbers.then(b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal)).then(a.1.cmp(&b.1))
}

vectorized! {
    /// `output = Σ weights[slot] · slots[slot]`, slot after slot.
    fn sum_row(slots: &[f32], weights: &[f32], output: &mut [f32]) {
        output.fill(0.0);
        for (slot, &weight) in slots.chunks_exact(output.len()).zip(weights) {
            for (out, &x) in output.iter_mut().zip(slot) {
                *out += weight * x;
            }
        }
    }
}

impl Cpu<'_> {
    /// Chooses experts, whose numbers are stored as bits: `[rows, count]` to twice `[rows, used]`.
    pub(crate) fn route(
        &self,
        route: Route,
        logits: &[f32],
        experts: &mut [f32],
        weights: &mut [f32],
    ) {
        let Route { count, used, .. } = route;
        let rows = logits.len() / count;
        let serial = rows * count * used < SERIAL;
        let tasks = if serial { 1 } else { (self.pool.threads() * 4).min(rows) };
        let (experts, weights) = (SharedMut::new(experts), SharedMut::new(weights));
        self.pool.run(tasks, |task| {
            for row in rows * task / tasks..rows * (task + 1) / tasks {
                let slots = row * used..(row + 1) * used;
                // SAFETY: every row belongs to one task.
                let (experts, weights) =
                    unsafe { (experts.range(slots.clone()), weights.range(slots)) };
                route.row(&logits[row * count..(row + 1) * count], experts, weights);
            }
        });
    }

    /// Weighted sums of slots of `cols` elements: `[rows, used · cols]` to `[rows, cols]`.
    pub(crate) fn sum_slots(
        &self,
        slots: &[f32],
        (weights, used): (&[f32], usize),
        cols: usize,
        output: &mut [f32],
    ) {
        self.rows(output, cols, |row, output| {
            let slots = &slots[row * used * cols..(row + 1) * used * cols];
            sum_row(self.isa, slots, &weights[row * used..(row + 1) * used], output);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{isa::Isa, pool::Pool};

    fn chosen(logits: &[f32], used: usize, normalized: bool) -> (Vec<u32>, Vec<f32>) {
        let [mut experts, mut weights] = [(); 2].map(|()| vec![f32::NAN; used]);
        let route = Route { count: logits.len(), used, normalized };
        let cpu = Cpu { pool: &Pool::new(1), isa: Isa::Scalar };
        cpu.route(route, logits, &mut experts, &mut weights);
        (experts.into_iter().map(f32::to_bits).collect(), weights)
    }

    #[test]
    fn whatever_the_logits_are_the_chosen_are_experts() {
        const NAN: f32 = f32::NAN;
        assert_eq!(chosen(&[NAN, 1.0, NAN, 2.0], 3, true).0, [3, 1, 0]);
        assert_eq!(chosen(&[NAN; 3], 3, false).0, [0, 1, 2]);
        assert_eq!(chosen(&[0.0, -0.0, 0.0], 2, true), (vec![0, 1], vec![0.5, 0.5]));
        assert_eq!(chosen(&[f32::NEG_INFINITY; 3], 2, true).0, [0, 1]);
        let (experts, weights) = chosen(&[f32::NEG_INFINITY, NAN, 3.0], 2, true);
        assert_eq!((experts, weights), (vec![2, 0], vec![1.0, 0.0]));
        assert_eq!(chosen(&[f32::INFINITY, f32::INFINITY], 2, true).0, [0, 1]);
    }

    #[test]
    fn many_rows_are_what_one_is() {
        let (count, used, rows) = (40, 8, 100);
        let logits: Vec<f32> = (0..rows * count).map(|at| (at * at % 23) as f32 / 4.0).collect();
        let [mut experts, mut weights] = [(); 2].map(|()| vec![f32::NAN; rows * used]);
        let cpu = Cpu { pool: &Pool::new(3), isa: Isa::Scalar };
        let route = Route { count, used, normalized: false };
        cpu.route(route, &logits, &mut experts, &mut weights);
        for row in 0..rows {
            let (expected, own) = chosen(&logits[row * count..][..count], used, false);
            let slots = row * used..(row + 1) * used;
            let found: Vec<u32> = experts[slots.clone()].iter().map(|it| it.to_bits()).collect();
            assert_eq!((found, &weights[slots]), (expected, &own[..]));
        }
    }
}
