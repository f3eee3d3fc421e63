//! The conformance suite on CUDA: emulated always, on the first device where there is one.

use std::process::ExitCode;

use realm_compute_gpu::{open_cuda, open_cuda_emulated};
use realm_conformance::{Device, random::Random};

fn main() -> ExitCode {
    let device = |name: &str, backend: Result<_, realm_compute_gpu::Reason>| Device {
        name: name.into(),
        variant: name.into(),
        backend: backend.map_err(|reason| reason.to_string()),
    };
    realm_conformance::main(vec![
        device("cuda-emulated", open_cuda_emulated(Random::fresh_seed())),
        device("cuda", open_cuda(0)),
    ])
}
