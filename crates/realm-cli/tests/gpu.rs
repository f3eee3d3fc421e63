//! GPUs: what is said where there is none, and models on the emulated one, whole and split.

mod common;

use common::{Ran, realm, tiny::Tiny};

/// A run of a small model with options, its text known.
fn run(options: &str) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    Tiny::saying("world").write(&model);
    let args = args!["run", "-m", model, "a", "--temperature", "0"];
    realm(args.into_iter().chain(options.split_whitespace().map(Into::into)))
}

#[test]
fn a_gpu_is_used_or_its_absence_explained() {
    let ran = run("--device auto").good();
    assert_eq!(ran.text(), "world");
    if ran.stderr.contains("device     cpu: ") {
        assert!(ran.stderr.contains("note: no GPU in use: cuda: "), "{}", ran.stderr);
        run("--device auto --require-gpu").fails(&["no GPU can be used: cuda: ", "wgpu"]);
    } else {
        assert!(ran.stderr.contains("memory ") && ran.stderr.contains(" GB/s"), "{}", ran.stderr);
        run("--device auto --require-gpu").good();
    }
}

#[test]
fn layers_of_a_gpu_are_a_number() {
    for (options, problem) in [
        ("-ngl", "--gpu-layers"),
        ("-ngl x", "--gpu-layers"),
        ("--ngl -1", "--gpu-layers"),
        ("--gpu-layers 1.5", "--gpu-layers"),
    ] {
        run(options).misused(problem);
    }
    let ran = run("--device cpu -ngl 3").good();
    assert!(ran.stderr.contains("note: --gpu-layers 3 means nothing on the CPU"), "{}", ran.stderr);
}

#[cfg(not(feature = "cuda-emulated"))]
#[test]
fn the_test_device_is_no_name_where_it_is_not_built_in() {
    run("--device cuda-emulated").misused("choose auto, cpu");
    assert!(!realm(["devices"]).good().text().contains("emulated"));
}

#[cfg(feature = "cuda-emulated")]
#[test]
fn the_test_device_is_named_as_such() {
    let ran = run("--device cuda-emulated").good();
    assert_eq!(ran.text(), "world");
    for part in ["cuda-emulated is a test device", "REALM_SEED=", "memory ", " GB/s"] {
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
    run("--device cuda-emulated --require-gpu").fails(&["cuda-emulated: is no GPU"]);
    assert!(realm(["devices"]).good().text().contains("cuda-emulated  a test device"));
    let ran = run("--device cuda-emulated -ngl 0").good();
    assert!(ran.stderr.contains("device     cpu: ") && ran.text() == "world", "{}", ran.stderr);
}

#[cfg(feature = "cuda-emulated")]
#[test]
fn a_split_model_says_what_is_where() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    realm(args!["synth", "tiny", "--type", "q4_k_m", model]).good();
    let ids = |options: &str| {
        let args = args!["run", "-m", model, "--ids", "1,2,3", "--print-ids"];
        let rest = "-n 6 --temperature 0 --precision f32".split(' ');
        let rest = rest.chain(options.split(' ')).map(Into::into);
        realm(args.into_iter().chain(rest)).good()
    };
    let whole = ids("--device cpu");
    let split = ids("--device cuda-emulated -ngl 1");
    assert_eq!(split.text(), whole.text());
    for part in ["on the CPU: --gpu-layers is 1", "on cpu (layers from 0)", "on cuda-emulated (la"]
    {
        assert!(split.stderr.contains(part), "{}", split.stderr);
    }
    let args = args!["inspect", "-m", model, "--device", "cuda-emulated", "-ngl", "1"];
    let text = realm(args.clone()).good();
    assert!(text.text().contains("memory on cpu and cuda-emulated for 1 "), "{}", text.text());
    let json = realm(args.into_iter().chain(["--json".into()])).good();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let devices = json["memory"]["devices"].as_array().unwrap();
    assert_eq!((devices.len(), &devices[1]["layers"]), (2, &1.into()));
}

/// Ctrl-C while the device computes ends the generation when the step is done.
#[cfg(all(unix, feature = "cuda-emulated"))]
#[test]
fn an_interrupt_in_a_step_ends_the_process() {
    use std::{io::Read, process::Command};

    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    realm(args!["synth", "tiny", "--type", "q4_k_m", model]).good();
    let args = args!["run", "-m", model, "--ids", "1,2,3", "--print-ids", "--ignore-eos"];
    let rest = "-n 100000 --temperature 0 --device cuda-emulated".split(' ').map(Into::into);
    let mut child = common::command(args.into_iter().chain(rest)).spawn().unwrap();
    // The first token is there: the next one is being computed, and many after it.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let status = common::ended(&mut child);
    assert_eq!(status.code(), Some(130), "{status}");
}
