//! Choosing a device: the one place that names all backends.

use std::sync::Arc;

use realm_compute_cpu::{CpuBackend, CpuOptions, IsaLimit, Roofline};
use realm_compute_gpu::Probe;
use realm_core::backend::{Backend, Precision};

use crate::RuntimeError;

/// Which device is wanted.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// `auto`, `cpu`, `cuda`, `cuda:1`, `wgpu`, `wgpu:0`.
    pub name: String,
    /// Falling back to the CPU is an error.
    pub require_gpu: bool,
    /// Worker threads of the CPU; `None`: all that the system grants.
    pub threads: Option<usize>,
    /// The most that the CPU backend may use of its processor.
    pub isa: IsaLimit,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self { name: "auto".into(), require_gpu: false, threads: None, isa: IsaLimit::default() }
    }
}

/// A device that runs models.
pub struct Device {
    backend: Arc<dyn Backend>,
    cpu: Option<Arc<CpuBackend>>,
    notes: Vec<String>,
}

impl Device {
    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Why this one and no other, a line each; to be shown to the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Measures what the device's memory and arithmetic can do, in about a second.
    pub fn roofline(&self, precision: Precision) -> Option<Roofline> {
        self.cpu.as_ref().map(|cpu| cpu.roofline(precision))
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

/// Every device there is or could be, the preferred first.
pub fn list(options: &DeviceOptions) -> Vec<Report> {
    let mut reports: Vec<Report> = gpus().iter().flat_map(reports_of).collect();
    let info = cpu(options).info().clone();
    let Some(threads) = info.threads else { return reports };
    reports.push(Report {
        name: info.name,
        description: format!("{}, {threads} threads", info.description),
        memory: info.memory,
        obstacle: None,
    });
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
/// A device that is not there, and a fallback to the CPU where a GPU is required.
pub fn open(options: &DeviceOptions) -> Result<Device, RuntimeError> {
    let wanted = options.name.as_str();
    let backend = wanted.split(':').next().unwrap_or_default();
    match backend {
        "cpu" if options.require_gpu => {
            Err(RuntimeError::Device("--require-gpu contradicts --device cpu; drop one".into()))
        }
        "cpu" => Ok(on_cpu(options, Vec::new())),
        "cuda" => Err(unusable(wanted, &realm_compute_gpu::probe_cuda())),
        "wgpu" => Err(unusable(wanted, &realm_compute_gpu::probe_wgpu())),
        "auto" => {
            let reports: Vec<Report> = gpus().iter().flat_map(reports_of).collect();
            let causes = reports.iter().map(obstacle).collect::<Vec<_>>().join("; ");
            if options.require_gpu {
                return Err(RuntimeError::Device(format!("no GPU can be used: {causes}")));
            }
            Ok(on_cpu(options, vec![format!("no GPU in use: {causes}")]))
        }
        _ => Err(RuntimeError::Device(format!(
            "{wanted:?} is no device; choose auto, cpu, cuda or wgpu, or see `realm devices`"
        ))),
    }
}

fn on_cpu(options: &DeviceOptions, notes: Vec<String>) -> Device {
    let cpu = cpu(options);
    Device { backend: cpu.clone(), cpu: Some(cpu), notes }
}

/// Why a device cannot be used, its name in front.
fn obstacle(report: &Report) -> String {
    let obstacle = report.obstacle.as_deref().unwrap_or("cannot be used");
    format!("{}: {obstacle}", report.name)
}

/// The error for a GPU that was named: `cuda` means any of its devices, `cuda:1` that one.
fn unusable(wanted: &str, probe: &Probe) -> RuntimeError {
    let reports = reports_of(probe);
    let meant = |report: &&Report| {
        probe.devices.is_err() || wanted == probe.backend || wanted == report.name
    };
    let causes: Vec<String> = reports.iter().filter(meant).map(obstacle).collect();
    let cause =
        if causes.is_empty() { format!("{wanted}: no such device") } else { causes.join("; ") };
    RuntimeError::Device(format!("{cause}; `realm devices` lists what there is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, require_gpu: bool) -> String {
        let options = DeviceOptions { name: name.into(), require_gpu, ..DeviceOptions::default() };
        let error = open(&options).err().expect("no GPU runs models yet").to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn auto_falls_back_and_says_why() {
        let device = open(&DeviceOptions::default()).unwrap();
        assert_eq!(device.backend().info().name, "cpu");
        assert!(device.notes()[0].contains("cuda: ") && device.notes()[0].contains("wgpu"));
        assert!(refusal("auto", true).contains("no GPU can be used: cuda: "));
    }

    #[test]
    fn a_named_gpu_is_never_replaced() {
        for name in ["cuda", "cuda:7", "wgpu", "wgpu:99"] {
            let error = refusal(name, false);
            assert!(error.starts_with(&name[..4]) && error.contains("realm devices"), "{error}");
        }
        assert!(refusal("cpu", true).contains("contradicts"));
        assert!(refusal("tpu", false).contains("\"tpu\" is no device"));
        assert!(refusal("", false).contains("is no device"));
    }

    #[test]
    fn the_cpu_is_listed_and_every_other_device_has_its_obstacle() {
        let reports = list(&DeviceOptions::default());
        let (cpu, others) = reports.split_last().unwrap();
        assert_eq!((cpu.name.as_str(), &cpu.obstacle), ("cpu", &None));
        assert!(others.len() >= 2 && others.iter().all(|report| report.obstacle.is_some()));
    }
}
