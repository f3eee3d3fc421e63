//! The suite's models and the backend contract on a split model: two devices as one.

mod common;

use std::{process::ExitCode, sync::Arc};

use common::cpu;
use libtest_mimic::{Arguments, Failed, Trial};
use realm_conformance::{
    cases::{contract, invariance, model},
    random::Random,
    required, run,
};
use realm_core::{DType, backend::Backend, reference::ReferenceBackend};
use realm_runtime::SplitBackend;

/// Parts of the contract that are tried with graphs without layers, which cannot be split.
const WHOLE: [&str; 2] = ["contract/given-rows", "contract/no-token"];

/// The suite's model has two layers: one goes to each device.
fn split(first: Arc<dyn Backend>, second: Arc<dyn Backend>) -> Arc<dyn Backend> {
    let case = model::sampling_llama(&mut Random::new(1), DType::Q8_0);
    Arc::new(SplitBackend::new(&case.graph, 1, first, second).unwrap())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let seed = Random::fresh_seed();
    if !arguments.list {
        println!("REALM_SEED={seed}");
    }
    let reference = || Arc::new(ReferenceBackend::new(64));
    let mut trials = Vec::new();
    let mut devices = vec![
        ("split", split(cpu(2), cpu(2))),
        ("split-reference-cpu", split(reference(), cpu(2))),
        ("split-cpu-reference", split(cpu(2), reference())),
    ];
    match realm_compute_gpu::open_cuda_emulated(seed) {
        Ok(gpu) => devices.push(("split-cpu-cuda-emulated", split(cpu(2), gpu))),
        Err(reason) => {
            let name = format!("split-cpu-cuda-emulated skipped: {reason}");
            let trial = Trial::test(name, move || Err(Failed::from(reason.to_string())));
            trials.push(trial.with_ignored_flag(!required("cuda-emulated")));
        }
    }
    if !arguments.list {
        println!("not for splits, as their graphs have no layers: {}", WHOLE.join(", "));
    }
    for (variant, backend) in devices {
        for case in model::cases(&mut Random::new(seed).named("model")) {
            let backend = backend.clone();
            trials.push(Trial::test(format!("{variant}/{}", case.name), move || {
                run::check(&case, &*backend, seed).map_err(Failed::from)
            }));
        }
        trials.extend(invariance::trials(variant, &backend, seed));
        let contract = contract::trials(variant, &backend).into_iter();
        trials
            .extend(contract.filter(|trial| !WHOLE.iter().any(|end| trial.name().ends_with(end))));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
