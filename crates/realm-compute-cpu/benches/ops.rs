//! How fast single ops run, beside the machine's ceilings: `cargo bench -p realm-compute-cpu`.
//! `REALM_ISA=avx2` limits the instructions, `REALM_THREADS=1` the threads; an argument picks rows whose
//! name holds it.

use std::sync::Arc;

use realm_compute_cpu::{CpuBackend, CpuOptions, Roofline};
use realm_conformance::{
    case::{CaseBuilder, Chunk},
    random::Random,
    run,
};
use realm_core::{
    DType,
    backend::{Backend, KvType, Precision},
    graph::{
        KvLayer, Op,
        ops::{Activation, AttentionSpec, Mask},
    },
};

const REPETITIONS: usize = 7;

/// Seconds of the fastest run of the ops that `which` picks, in the last step of each run.
fn fastest(case: &realm_conformance::Case, backend: &dyn Backend, which: fn(&Op) -> bool) -> f64 {
    let outputs = run::run_timed(case, backend, 1, REPETITIONS).expect("the case runs");
    let picked = |seconds: &[f64]| -> f64 {
        let nodes = case.graph.nodes().iter().zip(seconds);
        nodes.filter(|(node, _)| which(&node.op)).map(|(_, seconds)| seconds).sum()
    };
    outputs.iter().map(|seconds| picked(seconds)).fold(f64::INFINITY, f64::min)
}

fn linear(
    backend: &dyn Backend,
    ceilings: &Roofline,
    dtype: DType,
    precision: Precision,
    m: usize,
) {
    let k = 2048;
    // Half a gigabyte for a single row, which no cache holds.
    let n = if m == 1 { (512 << 20) / dtype.row_bytes(k).unwrap_or(k) } else { 5632 };
    let mut random = Random::new(1);
    let mut case = CaseBuilder::new(&mut random, 8);
    let input = case.input("x", k);
    // One encoded row, repeated: encoding them all would take longer than the measurement.
    let weight = case.repeated_weight("w", [n, k], dtype);
    let output = case.graph.linear(input, weight, None);
    let case = case.finish("linear", output).precision(precision).rows(m);
    let seconds = fastest(&case, backend, |op| matches!(op, Op::Linear(_)));
    let bytes = (n * dtype.row_bytes(k).unwrap_or(0)) as f64 / seconds;
    let ops = (2 * m * n * k) as f64 / seconds;
    println!(
        "linear/{dtype}/{precision}/m{m:<4} {:8.3} ms {:6.1} GB/s ({:3.0} %) {:8.1} GOP/s ({:3.0} %)",
        seconds * 1e3,
        bytes / 1e9,
        100.0 * bytes / ceilings.read_bytes_per_second,
        ops / 1e9,
        100.0 * ops / ceilings.ops_per_second
    );
}

/// A layer of Qwen3-30B-A3B: eight of 128 experts a row.
fn mixture(backend: &dyn Backend, ceilings: &Roofline, dtype: DType, m: usize) {
    let ([count, used], [hidden, inner]) = ([128, 8], [2048, 768]);
    let mut random = Random::new(1);
    let mut case = CaseBuilder::new(&mut random, 512);
    let (input, logits) = (case.input("x", hidden), case.input("router", count));
    let [experts, weights] = case.graph.moe_route(logits, used, true);
    let gate_and_up =
        ["gate", "up"].map(|name| case.repeated_weight(name, [count * inner, hidden], dtype));
    let down = case.repeated_weight("down", [count * hidden, inner], dtype);
    let chosen = (experts, count);
    let gated = case.graph.moe_gated_linear(input, chosen, gate_and_up, Activation::Silu);
    let fed = case.graph.moe_linear(gated, chosen, down);
    let output = case.graph.moe_sum(fed, weights);
    let case = case.finish("mixture", output).precision(Precision::Int8).rows(m);
    let all = fastest(&case, backend, |op| op.name().starts_with("Moe"));
    let products =
        fastest(&case, backend, |op| matches!(op, Op::MoeGatedLinear(_) | Op::MoeLinear(_)));
    let elements = 3 * hidden * inner * used;
    // Of one row: more rows read more, how much more depends on their choice.
    let bytes = (elements / dtype.block_len() * dtype.block_bytes()) as f64 / products;
    let ops = (2 * m * elements) as f64 / products;
    println!(
        "mixture/{dtype}/int8/m{m:<4} {:8.3} ms, products {:8.3} ms {:6.1} GB/s a row {:8.1} GOP/s ({:3.0} %)",
        all * 1e3,
        products * 1e3,
        bytes / 1e9,
        ops / 1e9,
        100.0 * ops / ceilings.ops_per_second
    );
}

fn attention(
    backend: &dyn Backend,
    [heads, kv_heads, head_dim]: [usize; 3],
    kv_type: KvType,
    decode: bool,
) {
    const LENGTH: usize = 2048;
    let mut random = Random::new(1);
    let mut case = CaseBuilder::new(&mut random, 64);
    let query = case.input("q", heads * head_dim);
    let (key, value) = (case.input("k", kv_heads * head_dim), case.input("v", kv_heads * head_dim));
    let layer = case.graph.kv_layer(KvLayer { heads: kv_heads, head_dim });
    case.graph.kv_write(layer, key, value);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mask = Mask::CAUSAL;
    let spec = AttentionSpec { heads, head_dim, scale, mask, soft_cap: None, sinks: None };
    let output = case.graph.attention(layer, query, spec);
    let mut steps = vec![vec![Chunk::prefill(0, LENGTH)]];
    if decode {
        steps.push(vec![Chunk::decode(0)]);
    }
    let case = case.finish("attention", output).kv_type(kv_type).steps(steps);
    let seconds = fastest(&case, backend, |op| matches!(op, Op::Attention(_)));
    let rows = if decode { 1 } else { LENGTH };
    println!(
        "attention/{rows}x{LENGTH}/{heads}on{kv_heads}/d{head_dim}/{kv_type} {:8.3} ms a layer",
        seconds * 1e3
    );
}

fn main() {
    let setting = |name: &str| std::env::var(name).ok();
    let isa = setting("REALM_ISA").map(|isa| isa.parse().expect("scalar, avx2 or avx512"));
    let threads = setting("REALM_THREADS").map(|threads| threads.parse().expect("a number"));
    let options = CpuOptions { threads, isa: isa.unwrap_or_default() };
    let backend: Arc<dyn Backend> = Arc::new(CpuBackend::new(&options));
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let picks = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    println!("{}, {:?} threads", backend.info().description, backend.info().threads);
    for precision in [Precision::Int8, Precision::F32] {
        let ceilings = CpuBackend::new(&options).roofline(precision);
        let Roofline { read_bytes_per_second, ops_per_second, path } = &ceilings;
        println!(
            "{path}: {:.0} GOP/s; memory {:.1} GB/s",
            ops_per_second / 1e9,
            read_bytes_per_second / 1e9
        );
        for m in [1, 512] {
            for &dtype in DType::ALL.iter().filter(|dtype| picks(&format!("linear/{dtype}"))) {
                linear(&*backend, &ceilings, dtype, precision, m);
            }
        }
    }
    if picks("mixture") {
        let ceilings = CpuBackend::new(&options).roofline(Precision::Int8);
        for m in [1, 4, 512] {
            for dtype in [DType::Q4_K, DType::Q8_0] {
                mixture(&*backend, &ceilings, dtype, m);
            }
        }
    }
    for (shape, kv_type) in
        [([32, 4, 64], KvType::F16), ([32, 4, 64], KvType::Q8_0), ([32, 8, 128], KvType::F16)]
    {
        for decode in [false, true].into_iter().filter(|_| picks("attention")) {
            attention(&*backend, shape, kv_type, decode);
        }
    }
}
