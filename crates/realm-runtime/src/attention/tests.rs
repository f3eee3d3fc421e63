//! Attention through whole backends: the conformance cases, and small ones worked out by hand.

use std::sync::Arc;

use realm_compute_cpu::{CpuBackend, CpuOptions, IsaLimit};
use realm_conformance::{cases, random::Random, run};
use realm_core::{
    Bytes, DType,
    backend::{
        Backend, Bindings, BlockId, CompileOptions, Inputs, KvSpec, KvType, Limits, Precision,
        Role, SequenceRows, Token,
    },
    graph::{
        GraphBuilder, KvLayer, WeightInfo,
        ops::{AttentionSpec, Mask},
    },
    reference::ReferenceBackend,
};

use super::BlockTable;
use crate::kv_cache::BlockAllocator;

fn backends() -> Vec<Arc<dyn Backend>> {
    let cpu = |isa, threads| -> Arc<dyn Backend> {
        Arc::new(CpuBackend::new(&CpuOptions { threads: Some(threads), isa }))
    };
    vec![
        Arc::new(ReferenceBackend::new(4)),
        cpu(IsaLimit::Scalar, 1),
        cpu(IsaLimit::Avx2, 2),
        cpu(IsaLimit::Avx512, 3),
    ]
}

#[test]
fn every_case_of_the_suite() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    for backend in backends() {
        for case in cases::attention::cases(&mut Random::new(seed)) {
            run::check(&case, &*backend, seed).unwrap();
        }
    }
}

/// Two query heads on each of two KV heads of two elements. Token `t`'s keys are zero, so that every
/// visible position weighs alike; its values are `10 t` in the first head and `10 t + 1` in the second.
fn averages(mask: Mask, steps: &[(usize, usize, Role)], backend: &dyn Backend) -> Vec<[f32; 8]> {
    const TOKENS: usize = 12;
    let mut graph = GraphBuilder::new();
    let mut weights: Vec<Bytes> = Vec::new();
    let mut table =
        |graph: &mut GraphBuilder, name: &str, cols: usize, value: fn(usize, usize) -> f32| {
            let values =
                (0..TOKENS).flat_map(|t| (0..cols).flat_map(move |c| value(t, c).to_le_bytes()));
            weights.push(values.collect::<Vec<u8>>().into());
            let info = WeightInfo { name: name.into(), rows: TOKENS, cols, dtype: DType::F32 };
            let weight = graph.weight(info);
            graph.embed(weight)
        };
    let q = table(&mut graph, "q", 8, |_, _| 1.0);
    let k = table(&mut graph, "k", 4, |_, _| 0.0);
    let v = table(&mut graph, "v", 4, |t, c| 10.0 * t as f32 + (c / 2) as f32);
    let layer = graph.kv_layer(KvLayer { heads: 2, head_dim: 2 });
    graph.kv_write(layer, k, v);
    let spec =
        AttentionSpec { heads: 4, head_dim: 2, scale: 1.0, mask, soft_cap: None, sinks: None };
    let attended = graph.attention(layer, q, spec);
    let output = graph.gather_rows(attended);
    let graph = graph.finish(output).unwrap();

    let block_tokens = backend.info().kv_block_tokens;
    let kv_type = KvType::F32;
    let spec = KvSpec { layers: graph.kv().to_vec(), kv_type, blocks: 3, block_tokens };
    let load =
        |(info, data): (&WeightInfo, &Bytes)| backend.load_weight(info, data.clone()).unwrap();
    let weights = graph.weights().iter().zip(&weights).map(load).collect();
    let bindings = Bindings { weights, kv: backend.kv_pool(&spec).unwrap() };
    let limits = Limits { tokens: TOKENS, outputs: TOKENS, sequences: 1 };
    let options = CompileOptions { limits, precision: Precision::F32, poison: true };
    let mut program = backend.compile(&graph, &bindings, &options).unwrap();
    let mut rows = Vec::new();
    for &(cached, count, role) in steps {
        let tokens: Vec<Token> = (cached..cached + count).map(|t| Token::Id(t as u32)).collect();
        let outputs: Vec<u32> = (0..count as u32).collect();
        let blocks = [BlockId(2), BlockId(0), BlockId(1)];
        let sequence = SequenceRows { rows: 0..count, cached, role, blocks: &blocks };
        let inputs = Inputs {
            tokens: &tokens,
            sequences: &[sequence],
            outputs: &outputs,
            sampling: &[],
            want_logits: true,
            want_times: false,
            previous: None,
        };
        let output = program.enqueue(&inputs).unwrap().read().unwrap();
        rows.extend(output.logits.as_chunks::<8>().0.iter().copied());
    }
    rows
}

/// Heads 0 and 1 read KV head 0, heads 2 and 3 KV head 1; each gives the mean over `range`.
fn mean(range: std::ops::Range<usize>) -> [f32; 8] {
    let count = range.len() as f32;
    let mean = range.map(|t| 10.0 * t as f32).sum::<f32>() / count;
    [mean, mean, mean, mean, mean + 1.0, mean + 1.0, mean + 1.0, mean + 1.0]
}

fn assert_means(mask: Mask, expected: impl Fn(usize) -> std::ops::Range<usize>) {
    let steps = [(0, 5, Role::Prefill), (5, 2, Role::Prefill), (7, 1, Role::Decode)];
    for backend in backends() {
        let rows = averages(mask, &steps, &*backend);
        assert_eq!(rows.len(), 8);
        for (position, row) in rows.iter().enumerate() {
            for (found, expected) in row.iter().zip(mean(expected(position))) {
                let name = &backend.info().name;
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{name} at {position}: {row:?}, {expected}"
                );
            }
        }
    }
}

#[test]
fn a_causal_row_sees_itself_and_what_came_before() {
    assert_means(Mask::CAUSAL, |position| 0..position + 1);
}

#[test]
fn a_window_counts_the_row_itself() {
    let mask = Mask { causal: true, window: Some(3) };
    assert_means(mask, |position| (position + 1).saturating_sub(3)..position + 1);
}

#[test]
fn without_causality_a_row_sees_all_of_its_step() {
    // Steps hold positions 0..5, 5..7 and 7..8.
    let length = |position: usize| if position < 5 { 5 } else { position.max(6) + 1 };
    assert_means(Mask { causal: false, window: None }, |position| 0..length(position));
}

#[test]
fn tables_grow_by_whole_blocks_or_not_at_all() {
    let mut free = BlockAllocator::new(4);
    let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
    assert!(a.grow(1, 16, &mut free) && a.grow(16, 16, &mut free));
    assert_eq!(a.blocks().len(), 1);
    assert!(a.grow(17, 16, &mut free));
    assert!(!b.grow(33, 16, &mut free));
    assert_eq!((b.blocks().len(), free.free()), (0, 2));
    assert!(b.grow(32, 16, &mut free));
    assert!(a.blocks().iter().all(|block| !b.blocks().contains(block)));
    a.release(&mut free);
    assert_eq!((a.blocks().len(), free.free()), (0, 2));
}
