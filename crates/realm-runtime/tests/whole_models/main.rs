//! Whole models of every architecture, on every device there is, against recorded results of another
//! implementation (transformers on torch). They lie outside of the repository, in the folder that
//! `REALM_REFERENCE` names.

mod mistral;
#[path = "../common/npy.rs"]
mod npy;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use libtest_mimic::{Arguments, Failed, Trial};
use realm_compute_cpu::{CpuBackend, CpuOptions, IsaLimit};
use realm_conformance::{random::Random, required};
use realm_core::{
    backend::{Backend, BackendError, Precision},
    fuse,
    reference::ReferenceBackend,
};
use realm_runtime::{
    Engine, EngineOptions, Model, Request, RuntimeError, SamplingParams, SplitBackend,
};

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
    let Case { model, folder, backend } = case;
    let model = (model.open)(folder)?;
    // Room for what is recorded: 48 tokens and 16 more.
    let options = EngineOptions {
        context: Some(64),
        step_tokens: 20,
        precision: Precision::F32,
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

/// Why a device cannot run a model's ops, where it lacks some of them: not every one has those of
/// mixtures of experts.
fn lacks(case: &Case) -> Option<String> {
    let mixture = ["mixtral", "qwen3_moe"].contains(&case.model.name);
    if !mixture || !case.backend.info().name.starts_with("cuda") {
        return None;
    }
    let model = (case.model.open)(&case.folder).ok()?;
    match Engine::new(&model, case.backend.clone(), &EngineOptions::default()).err()? {
        RuntimeError::Backend(error @ BackendError::Unsupported { .. }) => Some(error.to_string()),
        _ => None,
    }
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
    let gpus = [("cuda", gpu), ("cuda-emulated", emulated)];
    let gpus = gpus.map(|(name, opened)| (name, name, opened.map_err(|why| why.to_string())));
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
            if let Some(reason) = lacks(&case) {
                let title = format!("{name}/{} skipped: {reason}", model.name);
                trials.push(Trial::test(title, || Ok(())).with_ignored_flag(true));
                continue;
            }
            let checks = [("logits", logits as Check), ("greedy", greedy), ("split", split)];
            for (what, check) in checks {
                if what != "logits" && !model.greedy {
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
