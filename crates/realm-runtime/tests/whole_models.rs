//! Whole models on GPUs, real and emulated, against recorded results of another implementation
//! (transformers on torch). They lie outside of the repository, in the folder that `REALM_REFERENCE`
//! names.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use libtest_mimic::{Arguments, Failed, Trial};
use realm_compute_cpu::{CpuBackend, CpuOptions};
use realm_conformance::random::Random;
use realm_core::{
    backend::{Backend, Precision},
    fuse,
};
use realm_runtime::{Engine, EngineOptions, Model, Request, SamplingParams, SplitBackend};

const MODELS: [&str; 2] = ["llama", "llama-256"];
/// Largest difference of logits, where weights and activations are f32.
const EXACT: f32 = 2e-4;

/// The words of an `.npy` file of format 1, 32 bits an element.
fn words(path: &Path) -> Result<Vec<[u8; 4]>, Failed> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    Ok(bytes[header..].as_chunks::<4>().0.to_vec())
}

fn ids(path: &Path) -> Result<Vec<u32>, Failed> {
    Ok(words(path)?.into_iter().map(u32::from_le_bytes).collect())
}

fn engine(folder: &Path, backend: &Arc<dyn Backend>, on_cpu: usize) -> Result<Engine, Failed> {
    let model = Model::open(folder.join("model-f32.gguf")).map_err(line)?;
    // Room for what is recorded: 48 tokens and 16 more.
    let options = EngineOptions {
        context: Some(64),
        step_tokens: 48,
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
fn greedy(folder: &Path, backend: &Arc<dyn Backend>) -> Result<(), Failed> {
    greedily(engine(folder, backend, 0)?, folder)
}

/// So they are with the first layer on the CPU.
fn split(folder: &Path, backend: &Arc<dyn Backend>) -> Result<(), Failed> {
    greedily(engine(folder, backend, 1)?, folder)
}

fn greedily(mut engine: Engine, folder: &Path) -> Result<(), Failed> {
    let (prompt, expected) = (ids(&folder.join("tokens.npy"))?, ids(&folder.join("greedy.npy"))?);
    let (max_tokens, sampling) = (expected.len(), SamplingParams::GREEDY);
    let request = Request { prompt, max_tokens, sampling, stop_tokens: vec![] };
    engine.submit(request).map_err(line)?;
    let mut found = Vec::new();
    while !engine.is_idle() {
        found.extend(engine.step().map_err(line)?.into_iter().map(|event| event.token));
    }
    if found == expected { Ok(()) } else { Err(format!("{found:?}, not {expected:?}").into()) }
}

/// The logits of a prompt are the recorded ones.
fn logits(folder: &Path, backend: &Arc<dyn Backend>) -> Result<(), Failed> {
    let prompt = ids(&folder.join("tokens.npy"))?;
    let expected = words(&folder.join("logits.npy"))?.into_iter().map(f32::from_le_bytes);
    let (expected, mut found) = (expected.collect::<Vec<_>>(), Vec::new());
    let sink = |rows: &[f32]| {
        found.extend_from_slice(rows);
        Ok(())
    };
    engine(folder, backend, 0)?.logits(&prompt, sink).map_err(line)?;
    let pairs = found.iter().zip(&expected);
    let off = pairs.map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
    let fits = found.len() == expected.len() && found.iter().all(|x| x.is_finite()) && off <= EXACT;
    if fits { Ok(()) } else { Err(format!("{} logits, {off} off", found.len()).into()) }
}

type Opened = Result<Arc<dyn Backend>, String>;

/// The devices, as `REALM_REQUIRE` names them.
fn devices() -> [(&'static str, Opened); 2] {
    let probe = realm_compute_gpu::probe_cuda();
    let gpu = match probe.devices {
        Ok(_) => realm_compute_gpu::open_cuda(0),
        Err(reason) => Err(reason),
    };
    let emulated = realm_compute_gpu::open_cuda_emulated(Random::fresh_seed());
    [("cuda", gpu), ("cuda-emulated", emulated)]
        .map(|(name, opened)| (name, opened.map_err(|reason| reason.to_string())))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let reference = std::env::var_os("REALM_REFERENCE").map(PathBuf::from);
    let required = std::env::var("REALM_REQUIRE").unwrap_or_default();
    let mut trials = Vec::new();
    for (name, opened) in devices() {
        let ready = match (&reference, opened) {
            (None, _) => Err(("REALM_REFERENCE is not set".to_owned(), false)),
            (_, Err(reason)) => Err((reason, required.split(',').any(|item| item.trim() == name))),
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
            let folder = folder.join("models").join(model);
            type Check = fn(&Path, &Arc<dyn Backend>) -> Result<(), Failed>;
            for (what, check) in [("greedy", greedy as Check), ("split", split), ("logits", logits)]
            {
                let (folder, backend) = (folder.clone(), backend.clone());
                let title = format!("{name}/{model}/{what}");
                trials.push(Trial::test(title, move || check(&folder, &backend)));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
