//! The suite's models and the backend contract on a split model: two devices as one.

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Failed, Trial};
use realm_compute_cpu::{CpuBackend, CpuOptions};
use realm_conformance::{
    cases::{contract, invariance, model},
    random::Random,
    run,
};
use realm_core::{DType, backend::Backend, reference::ReferenceBackend};
use realm_runtime::SplitBackend;

fn cpu() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(&CpuOptions { threads: Some(2), ..CpuOptions::default() }))
}

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
    for (variant, backend) in [
        ("split", split(cpu(), cpu())),
        ("split-reference-cpu", split(reference(), cpu())),
        ("split-cpu-reference", split(cpu(), reference())),
    ] {
        for case in model::cases(&mut Random::new(seed).named("model")) {
            let backend = backend.clone();
            trials.push(Trial::test(format!("{variant}/{}", case.name), move || {
                run::check(&case, &*backend, seed).map_err(Failed::from)
            }));
        }
        trials.extend(invariance::trials(variant, &backend, seed));
        // Some are about graphs of their own, without layers.
        let whole = ["given-rows", "no-token"].map(|name| format!("{variant}/contract/{name}"));
        let contract = contract::trials(variant, &backend).into_iter();
        trials.extend(contract.filter(|trial| !whole.iter().any(|name| name == trial.name())));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
