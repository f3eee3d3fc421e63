//! Norms, rotations, activations, sums, gathers, sampling.

use realm_core::{
    graph::ops::{Activation, RopePairs},
    rope::RopeFrequencies,
    sampling::Sampling,
};

use crate::{
    Case,
    case::{CaseBuilder, Chunk},
    random::Random,
};

const COLS: [usize; 6] = [1, 7, 16, 64, 257, 2048];

/// The cases.
pub fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    for cols in COLS {
        cases.push(rms_norm(random, cols));
        cases.push(norm_of_sum(random, cols));
        cases.push(layer_norm(random, cols));
        cases.push(arithmetic(random, cols));
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            cases.push(glu(random, cols, activation));
        }
        cases.push(sample(random, cols));
        cases.push(given(random, cols));
    }
    for (heads, head_dim) in [(1, 7), (3, 16), (2, 80), (5, 128)] {
        cases.push(head_norm(random, heads, head_dim));
    }
    for pairs in [RopePairs::Adjacent, RopePairs::Halves] {
        for (heads, head_dim, rotary_dim) in [(1, 2, 2), (3, 16, 16), (2, 80, 32), (4, 128, 128)] {
            cases.push(rope(random, pairs, [heads, head_dim, rotary_dim]));
        }
    }
    cases
}

fn rms_norm(random: &mut Random, cols: usize) -> Case {
    let mut case = CaseBuilder::new(random, 30);
    let (input, weight) = (case.input("x", cols), case.vector("w", cols));
    let output = case.graph.rms_norm(input, weight, 1e-5);
    case.finish(format!("rms-norm/cols{cols}"), output)
}

/// A residual addition fused into the norm; the case sums both of its results.
fn norm_of_sum(random: &mut Random, cols: usize) -> Case {
    let mut case = CaseBuilder::new(random, 30);
    let (left, right) = (case.input("x", cols), case.input("y", cols));
    let weight = case.vector("w", cols);
    let sum = case.graph.add(left, right);
    let normed = case.graph.rms_norm(sum, weight, 1e-6);
    let output = case.graph.add(sum, normed);
    let mut case = case.finish(format!("rms-norm-of-sum/cols{cols}"), output).rows(11);
    realm_core::fuse::norm_sums(&mut case.graph);
    case
}

fn head_norm(random: &mut Random, heads: usize, head_dim: usize) -> Case {
    let mut case = CaseBuilder::new(random, 30);
    let (input, weight) = (case.input("x", heads * head_dim), case.vector("w", head_dim));
    let output = case.graph.rms_norm_groups(input, weight, 1e-6, head_dim);
    case.finish(format!("rms-norm-heads/{heads}x{head_dim}"), output)
}

fn layer_norm(random: &mut Random, cols: usize) -> Case {
    let biased = random.below(2) == 0;
    let mut case = CaseBuilder::new(random, 30);
    let (input, weight) = (case.input("x", cols), case.vector("w", cols));
    let bias = biased.then(|| case.vector("b", cols));
    let output = case.graph.layer_norm(input, weight, bias, 1e-5);
    case.finish(format!("layer-norm/cols{cols}"), output)
}

fn arithmetic(random: &mut Random, cols: usize) -> Case {
    let mut case = CaseBuilder::new(random, 30);
    let (left, right) = (case.input("x", cols), case.input("y", cols));
    let scaled = case.graph.scale(left, -2.75);
    let sum = case.graph.add(scaled, right);
    let output = case.graph.soft_cap(sum, 1.5);
    case.finish(format!("scale-add-softcap/cols{cols}"), output).rows(13)
}

fn glu(random: &mut Random, cols: usize, activation: Activation) -> Case {
    let mut case = CaseBuilder::new(random, 30);
    let (gate, up) = (case.input("gate", cols), case.input("up", cols));
    let gate = case.graph.scale(gate, 3.0);
    let output = case.graph.glu(gate, up, activation);
    case.finish(format!("glu/{activation:?}/cols{cols}").to_lowercase(), output)
}

fn rope(random: &mut Random, pairs: RopePairs, [heads, head_dim, rotary_dim]: [usize; 3]) -> Case {
    let mut case = CaseBuilder::new(random, 30);
    let input = case.input("x", heads * head_dim);
    let table = case.graph.rope_table(RopeFrequencies::new(10_000.0, rotary_dim));
    let output = case.graph.rope(input, heads, head_dim, pairs, table);
    let name = format!("rope/{pairs:?}/{heads}x{head_dim}/rotary{rotary_dim}").to_lowercase();
    // Later positions come by decoding and by a second chunk.
    let steps = vec![
        vec![Chunk::prefill(0, 70), Chunk::prefill(1, 5)],
        vec![Chunk::decode(0), Chunk::prefill(1, 3)],
    ];
    case.finish(name, output).steps(steps)
}

/// Rows from the host, alone and beside an embedding: both results are summed.
fn given(random: &mut Random, cols: usize) -> Case {
    let mut case = CaseBuilder::new(random, 30);
    let embedded = case.input("x", cols);
    let given = case.graph.given("given", cols);
    let scaled = case.graph.scale(given, 0.5);
    let sum = case.graph.add(embedded, scaled);
    let output = case.graph.add(given, sum);
    let steps = vec![
        vec![Chunk::prefill(0, 7), Chunk::prefill(1, 2)],
        vec![Chunk::decode(0), Chunk::prefill(1, 3)],
    ];
    case.finish(format!("given/cols{cols}"), output).steps(steps)
}

fn sample(random: &mut Random, cols: usize) -> Case {
    let how = Sampling {
        temperature: random.pick(&[0.0, 0.7, 1.5]),
        top_k: random.pick(&[0, 5, 40]),
        top_p: random.pick(&[1.0, 0.9, 0.3]),
        min_p: random.pick(&[0.0, 0.05]),
        seed: u64::from(random.word()),
        position: 0,
    };
    let mut case = CaseBuilder::new(random, 30);
    let input = case.input("logits", cols);
    let logits = case.graph.gather_rows(input);
    case.graph.sample(logits);
    let mut case = case.finish_outputs(format!("sample/cols{cols}"), logits).rows(25);
    case.sampling = Some(how);
    case
}
