//! The conformance suite on the CPU, once for each instruction set.

use std::{process::ExitCode, sync::Arc};

use realm_compute_cpu::{CpuBackend, CpuOptions, IsaLimit};
use realm_conformance::Device;

fn main() -> ExitCode {
    let variants = [
        ("cpu-scalar", IsaLimit::Scalar, 1),
        ("cpu-avx2", IsaLimit::Avx2, 2),
        ("cpu-avx512", IsaLimit::Avx512, 3),
    ];
    let devices = variants.map(|(variant, isa, threads)| {
        let best = CpuBackend::best_isa();
        Device {
            name: "cpu".into(),
            variant: variant.into(),
            backend: if isa <= best {
                Ok(Arc::new(CpuBackend::new(&CpuOptions { threads: Some(threads), isa })))
            } else {
                Err(format!("this processor has no {isa:?}"))
            },
        }
    });
    realm_conformance::main(devices.into())
}
