//! What the tests share: random shapes and contents, a step over them, the plain softmax.

mod cases;

use super::*;
use crate::{isa::IsaLimit, kv::KV_BLOCK_TOKENS};
use realm_core::{
    backend::{BlockId, KvSpec, KvType},
    graph::{KvLayer, ops::Mask},
};
use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    /// From the clock, or from `REALM_SEED`; printed.
    fn new() -> Self {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("REALM_SEED").map_or_else(|_| clock(), |s| s.parse().unwrap());
        println!("REALM_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Roughly normal, deviation 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// One layer's shape.
#[derive(Debug, Clone)]
struct Shape {
    kv_type: KvType,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    mask: Mask,
    soft_cap: Option<f32>,
    sinks: Option<Vec<f32>>,
}

impl Shape {
    fn random(random: &mut Random) -> Self {
        let kv_type = random.pick(&[KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0]);
        let head_dim = match kv_type {
            KvType::Q8_0 => random.pick(&[32, 64, 96, 128]),
            _ => random.pick(&[16, 40, 64, 80, 128, 20, 7]),
        };
        let (kv_heads, group) = (random.pick(&[1, 2]), random.pick(&[1, 3, 4, 7, 8]));
        let window = random.pick(&[None, None, Some(1), Some(3), Some(50), Some(64), Some(600)]);
        let mask = Mask { causal: random.below(4) > 0, window };
        let soft_cap = random.pick(&[None, None, Some(2.0), Some(50.0)]);
        let sinks = (random.below(3) == 0).then(|| random.normals(kv_heads * group));
        Self { kv_type, kv_heads, group, head_dim, mask, soft_cap, sinks }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn spec(&self) -> AttentionSpec {
        AttentionSpec {
            heads: self.heads(),
            head_dim: self.head_dim,
            scale: 1.5 / (self.head_dim as f32).sqrt(),
            mask: self.mask,
            soft_cap: self.soft_cap,
            sinks: None,
        }
    }

    fn pool(&self, blocks: usize) -> CpuKvPool {
        let layer = KvLayer { heads: self.kv_heads, head_dim: self.head_dim };
        let spec = KvSpec {
            // The layers beside it must stay untouched.
            layers: vec![layer; 3],
            kv_type: self.kv_type,
            blocks,
            block_tokens: KV_BLOCK_TOKENS,
        };
        let pool = CpuKvPool::new(&spec).unwrap();
        pool.fill(0xff);
        pool
    }
}

/// A sequence's whole content: rows of queries, keys and values, a position each.
#[derive(Clone)]
struct Content {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    blocks: Vec<BlockId>,
}

impl Content {
    fn random(random: &mut Random, shape: &Shape, length: usize, free: &mut Vec<BlockId>) -> Self {
        let row = shape.kv_heads * shape.head_dim;
        let count = length.div_ceil(KV_BLOCK_TOKENS) + random.below(2);
        Self {
            query: random.normals(length * row * shape.group),
            key: random.normals(length * row),
            value: random.normals(length * row),
            blocks: (0..count).map(|_| free.swap_remove(random.below(free.len()))).collect(),
        }
    }
}

/// Rows of one step: of which content, from which position, how many, and why.
type Piece = (usize, usize, usize, Role);

/// Runs one step over the pieces; results go to `out`, `[position][heads · head_dim]` a content.
fn step(
    shape: &Shape,
    (pool, isa, kv): (&Pool, Isa, &CpuKvPool),
    contents: &[Content],
    pieces: &[Piece],
    out: &mut [Vec<f32>],
) {
    let row = shape.kv_heads * shape.head_dim;
    let (mut query, mut key, mut value, mut sequences) = (vec![], vec![], vec![], vec![]);
    let mut at = 0;
    for &(content, cached, rows, role) in pieces {
        let content = &contents[content];
        let wide = row * shape.group;
        query.extend_from_slice(&content.query[cached * wide..(cached + rows) * wide]);
        key.extend_from_slice(&content.key[cached * row..(cached + rows) * row]);
        value.extend_from_slice(&content.value[cached * row..(cached + rows) * row]);
        sequences.push(SequenceRows { rows: at..at + rows, cached, role, blocks: &content.blocks });
        at += rows;
    }
    kv.write_rows((pool, isa), 1, &sequences, &key, &value);
    let mut results = vec![f32::NAN; query.len()];
    let spec = shape.spec();
    let sinks = shape.sinks.as_deref();
    Attend { kv, layer: 1, spec: &spec, sinks, sequences: &sequences }.run(
        pool,
        isa,
        &query,
        &mut results,
    );
    for (sequence, &(content, cached, rows, _)) in sequences.iter().zip(pieces) {
        let wide = row * shape.group;
        out[content][cached * wide..(cached + rows) * wide]
            .copy_from_slice(&results[sequence.rows.start * wide..sequence.rows.end * wide]);
    }
}

/// What the cache holds after a row was stored.
fn rounded(shape: &Shape, rows: &[f32]) -> Vec<f64> {
    let dtype = shape.kv_type.dtype();
    let mut decoded = vec![0.0; rows.len()];
    let mut bytes = vec![0; dtype.row_bytes(rows.len()).unwrap()];
    dtype.encode(rows, &mut bytes);
    dtype.decode(&bytes, &mut decoded);
    decoded.into_iter().map(f64::from).collect()
}

/// The row at `position` of a sequence of which the cache holds `length` tokens.
fn reference(
    shape: &Shape,
    query: &[f32],
    (key, value): (&[f64], &[f64]),
    position: usize,
    length: usize,
) -> Vec<f64> {
    let (spec, dim) = (shape.spec(), shape.head_dim);
    let row = shape.kv_heads * dim;
    let mut out = Vec::new();
    for head in 0..spec.heads {
        let kv_head = head / shape.group;
        let query = &query[head * dim..][..dim];
        let visible = spec.mask.visible(position, length);
        let score = |at: usize| {
            let key = &key[at * row + kv_head * dim..][..dim];
            let dot: f64 = query.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum();
            let score = dot * f64::from(spec.scale);
            spec.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let scores: Vec<f64> = visible.clone().map(score).collect();
        let sink = shape.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
        let peak = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().copied().chain(sink).map(|s| (s - peak).exp()).sum();
        let mut sums = vec![0.0; dim];
        for (at, score) in visible.zip(&scores) {
            let weight = (score - peak).exp() / total;
            for (sum, v) in sums.iter_mut().zip(&value[at * row + kv_head * dim..][..dim]) {
                *sum += weight * v;
            }
        }
        out.extend(sums);
    }
    out
}

fn isas() -> Vec<Isa> {
    [IsaLimit::Scalar, IsaLimit::Avx2, IsaLimit::Avx512].map(Isa::detect).to_vec()
}
