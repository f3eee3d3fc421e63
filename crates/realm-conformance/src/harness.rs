//! The suite as a test program.

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Failed, Trial};
use realm_core::backend::Backend;

use crate::{cases, random::Random, run};

/// A device that the suite runs on, or why it cannot.
pub struct Device {
    /// As `REALM_REQUIRE` names it: `cpu`, `wgpu`, `cuda-emulated`, `cuda`.
    pub name: String,
    /// What stands before its cases' names: a device may come in variants, `cpu-scalar`.
    pub variant: String,
    /// The backend, or the reason why it is missing.
    pub backend: Result<Arc<dyn Backend>, String>,
    /// Only the cases whose names start so; all of the suite where it is empty.
    pub only: &'static str,
}

/// Whether `REALM_REQUIRE` names a device: where it is missing, that is a failure then.
pub fn required(name: &str) -> bool {
    std::env::var("REALM_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item.trim() == name))
}

/// Runs every case on every device.
pub fn main(devices: Vec<Device>) -> ExitCode {
    main_and(devices, || Ok(()))
}

/// The same, and asks once the whole suite has run well whether anything was left out.
pub fn main_and(devices: Vec<Device>, whole: impl FnOnce() -> Result<(), String>) -> ExitCode {
    let arguments = Arguments::from_args();
    let seed = Random::fresh_seed();
    if !arguments.list {
        println!("REALM_SEED={seed}");
    }
    let cases: Vec<Arc<crate::Case>> =
        cases::all(&Random::new(seed)).into_iter().map(Arc::new).collect();
    let mut trials = Vec::new();
    for Device { name, variant, backend, only } in devices {
        match backend {
            Ok(backend) => {
                for case in cases.iter().filter(|case| case.name.starts_with(only)) {
                    let (case, backend) = (case.clone(), backend.clone());
                    let name = format!("{variant}/{}", case.name);
                    trials.push(Trial::test(name, move || {
                        run::check(&case, &*backend, seed).map_err(Failed::from)
                    }));
                }
                if !only.is_empty() {
                    continue;
                }
                trials.extend(cases::invariance::trials(&variant, &backend, seed));
                trials.extend(cases::moe::trials(&variant, &backend, seed));
                trials.extend(cases::contract::trials(&variant, &backend));
            }
            Err(reason) => {
                let must = required(&name);
                let trial = Trial::test(format!("{variant} skipped: {reason}"), move || {
                    Err(Failed::from(format!("REALM_REQUIRE names {name}, but: {reason}")))
                });
                trials.push(trial.with_ignored_flag(!must));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list || conclusion.num_filtered_out > 0 || conclusion.has_failed() {
        return conclusion.exit_code();
    }
    match whole() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}
