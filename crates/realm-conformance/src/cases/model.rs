//! A small Llama-like model, plain and fused.

use realm_core::{
    DType, Graph,
    backend::{KvType, Precision},
    fuse,
    graph::{
        GraphBuilder, KvLayer, Value,
        ops::{Activation, AttentionSpec, Mask, RopePairs},
    },
    rope::RopeFrequencies,
};

use crate::{
    Case,
    case::{CaseBuilder, Chunk},
    random::Random,
};

const COLS: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const FEED_FORWARD: usize = 512;
const VOCABULARY: usize = 70;

/// The cases.
pub fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    let kinds = [
        (DType::F32, Precision::F32, KvType::F32, 2e-5),
        (DType::Q4_K, Precision::F32, KvType::F32, 2e-5),
        (DType::Q6_K, Precision::F16, KvType::F16, 1e-2),
        (DType::Q5_K, Precision::BF16, KvType::BF16, 6e-2),
        (DType::Q4_K, Precision::Int8, KvType::F16, 5e-2),
        (DType::Q8_0, Precision::Int8, KvType::Q8_0, 5e-2),
    ];
    for (dtype, precision, kv_type, tolerance) in kinds {
        for fused in [false, true] {
            let mut case = llama(random, dtype);
            case.name = format!(
                "model/{dtype}/{precision}/kv-{kv_type}/{}",
                if fused { "fused" } else { "plain" }
            )
            .to_lowercase();
            if fused {
                fuse::fuse(&mut case.graph);
            }
            cases.push(case.precision(precision).kv_type(kv_type).tolerance(tolerance));
        }
    }
    cases
}

/// Two layers with grouped heads, as the Llama architecture has them.
pub fn llama(random: &mut Random, dtype: DType) -> Case {
    build(random, dtype, false, None)
}

/// The same, ending in a `Sample` op.
pub fn sampling_llama(random: &mut Random, dtype: DType) -> Case {
    build(random, dtype, true, None)
}

/// The same with a mixture of experts in place of each feed-forward network: two of six a token.
pub fn mixture(random: &mut Random, dtype: DType) -> Case {
    build(random, dtype, false, Some([6, 2]))
}

fn build(random: &mut Random, dtype: DType, samples: bool, experts: Option<[usize; 2]>) -> Case {
    let mut case = CaseBuilder::new(random, VOCABULARY);
    let table = case.scaled_weight("token_embd", [VOCABULARY, COLS], dtype, 1.0);
    let rope = case.graph.rope_table(RopeFrequencies::new(10_000.0, HEAD_DIM));
    let mut x = case.graph.embed(table);
    for layer in 0..2 {
        case.graph.layer(Some(layer));
        let norm = case.vector(&format!("blk.{layer}.attn_norm"), COLS);
        let normed = case.graph.rms_norm(x, norm, 1e-5);
        let attended = attention(&mut case, layer, normed, rope, dtype);
        x = case.graph.add(x, attended);
        let norm = case.vector(&format!("blk.{layer}.ffn_norm"), COLS);
        let normed = case.graph.rms_norm(x, norm, 1e-5);
        let fed = match experts {
            Some(experts) => expert_feed_forward(&mut case, layer, normed, dtype, experts),
            None => feed_forward(&mut case, layer, normed, dtype),
        };
        x = case.graph.add(x, fed);
    }
    case.graph.layer(None);
    let rows = case.graph.gather_rows(x);
    let norm = case.vector("output_norm", COLS);
    let normed = case.graph.rms_norm(rows, norm, 1e-5);
    let logits = case.graph.linear(normed, table, None);
    if samples {
        case.graph.sample(logits);
    }
    case.finish_outputs("llama", logits).steps(vec![
        vec![Chunk::prefill(0, 21), Chunk::prefill(1, 1)],
        vec![Chunk::decode(0), Chunk::prefill(1, 50), Chunk::prefill(2, 3)],
        vec![Chunk::decode(0), Chunk::decode(2), Chunk::decode(1)],
    ])
}

fn feed_forward(case: &mut CaseBuilder<'_>, layer: usize, x: Value, dtype: DType) -> Value {
    let gate = project(case, &format!("blk.{layer}.ffn_gate"), x, FEED_FORWARD, dtype);
    let up = project(case, &format!("blk.{layer}.ffn_up"), x, FEED_FORWARD, dtype);
    let hidden = case.graph.glu(gate, up, Activation::Silu);
    project(case, &format!("blk.{layer}.ffn_down"), hidden, COLS, dtype)
}

fn expert_feed_forward(
    case: &mut CaseBuilder<'_>,
    layer: usize,
    x: Value,
    dtype: DType,
    [count, used]: [usize; 2],
) -> Value {
    let logits = project(case, &format!("blk.{layer}.ffn_gate_inp"), x, count, DType::F32);
    let gate_and_up = ["gate", "up"].map(|part| {
        case.weight(&format!("blk.{layer}.ffn_{part}_exps"), count * FEED_FORWARD, COLS, dtype)
    });
    let name = format!("blk.{layer}.ffn_down_exps");
    let down = case.weight(&name, count * COLS, FEED_FORWARD, dtype);
    let [experts, weights] = case.graph.moe_route(logits, used, true);
    let chosen = (experts, count);
    let gated = case.graph.moe_gated_linear(x, chosen, gate_and_up, Activation::Silu);
    let fed = case.graph.moe_linear(gated, chosen, down);
    case.graph.moe_sum(fed, weights)
}

fn project(
    case: &mut CaseBuilder<'_>,
    name: &str,
    input: Value,
    rows: usize,
    dtype: DType,
) -> Value {
    let cols = if name.contains("down") { FEED_FORWARD } else { COLS };
    let weight = case.weight(name, rows, cols, dtype);
    case.graph.linear(input, weight, None)
}

fn attention(
    case: &mut CaseBuilder<'_>,
    layer: usize,
    input: Value,
    rope: realm_core::graph::RopeId,
    dtype: DType,
) -> Value {
    let [q, k, v] = [("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)].map(|(name, heads)| {
        project(case, &format!("blk.{layer}.attn_{name}"), input, heads * HEAD_DIM, dtype)
    });
    let graph: &mut GraphBuilder = &mut case.graph;
    let q = graph.rope(q, HEADS, HEAD_DIM, RopePairs::Adjacent, rope);
    let k = graph.rope(k, KV_HEADS, HEAD_DIM, RopePairs::Adjacent, rope);
    let kv = graph.kv_layer(KvLayer { heads: KV_HEADS, head_dim: HEAD_DIM });
    graph.kv_write(kv, k, v);
    let spec = AttentionSpec {
        heads: HEADS,
        head_dim: HEAD_DIM,
        scale: 1.0 / (HEAD_DIM as f32).sqrt(),
        mask: Mask::CAUSAL,
        soft_cap: None,
        sinks: None,
    };
    let attended = graph.attention(kv, q, spec);
    project(case, &format!("blk.{layer}.attn_output"), attended, COLS, dtype)
}

/// How many ops of each name a graph has.
pub fn count(graph: &Graph, name: &str) -> usize {
    graph.nodes().iter().filter(|node| node.op.name() == name).count()
}
