//! The device that the kernels' tests run on.

use std::{
    io::Write as _,
    sync::{Arc, Once},
};

use super::{driver, emulated, gpu::Gpu};

/// The first CUDA device where there is one that can be used, else the emulated device, the order of
/// whose threads `seed` draws. Standard error tells once which of them it is, and why.
///
/// Memory of a device holds at first whatever was there before: a test that looks at what nobody
/// wrote fills it beforehand.
///
/// # Panics
/// Where `REALM_REQUIRE` names `cuda` and there is none.
pub(crate) fn gpu(seed: u64) -> Arc<dyn Gpu> {
    static SAY: Once = Once::new();
    let (gpu, line) = match driver::open(0) {
        Ok(gpu) => {
            let facts = gpu.facts();
            let line = format!("testing on {}: {}", facts.name, facts.description);
            (gpu, line)
        }
        Err(reason) => {
            let required = std::env::var("REALM_REQUIRE").unwrap_or_default();
            let required = required.split(',').any(|item| item.trim() == "cuda");
            assert!(!required, "REALM_REQUIRE names cuda, but: {reason}");
            let gpu = emulated::open(seed).expect("tests have the feature cuda-emulated");
            (gpu, format!("testing on the emulated device: no cuda: {reason}"))
        }
    };
    // Printed directly: libtest shows what a passing test prints to nobody.
    SAY.call_once(|| _ = writeln!(std::io::stderr(), "{line}"));
    gpu
}
