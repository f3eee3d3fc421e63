//! A model on two devices: what it gives there, where its layers go, and what happens where they do not
//! fit.

mod common;

use std::sync::Arc;

use common::{VOCABULARY, ask, cpu, model_of, pretend::Pretend};
use realm_conformance::{random::Random, run::distance};
use realm_core::{
    DType, Graph,
    backend::{Backend, CompileOptions, KvType, Limits, Precision},
    fuse::fuse,
    reference::ReferenceBackend,
};
use realm_runtime::{
    Engine, EngineOptions, Loaded, Model, RuntimeError, SamplingParams, SplitBackend,
    device::{Device, DeviceOptions},
    memory::MemoryPlan,
};

const LAYERS: usize = 5;

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
    let sampled =
        SamplingParams { temperature: 1.0, top_p: 0.9, seed: 4, ..SamplingParams::GREEDY };
    for (sampling, length) in [(SamplingParams::GREEDY, 70), (sampled, 12)] {
        let prompt = prompt[..length].to_vec();
        engine.submit(ask(prompt, 20, sampling)).unwrap();
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
        let expected = results(&model, cpu(2), precision);
        for layer in 1..LAYERS {
            let second = Arc::new(Pretend::new(cpu(2), "second"));
            let split = SplitBackend::new(&graph, layer, cpu(2), second).unwrap();
            assert_eq!(split.info().name, "second+cpu");
            let found = results(&model, Arc::new(split), precision);
            assert_eq!(found, expected, "{layer} of {LAYERS} layers, {precision}");
        }
    }
    let expected = results(&model, cpu(2), Precision::F32);
    for layer in [1, LAYERS - 1] {
        let reference = || Arc::new(ReferenceBackend::new(64));
        for [first, second] in [[cpu(2), reference()], [reference(), cpu(2)]] {
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
        let error = SplitBackend::new(&graph, layer, cpu(2), second).err().unwrap().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    assert!(refuse(1, Arc::new(ReferenceBackend::new(16))).contains("64 and 16 tokens"));
    assert!(refuse(0, cpu(2)).contains("layers 0 to 4") && refuse(9, cpu(2)).contains("layer 9"));
    // Another model's weights.
    let split = Arc::new(SplitBackend::new(&graph, 1, cpu(2), cpu(2)).unwrap());
    let other = model_of(1, DType::F32, LAYERS + 1);
    let error = Engine::new(&other, split, &EngineOptions::default()).err().unwrap().to_string();
    assert!(error.contains("does not belong to cpu+cpu"), "{error}");
}

fn device(pretend: Pretend, options: DeviceOptions) -> Device {
    Device::new(Arc::new(pretend), DeviceOptions { threads: Some(2), ..options })
}

fn gpu(room: Option<u64>) -> Pretend {
    let pretend = Pretend::new(cpu(2), "gpu:0");
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
    let whole = MemoryPlan::new(&model, &fused(&model), &*cpu(2), &options()).unwrap();
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
    let loaded = device.load(model, placement, &mut progress).unwrap();
    let Loaded::Engine(mut engine) = loaded else { panic!("the device failed") };
    let last = seen.last().unwrap();
    assert!(last.loaded == last.total && seen.is_sorted_by_key(|progress| progress.loaded));
    let sampling = SamplingParams::GREEDY;
    let request = ask(vec![3; 20], 8, sampling);
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
                Ok(Loaded::Moved(placement)) => {
                    assert_eq!(placement.memory().devices[0].device, "cpu");
                    let said = placement.notes().join("|");
                    // Nobody has to choose another device: one was chosen.
                    assert!(!said.contains("--device"), "{said}");
                    let loaded = device.load(&model, *placement, &mut |_| {}).unwrap();
                    assert!(matches!(loaded, Loaded::Engine(_)));
                    said
                }
                Ok(Loaded::Engine(_)) => panic!("a full card was loaded"),
                Err(error) => error.to_string(),
            };
            assert!(said.contains("gpu:0 is out of memory") && !said.contains('\n'), "{said}");
        }
    }
}

/// A device without room, one that fills up, one that cannot be opened, and one more.
fn row_of(last: fn() -> Pretend, options: DeviceOptions) -> Device {
    let full = || Ok(Arc::new(gpu(Some(0)).named("gpu:1")) as Arc<dyn Backend>);
    let fills_up = || {
        let mut gpu = gpu(None).named("gpu:2");
        gpu.fails_after = Some(3);
        Ok(Arc::new(gpu) as Arc<dyn Backend>)
    };
    let broken = || Err("gpu:3: no kernels".to_owned());
    let last = move || Ok(Arc::new(last()) as Arc<dyn Backend>);
    device(gpu(Some(0)), options).then(full).then(fills_up).then(broken).then(last)
}

/// Loads a model on the first device that takes it; everything that was said on the way.
fn load(device: &mut Device, model: &Model) -> Result<(Engine, Vec<String>), RuntimeError> {
    let mut placement = device.place(model, &options())?;
    let mut said = Vec::new();
    loop {
        said.extend(placement.notes().iter().cloned());
        match device.load(model, placement, &mut |_| {})? {
            Loaded::Engine(engine) => return Ok((*engine, said)),
            Loaded::Moved(next) => placement = *next,
        }
    }
}

#[test]
fn after_a_full_card_the_next_one_is_tried() {
    let model = model_of(6, DType::F32, LAYERS);
    let good = || gpu(None).named("gpu:4");
    let named = DeviceOptions { name: "gpu".into(), ..DeviceOptions::default() };
    let required = DeviceOptions { require_gpu: true, ..DeviceOptions::default() };
    for wanted in [DeviceOptions::default(), named.clone(), required.clone()] {
        for gpu_layers in [None, Some(2)] {
            let wanted = DeviceOptions { gpu_layers, ..wanted.clone() };
            let mut device = row_of(good, wanted);
            let (engine, said) = load(&mut device, &model).unwrap();
            assert!(engine.backend().info().name.starts_with("gpu:4"));
            let starts =
                ["gpu:0 is not used: ", "gpu:1 is not used: ", "the model goes to gpu:4: "];
            for start in starts {
                let lines = said.iter().filter(|line| line.starts_with(start));
                assert_eq!(lines.count(), 1, "{start:?} in {said:#?}");
            }
            assert!(said.iter().any(|line| line == "passed over: gpu:3: no kernels"), "{said:#?}");
            assert!(said.iter().all(|line| !line.contains('\n')));
        }
    }
    // None takes it: the CPU where that may be, else an error.
    let full = || gpu(Some(0)).named("gpu:4");
    let (engine, said) = load(&mut row_of(full, DeviceOptions::default()), &model).unwrap();
    assert_eq!(engine.backend().info().name, "cpu");
    let why = "the model runs on the CPU: gpu:2 is out of memory";
    assert!(said.iter().any(|line| line.starts_with(why)), "{said:#?}");
    assert!(said.iter().any(|line| line.starts_with("gpu:4 is not used")), "{said:#?}");
    for wanted in [named, required] {
        let error = load(&mut row_of(full, wanted), &model).err().unwrap().to_string();
        for part in ["gpu:2 is out of memory", "no layer fits", "gpu:4, which has"] {
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
    }
}

#[test]
fn a_named_gpu_without_room_is_an_error() {
    let model = model_of(7, DType::F32, LAYERS);
    let named = DeviceOptions { name: "gpu:0".into(), ..DeviceOptions::default() };
    let whole = MemoryPlan::new(&model, &fused(&model), &*cpu(2), &options()).unwrap();
    for room in [0, whole.workspace_bytes()] {
        let mut device = device(gpu(Some(room)), named.clone());
        let error = device.place(&model, &options()).err().unwrap().to_string();
        for part in ["no layer fits", "gpu:0, which has", "--device auto", "the last layer alone"] {
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        assert!(!device.is_cpu());
    }
    // One layer fits with less context than was asked for: how much is said, and true.
    let wide = EngineOptions { context: Some(20_000), ..options() };
    let room = whole.total_bytes();
    let error = device(gpu(Some(room)), named.clone()).place(&model, &wide).err().unwrap();
    let error = error.to_string();
    let most = error.split("--gpu-layers 1 at most --ctx ").nth(1).expect(&error);
    let most: usize = most.split(' ').next().unwrap().parse().unwrap();
    let one = DeviceOptions { gpu_layers: Some(1), ..named };
    for (context, fits) in [(most, true), (most + 1, false)] {
        let options = EngineOptions { context: Some(context), ..options() };
        let placed = device(gpu(Some(room)), one.clone()).place(&model, &options);
        assert_eq!(placed.is_ok(), fits, "{context} of {most}");
    }
}

#[test]
fn too_many_layers_asked_for_are_said_to_be() {
    let model = model_of(8, DType::F32, LAYERS);
    for name in ["auto", "gpu:0"] {
        for wanted in [2, LAYERS, 99] {
            let options = DeviceOptions {
                name: name.into(),
                gpu_layers: Some(wanted),
                ..DeviceOptions::default()
            };
            let mut device = device(gpu(Some(1000)), options);
            let error = device.place(&model, &self::options()).err().unwrap().to_string();
            assert!(error.contains("fewer --gpu-layers"), "{error}");
            assert!(!error.contains("smaller file") && !error.contains('\n'), "{error}");
        }
    }
}

#[test]
fn a_gpu_that_does_not_tell_its_memory_is_said_to_be_one() {
    let model = model_of(9, DType::F32, 2);
    let mut device = device(gpu(None).silent(), DeviceOptions::default());
    let placement = device.place(&model, &options()).unwrap();
    assert!(placement.notes()[0].contains("gpu:0 does not tell its free memory"));
}

#[test]
fn devices_that_cannot_share_a_model_leave_it_to_one() {
    let model = model_of(10, DType::F32, LAYERS);
    let other = Pretend::new(Arc::new(ReferenceBackend::new(16)), "gpu:0");
    let mut device = device(other.room(50_000), DeviceOptions::default());
    let placement = device.place(&model, &options()).unwrap();
    assert!(device.is_cpu());
    let note = &placement.notes()[0];
    assert!(
        note.contains("no layer fits") && note.contains("16 and 64 tokens")
            || note.contains("64 and 16 tokens"),
        "{note}"
    );
}

#[test]
fn work_memory_of_a_graph_that_is_not_the_splits_is_no_less_than_its_own() {
    let graph = fused(&model_of(11, DType::F32, LAYERS));
    let split = SplitBackend::new(&graph, LAYERS - 1, cpu(2), cpu(2)).unwrap();
    let other = fused(&model_of(11, DType::F32, 1));
    let limits = Limits { tokens: 9, outputs: 2, sequences: 2 };
    let compile =
        CompileOptions { limits, precision: Precision::F32, invariant: true, poison: false };
    let own = cpu(2).workspace_bytes(&other, &compile);
    assert!(own > 0 && split.workspace_bytes(&other, &compile) >= own);
}
