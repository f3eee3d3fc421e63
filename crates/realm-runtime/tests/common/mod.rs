//! A small Llama file with random weights, in memory, and a device that pretends.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod npy;
pub(crate) mod pretend;

use std::{collections::BTreeMap, io::Write, sync::Arc};

use realm_compute_cpu::{CpuBackend, CpuOptions};
use realm_conformance::random::Random;
use realm_core::{DType, backend::Backend};
use realm_gguf::{GgufFile, GgufWriter};
use realm_runtime::{
    Engine, EngineOptions, Finish, KvType, Model, Request, SamplingParams, SequenceId,
};

pub(crate) const VOCABULARY: usize = 61;
pub(crate) const CONTEXT: usize = 200;

const HIDDEN: usize = 64;
const FEED_FORWARD: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const LAYERS: usize = 2;

/// Name and shape `[cols, rows]` of all tensors; vectors have one dimension.
fn tensors(layers: usize, head_dim: usize) -> Vec<(String, Vec<usize>)> {
    let mut list = vec![("token_embd.weight".into(), vec![HIDDEN, VOCABULARY])];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            list.push((format!("blk.{layer}.{name}"), shape.to_vec()));
        };
        add("attn_norm.weight", &[HIDDEN]);
        add("attn_q.weight", &[HIDDEN, HEADS * head_dim]);
        add("attn_q.bias", &[HEADS * head_dim]);
        add("attn_k.weight", &[HIDDEN, KV_HEADS * head_dim]);
        add("attn_v.weight", &[HIDDEN, KV_HEADS * head_dim]);
        add("attn_output.weight", &[HEADS * head_dim, HIDDEN]);
        add("ffn_norm.weight", &[HIDDEN]);
        add("ffn_gate.weight", &[HIDDEN, FEED_FORWARD]);
        add("ffn_up.weight", &[HIDDEN, FEED_FORWARD]);
        add("ffn_down.weight", &[FEED_FORWARD, HIDDEN]);
    }
    list.push(("output_norm.weight".into(), vec![HIDDEN]));
    list
}

/// The file's writer, before tensors are added.
fn writer(layers: usize, head_dim: usize) -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama").unwrap();
    for (key, value) in [
        ("block_count", layers),
        ("context_length", CONTEXT),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FEED_FORWARD),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
    ] {
        writer.set(format!("llama.{key}"), value as u32).unwrap();
    }
    writer
}

/// A model with random weights of `dtype`, tied embeddings and a bias on its queries.
pub(crate) fn model(seed: u64, dtype: DType) -> Model {
    model_with(seed, dtype, 1.0)
}

/// The same, with embeddings of a given deviation.
pub(crate) fn model_with(seed: u64, dtype: DType, embedding: f32) -> Model {
    build(seed, dtype, embedding, (LAYERS, HEAD_DIM), &|_, _, _| {})
}

/// A model whose token `broken` is embedded as NaN: a sequence that has it has no next token.
pub(crate) fn model_breaking_at(seed: u64, broken: usize) -> Model {
    let edit = |name: &str, cols: usize, data: &mut [f32]| {
        if name == "token_embd.weight" {
            data[broken * cols..][..cols].fill(f32::NAN);
        }
    };
    build(seed, DType::F32, 1.0, (LAYERS, HEAD_DIM), &edit)
}

/// The token of [`model_loud_in`] that f16 overflows with.
pub(crate) const LOUD: usize = 17;

/// A model whose token [`LOUD`] alone has a feature that the first layer's `tensor`, of 2 dimensions,
/// multiplies by numbers around 10⁴: f16 holds those, what comes of them it does not.
pub(crate) fn model_loud_in(seed: u64, tensor: &str) -> Model {
    let loud = format!("blk.0.{tensor}.weight");
    let edit = |name: &str, cols: usize, data: &mut [f32]| {
        let short = name.rsplit('.').nth(1).unwrap_or_default();
        match short {
            "token_embd" => {
                data.iter_mut().step_by(cols).for_each(|first| *first = 0.0);
                data[LOUD * cols] = 16.0;
            }
            "attn_norm" | "ffn_norm" => data[0] = 1.0,
            // The residual stream gets no more of the feature.
            "attn_output" | "ffn_down" => data[..cols].fill(0.0),
            _ if name == loud => {
                data.iter_mut().step_by(cols).for_each(|first| *first *= 5e4);
            }
            _ => {}
        }
    };
    build(seed, DType::F32, 1.0, (LAYERS, HEAD_DIM), &edit)
}

/// The same with a number of layers.
pub(crate) fn model_of(seed: u64, dtype: DType, layers: usize) -> Model {
    build(seed, dtype, 1.0, (layers, HEAD_DIM), &|_, _, _| {})
}

/// The same with heads of a size, one layer.
pub(crate) fn model_with_heads(seed: u64, dtype: DType, head_dim: usize) -> Model {
    build(seed, dtype, 1.0, (1, head_dim), &|_, _, _| {})
}

/// `edit` may change the numbers of tensors in f32: their name, columns and contents.
fn build(
    seed: u64,
    dtype: DType,
    embedding: f32,
    (layers, head_dim): (usize, usize),
    edit: &dyn Fn(&str, usize, &mut [f32]),
) -> Model {
    let mut writer = writer(layers, head_dim);
    for (name, shape) in tensors(layers, head_dim) {
        let dtype = if shape.len() == 1 { DType::F32 } else { dtype };
        writer.tensor(&name, &shape, dtype).unwrap();
    }
    let mut random = Random::new(seed);
    let bytes = writer.to_bytes(|plan, out: &mut dyn Write| {
        let (cols, rows) = (plan.shape()[0], plan.shape()[1..].iter().product());
        let embeds = plan.name() == "token_embd.weight";
        let deviation = if embeds { embedding } else { 1.5 / (cols as f32).sqrt() };
        let mut data = random.matrix(rows, cols, plan.dtype(), deviation);
        if plan.dtype() == DType::F32 {
            let number =
                |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let mut numbers: Vec<f32> = data.chunks_exact(4).map(number).collect();
            edit(plan.name(), cols, &mut numbers);
            data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        }
        out.write_all(&data)
    });
    Model::new(GgufFile::parse(bytes.unwrap()).unwrap()).unwrap()
}

/// The CPU with a number of threads.
pub(crate) fn cpu(threads: usize) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(&CpuOptions { threads: Some(threads), ..CpuOptions::default() }))
}

/// A model on a device, with places for so many sequences and steps of so many tokens.
pub(crate) fn engine_on(
    model: &Model,
    backend: Arc<dyn Backend>,
    sequences: usize,
    step_tokens: usize,
) -> Engine {
    let options = EngineOptions { sequences, step_tokens, ..EngineOptions::default() };
    Engine::new(model, backend, &options).unwrap()
}

/// The same with nothing in f16: what is no number is an error at once.
pub(crate) fn wide_engine_on(
    model: &Model,
    backend: Arc<dyn Backend>,
    sequences: usize,
    step_tokens: usize,
) -> Engine {
    let kv_type = Some(KvType::F32);
    let options = EngineOptions { sequences, step_tokens, kv_type, ..EngineOptions::default() };
    Engine::new(model, backend, &options).unwrap()
}

/// A request that only its length ends.
pub(crate) fn ask(prompt: Vec<u32>, max_tokens: usize, sampling: SamplingParams) -> Request {
    Request { prompt, max_tokens, sampling, stop_tokens: vec![], logprobs: None }
}

/// A sequence's tokens, and why it ended.
pub(crate) type Texts = BTreeMap<SequenceId, (Vec<u32>, Option<Finish>)>;

/// Runs everything that was submitted to its end; `between` is called before each step.
pub(crate) fn finish_with(
    engine: &mut Engine,
    mut between: impl FnMut(&mut Engine, usize),
) -> Texts {
    let mut texts = Texts::new();
    let mut steps = 0;
    while !engine.is_idle() {
        between(engine, steps);
        for event in engine.step().unwrap() {
            let text = texts.entry(event.sequence).or_default();
            assert_eq!(text.1, None, "a token after the last one");
            text.0.push(event.token);
            text.1 = event.finish;
        }
        steps += 1;
        assert!(steps < 5_000, "the engine does not come to an end");
    }
    texts
}

/// The same, with nothing between the steps.
pub(crate) fn finish(engine: &mut Engine) -> Texts {
    finish_with(engine, |_, _| {})
}
