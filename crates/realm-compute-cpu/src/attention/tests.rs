//! Against a softmax in f64 over the same rounded keys and values, and bit for bit against itself.

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
    Attend { kv, layer: 1, spec: &spec, sinks, sequences: &sequences }
        .run(pool, isa, &query, &mut results);
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

/// Some sequences: the prompt's length, the tokens generated after it.
fn plans(random: &mut Random) -> Vec<(usize, usize)> {
    let prompts = [1, 7, 33, 65, 130];
    let lengths = [1, 31, 64, 65, 511, 513, 1500];
    match random.below(3) {
        0 => vec![(random.pick(&prompts), 0)],
        1 => vec![(random.pick(&lengths), random.pick(&[1, 2]))],
        _ => (0..2 + random.below(3))
            .map(|_| (random.pick(&prompts), random.pick(&[0, 1, 3])))
            .collect(),
    }
}

/// Compares a content's rows with the reference; `length(position)` is what the cache held.
fn compare(
    shape: &Shape,
    content: &Content,
    out: &[f32],
    positions: impl Iterator<Item = usize>,
    length: impl Fn(usize) -> usize,
) {
    let (key, value) = (rounded(shape, &content.key), rounded(shape, &content.value));
    let wide = shape.heads() * shape.head_dim;
    let (mut error, mut norm) = (0.0, 0.0);
    for position in positions {
        let query = &content.query[position * wide..][..wide];
        let exact = reference(shape, query, (&key, &value), position, length(position));
        for (found, exact) in out[position * wide..].iter().zip(exact) {
            error += (f64::from(*found) - exact).powi(2);
            norm += exact * exact;
        }
    }
    let relative = (error / norm).sqrt();
    assert!(relative < 1e-5, "{shape:?}: off by {relative}");
}

#[test]
fn attention_matches_a_plain_softmax() {
    let mut random = Random::new();
    let pool = Pool::new(3);
    for round in 0..60 {
        let shape = Shape::random(&mut random);
        let isa = isas()[round % 3];
        let plans = plans(&mut random);
        let mut free: Vec<BlockId> = (0..100).map(BlockId).collect();
        let kv = shape.pool(100);
        let contents: Vec<Content> = plans
            .iter()
            .map(|&(p, g)| Content::random(&mut random, &shape, p + g, &mut free))
            .collect();
        let mut out: Vec<Vec<f32>> =
            contents.iter().map(|c| vec![f32::NAN; c.query.len()]).collect();
        let place = (&pool, isa, &kv);
        let prompts: Vec<Piece> =
            plans.iter().enumerate().map(|(at, &(p, _))| (at, 0, p, Role::Prefill)).collect();
        step(&shape, place, &contents, &prompts, &mut out);
        for token in 0..3 {
            let rows: Vec<Piece> = plans
                .iter()
                .enumerate()
                .filter(|(_, plan)| token < plan.1)
                .map(|(at, plan)| (at, plan.0 + token, 1, Role::Decode))
                .collect();
            step(&shape, place, &contents, &rows, &mut out);
        }
        for ((content, out), &(prompt, generated)) in contents.iter().zip(&out).zip(&plans) {
            assert!(out.iter().all(|x| x.is_finite()), "{shape:?} {plans:?}");
            // A sample of a long prompt's rows: the reference is slow.
            let stride = 1 + prompt * shape.heads() * shape.head_dim / 40_000;
            let rows = (0..prompt).rev().step_by(stride).chain(prompt..prompt + generated);
            compare(&shape, content, out, rows, |at| prompt.max(at + 1));
        }
    }
}

/// All rows of a sequence: a prompt in one piece, then tokens one by one, alone.
fn alone(shape: &Shape, isa: Isa, content: &Content, (prompt, generated): (usize, usize)) -> Vec<f32> {
    let pool = Pool::new(1);
    let kv = shape.pool(100);
    let mut out = vec![vec![f32::NAN; content.query.len()]];
    let contents = std::slice::from_ref(content);
    step(shape, (&pool, isa, &kv), contents, &[(0, 0, prompt, Role::Prefill)], &mut out);
    for at in prompt..prompt + generated {
        step(shape, (&pool, isa, &kv), contents, &[(0, at, 1, Role::Decode)], &mut out);
    }
    out.remove(0)
}

#[test]
fn bits_depend_on_sequence_position_and_role_alone() {
    let mut random = Random::new();
    let pool = Pool::new(4);
    for round in 0..24 {
        let mut shape = Shape::random(&mut random);
        // What a row of a prompt sees must not depend on where the prompt is cut.
        shape.mask.causal = true;
        let isa = isas()[round % 3];
        let mut plans: Vec<(usize, usize)> =
            (0..3).map(|_| (1 + random.below(400), random.pick(&[0, 4, 5]))).collect();
        plans.push((1100 + random.below(100), 3));
        let mut free: Vec<BlockId> = (0..100).map(BlockId).collect();
        let contents: Vec<Content> = plans
            .iter()
            .map(|&(p, g)| Content::random(&mut random, &shape, p + g, &mut free))
            .collect();
        let kv = shape.pool(100);
        let mut out: Vec<Vec<f32>> =
            contents.iter().map(|c| vec![f32::NAN; c.query.len()]).collect();
        // Ragged steps: prompts in random chunks, generated tokens one or several a step.
        let mut done = vec![0; plans.len()];
        loop {
            let mut pieces = Vec::new();
            for (at, &(prompt, generated)) in plans.iter().enumerate() {
                let (from, all) = (done[at], prompt + generated);
                if from == all || random.below(4) == 0 {
                    continue;
                }
                let (rows, role) = if from < prompt {
                    ((1 + random.below(200)).min(prompt - from), Role::Prefill)
                } else {
                    ((1 + random.below(3)).min(all - from), Role::Decode)
                };
                pieces.push((at, from, rows, role));
                done[at] += rows;
            }
            if pieces.is_empty() && done.iter().zip(&plans).all(|(d, p)| *d == p.0 + p.1) {
                break;
            }
            step(&shape, (&pool, isa, &kv), &contents, &pieces, &mut out);
        }
        for ((content, out), &plan) in contents.iter().zip(&out).zip(&plans) {
            // Other blocks, too.
            let mut content = content.clone();
            for block in &mut content.blocks {
                block.0 = 99 - block.0;
            }
            let expected = alone(&shape, isa, &content, plan);
            let same = out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{shape:?} {plan:?} on {isa}");
        }
    }
}

#[test]
fn infinities_reach_only_the_rows_that_see_them() {
    let mut random = Random::new();
    let pool = Pool::new(2);
    for isa in isas() {
        let mut shape = Shape::random(&mut random);
        (shape.kv_type, shape.mask, shape.soft_cap) = (KvType::F32, Mask::CAUSAL, None);
        let mut free: Vec<BlockId> = (0..9).map(BlockId).collect();
        let mut content = Content::random(&mut random, &shape, 101, &mut free);
        let row = shape.kv_heads * shape.head_dim;
        content.value[90 * row..91 * row].fill(f32::INFINITY);
        content.key[95 * row..96 * row].fill(f32::NAN);
        let kv = shape.pool(9);
        let mut out = [vec![f32::NAN; content.query.len()]];
        let rows = [(0, 0, 101, Role::Prefill)];
        step(&shape, (&pool, isa, &kv), &[content], &rows, &mut out);
        let wide = row * shape.group;
        assert!(out[0][..90 * wide].iter().all(|x| x.is_finite()), "{shape:?} on {isa}");
        assert!(out[0][90 * wide..].iter().all(|x| !x.is_finite()), "{shape:?} on {isa}");
    }
}

#[test]
fn rows_that_see_nothing_give_zeros() {
    let mut random = Random::new();
    let pool = Pool::new(2);
    for isa in isas() {
        for role in [Role::Prefill, Role::Decode] {
            let mut shape = Shape::random(&mut random);
            shape.mask = Mask { causal: true, window: Some(0) };
            let mut free: Vec<BlockId> = (0..30).map(BlockId).collect();
            let content = Content::random(&mut random, &shape, 1200, &mut free);
            let kv = shape.pool(30);
            let mut out = [vec![f32::NAN; content.query.len()]];
            step(&shape, (&pool, isa, &kv), &[content], &[(0, 0, 1200, role)], &mut out);
            assert!(out[0].iter().all(|&x| x == 0.0));
            // Keys at −∞: every score is −∞.
            (shape.mask, shape.kv_type, shape.sinks) = (Mask::CAUSAL, KvType::F32, None);
            shape.soft_cap = None;
            let mut free: Vec<BlockId> = (0..30).map(BlockId).collect();
            let mut content = Content::random(&mut random, &shape, 600, &mut free);
            content.query.fill(1.0);
            content.key.fill(f32::NEG_INFINITY);
            let kv = shape.pool(30);
            let mut out = [vec![f32::NAN; content.query.len()]];
            step(&shape, (&pool, isa, &kv), &[content], &[(0, 0, 600, role)], &mut out);
            assert!(out[0].iter().all(|&x| x == 0.0));
        }
    }
}

/// Prints times of one layer, its part of the cache out of the processor's caches as between two
/// steps: `cargo test --release -p realm-compute-cpu speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let cases: [(KvType, usize, usize, usize, usize, usize); 9] = [
        (KvType::F16, 4, 8, 64, 2048, 2048),
        (KvType::F16, 8, 4, 128, 2048, 2048),
        (KvType::F16, 4, 8, 64, 4096, 1),
        (KvType::F16, 8, 4, 128, 4096, 1),
        (KvType::F16, 32, 1, 64, 4096, 1),
        (KvType::F32, 4, 8, 64, 4096, 1),
        (KvType::BF16, 4, 8, 64, 4096, 1),
        (KvType::Q8_0, 4, 8, 64, 4096, 1),
        (KvType::F16, 2, 7, 64, 100, 1),
    ];
    let threads = std::env::var("REALM_THREADS").ok().and_then(|n| n.parse().ok());
    let pool = Pool::new(threads.unwrap_or(2));
    for (kv_type, kv_heads, group, head_dim, length, rows) in cases {
        let (mask, soft_cap, sinks) = (Mask::CAUSAL, None, None);
        let shape = Shape { kv_type, kv_heads, group, head_dim, mask, soft_cap, sinks };
        for isa in isas().into_iter().rev() {
            let (time, write) = measure(&shape, (&pool, isa), length, rows);
            println!(
                "{rows}×{length} {kv_type} {kv_heads}·{group} heads of {head_dim}, {isa}: \
                 {time:.3} ms; storing all {write:.3} ms"
            );
        }
    }
}

/// Milliseconds for a layer's last `rows` rows, and to store all its keys and values.
fn measure(shape: &Shape, place: (&Pool, Isa), length: usize, rows: usize) -> (f64, f64) {
    let mut random = Random(1);
    let row = shape.kv_heads * shape.head_dim;
    let layers = if rows == 1 { (1 << 25) / (length * row) } else { 1 };
    let layer = KvLayer { heads: shape.kv_heads, head_dim: shape.head_dim };
    let blocks = length.div_ceil(KV_BLOCK_TOKENS);
    let kv = CpuKvPool::new(&KvSpec {
        layers: vec![layer; layers],
        kv_type: shape.kv_type,
        blocks,
        block_tokens: KV_BLOCK_TOKENS,
    })
    .unwrap();
    let mut free: Vec<BlockId> = (0..blocks as u32).map(BlockId).collect();
    let blocks: Vec<BlockId> =
        (0..blocks).map(|_| free.swap_remove(random.below(free.len()))).collect();
    let all = [SequenceRows { rows: 0..length, cached: 0, role: Role::Prefill, blocks: &blocks }];
    let (key, value) = (random.normals(length * row), random.normals(length * row));
    let best = |work: &mut dyn FnMut(usize)| {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = std::time::Instant::now();
            (0..layers).for_each(&mut *work);
            best = best.min(start.elapsed().as_secs_f64() * 1e3 / layers as f64);
        }
        best
    };
    let write = best(&mut |layer| kv.write_rows(place, layer, &all, &key, &value));
    let role = if rows == 1 { Role::Decode } else { Role::Prefill };
    let sequences = [SequenceRows { rows: 0..rows, cached: length - rows, role, blocks: &blocks }];
    let query = random.normals(rows * row * shape.group);
    let mut out = vec![0.0; query.len()];
    let spec = shape.spec();
    let time = best(&mut |layer| {
        Attend { kv: &kv, layer, spec: &spec, sinks: None, sequences: &sequences }
            .run(place.0, place.1, &query, &mut out);
    });
    (time, write)
}
