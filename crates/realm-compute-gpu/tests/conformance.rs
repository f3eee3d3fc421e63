//! The conformance suite on CUDA: emulated always, with Hopper's instructions and without, on the first
//! device where there is one. A kernel that no case runs fails it.

use std::process::ExitCode;

use realm_compute_gpu::{
    Reason, emulated_kernels, open_cuda, open_cuda_emulated, open_cuda_emulated_sm80,
    open_cuda_emulated_small,
};
use realm_conformance::{Device, random::Random};

/// Kernels that only the benchmark starts.
const NOT_OF_THE_SUITE: &str = "baselines";

fn main() -> ExitCode {
    let device = |name: &str, rest: &str, backend: Result<_, Reason>, only| Device {
        name: name.into(),
        variant: format!("{name}{rest}"),
        backend: backend.map_err(|reason| reason.to_string()),
        only,
    };
    let (emulated, seed) = ("cuda-emulated", Random::fresh_seed());
    let small = |hopper| open_cuda_emulated_small(seed, hopper);
    let devices = vec![
        device(emulated, "", open_cuda_emulated(seed), ""),
        device(emulated, "-sm80", open_cuda_emulated_sm80(seed), ""),
        device(emulated, "-small", small(true), "linear-many/"),
        device(emulated, "-sm80-small", small(false), "linear-many/"),
        device("cuda", "", open_cuda(0), ""),
    ];
    realm_conformance::main_and(devices, every_kernel_has_run)
}

fn every_kernel_has_run() -> Result<(), String> {
    let Ok(kernels) = emulated_kernels() else { return Ok(()) };
    let idle = kernels.iter().filter(|it| !it.ran && it.unit != NOT_OF_THE_SUITE);
    let idle: Vec<&str> = idle.map(|it| it.kernel.as_str()).collect();
    match idle.len() {
        0 => Ok(()),
        count => Err(format!("{count} kernels have no case: {}", idle.join(" "))),
    }
}
