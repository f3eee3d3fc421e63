//! Against a softmax in f64 over the same rounded keys and values, and bit for bit against itself.

use super::*;

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
fn alone(
    shape: &Shape,
    isa: Isa,
    content: &Content,
    (prompt, generated): (usize, usize),
) -> Vec<f32> {
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
        plans.extend([(1100 + random.below(100), 3), (511 + random.below(3), 4)]);
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
