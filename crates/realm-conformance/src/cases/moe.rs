//! Mixtures of experts: the choice, products of every format with chosen experts, their sum. Logits of
//! routers are drawn, not computed: a near tie may go either way where they have rounding errors.

use std::sync::Arc;

use libtest_mimic::Trial;
use realm_core::{
    DType,
    backend::{Backend, KvType, Precision},
    graph::{Value, ops::Activation},
};

use super::{invariance, model};
use crate::{
    Case,
    case::{CaseBuilder, Chunk},
    random::Random,
};

const VOCABULARY: usize = 40;

/// All experts, and those that a row takes: one, some, all; so many that no row takes most of them.
const MIXTURES: [[usize; 2]; 8] =
    [[1, 1], [3, 1], [4, 2], [5, 5], [8, 2], [40, 8], [64, 1], [128, 8]];

/// The cases.
pub fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for mixture in MIXTURES {
        for normalized in [false, true] {
            cases.push(route(random, mixture, normalized));
            cases.push(ranks(random, mixture, normalized));
        }
        cases.push(sum(random, mixture));
    }
    for &dtype in DType::ALL {
        let other = random.pick(&[Precision::F16, Precision::BF16, Precision::Int8]);
        for precision in [Precision::F32, other] {
            cases.push(gated(random, dtype, precision));
        }
        // A backend may have a kernel for each.
        for precision in [Precision::F32, Precision::F16, Precision::BF16, Precision::Int8] {
            cases.push(linear(random, dtype, precision));
        }
        for precision in [Precision::F32, other] {
            cases.push(whole(random, dtype, precision));
        }
    }
    cases
}

/// Prompts long and short, decoding alone and beside them.
fn steps(rows: usize) -> Vec<Vec<Chunk>> {
    vec![
        vec![Chunk::prefill(0, rows), Chunk::prefill(1, 1)],
        vec![Chunk::decode(0)],
        vec![Chunk::decode(1), Chunk::prefill(2, rows.div_ceil(3)), Chunk::decode(0)],
    ]
}

/// Experts and weights by logits of a few different values, so that many are ties.
fn routed(case: &mut CaseBuilder<'_>, [count, used]: [usize; 2], normalized: bool) -> [Value; 2] {
    let values = (0..VOCABULARY * count).map(|_| (2.0 * case.random().normal()).round() / 2.0);
    let values = values.collect::<Vec<f32>>();
    let table = case.values("router", [VOCABULARY, count], &values);
    let logits = case.graph.embed(table);
    case.graph.moe_route(logits, used, normalized)
}

fn name([count, used]: [usize; 2], rest: &str) -> String {
    format!("{used}of{count}/{rest}").to_lowercase()
}

/// The weights of the chosen.
fn route(random: &mut Random, mixture: [usize; 2], normalized: bool) -> Case {
    let rows = random.pick(&[1, 6, 300]);
    let mut case = CaseBuilder::new(random, VOCABULARY);
    let [_, weights] = routed(&mut case, mixture, normalized);
    let sums = if normalized { "normalized" } else { "softmax" };
    let name = format!("moe-route/{}", name(mixture, &format!("{sums}/m{rows}")));
    case.finish(name, weights).steps(steps(rows))
}

/// Who the chosen are, in order: each expert answers with a number of its own.
fn ranks(random: &mut Random, mixture @ [count, used]: [usize; 2], normalized: bool) -> Case {
    let mut case = CaseBuilder::new(random, VOCABULARY);
    let [experts, _] = routed(&mut case, mixture, normalized);
    let numbers: Vec<f32> = (0..count).map(|expert| expert as f32).collect();
    let numbers = case.values("numbers", [count, 1], &numbers);
    let ones = case.values("ones", [VOCABULARY, used], &vec![1.0; VOCABULARY * used]);
    let ones = case.graph.embed(ones);
    let output = case.graph.moe_linear(ones, (experts, count), numbers);
    let sums = if normalized { "normalized" } else { "softmax" };
    let case = case.finish(format!("moe-ranks/{}", name(mixture, sums)), output);
    case.steps(steps(9)).tolerance(0.0)
}

fn sum(random: &mut Random, mixture @ [_, used]: [usize; 2]) -> Case {
    let (rows, cols) = (random.pick(&[1, 7, 40]), random.pick(&[1, 5, 64, 300]));
    let mut case = CaseBuilder::new(random, VOCABULARY);
    let (slots, weights) = (case.input("slots", used * cols), case.input("weights", used));
    let output = case.graph.moe_sum(slots, weights);
    let name = format!("moe-sum/{}", name(mixture, &format!("m{rows}/n{cols}")));
    case.finish(name, output).typical(1.0).steps(steps(rows))
}

/// Sizes of a product: rows, elements of an expert's result, elements of its input. Many experts are
/// small ones, as drawing their weights takes long.
fn sizes(random: &mut Random, dtype: DType, count: usize) -> [usize; 3] {
    let rows = random.pick(&[1, 3, 17, 90]);
    if count > 8 {
        return [rows, random.pick(&[1, 7]), dtype.block_len()];
    }
    let k = dtype.block_len()
        * match dtype.block_len() {
            1 => random.pick(&[1, 3, 31, 64, 257]),
            _ => random.pick(&[1, 2, 3]),
        };
    [rows, random.pick(&[1, 7, 32, 50]), k]
}

fn title(op: &str, mixture: [usize; 2], kind: &str, [m, n, k]: [usize; 3]) -> String {
    format!("{op}/{}", name(mixture, &format!("{kind}/m{m}/n{n}/k{k}")))
}

fn gated(random: &mut Random, dtype: DType, precision: Precision) -> Case {
    let mixture = random.pick(&MIXTURES);
    let sizes @ [m, n, k] = sizes(random, dtype, mixture[0]);
    // A backend may have one kernel for both formats, or none for two that differ.
    let other = if random.below(4) == 0 { random.pick(DType::ALL) } else { dtype };
    let other = if k.is_multiple_of(other.block_len()) { other } else { dtype };
    let activation = random.pick(&[Activation::Silu, Activation::GeluTanh, Activation::Gelu]);
    let mut case = CaseBuilder::new(random, VOCABULARY);
    let [experts, _] = routed(&mut case, mixture, true);
    let input = case.input("x", k);
    let weights = [("gate", dtype), ("up", other)]
        .map(|(name, dtype)| case.weight(name, mixture[0] * n, k, dtype));
    let chosen = (experts, mixture[0]);
    let output = case.graph.moe_gated_linear(input, chosen, weights, activation);
    let kind = format!("{dtype}/{precision}");
    let case = case.finish(title("moe-gated", mixture, &kind, sizes), output);
    let mut case = case.precision(precision).typical(1.0).steps(steps(m));
    if precision != Precision::F32 {
        // A product of two results has the rounding errors of both.
        case.tolerance *= std::f64::consts::SQRT_2;
    }
    case
}

fn linear(random: &mut Random, dtype: DType, precision: Precision) -> Case {
    let mixture = random.pick(&MIXTURES);
    let sizes @ [m, n, k] = sizes(random, dtype, mixture[0]);
    let mut case = CaseBuilder::new(random, VOCABULARY);
    let [experts, _] = routed(&mut case, mixture, true);
    let input = case.input("x", mixture[1] * k);
    let weight = case.weight("w", mixture[0] * n, k, dtype);
    let output = case.graph.moe_linear(input, (experts, mixture[0]), weight);
    let kind = format!("{dtype}/{precision}");
    let case = case.finish(title("moe-linear", mixture, &kind, sizes), output);
    case.precision(precision).typical(1.0).steps(steps(m))
}

/// All ops of a mixture, and a residual addition.
fn whole(random: &mut Random, dtype: DType, precision: Precision) -> Case {
    let mixture = random.pick(&MIXTURES[..5]);
    let [m, n, _] = sizes(random, dtype, mixture[0]);
    let (cols, inner) = (256, n.next_multiple_of(dtype.block_len()));
    let normalized = random.below(2) == 0;
    let mut case = CaseBuilder::new(random, VOCABULARY);
    let [experts, weights] = routed(&mut case, mixture, normalized);
    let input = case.input("x", cols);
    let gate_and_up = ["gate", "up"].map(|name| case.weight(name, mixture[0] * inner, cols, dtype));
    let down = case.weight("down", mixture[0] * cols, inner, dtype);
    let chosen = (experts, mixture[0]);
    let gated = case.graph.moe_gated_linear(input, chosen, gate_and_up, Activation::Silu);
    let fed = case.graph.moe_linear(gated, chosen, down);
    let fed = case.graph.moe_sum(fed, weights);
    let output = case.graph.add(input, fed);
    let kind = format!("{dtype}/{precision}");
    let name = title("moe", mixture, &kind, [m, inner, cols]);
    let case = case.finish(name, output).precision(precision).typical(1.0).steps(steps(m));
    let mut case = if random.below(2) == 0 { case.by_batch() } else { case };
    if precision != Precision::F32 {
        // The rounding errors of three products.
        case.tolerance *= 3f64.sqrt();
    }
    case
}

/// Invariance where rows are grouped by expert: who chose the same must not matter.
pub fn trials(variant: &str, backend: &Arc<dyn Backend>, seed: u64) -> Vec<Trial> {
    let kinds = [
        (DType::Q4_K, Precision::Int8, KvType::F16),
        (DType::Q8_0, Precision::BF16, KvType::F32),
        (DType::F32, Precision::F32, KvType::F32),
    ];
    let trial = |(dtype, precision, kv_type): (DType, Precision, KvType)| {
        let backend = backend.clone();
        let mut random = Random::new(seed).named("moe invariance");
        let case = model::mixture(&mut random, dtype).precision(precision).kv_type(kv_type);
        let name = format!("{variant}/invariance/moe/{dtype}/{precision}").to_lowercase();
        Trial::test(name, move || invariance::same_alone_and_batched(case, &*backend, seed))
    };
    kinds.into_iter().map(trial).collect()
}
