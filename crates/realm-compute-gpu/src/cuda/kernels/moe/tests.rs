//! The choice against one in f64, orders against a sort, sums and copies against their definitions.

use super::*;
use crate::cuda::{
    gpu::Buffer,
    kernels::testing::{Rig, TARGETS, bits},
};

fn words(buffer: &Buffer) -> Vec<u32> {
    let bytes = buffer.read(0..buffer.bytes()).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
}

fn poisoned(rig: &Rig, words: usize) -> Buffer {
    let buffer = Buffer::new(&rig.gpu, 4 * words, "results").unwrap();
    buffer.fill(0xFF).unwrap();
    buffer
}

/// Logits of few different values: many ties, signed zeros, infinities, and what is no number.
fn logits(rig: &mut Rig, count: usize) -> Vec<f32> {
    let odd = [0.0, -0.0, f32::NEG_INFINITY, f32::NAN, -f32::NAN];
    let mut draw = || match rig.random.below(8) {
        0 => rig.random.pick(&odd),
        _ => (2.0 * rig.random.normal()).round() / 2.0,
    };
    (0..count).map(|_| draw()).collect()
}

/// Chosen experts, and their weights.
fn choice(logits: &[f32], used: usize, normalized: bool) -> (Vec<u32>, Vec<f64>) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (logits[a], logits[b]);
        let numbers = a.is_nan().cmp(&b.is_nan());
        numbers.then(b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal))
    });
    order.truncate(used);
    let most = f64::from(logits[order[0]]);
    let share = |&at: &usize| (f64::from(logits[at]) - most).exp();
    let total: f64 = match normalized {
        true => order.iter().map(share).sum(),
        false => (0..logits.len()).map(|at| share(&at)).sum(),
    };
    let weights = order.iter().map(|at| share(at) / total).collect();
    (order.into_iter().map(|at| at as u32).collect(), weights)
}

fn check_route(all: usize, used: usize, normalized: bool) {
    let mut rig = Rig::new(&format!("{used} of {all}"));
    let rows = 1 + rig.random.below(5);
    let bucket = rows + rig.random.below(3);
    let mut values = logits(&mut rig, rows * all);
    // One row without oddities, and one with nothing else.
    for (at, value) in values.iter_mut().enumerate().filter(|(at, _)| *at < all) {
        *value = (at * 7 % 11) as f32;
    }
    if rows > 1 {
        values[all..2 * all].fill(f32::NAN);
    }
    let (memory, count) = (rig.upload(values.as_bytes()), rig.count(rows));
    let [experts, weights] = [0; 2].map(|_| poisoned(&rig, bucket * used));
    let launch = route(&Route {
        logits: memory.address(),
        rows: bucket,
        count: count.address(),
        experts: experts.address(),
        weights: weights.address(),
        all,
        used,
        normalized,
    });
    rig.gpu.launch(&launch).unwrap();
    let (experts, weights) = (words(&experts), words(&weights));
    for (row, logits) in values.chunks_exact(all).enumerate() {
        let (expected, shares) = choice(logits, used, normalized);
        assert_eq!(experts[row * used..][..used], expected, "{used} of {all}: {logits:?}");
        for (&found, share) in weights[row * used..][..used].iter().zip(shares) {
            let found = f64::from(f32::from_bits(found));
            let near = (found - share).abs() <= 1e-6 * share.max(1e-6);
            assert!(near || (found.is_nan() && share.is_nan()), "{found} for {share}");
        }
    }
    let rest = experts[rows * used..].iter().chain(&weights[rows * used..]);
    assert!(rest.into_iter().all(|&word| word == u32::MAX), "a row beyond the count was written");
}

#[test]
fn routes() {
    for (all, used) in [(1, 1), (2, 1), (3, 3), (8, 2), (60, 4), (128, 8), (257, 31), (512, 32)] {
        for normalized in [false, true] {
            check_route(all, used, normalized);
        }
    }
}

/// Slots of a step's rows `first` to `end`.
struct Slots {
    groups: Groups,
    chosen: Vec<u32>,
    first: usize,
    memory: [Buffer; 5],
}

impl Slots {
    fn new(rig: &mut Rig, rows: [usize; 2], used: usize, experts: usize) -> Self {
        let [first, end] = rows;
        let slots = end * used;
        let chosen: Vec<u32> = (0..slots).map(|_| rig.random.below(experts) as u32).collect();
        let memory = [
            rig.upload(chosen.as_bytes()),
            rig.count(first),
            rig.count(end),
            poisoned(rig, experts + 1),
            poisoned(rig, slots + 1),
        ];
        let address = |at: usize| memory[at].address();
        let groups = Groups {
            first: if first == 0 { 0 } else { address(1) },
            end: address(2),
            used,
            experts,
            starts: address(3),
            order: address(4),
        };
        Self { groups, chosen, first: first * used, memory }
    }

    /// The slots' numbers in order of their experts.
    fn sorted(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (self.first as u32..self.chosen.len() as u32).collect();
        order.sort_by_key(|&slot| self.chosen[slot as usize]);
        order
    }

    fn group(&self, rig: &Rig) {
        rig.gpu.launch(&group(&self.groups, self.memory[0].address())).unwrap();
    }
}

#[test]
fn groups() {
    let mut rig = Rig::new("groups");
    for (rows, used, experts) in [
        ([0, 1], 1, 1),
        ([0, 0], 2, 3),
        ([5, 5], 2, 3),
        ([0, 33], 3, 4),
        ([7, 40], 2, 9),
        ([3, 700], 8, 17),
    ] {
        let slots = Slots::new(&mut rig, rows, used, experts);
        slots.group(&rig);
        let (starts, order) = (words(&slots.memory[3]), words(&slots.memory[4]));
        let expected = slots.sorted();
        assert_eq!(order[..expected.len()], expected);
        assert!(order[expected.len()..].iter().all(|&slot| slot == u32::MAX));
        let start = |expert: usize| {
            let before = |&&slot: &&u32| slots.chosen[slot as usize] < expert as u32;
            expected.iter().filter(before).count() as u32
        };
        assert_eq!(starts, (0..=experts).map(start).collect::<Vec<_>>());
    }
}

#[test]
fn gathered_rows() {
    let mut rig = Rig::new("gathered rows");
    for (form, k, own_input) in [(Form::BF16, 1, false), (Form::F16, 300, true)] {
        let (used, rows) = (3, [2, 9]);
        let slots = Slots::new(&mut rig, rows, used, 5);
        slots.group(&rig);
        let input_rows = if own_input { rows[1] * used } else { rows[1] };
        let input = rig.input(form, input_rows, input_rows, k);
        let count = (rows[1] - rows[0]) * used;
        // As if the launch were made for two rows more.
        let target = rig.target(form, count, count + 2 * used, k);
        let launch =
            gather(&slots.groups, count / used + 2, &input.columns, own_input, &target.columns());
        rig.gpu.launch(&launch).unwrap();
        let row = |slot: u32| slot as usize / if own_input { 1 } else { used };
        let expected = slots.sorted().into_iter().map(row);
        let values = expected.flat_map(|row| input.values[row * k..][..k].iter());
        target.check(&values.map(|&value| value as f32).collect::<Vec<_>>());
    }
}

#[test]
fn sums() {
    let mut rig = Rig::new("sums");
    for (cols, used) in [(1, 1), (5, 3), (64, 2), (300, 8), (1028, 4)] {
        let rows = 1 + rig.random.below(4);
        let bucket = rows + rig.random.below(2);
        let numbers = |rig: &mut Rig, count| -> Vec<f32> {
            (0..count).map(|_| rig.random.normal()).collect()
        };
        let (slots, weights) =
            (numbers(&mut rig, rows * used * cols), numbers(&mut rig, rows * used));
        let memory = [rig.upload(slots.as_bytes()), rig.upload(weights.as_bytes())];
        let count = rig.count(rows);
        let mut expected = vec![0.0_f32; rows * cols];
        for (row, sums) in expected.chunks_exact_mut(cols).enumerate() {
            for slot in row * used..(row + 1) * used {
                for (sum, x) in sums.iter_mut().zip(&slots[slot * cols..][..cols]) {
                    *sum = weights[slot].mul_add(*x, *sum);
                }
            }
        }
        for form in TARGETS {
            let target = rig.target(form, rows, bucket, cols);
            let map = Map {
                input: memory[0].address(),
                cols,
                rows: bucket,
                count: count.address(),
                target: target.columns(),
            };
            rig.gpu.launch(&sum(&map, memory[1].address(), used)).unwrap();
            if form == Form::F32 {
                assert_eq!(bits(&target.plain()), bits(&expected));
            }
            target.check(&expected);
        }
    }
}
