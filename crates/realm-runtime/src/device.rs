//! Choosing a device: the one place that names all backends.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

pub use realm_compute_cpu::IsaLimit;
use realm_compute_cpu::{CpuBackend, CpuOptions, Roofline};
use realm_compute_gpu::{GpuDevice, Probe, Reason};
use realm_core::backend::{Backend, Precision};

use crate::RuntimeError;

/// The CUDA kernels on an imitated device.
pub(crate) const EMULATED: &str = "cuda-emulated";

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
        self.is_cpu.then(|| self.cpu().roofline(precision))
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
            matches!(name, "auto" | "cpu" | "cuda" | "wgpu") || (name == EMULATED && emulated())
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
        EMULATED => open_emulated(options),
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
    let refuse = |why: String| Err(RuntimeError::Device(format!("{EMULATED}: {why}")));
    if options.require_gpu {
        return refuse("is no GPU, as --require-gpu asks; drop one".into());
    }
    if !emulated() {
        return refuse(Reason::NotBuiltIn { feature: EMULATED }.to_string());
    }
    let seed = std::env::var("REALM_SEED").ok().and_then(|text| text.trim().parse().ok());
    let seed = seed.unwrap_or_else(fresh_seed);
    match realm_compute_gpu::open_cuda_emulated(seed) {
        Ok(backend) => {
            let note = format!(
                "{EMULATED} is a test device: CUDA kernels imitated on the CPU, very slowly (REALM_SEED={seed})"
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
mod tests {
    use super::*;

    fn options(name: &str, require_gpu: bool) -> DeviceOptions {
        DeviceOptions { name: name.into(), require_gpu, ..DeviceOptions::default() }
    }

    fn refusal(name: &str, require_gpu: bool) -> String {
        let error = open(&options(name, require_gpu)).err().expect(name).to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }

    /// Whether this machine has a device that the build can use.
    fn usable(probe: &Probe) -> bool {
        let usable = |devices: &Vec<_>| devices.iter().any(|d: &GpuDevice| d.usable.is_ok());
        probe.devices.as_ref().is_ok_and(usable)
    }

    #[test]
    fn auto_takes_a_gpu_or_says_why_not() {
        let device = open(&options("auto", false)).unwrap();
        if gpus().iter().any(usable) && !device.is_cpu() {
            println!("a GPU is there: {}", device.backend().info().name);
            assert!(open(&options("auto", true)).is_ok());
            return;
        }
        assert_eq!(device.backend().info().name, "cpu");
        assert!(device.notes()[0].contains("cuda: ") && device.notes()[0].contains("wgpu"));
        assert!(refusal("auto", true).contains("no GPU can be used: cuda: "));
    }

    #[test]
    fn a_named_gpu_is_never_replaced() {
        for name in ["cuda", "cuda:7", "wgpu", "wgpu:99"] {
            match open(&options(name, false)) {
                Ok(device) => assert!(device.backend().info().name.starts_with(name)),
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        error.starts_with(&name[..4]) && error.contains("realm devices"),
                        "{error}"
                    );
                }
            }
        }
        assert!(refusal("cpu", true).contains("contradicts"));
        assert!(refusal("tpu", false).contains("\"tpu\" is no device"));
        assert!(refusal("", false).contains("is no device"));
    }

    #[test]
    fn each_device_that_is_passed_over_has_its_cause() {
        let device = |name: &str, software, usable| GpuDevice {
            name: name.into(),
            description: String::new(),
            memory: None,
            software,
            usable,
        };
        let missing = Reason::NotBuiltIn { feature: "x" };
        let devices = vec![
            device("wgpu:0", false, Err(missing.clone())),
            device("wgpu:1", true, Ok(())),
            device("wgpu:2", false, Ok(())),
        ];
        let probe = Probe { backend: "wgpu", devices: Ok(devices) };
        let causes = |probe: &Probe, wanted| {
            open_first(candidates(probe, wanted), &options(wanted, false)).err().unwrap()
        };
        let all = causes(&probe, "wgpu");
        let starts = ["wgpu:0: not built in", "wgpu:1: computes on the CPU", "wgpu:2: "];
        assert_eq!(all.len(), starts.len());
        for (cause, start) in all.iter().zip(starts) {
            assert!(cause.starts_with(start), "{all:?}");
        }
        assert!(matches!(&causes(&probe, "wgpu:0")[..], [one] if *one == all[0]));
        assert!(!causes(&probe, "wgpu:1")[0].contains("computes on the CPU"));
        assert!(causes(&probe, "wgpu:7").is_empty());
        let none = Probe { backend: "wgpu", devices: Err(missing) };
        assert_eq!(causes(&none, "wgpu"), ["wgpu: not built in; build with --features x"]);
    }

    #[test]
    fn the_test_device_is_taken_by_name_alone() {
        assert!(refusal(EMULATED, true).contains("--require-gpu"));
        let listed = list(&DeviceOptions::default()).iter().any(|report| report.name == EMULATED);
        assert_eq!((listed, is_name(EMULATED)), (emulated(), emulated()));
        match open(&options(EMULATED, false)) {
            Ok(device) => assert!(device.notes()[0].contains("test device")),
            Err(error) => {
                let (error, fits) = (error.to_string(), !emulated());
                assert!(fits && error.contains("--features cuda-emulated"), "{error}");
            }
        }
    }

    #[test]
    fn names_are_checked_without_looking_for_devices() {
        for good in ["auto", "cpu", "cuda", "cuda:1", "wgpu:0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:99999"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_cpu_is_listed_and_every_other_device_that_cannot_be_used_has_its_obstacle() {
        let reports = list(&DeviceOptions::default());
        let cpu = reports.iter().find(|report| report.name == "cpu").unwrap();
        assert_eq!(cpu.obstacle, None);
        let usable = gpus().iter().filter(|probe| usable(probe)).count();
        let obstacles = reports.iter().filter(|report| report.obstacle.is_some()).count();
        assert!(obstacles + usable >= 2, "{reports:?}");
    }
}
