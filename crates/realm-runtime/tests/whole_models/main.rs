//! Whole models of every architecture, on every device there is, against recorded results of another
//! implementation (transformers on torch). They lie outside of the repository, in the folder that
//! `REALM_REFERENCE` names.

mod mistral;
#[path = "../common/npy.rs"]
mod npy;

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use libtest_mimic::{Arguments, Failed, Trial};
use realm_compute_cpu::{CpuBackend, CpuOptions, IsaLimit};
use realm_conformance::{random::Random, required};
use realm_core::{
    backend::{Backend, KvType, Precision},
    fuse,
    reference::ReferenceBackend,
};
use realm_runtime::{Engine, EngineOptions, Model, Request, SamplingParams, SplitBackend};

/// A model and what is recorded of it.
#[derive(Clone, Copy)]
struct Recorded {
    name: &'static str,
    folder: &'static str,
    /// Opens the model in its folder.
    open: fn(&Path) -> Result<Model, Failed>,
    logits: &'static str,
    /// Whether the greedy tokens that are recorded are this model's.
    greedy: bool,
}

const fn recorded(name: &'static str) -> Recorded {
    Recorded { name, folder: name, open: as_stored, logits: "logits.npy", greedy: true }
}

/// The file of `mistral` has no window, in contrast to the weights that it was made from.
const MODELS: [Recorded; 13] = [
    recorded("llama"),
    recorded("llama-256"),
    recorded("llama3-rope"),
    recorded("qwen2"),
    recorded("qwen3"),
    recorded("mixtral"),
    recorded("qwen3_moe"),
    recorded("gemma2"),
    recorded("gemma3"),
    recorded("phi3"),
    Recorded { logits: "logits_full_attention.npy", greedy: false, ..recorded("mistral") },
    Recorded {
        folder: "mistral",
        open: |folder| mistral::windowed(folder, "mistral"),
        ..recorded("mistral-window")
    },
    Recorded {
        folder: "mistral",
        open: |folder| mistral::windowed(folder, "llama"),
        ..recorded("llama-window")
    },
];

/// Largest difference of logits, where weights and activations are f32.
const EXACT: f32 = 2e-4;

fn as_stored(folder: &Path) -> Result<Model, Failed> {
    Model::open(folder.join("model-f32.gguf")).map_err(line)
}

/// A model in its folder, on a device.
#[derive(Clone)]
struct Case {
    model: Recorded,
    folder: PathBuf,
    backend: Arc<dyn Backend>,
}

fn engine(case: &Case, on_cpu: usize) -> Result<Engine, Failed> {
    engine_in(case, on_cpu, Precision::F32, KvType::F32)
}

fn engine_in(
    case: &Case,
    on_cpu: usize,
    precision: Precision,
    kv_type: KvType,
) -> Result<Engine, Failed> {
    let Case { model, folder, backend } = case;
    let model = (model.open)(folder)?;
    // Room for what is recorded: 48 tokens and 16 more.
    let options = EngineOptions {
        context: Some(64),
        step_tokens: 20,
        precision,
        kv_type: Some(kv_type),
        ..EngineOptions::default()
    };
    let mut backend = backend.clone();
    if on_cpu > 0 {
        let mut graph = model.graph().clone();
        fuse::fuse(&mut graph);
        let cpu = Arc::new(CpuBackend::new(&CpuOptions::default()));
        backend = Arc::new(SplitBackend::new(&graph, on_cpu, cpu, backend).map_err(line)?);
    }
    Engine::new(&model, backend, &options).map_err(line)
}

fn line(error: impl std::fmt::Display) -> Failed {
    error.to_string().into()
}

/// The tokens that a model chooses greedily are the recorded ones.
fn greedy(case: &Case) -> Result<(), Failed> {
    greedily(engine(case, 0)?, &case.folder)
}

/// So they are with the first layer on the CPU.
fn split(case: &Case) -> Result<(), Failed> {
    greedily(engine(case, 1)?, &case.folder)
}

fn greedily(mut engine: Engine, folder: &Path) -> Result<(), Failed> {
    let (prompt, expected) =
        (npy::ids(&folder.join("tokens.npy")), npy::ids(&folder.join("greedy.npy")));
    let (max_tokens, sampling) = (expected.len(), SamplingParams::GREEDY);
    let request = Request { prompt, max_tokens, sampling, stop_tokens: vec![], logprobs: None };
    engine.submit(request).map_err(line)?;
    let mut found = Vec::new();
    while !engine.is_idle() {
        found.extend(engine.step().map_err(line)?.into_iter().map(|event| event.token));
    }
    if found == expected { Ok(()) } else { Err(format!("{found:?}, not {expected:?}").into()) }
}

/// The logits of a prompt are the recorded ones.
fn logits(case: &Case) -> Result<(), Failed> {
    let prompt = npy::ids(&case.folder.join("tokens.npy"));
    let expected = npy::floats(&case.folder.join(case.model.logits));
    let mut found = Vec::new();
    let sink = |rows: &[f32]| {
        found.extend_from_slice(rows);
        Ok(())
    };
    engine(case, 0)?.logits(&prompt, sink).map_err(line)?;
    let pairs = found.iter().zip(&expected);
    let off = pairs.map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
    let fits = found.len() == expected.len() && found.iter().all(|x| x.is_finite()) && off <= EXACT;
    if fits { Ok(()) } else { Err(format!("{} logits, {off} off", found.len()).into()) }
}

/// In f16 and bf16 the distributions are near those of the recorded logits: what kernels for prompts'
/// rows compute, which f32 does not take.
fn narrow(case: &Case) -> Result<(), Failed> {
    for (precision, kv_type, most) in
        [(Precision::F16, KvType::F16, 1e-4), (Precision::BF16, KvType::BF16, 5e-3)]
    {
        let prompt = npy::ids(&case.folder.join("tokens.npy"));
        let expected = npy::floats(&case.folder.join(case.model.logits));
        let mut found = Vec::new();
        let sink = |rows: &[f32]| {
            found.extend_from_slice(rows);
            Ok(())
        };
        engine_in(case, 0, precision, kv_type)?.logits(&prompt, sink).map_err(line)?;
        let cols = expected.len() / prompt.len();
        let rows = expected.chunks_exact(cols).zip(found.chunks_exact(cols));
        let mut off: Vec<f64> = rows.map(|(expected, found)| divergence(expected, found)).collect();
        off.sort_by(f64::total_cmp);
        // A router's near tie may go the other way, and then the row is another one.
        let mixture = ["mixtral", "qwen3_moe"].contains(&case.model.name);
        let mean = off.iter().sum::<f64>() / off.len() as f64;
        let found = if mixture { off[off.len() / 2] } else { mean };
        // Not a number is not below.
        if off.len() != prompt.len() || !matches!(found.partial_cmp(&most), Some(Ordering::Less)) {
            return Err(format!("in {precision} {found:.1e} off, {most:.0e} is allowed").into());
        }
    }
    Ok(())
}

/// Kullback-Leibler divergence of one row's distribution from another's, in nats.
fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    let logs = |logits: &[f32]| -> Vec<f64> {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = logits.iter().map(|&logit| f64::from(logit - top));
        let total: f64 = shifted.clone().map(f64::exp).sum();
        shifted.map(|it| it - total.ln()).collect()
    };
    let (expected, found) = (logs(expected), logs(found));
    expected.iter().zip(&found).map(|(e, f)| e.exp() * (e - f)).sum()
}

type Opened = Result<Arc<dyn Backend>, String>;

/// The devices and the items of `REALM_REQUIRE` that name them.
fn devices() -> Vec<(&'static str, &'static str, Opened)> {
    let isas = [
        ("cpu-scalar", IsaLimit::Scalar),
        ("cpu-avx2", IsaLimit::Avx2),
        ("cpu-avx512", IsaLimit::Avx512),
    ];
    let cpus = isas.map(|(name, isa)| {
        let options = CpuOptions { threads: Some(2), isa };
        let opened = match isa <= CpuBackend::best_isa() {
            true => Ok(Arc::new(CpuBackend::new(&options)) as Arc<dyn Backend>),
            false => Err(format!("this processor has no {isa:?}")),
        };
        (name, "cpu", opened)
    });
    let block_tokens = CpuBackend::new(&CpuOptions::default()).info().kv_block_tokens;
    let reference: Arc<dyn Backend> = Arc::new(ReferenceBackend::new(block_tokens));
    let probe = realm_compute_gpu::probe_cuda();
    let gpu = probe.devices.and_then(|_| realm_compute_gpu::open_cuda(0));
    let emulated = realm_compute_gpu::open_cuda_emulated(Random::fresh_seed());
    let sm80 = realm_compute_gpu::open_cuda_emulated_sm80(Random::fresh_seed());
    let gpus = [
        ("cuda", "cuda", gpu),
        ("cuda-emulated", "cuda-emulated", emulated),
        ("cuda-emulated-sm80", "cuda-emulated", sm80),
    ];
    let gpus = gpus.map(|(name, item, opened)| (name, item, opened.map_err(|why| why.to_string())));
    cpus.into_iter().chain([("reference", "reference", Ok(reference))]).chain(gpus).collect()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let reference = std::env::var_os("REALM_REFERENCE").map(PathBuf::from);
    let mut trials = Vec::new();
    for (name, required_as, opened) in devices() {
        let ready = match (&reference, opened) {
            (None, _) => Err(("REALM_REFERENCE is not set".to_owned(), false)),
            (_, Err(reason)) => Err((reason, required(required_as))),
            (Some(folder), Ok(backend)) => Ok((folder, backend)),
        };
        let (folder, backend) = match ready {
            Ok(ready) => ready,
            Err((reason, must)) => {
                let title = format!("{name} skipped: {reason}");
                let trial = Trial::test(title, move || Err(reason.into()));
                trials.push(trial.with_ignored_flag(!must));
                continue;
            }
        };
        for model in MODELS {
            type Check = fn(&Case) -> Result<(), Failed>;
            let (folder, backend) = (folder.join("models").join(model.folder), backend.clone());
            let case = Case { model, folder, backend };
            let checks = [
                ("logits", logits as Check),
                ("greedy", greedy),
                ("split", split),
                ("narrow", narrow),
            ];
            for (what, check) in checks {
                let fits = match what {
                    "logits" => true,
                    "narrow" => name.starts_with("cuda"),
                    _ => model.greedy,
                };
                // What is exact takes the same kernels on both.
                if !fits || (name == "cuda-emulated-sm80" && what != "narrow") {
                    continue;
                }
                let case = case.clone();
                let title = format!("{name}/{}/{what}", model.name);
                trials.push(Trial::test(title, move || check(&case)));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
