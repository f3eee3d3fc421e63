//! The suite on the reference interpreter itself: every case must run, and two runs agree. Other
//! backends run the same suite from their own crates.

use std::{process::ExitCode, sync::Arc};

use realm_conformance::Device;
use realm_core::reference::ReferenceBackend;

fn main() -> ExitCode {
    realm_conformance::main(vec![Device {
        name: "reference".into(),
        variant: "reference".into(),
        backend: Ok(Arc::new(ReferenceBackend::new(16))),
        only: "",
    }])
}
