//! What holds on every machine, with a GPU or without.

use realm_compute_gpu::{Probe, Reason, probe, probe_cuda, probe_wgpu};

fn check(probe: &Probe, built_in: bool) {
    let backend = probe.backend;
    match &probe.devices {
        Ok(devices) => {
            assert!(built_in, "{backend} has devices, but is not built in");
            assert!(!devices.is_empty(), "{backend}: an empty list instead of a reason");
            for (index, device) in devices.iter().enumerate() {
                println!("{device}");
                assert_eq!(device.name, format!("{backend}:{index}"));
                if backend == "wgpu" {
                    assert!(device.usable.is_err(), "{device}: there are no kernels");
                }
                one_line(&device.to_string());
            }
        }
        Err(reason) => {
            println!("no {backend}: {reason}");
            let says_so = matches!(reason, Reason::NotBuiltIn { feature } if *feature == backend);
            assert_eq!(says_so, !built_in, "no {backend}: {reason}");
            one_line(&reason.to_string());
        }
    }
}

fn one_line(text: &str) {
    assert!(!text.trim().is_empty() && !text.contains(char::is_control), "{text:?}");
}

#[test]
fn each_backend_gives_devices_or_a_reason() {
    let found = probe();
    assert_eq!(found.each_ref().map(|probe| probe.backend), ["cuda", "wgpu"]);
    check(&found[0], cfg!(feature = "cuda"));
    check(&found[1], cfg!(feature = "wgpu"));
}

#[test]
fn probing_again_finds_the_same() {
    assert_eq!(probe_cuda().devices, probe_cuda().devices);
    assert_eq!(probe_wgpu().devices, probe_wgpu().devices);
}

#[test]
fn a_backend_left_out_says_how_to_build_it() {
    let reason = Reason::NotBuiltIn { feature: "cuda" };
    assert_eq!(reason.to_string(), "not built in; build with --features cuda");
}

#[test]
fn a_missing_driver_is_named() {
    let reason = Reason::NoDriver { library: "libcuda.so.1" };
    assert!(reason.to_string().starts_with("no driver: libcuda.so.1 not found"), "{reason}");
    let reason = Reason::NoAdapter { apis: "Vulkan, Metal or DX12".to_owned() };
    assert!(reason.to_string().starts_with("no adapter: no Vulkan, Metal or DX12 driver"));
}
