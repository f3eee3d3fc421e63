//! The conformance suite on the CPU, once for each instruction set.

use std::{process::ExitCode, sync::Arc};

use realm_compute_cpu::{CpuBackend, CpuOptions, IsaLimit};
use realm_conformance::Device;

fn main() -> ExitCode {
    let variants = [
        ("cpu", "cpu-scalar", IsaLimit::Scalar, 1),
        ("cpu-avx2", "cpu-avx2", IsaLimit::Avx2, 2),
        ("cpu-avx512", "cpu-avx512", IsaLimit::Avx512, 3),
    ];
    let devices = variants.map(|(name, variant, isa, threads)| {
        let best = CpuBackend::best_isa();
        Device {
            name: name.into(),
            variant: variant.into(),
            only: "",
            backend: if isa <= best {
                Ok(Arc::new(CpuBackend::new(&CpuOptions { threads: Some(threads), isa })))
            } else {
                Err(format!("this processor has no {isa:?}"))
            },
        }
    });
    realm_conformance::main(devices.into())
}
