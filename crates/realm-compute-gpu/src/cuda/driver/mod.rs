//! CUDA devices, through the driver API.

use std::sync::Arc;

mod api;
mod calls;
mod device;
mod images;
mod launch;

use crate::{GpuDevice, Reason, cuda::gpu::Gpu, text::size};
use api::{Driver, Properties};
use calls::Calls;
use device::Device;
use images::Images;

/// CUDA 13.0: what nvcc 13.0 makes asks for it, and so do functions that the drivers before it lack.
const NEEDED_CUDA: (u32, u32) = (13, 0);

/// The first branch of NVIDIA's driver with [`NEEDED_CUDA`], on Linux and Windows; from the table
/// of driver versions in the CUDA toolkit's release notes.
const NEEDED_DRIVER: u32 = 580;

/// Ampere: the kernels copy asynchronously into shared memory and multiply bf16 fragments.
const NEEDED_CAPABILITY: (u32, u32) = (8, 0);

/// Every device that the driver shows.
pub(crate) fn devices() -> Result<Vec<GpuDevice>, Reason> {
    list(&Driver::load()?, &Images::embedded(), visible_devices())
}

/// Opens device `ordinal` of [`devices`].
pub(crate) fn open(ordinal: u32) -> Result<Arc<dyn Gpu>, Reason> {
    let driver = Driver::load()?;
    let device = open_with(driver, Calls::load, Images::embedded(), ordinal, visible_devices())?;
    Ok(Arc::new(device))
}

/// [`open`] of a driver that was loaded. `calls` looks up what is needed to use a device; `visible`
/// is the value of `CUDA_VISIBLE_DEVICES`.
fn open_with(
    driver: Driver,
    calls: impl FnOnce() -> Result<Calls, Reason>,
    images: Images,
    ordinal: u32,
    visible: Option<String>,
) -> Result<Device, Reason> {
    let (cuda, count) = start(&driver, visible)?;
    if ordinal >= count {
        return Err(Reason::NoSuchDevice { count });
    }
    let properties = driver.properties(ordinal)?;
    usable(&properties, &images)?;
    let description = describe(&properties, cuda);
    // Only now: a driver too old, of which that was said, lacks some of them.
    Device::open(driver, calls()?, images, ordinal, &properties, description)
}

fn visible_devices() -> Option<String> {
    std::env::var("CUDA_VISIBLE_DEVICES").ok()
}

/// Starts the driver. Returns the CUDA that it offers and how many devices it shows, at least one.
/// `visible`: the value of `CUDA_VISIBLE_DEVICES`.
fn start(driver: &Driver, visible: Option<String>) -> Result<((u32, u32), u32), Reason> {
    // Before `init`, which an old driver may fail for its own reasons.
    let found = driver.version()?;
    if found < NEEDED_CUDA {
        return Err(Reason::DriverTooOld { found, needed: NEEDED_CUDA, driver: NEEDED_DRIVER });
    }
    let count = match driver.init() {
        Ok(()) => driver.count()?,
        Err(api::InitError::NoDevice) => 0,
        Err(api::InitError::Other(reason)) => return Err(reason),
    };
    if count == 0 {
        return Err(Reason::NoDevice { visible });
    }
    Ok((found, count))
}

fn list(
    driver: &Driver,
    images: &Images,
    visible: Option<String>,
) -> Result<Vec<GpuDevice>, Reason> {
    let (cuda, count) = start(driver, visible)?;
    let device = |ordinal| device(ordinal, driver.properties(ordinal), images, cuda);
    Ok((0..count).map(device).collect())
}

/// A device that fails to answer is listed all the same: it must not hide the others.
fn device(
    ordinal: u32,
    properties: Result<Properties, Reason>,
    images: &Images,
    cuda: (u32, u32),
) -> GpuDevice {
    let (description, memory, usable) = match properties {
        Ok(it) => (describe(&it, cuda), Some(it.memory), usable(&it, images)),
        Err(reason) => ("does not answer".to_owned(), None, Err(reason)),
    };
    GpuDevice { name: format!("cuda:{ordinal}"), description, memory, software: false, usable }
}

/// Whether the kernels of this program run on a device.
fn usable(it: &Properties, images: &Images) -> Result<(), Reason> {
    let found = it.compute_capability;
    if found < NEEDED_CAPABILITY {
        return Err(Reason::BelowCapability { found, needed: NEEDED_CAPABILITY });
    }
    if !images.run_on(found) {
        return Err(Reason::NotInBuild { capability: found, archs: images.archs() });
    }
    Ok(())
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
