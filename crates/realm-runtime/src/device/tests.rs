//! Names of devices, and what is said where one cannot be used.

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
    assert_eq!(is_name(EMULATED_SM80), emulated());
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
