//! Attention over the paged cache: head sizes, groups, masks, ragged batches, cache types.

use realm_core::{
    DType,
    backend::{KvType, Precision},
    graph::{
        KvLayer,
        ops::{AttentionSpec, Mask},
    },
};

use crate::{
    Case,
    case::{CaseBuilder, Chunk},
    random::Random,
};

const MASKS: [Mask; 4] = [
    Mask::CAUSAL,
    Mask { causal: true, window: Some(1) },
    Mask { causal: true, window: Some(40) },
    Mask { causal: false, window: None },
];

const KV_TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];

/// The cases: every head size with every mask, the rest drawn.
pub fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = Vec::new();
    // Generation after a prompt so long that a backend may cut it in parts, and add these.
    for kv_type in KV_TYPES {
        let case = attention(random, 64, Mask::CAUSAL, Some(kv_type), None);
        let name = format!("{}/long", case.name);
        let steps = vec![vec![Chunk::prefill(0, 600)], vec![Chunk::decode(0)]];
        cases.push(Case { name, ..case.steps(steps) });
    }
    // A backend without tensor cores for such a cache may have kernels by the size of groups.
    for (head_dim, group) in
        [64, 128, 256].into_iter().flat_map(|dim| [1, 4, 8].map(|group| (dim, group)))
    {
        let mask = random.pick(&MASKS);
        cases.push(attention(random, head_dim, mask, Some(KvType::F32), Some((1, group))));
    }
    for head_dim in [16, 40, 64, 80, 96, 128, 256] {
        for mask in MASKS {
            cases.push(attention(random, head_dim, mask, None, None));
        }
    }
    for kv_type in KV_TYPES {
        for precision in [Precision::F16, Precision::BF16, Precision::Int8] {
            for head_dim in [64, 96, 128, 256] {
                cases.push(narrow(random, head_dim, kv_type, precision));
            }
        }
    }
    cases
}

/// Attention where products are not f32's: queries and weights of the softmax may be rounded as the
/// cache's elements are, or as the precision says.
fn narrow(random: &mut Random, head_dim: usize, kv_type: KvType, precision: Precision) -> Case {
    let mask = random.pick(&MASKS);
    let mut case = attention(random, head_dim, mask, Some(kv_type), None);
    let as_bf16 = precision == Precision::BF16
        || kv_type == KvType::BF16
        || (precision, kv_type) == (Precision::Int8, KvType::F32);
    let rounds_as = if as_bf16 { Precision::BF16 } else { Precision::F16 };
    case.name = format!("{}/{precision}", case.name);
    let mut case = case.precision(rounds_as);
    case.precision = precision;
    case
}

fn schedule(random: &mut Random) -> Vec<Vec<Chunk>> {
    let long = random.pick(&[1, 7, 33, 64, 65, 130, 600]);
    vec![
        vec![Chunk::prefill(0, long), Chunk::prefill(1, 5)],
        vec![Chunk::decode(0), Chunk::prefill(2, 31), Chunk::decode(1)],
        vec![Chunk::prefill(2, 40), Chunk::decode(0)],
        vec![Chunk::decode(1), Chunk::decode(0), Chunk::decode(2)],
    ]
}

fn attention(
    random: &mut Random,
    head_dim: usize,
    mask: Mask,
    kv_type: Option<KvType>,
    heads: Option<(usize, usize)>,
) -> Case {
    let drawn = random.pick(&[(1, 1), (2, 1), (1, 4), (2, 3), (1, 8)]);
    let (kv_heads, group) = heads.unwrap_or(drawn);
    let types: &[KvType] = if head_dim.is_multiple_of(32) {
        &KV_TYPES
    } else {
        &[KvType::F32, KvType::F16, KvType::BF16]
    };
    let drawn = random.pick(types);
    let (kv_type, heads) = (kv_type.unwrap_or(drawn), kv_heads * group);
    let soft_cap = random.pick(&[None, Some(3.0)]);
    let (with_sinks, steps) = (random.below(3) == 0, schedule(random));
    let mut case = CaseBuilder::new(random, 60);
    let query = case.input("q", heads * head_dim);
    let (key, value) = (case.input("k", kv_heads * head_dim), case.input("v", kv_heads * head_dim));
    let sinks = with_sinks.then(|| case.scaled_weight("sinks", [1, heads], DType::F32, 1.0));
    // Two layers, so that a mix-up of layers shows.
    case.graph.kv_layer(KvLayer { heads: kv_heads, head_dim });
    let layer = case.graph.kv_layer(KvLayer { heads: kv_heads, head_dim });
    case.graph.kv_write(0, value, key);
    case.graph.kv_write(layer, key, value);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let spec = AttentionSpec { heads, head_dim, scale, mask, soft_cap, sinks };
    let output = case.graph.attention(layer, query, spec);
    let window = mask.window.map_or("full".into(), |window| format!("window{window}"));
    let causal = if mask.causal { "causal" } else { "bidirectional" };
    let name = format!("attention/d{head_dim}/{heads}on{kv_heads}/{causal}/{window}/{kv_type}");
    // The cache rounds alike on both sides; what differs is the order of f32 sums.
    case.finish(name, output).steps(steps).kv_type(kv_type).tolerance(match kv_type {
        KvType::F32 => 1e-5,
        _ => 2e-5,
    })
}
