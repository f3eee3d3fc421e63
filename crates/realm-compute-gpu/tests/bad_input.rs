//! What no kernel can do, and what is no number: an error or the right answer, on the emulated device.

use std::sync::Arc;

use realm_compute_gpu::open_cuda_emulated;
use realm_conformance::{
    Case,
    case::{CaseBuilder, Chunk},
    cases::model,
    random::Random,
    run,
};
use realm_core::{
    DType,
    backend::{Backend, BackendError, KvType, Precision},
    graph::{
        KvLayer, WeightInfo,
        ops::{AttentionSpec, Mask},
    },
    sampling::{NO_TOKEN, Sampling},
};

fn device() -> Arc<dyn Backend> {
    open_cuda_emulated(Random::fresh_seed()).unwrap()
}

fn attention(head_dim: usize, kv_type: KvType) -> Case {
    let mut random = Random::new(1);
    let mut case = CaseBuilder::new(&mut random, 10);
    let [q, k, v] = ["q", "k", "v"].map(|name| case.input(name, head_dim));
    let layer = case.graph.kv_layer(KvLayer { heads: 1, head_dim });
    case.graph.kv_write(layer, k, v);
    let spec = AttentionSpec {
        heads: 1,
        head_dim,
        scale: 0.1,
        mask: Mask::CAUSAL,
        soft_cap: None,
        sinks: None,
    };
    let output = case.graph.attention(layer, q, spec);
    case.finish(format!("d{head_dim}"), output).kv_type(kv_type)
}

#[test]
fn head_sizes_without_a_kernel_are_refused_by_name() {
    for head_dim in [1, 12, 100, 264, 512] {
        let error = run::run(&attention(head_dim, KvType::F16), &*device(), 1).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&head_dim.to_string()) && !text.contains('\n'), "{text}");
    }
    let error = run::run(&attention(40, KvType::Q8_0), &*device(), 1).unwrap_err();
    assert!(matches!(error, BackendError::KvType { .. }), "{error}");
    run::run(&attention(40, KvType::F16), &*device(), 1).unwrap();
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused() {
    let info = WeightInfo { name: "w".into(), rows: 4, cols: 100, dtype: DType::Q4_K };
    let error = device().load_weight(&info, vec![0; 4 * 144].into()).err().unwrap();
    assert!(matches!(error, BackendError::WeightLength { .. }), "{error}");
    // Planning for it neither panics nor promises anything.
    _ = device().weight_bytes(&info);
    let huge = WeightInfo { name: "w".into(), rows: usize::MAX / 2, cols: 256, dtype: DType::F32 };
    _ = device().weight_bytes(&huge);
    assert!(device().load_weight(&huge, vec![0; 8].into()).is_err());
}

/// A model one of whose weights has NaN for a scale in every block.
fn broken(dtype: DType, precision: Precision) -> Case {
    let mut case = model::sampling_llama(&mut Random::new(2), dtype).precision(precision);
    case.sampling = Some(Sampling { temperature: 1.0, seed: 3, ..Sampling::GREEDY });
    let at = case.graph.weights().iter().position(|info| info.name.contains("ffn_down")).unwrap();
    let mut bytes = case.weights[at].to_vec();
    let nan = half::f16::NAN.to_le_bytes();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        let scale = if dtype == DType::Q6_K { dtype.block_bytes() - 2 } else { 0 };
        block[scale..scale + 2].copy_from_slice(&nan);
    }
    case.weights[at] = bytes.into();
    case
}

#[test]
fn weights_that_are_no_numbers_give_no_token_rather_than_a_wrong_one() {
    for dtype in [DType::Q4_K, DType::Q6_K, DType::Q8_0] {
        for precision in [Precision::F32, Precision::F16, Precision::BF16, Precision::Int8] {
            for output in run::run(&broken(dtype, precision), &*device(), 4).unwrap() {
                let name = format!("{dtype} {precision}");
                assert!(output.logits.iter().all(|logit| logit.is_nan()), "{name}");
                assert!(output.sampled.iter().all(|&token| token == NO_TOKEN), "{name}");
            }
        }
    }
}

#[test]
fn two_models_on_one_device_do_not_meet() {
    let device = device();
    let (one, two) = (
        model::llama(&mut Random::new(5), DType::Q4_K).precision(Precision::BF16),
        model::llama(&mut Random::new(6), DType::Q6_K).precision(Precision::F16),
    );
    let alone = [run::run(&one, &*device, 7).unwrap(), run::run(&two, &*device, 8).unwrap()];
    let together = std::thread::scope(|scope| {
        let (first, second) = (device.clone(), device.clone());
        let (one, two) = (&one, &two);
        let first = scope.spawn(move || run::run(one, &*first, 7).unwrap());
        let second = scope.spawn(move || run::run(two, &*second, 8).unwrap());
        [first.join().unwrap(), second.join().unwrap()]
    });
    assert!(alone == together, "a model's results change beside another's");
}

#[test]
fn the_device_goes_on_after_refusing_a_step() {
    let device = device();
    let mut case = model::llama(&mut Random::new(9), DType::Q8_0);
    let expected = run::run(&case, &*device, 1).unwrap();
    // Token ids beyond the embedding table.
    let vocabulary = std::mem::replace(&mut case.vocabulary, 1_000_000);
    let error = run::run(&case, &*device, 1).unwrap_err();
    assert!(matches!(error, BackendError::Inputs { .. }), "{error}");
    case.vocabulary = vocabulary;
    assert!(run::run(&case, &*device, 1).unwrap() == expected);
    // More tokens in a step than any kernel's tile.
    case.steps = vec![vec![Chunk::prefill(0, 67)]];
    assert!(run::run(&case, &*device, 1).unwrap()[0].logits.iter().all(|logit| logit.is_finite()));
}
