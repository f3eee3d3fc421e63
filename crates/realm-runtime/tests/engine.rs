//! The engine: sequences side by side give what they give alone; bad requests are refused.

mod common;

use std::sync::Arc;

use common::{CONTEXT, VOCABULARY, finish, model, model_with};
use realm_compute_cpu::{CpuBackend, CpuOptions};
use realm_conformance::{random::Random, run::distance};
use realm_core::{
    DType,
    backend::{Backend, KvType, Precision},
    reference::ReferenceBackend,
};
use realm_runtime::{Engine, EngineOptions, Finish, Model, Request, RuntimeError, SamplingParams};

fn cpu(threads: usize) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }))
}

fn engine(model: &Model, sequences: usize, step_tokens: usize) -> Engine {
    let options = EngineOptions { sequences, step_tokens, ..EngineOptions::default() };
    Engine::new(model, cpu(2), &options).unwrap()
}

fn request(random: &mut Random) -> Request {
    let prompt = (0..1 + random.below(60)).map(|_| random.below(VOCABULARY) as u32).collect();
    let seed = u64::from(random.word());
    let sampling = SamplingParams { temperature: 1.0, top_k: 0, top_p: 0.95, min_p: 0.01, seed };
    Request { prompt, max_tokens: 1 + random.below(20), sampling, stop_tokens: vec![7] }
}

#[test]
fn sequences_give_the_same_alone_batched_and_chunked() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    let model = model(seed, DType::Q4_0);
    let requests: Vec<Request> = (0..9).map(|_| request(&mut random)).collect();
    let mut alone = engine(&model, 1, 512);
    let expected: Vec<_> = requests
        .iter()
        .map(|request| {
            let id = alone.submit(request.clone()).unwrap();
            finish(&mut alone).remove(&id).unwrap()
        })
        .collect();
    assert!(expected.iter().any(|(tokens, _)| tokens.len() > 3), "texts too short to tell");
    // More sequences than places, and steps that cut prompts anywhere.
    for (places, step_tokens) in [(4, 512), (3, 7), (9, 16), (1, 1)] {
        let mut engine = engine(&model, places, step_tokens);
        let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let texts = finish(&mut engine);
        for (id, expected) in ids.iter().zip(&expected) {
            assert_eq!(&texts[id], expected, "{places} places, {step_tokens} tokens a step");
        }
    }
}

#[test]
fn a_cancelled_sequence_gives_its_place_to_the_next() {
    let model = model(1, DType::F32);
    let mut engine = engine(&model, 1, 512);
    let long =
        Request { max_tokens: CONTEXT - 10, stop_tokens: vec![], ..request(&mut Random::new(1)) };
    let long = Request { prompt: vec![1, 2, 3], ..long };
    let first = engine.submit(long.clone()).unwrap();
    let second = engine.submit(Request { max_tokens: 2, ..long }).unwrap();
    assert_eq!(engine.step().unwrap()[0].sequence, first);
    assert!(engine.cancel(first));
    assert!(!engine.cancel(first));
    let texts = finish(&mut engine);
    assert_eq!(texts.len(), 1);
    assert_eq!((texts[&second].0.len(), texts[&second].1), (2, Some(Finish::Length)));
}

#[test]
fn stop_tokens_end_a_sequence() {
    let model = model(2, DType::F32);
    let mut engine = engine(&model, 1, 512);
    let base = Request {
        prompt: vec![5, 6],
        max_tokens: 30,
        sampling: SamplingParams::GREEDY,
        stop_tokens: vec![],
    };
    let id = engine.submit(base.clone()).unwrap();
    let (tokens, _) = finish(&mut engine).remove(&id).unwrap();
    let stop = tokens[4];
    let first = tokens.iter().position(|&token| token == stop).unwrap();
    let id = engine.submit(Request { stop_tokens: vec![stop], ..base }).unwrap();
    let (cut, end) = finish(&mut engine).remove(&id).unwrap();
    assert_eq!((&cut[..], end), (&tokens[..=first], Some(Finish::Stop)));
}

#[test]
fn logits_agree_with_the_reference_interpreter() {
    let prompt: Vec<u32> = (0..150).map(|at| at * 7 % VOCABULARY as u32).collect();
    for (dtype, precision, bound) in [
        (DType::F32, Precision::F32, 1e-5),
        (DType::Q8_0, Precision::F32, 1e-5),
        (DType::Q8_0, Precision::Auto, 5e-2),
    ] {
        let model = model(3, dtype);
        let logits = |backend: Arc<dyn Backend>| {
            let kv_type = Some(KvType::F32);
            let options = EngineOptions { precision, kv_type, ..EngineOptions::default() };
            let mut engine = Engine::new(&model, backend, &options).unwrap();
            let mut all = Vec::new();
            engine
                .logits(&prompt, |rows| {
                    all.extend_from_slice(rows);
                    Ok(())
                })
                .unwrap();
            assert!(engine.is_idle());
            all
        };
        let expected = logits(Arc::new(ReferenceBackend::new(16)));
        assert_eq!(expected.len(), prompt.len() * VOCABULARY);
        let distance = distance(&logits(cpu(2)), &expected, 0.0);
        assert!(distance < bound, "{dtype} {precision}: {distance}");
    }
}

#[test]
fn bad_requests_are_refused_in_one_line() {
    let model = model(4, DType::F32);
    let mut engine = engine(&model, 1, 512);
    let good = Request {
        prompt: vec![1],
        max_tokens: 1,
        sampling: SamplingParams::GREEDY,
        stop_tokens: vec![],
    };
    let hot = SamplingParams { temperature: f32::NAN, ..SamplingParams::GREEDY };
    let cases = [
        (Request { prompt: vec![], ..good.clone() }, "no tokens"),
        (Request { prompt: vec![VOCABULARY as u32], ..good.clone() }, "vocabulary"),
        (Request { prompt: vec![1; CONTEXT + 1], ..good.clone() }, "--ctx"),
        (Request { max_tokens: CONTEXT + 1, ..good.clone() }, "--ctx"),
        (Request { max_tokens: usize::MAX, ..good.clone() }, "--ctx"),
        (Request { max_tokens: 0, ..good.clone() }, "at least one"),
        (Request { sampling: hot, ..good.clone() }, "temperature"),
    ];
    for (request, word) in cases {
        let error = engine.submit(request).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains('\n'), "{error}");
    }
    assert!(engine.is_idle());
    engine.submit(Request { prompt: vec![1; CONTEXT], ..good }).unwrap();
    assert_eq!(finish(&mut engine).len(), 1);
}

#[test]
fn what_does_not_fit_is_said_before_loading() {
    let model = model(5, DType::F32);
    let options = EngineOptions { context: Some(usize::MAX / 64), ..EngineOptions::default() };
    let error = Engine::new(&model, cpu(1), &options).err().unwrap();
    assert!(matches!(error, RuntimeError::Memory(_)), "{error}");
    assert!(error.to_string().contains("--ctx"), "{error}");
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let model = model_with(6, DType::F32, f32::NAN);
    let mut engine = engine(&model, 2, 512);
    let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::GREEDY };
    let request = Request { prompt: vec![1, 2], max_tokens: 3, sampling, stop_tokens: vec![] };
    engine.submit(request).unwrap();
    let error = engine.step().unwrap_err();
    assert!(matches!(error, RuntimeError::NotNumbers { .. }), "{error}");
    assert!(engine.is_idle());
}
