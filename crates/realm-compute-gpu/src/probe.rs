//! What a look for devices yields.

use std::fmt;

/// What one backend found.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The backend's name, as `--device` takes it: `cuda`, `wgpu`.
    pub backend: &'static str,
    /// The devices, at least one; or why there is none.
    pub devices: Result<Vec<GpuDevice>, Reason>,
}

/// A GPU, or a software stand-in for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDevice {
    /// As `--device` takes it: `cuda:0`, `wgpu:1`.
    pub name: String,
    /// For people, on one line: the GPU's name, what it is and can do, its driver.
    pub description: String,
    /// The device's memory in bytes, free or not; `None` where the API does not say (wgpu).
    pub memory: Option<u64>,
    /// It computes on the CPU (lavapipe, SwiftShader, WARP): right for tests, slower than Realm's
    /// own CPU backend, so no choice for `auto`.
    pub software: bool,
    /// Whether this build can run models on it, and if not, why.
    pub usable: Result<(), Reason>,
}

impl fmt::Display for GpuDevice {
    /// One line: `cuda:0: NVIDIA H100 80GB HBM3, 79.1 GiB, … (not usable: …)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.description)?;
        match &self.usable {
            Ok(()) => Ok(()),
            Err(reason) => write!(f, " (not usable: {reason})"),
        }
    }
}

/// Why a backend has no devices, or why a device cannot be used. Each displays as one line, made to
/// follow the backend's name: `no cuda: {reason}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The program was built without the backend.
    #[error("not built in; build with --features {feature}")]
    NotBuiltIn {
        /// The cargo feature that builds it.
        feature: &'static str,
    },
    /// The driver's library is missing, or a file of its name is not one (containers are often left
    /// with an empty file).
    #[error("no driver: {library} not found, or it does not load; it comes with NVIDIA's driver")]
    NoDriver {
        /// The library's file name on this platform.
        library: &'static str,
    },
    /// The library found is the one that CUDA toolkits bring for linking; it can do nothing.
    #[error(
        "no driver: the {library} found is a CUDA toolkit's stub; take its folder out of the \
         library search path (LD_LIBRARY_PATH)"
    )]
    StubDriver {
        /// The library's file name on this platform.
        library: &'static str,
    },
    /// The driver's library lacks a function that every CUDA driver has.
    #[error("no usable driver: {library} lacks {symbol}; reinstall NVIDIA's driver")]
    DriverLacks {
        /// The library's file name on this platform.
        library: &'static str,
        /// The function.
        symbol: &'static str,
    },
    /// The driver is older than this build needs.
    #[error(
        "driver too old: it offers CUDA {}.{}, this build needs {}.{}; update NVIDIA's driver to \
         {driver} or newer",
        found.0, found.1, needed.0, needed.1
    )]
    DriverTooOld {
        /// The newest CUDA that the driver offers, as (major, minor).
        found: (u32, u32),
        /// The CUDA that this build needs, as (major, minor).
        needed: (u32, u32),
        /// The first branch of NVIDIA's driver that offers it.
        driver: u32,
    },
    /// There is a driver, but no GPU.
    #[error("no device: the driver shows no NVIDIA GPU{}", visible_devices(.visible.as_deref()))]
    NoDevice {
        /// The environment's `CUDA_VISIBLE_DEVICES`, which may be what hides the GPUs.
        visible: Option<String>,
    },
    /// There are devices, but none of that number.
    #[error("no such device: the driver shows {count}, counted from 0")]
    NoSuchDevice {
        /// How many there are.
        count: u32,
    },
    /// The device is older than the kernels need.
    #[error(
        "below sm_{}{}: the device's compute capability is {}.{}, the kernels need {}.{} or newer",
        needed.0, needed.1, found.0, found.1, needed.0, needed.1
    )]
    BelowCapability {
        /// The device's compute capability, as (major, minor).
        found: (u32, u32),
        /// The oldest that the kernels run on.
        needed: (u32, u32),
    },
    /// The build was narrowed to other devices.
    #[error(
        "the program was built with REALM_CUDA_ARCHS={archs}, which leaves out the device's compute \
         capability {}.{}; build without REALM_CUDA_ARCHS",
        capability.0, capability.1
    )]
    NotInBuild {
        /// The device's compute capability, as (major, minor).
        capability: (u32, u32),
        /// What the kernels were compiled for.
        archs: String,
    },
    /// The device's memory does not even suffice to open it.
    #[error("its memory is full, probably of other programs' data: {call} failed: {cause}")]
    Full {
        /// The function called.
        call: &'static str,
        /// The driver's words.
        cause: String,
    },
    /// No driver that wgpu can use, or none with a GPU.
    #[error("no adapter: no {apis} driver with a device found; install the driver of your GPU")]
    NoAdapter {
        /// The APIs looked for on this platform: `Vulkan, Metal or DX12`.
        apis: String,
    },
    /// A call into a driver failed.
    #[error("{call} failed: {cause}")]
    Failed {
        /// The function called.
        call: &'static str,
        /// The driver's name for the error, its number, and what the driver says of it.
        cause: String,
    },
    /// There is a device, but no kernels for it.
    #[error("found, but this version has no {backend} kernels yet")]
    NoKernels {
        /// The backend, as people call it: `CUDA`, `wgpu`.
        backend: &'static str,
    },
}

fn visible_devices(visible: Option<&str>) -> String {
    visible.map(|value| format!("; CUDA_VISIBLE_DEVICES is {value:?}")).unwrap_or_default()
}
