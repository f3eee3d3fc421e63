//! Two small models with random weights, made for this project, against results recorded from other
//! implementations: transformers 5.23.0 on torch 2.15.0 for `llama3-rope` (f32 weights, grouped heads,
//! Llama 3 rope divisors, tied embeddings), the dequantized weights in double precision for
//! `llama-256-q4_k_m` (as llama.cpp quantized them).

mod common;

use std::{path::PathBuf, sync::Arc};

use common::npy;
use realm_compute_cpu::{CpuBackend, CpuOptions, IsaLimit};
use realm_core::backend::{Backend, Precision};
use realm_runtime::{Engine, EngineOptions, Model, Request, SamplingParams};

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn ids(name: &str) -> Vec<u32> {
    npy::ids(&data(name))
}

fn floats(name: &str) -> Vec<f32> {
    npy::floats(&data(name))
}

fn engines(file: &str, precision: Precision) -> impl Iterator<Item = Engine> {
    let model = Model::open(data(file)).unwrap();
    let isas = [IsaLimit::Scalar, IsaLimit::Avx2, IsaLimit::Avx512].into_iter();
    isas.filter(|&isa| isa <= CpuBackend::best_isa()).map(move |isa| {
        let cpu: Arc<dyn Backend> =
            Arc::new(CpuBackend::new(&CpuOptions { threads: Some(2), isa }));
        let options = EngineOptions { precision, ..EngineOptions::default() };
        Engine::new(&model, cpu, &options).unwrap()
    })
}

fn logits(engine: &mut Engine, tokens: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    let sink = |rows: &[f32]| {
        all.extend_from_slice(rows);
        Ok(())
    };
    engine.logits(tokens, sink).unwrap();
    all
}

fn farthest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max)
}

#[test]
fn float_logits_are_the_recorded_ones() {
    let (tokens, expected) = (ids("llama3-rope.tokens.npy"), floats("llama3-rope.logits.npy"));
    for mut engine in engines("llama3-rope.gguf", Precision::F32) {
        let off = farthest(&logits(&mut engine, &tokens), &expected);
        assert!(off <= 2e-4, "{}: {off}", engine.backend().info().description);
    }
}

#[test]
fn greedy_tokens_are_the_recorded_ones() {
    let (prompt, expected) = (ids("llama3-rope.tokens.npy"), ids("llama3-rope.greedy.npy"));
    for mut engine in engines("llama3-rope.gguf", Precision::F32) {
        let request = Request {
            prompt: prompt.clone(),
            max_tokens: expected.len(),
            sampling: SamplingParams::GREEDY,
            stop_tokens: vec![],
            logprobs: None,
        };
        engine.submit(request).unwrap();
        let mut found = Vec::new();
        while !engine.is_idle() {
            found.extend(engine.step().unwrap().into_iter().map(|event| event.token));
        }
        assert_eq!(found, expected, "{}", engine.backend().info().description);
    }
}

#[test]
fn quantized_logits_are_the_recorded_ones() {
    let tokens = ids("llama-256-q4_k_m.tokens.npy");
    let expected = floats("llama-256-q4_k_m.logits.npy");
    for mut engine in engines("llama-256-q4_k_m.gguf", Precision::F32) {
        let off = farthest(&logits(&mut engine, &tokens), &expected);
        assert!(off <= 2e-4, "{}: {off}", engine.backend().info().description);
    }
    for mut engine in engines("llama-256-q4_k_m.gguf", Precision::Int8) {
        let found = logits(&mut engine, &tokens);
        let squares = found.iter().zip(&expected).map(|(f, e)| f64::from(f - e).powi(2));
        let rmse = (squares.sum::<f64>() / expected.len() as f64).sqrt();
        assert!(rmse <= 0.2, "{}: {rmse}", engine.backend().info().description);
        assert!(rmse > 1e-4, "activations were not quantized");
    }
}
