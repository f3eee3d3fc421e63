//! Choosing a device: the one place that names all backends.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

pub use realm_compute_cpu::IsaLimit;
use realm_compute_cpu::{CpuBackend, CpuOptions, Roofline};
pub use realm_compute_gpu::claims::{Bench, Comparison, Limits, Pair, Timed};
use realm_compute_gpu::{GpuDevice, Probe, Reason};
use realm_core::backend::{Backend, Precision};

use crate::RuntimeError;

/// The CUDA kernels on an imitated device, and on one that runs those for Ampere.
const EMULATED: &str = "cuda-emulated";
const EMULATED_SM80: &str = "cuda-emulated-sm80";

/// Which device is wanted.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// `auto`, `cpu`, `cuda`, `cuda:1`, `wgpu`, `wgpu:0`; with the feature `cuda-emulated` that too.
    pub name: String,
    /// Falling back to the CPU is an error.
    pub require_gpu: bool,
    /// Layers of a model that a GPU takes, the last ones; `None`: as many as fit.
    pub gpu_layers: Option<usize>,
    /// Worker threads of the CPU; `None`: all that the system grants.
    pub threads: Option<usize>,
    /// The most that the CPU backend may use of its processor.
    pub isa: IsaLimit,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            name: "auto".into(),
            require_gpu: false,
            gpu_layers: None,
            threads: None,
            isa: IsaLimit::default(),
        }
    }
}

/// A device that runs models.
pub struct Device {
    backend: Arc<dyn Backend>,
    /// The device itself, or the one that takes layers beside it; opened when it is needed.
    cpu: OnceLock<Arc<CpuBackend>>,
    is_cpu: bool,
    notes: Vec<String>,
    options: DeviceOptions,
    /// What is tried next where this one cannot take a model.
    others: VecDeque<Candidate>,
}

/// A device that is opened when its turn comes; or why that fails, its name in front.
type Open = Box<dyn FnOnce() -> Result<Arc<dyn Backend>, String> + Send + Sync>;

/// A GPU that may be opened.
struct Candidate(Open);

impl Device {
    /// A device around a backend of one's own, treated as a GPU: a model's first layers go to the CPU
    /// where not all fit.
    pub fn new(backend: Arc<dyn Backend>, options: DeviceOptions) -> Self {
        let (notes, others) = (Vec::new(), VecDeque::new());
        Self { backend, cpu: OnceLock::new(), is_cpu: false, notes, options, others }
    }

    /// The same with another device behind it, opened and tried where a model does not fit the ones
    /// before or they fail while it is loaded. `open` may say in one line why there is none.
    pub fn then(
        mut self,
        open: impl FnOnce() -> Result<Arc<dyn Backend>, String> + Send + Sync + 'static,
    ) -> Self {
        self.others.push_back(Candidate(Box::new(open)));
        self
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Why this one and no other, a line each; to be shown to the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was asked for.
    pub fn options(&self) -> &DeviceOptions {
        &self.options
    }

    /// Whether it is the CPU.
    pub fn is_cpu(&self) -> bool {
        self.is_cpu
    }

    /// Measures what the device's memory and arithmetic can do, in about a second.
    pub fn roofline(&self, precision: Precision) -> Option<Roofline> {
        if self.is_cpu {
            return Some(self.cpu().roofline(precision));
        }
        // The products of other types have another peak.
        if !matches!(precision, Precision::BF16 | Precision::F16) {
            return None;
        }
        let limits = Bench::open(&self.backend.info().name).ok()?.limits().ok()?;
        Some(Roofline {
            read_bytes_per_second: limits.bytes_per_second,
            ops_per_second: limits.ops_per_second,
            path: "mma.sync in bf16".into(),
        })
    }

    /// The CPU, beside this device or the device itself.
    pub(crate) fn cpu(&self) -> &Arc<CpuBackend> {
        self.cpu.get_or_init(|| cpu(&self.options))
    }

    /// Whether the CPU may take the place of the GPU: one that was named is never replaced.
    pub(crate) fn may_fall_back(&self) -> bool {
        self.options.name == "auto" && !self.options.require_gpu
    }

    /// Gives the device up for the CPU.
    pub(crate) fn fall_back(&mut self) {
        self.backend = self.cpu().clone();
        self.is_cpu = true;
        self.others.clear();
    }

    /// Gives the device up for the next GPU. `false` where no other one can be opened; `causes` are
    /// told why.
    pub(crate) fn take_next(&mut self, causes: &mut Vec<String>) -> bool {
        let next = open_next(&mut self.others, causes);
        let found = next.is_some();
        self.backend = next.unwrap_or_else(|| self.backend.clone());
        found
    }
}

/// A device as `realm devices` lists it.
#[derive(Debug, Clone)]
pub struct Report {
    /// As `--device` takes it.
    pub name: String,
    /// What it is, or empty where there is none.
    pub description: String,
    /// Its memory in bytes, where known.
    pub memory: Option<u64>,
    /// Why it cannot be used; `None` where it can.
    pub obstacle: Option<String>,
}

fn cpu(options: &DeviceOptions) -> Arc<CpuBackend> {
    Arc::new(CpuBackend::new(&CpuOptions { threads: options.threads, isa: options.isa }))
}

/// Whether a name is one that [`DeviceOptions::name`] takes. That there is such a device it does not
/// say.
pub fn is_name(name: &str) -> bool {
    match name.split_once(':') {
        None => {
            matches!(name, "auto" | "cpu" | "cuda" | "wgpu")
                || (matches!(name, EMULATED | EMULATED_SM80) && emulated())
        }
        Some((backend, index)) => {
            let digits = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
            matches!(backend, "cuda" | "wgpu") && digits && index.parse::<u16>().is_ok()
        }
    }
}

/// The features of this build that add devices, as cargo takes them.
pub fn features() -> Vec<&'static str> {
    let all = [
        ("cuda", cfg!(feature = "cuda")),
        ("cuda-emulated", emulated()),
        ("wgpu", cfg!(feature = "wgpu")),
    ];
    all.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

/// Whether a device of that name imitates one, so that its times mean nothing.
pub fn is_emulated(name: &str) -> bool {
    name.starts_with(EMULATED)
}

/// Whether the emulated device was built in.
fn emulated() -> bool {
    cfg!(feature = "cuda-emulated")
}

/// Every device there is or could be: GPUs, the CPU, and last a test device where it was built in.
pub fn list(options: &DeviceOptions) -> Vec<Report> {
    let mut reports: Vec<Report> = gpus().iter().flat_map(reports_of).collect();
    let info = cpu(options).info().clone();
    let threads = info.threads.map(|threads| format!(", {threads} threads")).unwrap_or_default();
    reports.push(Report {
        name: info.name,
        description: info.description + &threads,
        memory: info.memory,
        obstacle: None,
    });
    if emulated() {
        reports.push(Report {
            name: EMULATED.into(),
            description: "a test device: the CUDA kernels imitated on the CPU, very slow".into(),
            memory: None,
            obstacle: None,
        });
    }
    reports
}

/// The GPU backends in the order in which `auto` tries them.
fn gpus() -> [Probe; 2] {
    realm_compute_gpu::probe()
}

fn reports_of(probe: &Probe) -> Vec<Report> {
    match &probe.devices {
        Ok(devices) => devices
            .iter()
            .map(|device| Report {
                name: device.name.clone(),
                description: device.description.clone(),
                memory: device.memory,
                obstacle: device.usable.as_ref().err().map(ToString::to_string),
            })
            .collect(),
        Err(reason) => vec![Report {
            name: probe.backend.into(),
            description: String::new(),
            memory: None,
            obstacle: Some(reason.to_string()),
        }],
    }
}

/// Opens the device that was asked for, or the best there is.
///
/// # Errors
/// A device that is not there or cannot be used, and a fallback to the CPU where a GPU is required.
pub fn open(options: &DeviceOptions) -> Result<Device, RuntimeError> {
    let wanted = options.name.as_str();
    match wanted.split(':').next().unwrap_or_default() {
        "cpu" if options.require_gpu => {
            Err(RuntimeError::Device("--require-gpu contradicts --device cpu; drop one".into()))
        }
        "cpu" => Ok(on_cpu(options, Vec::new())),
        EMULATED | EMULATED_SM80 => open_emulated(options),
        "cuda" => open_named(options, &realm_compute_gpu::probe_cuda()),
        "wgpu" => open_named(options, &realm_compute_gpu::probe_wgpu()),
        "auto" => open_best(options),
        _ => Err(RuntimeError::Device(format!(
            "{wanted:?} is no device; choose auto, cpu, cuda or wgpu, or see `realm devices`"
        ))),
    }
}

fn on_cpu(options: &DeviceOptions, notes: Vec<String>) -> Device {
    let cpu = cpu(options);
    let (backend, options) = (cpu.clone(), options.clone());
    let others = VecDeque::new();
    Device { backend, cpu: OnceLock::from(cpu), is_cpu: true, notes, options, others }
}

/// The first of the GPUs that can be used, the CPU where there is none.
fn open_best(options: &DeviceOptions) -> Result<Device, RuntimeError> {
    let of = |probe: &Probe| candidates(probe, probe.backend);
    match open_first(gpus().iter().flat_map(of).collect(), options) {
        Ok(device) => Ok(device),
        Err(causes) if options.require_gpu => {
            Err(RuntimeError::Device(format!("no GPU can be used: {}", causes.join("; "))))
        }
        Err(causes) => Ok(on_cpu(options, vec![format!("no GPU in use: {}", causes.join("; "))])),
    }
}

/// A GPU that was named: `cuda` means any of its devices, `cuda:1` that one.
fn open_named(options: &DeviceOptions, probe: &Probe) -> Result<Device, RuntimeError> {
    let wanted = options.name.as_str();
    open_first(candidates(probe, wanted), options).map_err(|causes| {
        let cause =
            if causes.is_empty() { format!("{wanted}: no such device") } else { causes.join("; ") };
        RuntimeError::Device(format!("{cause}; `realm devices` lists what there is"))
    })
}

/// The first device that can be opened, with those behind it; or why none can.
fn open_first(
    mut candidates: VecDeque<Candidate>,
    options: &DeviceOptions,
) -> Result<Device, Vec<String>> {
    let mut causes = Vec::new();
    let Some(backend) = open_next(&mut candidates, &mut causes) else { return Err(causes) };
    let notes = causes.iter().map(|cause| format!("passed over: {cause}")).collect();
    Ok(Device { notes, others: candidates, ..Device::new(backend, options.clone()) })
}

/// Takes candidates away up to the first that can be opened.
fn open_next(
    candidates: &mut VecDeque<Candidate>,
    causes: &mut Vec<String>,
) -> Option<Arc<dyn Backend>> {
    while let Some(Candidate(open)) = candidates.pop_front() {
        match open() {
            Ok(backend) => return Some(backend),
            Err(cause) => causes.push(cause),
        }
    }
    None
}

/// The devices of a backend that `wanted` means, in their order. Without a name of its own a software
/// device is not meant.
fn candidates(probe: &Probe, wanted: &str) -> VecDeque<Candidate> {
    let backend = probe.backend;
    let fails = |cause: String| Candidate(Box::new(move || Err(cause)));
    let devices = match &probe.devices {
        Ok(devices) => devices,
        Err(reason) => return [fails(format!("{backend}: {reason}"))].into(),
    };
    let meant = devices.iter().filter(|d| wanted == backend || wanted == d.name);
    let candidate = |device: &GpuDevice| {
        let name = device.name.clone();
        match &device.usable {
            Err(reason) => fails(format!("{name}: {reason}")),
            Ok(()) if device.software && wanted != name => {
                fails(format!("{name}: computes on the CPU; name it to use it"))
            }
            Ok(()) => Candidate(Box::new(move || {
                open_gpu(backend, &name).map_err(|reason| format!("{name}: {reason}"))
            })),
        }
    };
    meant.map(candidate).collect()
}

/// Opens a device by its listed name, `cuda:0`.
fn open_gpu(backend: &'static str, name: &str) -> Result<Arc<dyn Backend>, Reason> {
    let index = name.rsplit(':').next().and_then(|index| index.parse().ok());
    match (backend, index) {
        ("cuda", Some(index)) => realm_compute_gpu::open_cuda(index),
        _ => Err(Reason::NoKernels { backend }),
    }
}

/// The test device. The order in which its threads run follows `REALM_SEED`, or is anew each time.
fn open_emulated(options: &DeviceOptions) -> Result<Device, RuntimeError> {
    let name = &options.name;
    let refuse = |why: String| Err(RuntimeError::Device(format!("{name}: {why}")));
    if options.require_gpu {
        return refuse("is no GPU, as --require-gpu asks; drop one".into());
    }
    if !emulated() {
        return refuse(Reason::NotBuiltIn { feature: EMULATED }.to_string());
    }
    let seed = std::env::var("REALM_SEED").ok().and_then(|text| text.trim().parse().ok());
    let seed = seed.unwrap_or_else(fresh_seed);
    let open = match name.as_str() {
        EMULATED_SM80 => realm_compute_gpu::open_cuda_emulated_sm80,
        _ => realm_compute_gpu::open_cuda_emulated,
    };
    match open(seed) {
        Ok(backend) => {
            let note = format!(
                "{name} is a test device: CUDA kernels imitated on the CPU, very slowly (REALM_SEED={seed})"
            );
            Ok(Device { notes: vec![note], ..Device::new(backend, options.clone()) })
        }
        Err(reason) => refuse(reason.to_string()),
    }
}

fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| u64::from(now.subsec_nanos()))
}

#[cfg(test)]
mod tests;
