//! Attention through whole backends: the conformance cases, and small ones worked out by hand.

use std::{
    io::Write,
    sync::{Arc, OnceLock},
};

use realm_compute_cpu::{CpuBackend, CpuOptions, IsaLimit};
use realm_conformance::{Case, cases, random::Random, run};
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

/// A device that attention is tried on.
struct Device {
    backend: Arc<dyn Backend>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Gpu,
    /// Every thread of a GPU imitated: thousands of times slower.
    Emulated,
}

/// Head sizes that GPUs must have kernels for; of others they may say that they have none.
const GPU_HEADS: [usize; 5] = [64, 80, 96, 128, 256];

/// Every device that can be had: the reference, the CPU with each instruction set, and a GPU, or where
/// there is none the emulated one. Says which, past the capture of output.
fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let cpu = |isa, threads| -> Arc<dyn Backend> {
            Arc::new(CpuBackend::new(&CpuOptions { threads: Some(threads), isa }))
        };
        let plain = [
            Arc::new(ReferenceBackend::new(4)),
            cpu(IsaLimit::Scalar, 1),
            cpu(IsaLimit::Avx2, 2),
            cpu(IsaLimit::Avx512, 3),
        ];
        let plain = plain.into_iter().map(|backend| Device { backend, kind: Kind::Plain });
        let (gpu, why) = gpu();
        let devices: Vec<Device> = plain.chain(gpu).collect();
        let names = devices.iter().map(|device| device.backend.info().name.as_str());
        let mut names: Vec<&str> = names.collect();
        names.dedup();
        let line = format!("attention runs on {}{why}", names.join(", "));
        // Printed directly: libtest shows what a passing test prints to nobody.
        _ = writeln!(std::io::stderr(), "{line}");
        devices
    })
}

/// A GPU, or what stands in for it, and why that one.
fn gpu() -> (Option<Device>, String) {
    let probe = realm_compute_gpu::probe_cuda();
    let opened = match &probe.devices {
        Ok(_) => realm_compute_gpu::open_cuda(0),
        Err(reason) => Err(reason.clone()),
    };
    let reason = match opened {
        Ok(backend) => return (Some(Device { backend, kind: Kind::Gpu }), String::new()),
        Err(reason) => reason,
    };
    let required = std::env::var("REALM_REQUIRE").unwrap_or_default();
    let missing = |name| required.split(',').any(|item| item.trim() == name);
    assert!(!missing("cuda"), "REALM_REQUIRE names cuda, but: {reason}");
    match realm_compute_gpu::open_cuda_emulated(Random::fresh_seed()) {
        Ok(backend) => {
            let device = Device { backend, kind: Kind::Emulated };
            (Some(device), format!("; no GPU: {reason}"))
        }
        Err(other) => {
            assert!(!missing("cuda-emulated"), "REALM_REQUIRE names cuda-emulated, but: {other}");
            (None, format!("; no GPU: {reason}; skipped: cuda-emulated: {other}"))
        }
    }
}

/// Most rows of a prompt's piece on the emulated device.
const EMULATED_ROWS: usize = 130;

/// Makes a case small enough for the emulated device; whether that changed it.
fn shorten(case: &mut Case) -> bool {
    let long = case.steps.iter_mut().flatten().filter(|chunk| chunk.rows > EMULATED_ROWS);
    long.map(|chunk| chunk.rows = EMULATED_ROWS).count() > 0
}

#[test]
fn every_case_of_the_suite() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    for Device { backend, kind } in devices() {
        let name = &backend.info().name;
        let (mut passed, mut shortened, mut refused) = (0, 0, Vec::new());
        let mut cases = cases::attention::cases(&mut Random::new(seed));
        let must = |name: &str| {
            *kind == Kind::Plain || GPU_HEADS.iter().any(|d| name.contains(&format!("/d{d}/")))
        };
        let required = cases.iter().filter(|case| must(&case.name)).count();
        for case in &mut cases {
            shortened += usize::from(*kind == Kind::Emulated && shorten(case));
            match run::check(case, &**backend, seed) {
                Ok(()) => passed += 1,
                Err(error) if !must(&case.name) && error.contains("cannot run") => {
                    refused.push(case.name.clone());
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
        assert_eq!(passed + refused.len(), cases.len());
        assert!(passed >= required && required >= 4 * GPU_HEADS.len(), "{name}: {passed} passed");
        let mut line = format!("attention on {name}: {passed} cases passed");
        if shortened > 0 {
            line += &format!(", {shortened} of them cut to {EMULATED_ROWS} rows a piece");
        }
        if !refused.is_empty() {
            line += &format!("; it has no kernel for {}", refused.join(", "));
        }
        _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Two query heads on each of two KV heads of `dim` elements. Token `t`'s keys are zero, so that every
/// visible position weighs alike; its values are `10 t` in the first head and `10 t + 1` in the second.
fn averages(
    mask: Mask,
    steps: &[(usize, usize, Role)],
    dim: usize,
    backend: &dyn Backend,
) -> Vec<Vec<f32>> {
    const TOKENS: usize = 12;
    let mut graph = GraphBuilder::new();
    let mut weights: Vec<Bytes> = Vec::new();
    let mut table =
        |graph: &mut GraphBuilder, name: &str, heads: usize, value: fn(usize, usize) -> f32| {
            let cols = heads * dim;
            let row = |t| (0..cols).flat_map(move |c| value(t, c / dim).to_le_bytes());
            let values = (0..TOKENS).flat_map(row);
            weights.push(values.collect::<Vec<u8>>().into());
            let info = WeightInfo { name: name.into(), rows: TOKENS, cols, dtype: DType::F32 };
            let weight = graph.weight(info);
            graph.embed(weight)
        };
    let q = table(&mut graph, "q", 4, |_, _| 1.0);
    let k = table(&mut graph, "k", 2, |_, _| 0.0);
    let v = table(&mut graph, "v", 2, |t, head| 10.0 * t as f32 + head as f32);
    let layer = graph.kv_layer(KvLayer { heads: 2, head_dim: dim });
    graph.kv_write(layer, k, v);
    let spec =
        AttentionSpec { heads: 4, head_dim: dim, scale: 1.0, mask, soft_cap: None, sinks: None };
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
    let options =
        CompileOptions { limits, precision: Precision::F32, invariant: true, poison: true };
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
            given: &[],
            outputs: &outputs,
            sampling: &[],
            want_logits: true,
            want_times: false,
            previous: None,
        };
        let output = program.enqueue(&inputs).unwrap().read().unwrap();
        rows.extend(output.logits.chunks_exact(4 * dim).map(<[f32]>::to_vec));
    }
    rows
}

/// Heads 0 and 1 read KV head 0, heads 2 and 3 KV head 1; each gives the mean over `range`.
fn mean(range: std::ops::Range<usize>, head: usize) -> f32 {
    let count = range.len() as f32;
    range.map(|t| 10.0 * t as f32).sum::<f32>() / count + (head / 2) as f32
}

fn assert_means(mask: Mask, expected: impl Fn(usize) -> std::ops::Range<usize>) {
    let steps = [(0, 5, Role::Prefill), (5, 2, Role::Prefill), (7, 1, Role::Decode)];
    for Device { backend, kind } in devices() {
        let dim = if *kind == Kind::Plain { 2 } else { 64 };
        let rows = averages(mask, &steps, dim, &**backend);
        assert_eq!(rows.len(), 8);
        for (position, row) in rows.iter().enumerate() {
            for (head, values) in row.chunks_exact(dim).enumerate() {
                let expected = mean(expected(position), head);
                let name = &backend.info().name;
                assert!(
                    values.iter().all(|found| (found - expected).abs() < 1e-4),
                    "{name} at {position}, head {head}: {values:?}, {expected}"
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
