//! A model on two devices: what it gives there, where its layers go, and what happens where they do not
//! fit.

mod common;

use std::sync::Arc;

use common::{VOCABULARY, model_of, pretend::Pretend};
use realm_compute_cpu::{CpuBackend, CpuOptions};
use realm_conformance::{random::Random, run::distance};
use realm_core::{
    DType, Graph,
    backend::{Backend, KvType, Precision},
    fuse::fuse,
    reference::ReferenceBackend,
};
use realm_runtime::{
    Engine, EngineOptions, Model, Request, RuntimeError, SamplingParams, SplitBackend,
    device::{Device, DeviceOptions},
    memory::MemoryPlan,
};

const LAYERS: usize = 5;

fn cpu() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(&CpuOptions { threads: Some(2), ..CpuOptions::default() }))
}

fn fused(model: &Model) -> Graph {
    let mut graph = model.graph().clone();
    fuse(&mut graph);
    graph
}

/// Logits of a prompt, tokens of two sequences side by side, and how many nodes' times came.
fn results(model: &Model, backend: Arc<dyn Backend>, precision: Precision) -> Results {
    let options = EngineOptions {
        precision,
        sequences: 2,
        step_tokens: 30,
        times: true,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(model, backend, &options).unwrap();
    let prompt: Vec<u32> = (0..70).map(|at| at * 7 % VOCABULARY as u32).collect();
    let mut logits = Vec::new();
    let sink = |rows: &[f32]| {
        logits.extend_from_slice(rows);
        Ok(())
    };
    engine.logits(&prompt, sink).unwrap();
    let sampled = SamplingParams { temperature: 1.0, top_k: 0, top_p: 0.9, min_p: 0.0, seed: 4 };
    for (sampling, length) in [(SamplingParams::GREEDY, 70), (sampled, 12)] {
        let prompt = prompt[..length].to_vec();
        engine.submit(Request { prompt, max_tokens: 20, sampling, stop_tokens: vec![] }).unwrap();
    }
    let mut tokens = vec![Vec::new(); 2];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            tokens[event.sequence.0 as usize].push(event.token);
        }
    }
    let times = engine.take_node_seconds();
    assert_eq!(times.len(), engine.graph().nodes().len());
    assert!(times.iter().all(|&seconds| seconds > 0.0), "{times:?}");
    Results { logits, tokens }
}

#[derive(Debug, PartialEq)]
struct Results {
    logits: Vec<f32>,
    tokens: Vec<Vec<u32>>,
}

#[test]
fn every_split_gives_what_one_device_gives() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let model = model_of(seed, DType::Q8_0, LAYERS);
    let graph = fused(&model);
    for precision in [Precision::F32, Precision::Auto] {
        let expected = results(&model, cpu(), precision);
        for layer in 1..LAYERS {
            let second = Arc::new(Pretend::new(cpu(), "second"));
            let split = SplitBackend::new(&graph, layer, cpu(), second).unwrap();
            assert_eq!(split.info().name, "second+cpu");
            let found = results(&model, Arc::new(split), precision);
            assert_eq!(found, expected, "{layer} of {LAYERS} layers, {precision}");
        }
    }
    let expected = results(&model, cpu(), Precision::F32);
    for layer in [1, LAYERS - 1] {
        let reference = || Arc::new(ReferenceBackend::new(64));
        for [first, second] in [[cpu(), reference()], [reference(), cpu()]] {
            let split = SplitBackend::new(&graph, layer, first, second).unwrap();
            let found = results(&model, Arc::new(split), Precision::F32);
            let distance = distance(&found.logits, &expected.logits, 0.0);
            assert!(distance < 1e-5 && distance > 0.0, "{distance}");
            assert_eq!(found.tokens[0], expected.tokens[0]);
        }
    }
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    let model = model_of(1, DType::F32, LAYERS);
    let graph = fused(&model);
    let refuse = |layer, second: Arc<dyn Backend>| {
        let error = SplitBackend::new(&graph, layer, cpu(), second).err().unwrap().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    assert!(refuse(1, Arc::new(ReferenceBackend::new(16))).contains("64 and 16 tokens"));
    assert!(refuse(0, cpu()).contains("layers 0 to 4") && refuse(9, cpu()).contains("layer 9"));
    // Another model's weights.
    let split = Arc::new(SplitBackend::new(&graph, 1, cpu(), cpu()).unwrap());
    let other = model_of(1, DType::F32, LAYERS + 1);
    let error = Engine::new(&other, split, &EngineOptions::default()).err().unwrap().to_string();
    assert!(error.contains("does not belong to cpu+cpu"), "{error}");
}

fn device(pretend: Pretend, options: DeviceOptions) -> Device {
    Device::new(Arc::new(pretend), DeviceOptions { threads: Some(2), ..options })
}

fn gpu(room: Option<u64>) -> Pretend {
    let pretend = Pretend::new(cpu(), "gpu:0");
    match room {
        Some(bytes) => pretend.room(bytes),
        None => pretend,
    }
}

fn options() -> EngineOptions {
    EngineOptions { kv_type: Some(KvType::F16), step_tokens: 16, ..EngineOptions::default() }
}

#[test]
fn as_many_layers_as_fit_go_to_the_gpu() {
    let model = model_of(2, DType::F32, LAYERS);
    let whole = MemoryPlan::new(&model, &fused(&model), &*cpu(), &options()).unwrap();
    let mut last = LAYERS + 1;
    let mut seen = Vec::new();
    // From all of what is needed down to nothing.
    for part in (0..=20).rev() {
        let room = whole.total_bytes() * part / 20;
        let mut device = device(gpu(Some(room)), DeviceOptions::default());
        let placement = device.place(&model, &options()).unwrap();
        let plan = placement.memory();
        let on_gpu = plan.devices.iter().find(|part| part.device == "gpu:0");
        let layers = on_gpu.map_or(0, |part| part.layers.len());
        assert!(layers <= last, "less memory, more layers");
        last = layers;
        if !seen.contains(&layers) {
            seen.push(layers);
        }
        if let Some(part) = on_gpu {
            assert!(part.total_bytes() <= room, "{part:?} in {room}");
            assert_eq!(part.layers.end, LAYERS);
        }
        let note = placement.notes().first().cloned();
        match (layers, note) {
            (LAYERS, note) => assert_eq!((note, plan.devices.len()), (None, 1)),
            (0, Some(note)) => {
                assert!(device.is_cpu() && note.starts_with("gpu:0 is not used: no layer fits: "));
            }
            (_, Some(note)) => {
                let s = if layers == LAYERS - 1 { "layer 0" } else { "layers 0 to " };
                assert!(note.starts_with(s) && note.contains(" free"), "{note}");
                assert!(note.contains("of 5 run"), "{note}");
                assert_eq!(plan.devices.len(), 2);
            }
            (_, None) => panic!("nothing says why {layers} layers"),
        }
    }
    assert!(seen.len() >= 4 && seen[0] == LAYERS && last == 0, "{seen:?}");
}

#[test]
fn layers_are_placed_as_asked() {
    let model = model_of(3, DType::Q8_0, LAYERS);
    let expected = results_of(device(gpu(None), DeviceOptions::default()), &model);
    for (wanted, on_gpu) in [(0, 0), (1, 1), (3, 3), (LAYERS, LAYERS), (99, LAYERS)] {
        let wanted = DeviceOptions { gpu_layers: Some(wanted), ..DeviceOptions::default() };
        let mut there = device(gpu(None), wanted.clone());
        let placement = there.place(&model, &options()).unwrap();
        let plan = placement.memory();
        let layers: usize =
            plan.devices.iter().filter(|p| p.device == "gpu:0").map(|p| p.layers.len()).sum();
        assert_eq!((layers, there.is_cpu()), (on_gpu, on_gpu == 0));
        assert_eq!(placement.notes().is_empty(), on_gpu == LAYERS);
        assert_eq!(results_of(device(gpu(None), wanted), &model), expected);
    }
    let wanted = DeviceOptions { gpu_layers: Some(0), require_gpu: true, ..Default::default() };
    let error = device(gpu(None), wanted).place(&model, &options()).err().unwrap();
    assert!(error.to_string().contains("--gpu-layers 0"), "{error}");
    // More than fit, asked for by number.
    let wanted = DeviceOptions { gpu_layers: Some(LAYERS), ..Default::default() };
    let error = device(gpu(Some(1000)), wanted).place(&model, &options()).err().unwrap();
    assert!(error.to_string().contains("gpu:0, which has"), "{error}");
}

/// The greedy tokens of a model where a device puts it.
fn results_of(mut device: Device, model: &Model) -> Vec<u32> {
    let placement = device.place(model, &options()).unwrap();
    let mut seen = Vec::new();
    let mut progress = |progress| seen.push(progress);
    let mut engine = device.load(model, placement, &mut progress).unwrap().engine;
    let last = seen.last().unwrap();
    assert!(last.loaded == last.total && seen.is_sorted_by_key(|progress| progress.loaded));
    let sampling = SamplingParams::GREEDY;
    let request = Request { prompt: vec![3; 20], max_tokens: 8, sampling, stop_tokens: vec![] };
    engine.submit(request).unwrap();
    let mut tokens = Vec::new();
    while !engine.is_idle() {
        tokens.extend(engine.step().unwrap().iter().map(|event| event.token));
    }
    tokens
}

#[test]
fn a_card_without_room_is_an_error_where_a_gpu_is_required() {
    let model = model_of(4, DType::F32, LAYERS);
    let required = DeviceOptions { require_gpu: true, ..DeviceOptions::default() };
    let error = device(gpu(Some(0)), required).place(&model, &options()).err().unwrap();
    assert!(matches!(error, RuntimeError::Memory(_)), "{error}");
    let error = error.to_string();
    assert!(error.contains("no layer fits") && error.contains("use a smaller"), "{error}");
}

#[test]
fn a_card_that_fills_up_while_loading_is_left_for_the_cpu_by_auto_alone() {
    let model = model_of(5, DType::F32, LAYERS);
    let full = || {
        let mut gpu = gpu(None);
        gpu.fails_after = Some(7);
        gpu
    };
    let named = DeviceOptions { name: "gpu:0".into(), ..DeviceOptions::default() };
    let required = DeviceOptions { require_gpu: true, ..DeviceOptions::default() };
    for layers in [None, Some(3)] {
        for (wanted, falls_back) in
            [(DeviceOptions::default(), true), (named.clone(), false), (required.clone(), false)]
        {
            let wanted = DeviceOptions { gpu_layers: layers, ..wanted };
            let mut device = device(full(), wanted);
            let placement = device.place(&model, &options()).unwrap();
            let loaded = device.load(&model, placement, &mut |_| {});
            assert_eq!(loaded.is_ok(), falls_back);
            assert_eq!(device.is_cpu(), falls_back);
            let said = match loaded {
                Ok(loaded) => {
                    assert_eq!(loaded.engine.backend().info().name, "cpu");
                    loaded.note.unwrap()
                }
                Err(error) => error.to_string(),
            };
            assert!(said.contains("gpu:0 is out of memory") && !said.contains('\n'), "{said}");
        }
    }
}
