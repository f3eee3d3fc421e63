//! Matrix products: every format, every compute type, odd shapes.

use realm_core::{DType, backend::Precision, graph::ops::Activation};

use crate::{
    Case,
    case::{CaseBuilder, Chunk},
    random::Random,
};

const PRECISIONS: [Precision; 4] =
    [Precision::F32, Precision::F16, Precision::BF16, Precision::Int8];

/// The cases.
pub fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for &dtype in DType::ALL {
        for precision in PRECISIONS {
            cases.push(single(random, dtype, precision));
            cases.push(several(random, dtype, precision));
            cases.push(gated(random, dtype, precision));
        }
        for precision in [Precision::F16, Precision::BF16] {
            cases.push(many_rows(random, dtype, precision));
        }
        cases.push(embed(random, dtype));
    }
    cases
}

/// A k that is a whole number of blocks, and of nothing larger.
fn inputs(random: &mut Random, dtype: DType) -> usize {
    let unit = dtype.block_len();
    let odd =
        if unit == 1 { random.pick(&[1, 3, 31, 64, 257, 640]) } else { random.pick(&[1, 3, 5]) };
    unit * odd
}

/// Steps with all kinds of rows: a prompt, decoding alone, both mixed.
fn steps(rows: usize) -> Vec<Vec<Chunk>> {
    vec![
        vec![Chunk::prefill(0, rows)],
        vec![Chunk::decode(0)],
        vec![Chunk::decode(0), Chunk::prefill(1, rows.div_ceil(2)), Chunk::decode(2)],
    ]
}

fn name(dtype: DType, precision: Precision, [m, n, k]: [usize; 3]) -> String {
    format!("{dtype}/{precision}/m{m}/n{n}/k{k}").to_lowercase()
}

fn single(random: &mut Random, dtype: DType, precision: Precision) -> Case {
    let (m, n) = (random.pick(&[1, 2, 7, 33, 130]), random.pick(&[1, 7, 16, 61, 128]));
    let k = inputs(random, dtype);
    let mut case = CaseBuilder::new(random, 50);
    let input = case.input("x", k);
    let weight = case.weight("w", n, k, dtype);
    let output = case.graph.linear(input, weight, None);
    let name = format!("linear/{}", name(dtype, precision, [m, n, k]));
    case.finish(name, output).precision(precision).typical(1.0).steps(steps(m))
}

/// Prompts of all sizes that kernels for many rows are made for, plain and gated; a batch of many decoded
/// rows, for backends whose batch chooses the kernel.
fn many_rows(random: &mut Random, dtype: DType, precision: Precision) -> Case {
    let (n, k) = (random.pick(&[40, 130]), 256 * random.pick(&[1, 3]));
    let mut case = CaseBuilder::new(random, 50);
    let input = case.input("x", k);
    let [gate, up, other] = ["gate", "up", "other"].map(|name| case.weight(name, n, k, dtype));
    let [gate, up, other] = [gate, up, other].map(|weight| case.graph.linear(input, weight, None));
    let gated = case.graph.glu(gate, up, Activation::Silu);
    let output = case.graph.add(gated, other);
    let prompt = |rows: usize| vec![Chunk::prefill(0, rows)];
    let mut steps: Vec<_> = [1, 31, 64, 65, 128, 200].map(prompt).into();
    steps.push((0..40).map(Chunk::decode).collect());
    let name = format!("linear-many/{dtype}/{precision}/n{n}/k{k}").to_lowercase();
    let mut case = case.finish(name, output).precision(precision).typical(1.0).steps(steps);
    case.tolerance *= std::f64::consts::SQRT_2;
    realm_core::fuse::fuse(&mut case.graph);
    if random.below(2) == 0 { case.by_batch() } else { case }
}

/// Three weights of different formats and sizes on one input, with biases; their results added.
fn several(random: &mut Random, dtype: DType, precision: Precision) -> Case {
    let (m, k) = (random.pick(&[1, 5, 37]), 256 * random.pick(&[1, 2]));
    let (n, other) = (random.pick(&[5, 48]), random.pick(DType::ALL));
    let mut case = CaseBuilder::new(random, 40);
    let input = case.input("x", k);
    let mut sum = None;
    for (name, dtype) in [("a", dtype), ("b", other), ("c", dtype)] {
        let weight = case.weight(name, n, k, dtype);
        let bias = (name != "b").then(|| case.vector(&format!("{name}.bias"), n));
        let output = case.graph.linear(input, weight, bias);
        sum = Some(sum.map_or(output, |sum| case.graph.add(sum, output)));
    }
    let name = format!("linear-3/{}", name(dtype, precision, [m, n, k]));
    let mut case = case.finish(name, sum.unwrap_or(input));
    case = case.precision(precision).typical(3f64.sqrt()).steps(steps(m));
    realm_core::fuse::merge_linears(&mut case.graph);
    case
}

fn gated(random: &mut Random, dtype: DType, precision: Precision) -> Case {
    let (m, n) = (random.pick(&[1, 4, 19]), random.pick(&[3, 32, 50]));
    let k = inputs(random, dtype);
    let activation = random.pick(&[Activation::Silu, Activation::GeluTanh, Activation::Gelu]);
    let biased = random.below(2) == 0;
    let mut case = CaseBuilder::new(random, 40);
    let input = case.input("x", k);
    let [gate, up] = ["gate", "up"].map(|name| {
        let weight = case.weight(name, n, k, dtype);
        let bias = biased.then(|| case.vector(&format!("{name}.bias"), n));
        case.graph.linear(input, weight, bias)
    });
    let output = case.graph.glu(gate, up, activation);
    let name = format!("gated/{activation:?}/{}", name(dtype, precision, [m, n, k])).to_lowercase();
    let mut case = case.finish(name, output).precision(precision).typical(1.0).steps(steps(m));
    if precision != Precision::F32 {
        // A product of two results has the rounding errors of both.
        case.tolerance *= std::f64::consts::SQRT_2;
    }
    realm_core::fuse::fuse(&mut case.graph);
    case
}

fn embed(random: &mut Random, dtype: DType) -> Case {
    let cols = inputs(random, dtype);
    let mut case = CaseBuilder::new(random, 23);
    let table = case.scaled_weight("table", [23, cols], dtype, 1.0);
    let output = case.graph.embed(table);
    case.finish(format!("embed/{dtype}/cols{cols}").to_lowercase(), output).steps(steps(9))
}
