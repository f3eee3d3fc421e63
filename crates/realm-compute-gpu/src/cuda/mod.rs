//! CUDA devices, through the driver API.

mod driver;

use crate::{GpuDevice, Reason, text::size};
use driver::{Driver, Properties};

/// CUDA 13.0: what nvcc 13.0 makes asks for it, and cudarc's bindings of that version name
/// functions that older drivers lack (calling one would panic).
const NEEDED_CUDA: (u32, u32) = (13, 0);

/// The first branch of NVIDIA's driver with [`NEEDED_CUDA`], on Linux and Windows; from the table
/// of driver versions in the CUDA toolkit's release notes.
const NEEDED_DRIVER: u32 = 580;

pub(crate) fn devices() -> Result<Vec<GpuDevice>, Reason> {
    list(&Driver::load()?, std::env::var("CUDA_VISIBLE_DEVICES").ok())
}

/// `visible`: the value of `CUDA_VISIBLE_DEVICES`.
fn list(driver: &Driver, visible: Option<String>) -> Result<Vec<GpuDevice>, Reason> {
    // Before `init`, which an old driver may fail for its own reasons.
    let found = driver.version()?;
    if found < NEEDED_CUDA {
        return Err(Reason::DriverTooOld { found, needed: NEEDED_CUDA, driver: NEEDED_DRIVER });
    }
    let count = match driver.init() {
        Ok(()) => driver.count()?,
        Err(driver::InitError::NoDevice) => 0,
        Err(driver::InitError::Other(reason)) => return Err(reason),
    };
    if count == 0 {
        return Err(Reason::NoDevice { visible });
    }
    Ok((0..count).map(|ordinal| device(ordinal, driver.properties(ordinal), found)).collect())
}

/// A device that fails to answer is listed all the same: it must not hide the others.
fn device(ordinal: u32, properties: Result<Properties, Reason>, cuda: (u32, u32)) -> GpuDevice {
    let (description, memory, usable) = match properties {
        Ok(it) => {
            (describe(&it, cuda), Some(it.memory), Err(Reason::NoKernels { backend: "CUDA" }))
        }
        Err(reason) => ("does not answer".to_owned(), None, Err(reason)),
    };
    GpuDevice { name: format!("cuda:{ordinal}"), description, memory, software: false, usable }
}

fn describe(it: &Properties, cuda: (u32, u32)) -> String {
    format!(
        "{}, {}, compute capability {}.{}, {} multiprocessors, driver with CUDA {}.{}",
        it.name,
        size(it.memory),
        it.compute_capability.0,
        it.compute_capability.1,
        it.multiprocessors,
        cuda.0,
        cuda.1,
    )
}

#[cfg(test)]
mod tests;
