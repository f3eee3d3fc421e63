//! `realm synth`, `inspect` and `bench` on one file, as a user runs them.

use std::{path::Path, process::Command};

use serde_json::Value;

/// Runs `realm` with success and gives its stdout.
fn realm(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_realm")).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn tiny(folder: &Path) -> String {
    let path = folder.join("tiny.gguf").to_str().unwrap().to_owned();
    assert_eq!(realm(&["synth", "tiny", "--type", "q5_k_m", &path]), "");
    path
}

#[test]
fn a_written_file_can_be_looked_at_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny(folder.path());
    assert!(realm(&["inspect", "-m", &path]).contains("blk.1.ffn_down.weight"));

    let line = ["bench", "-m", &path, "--device", "cpu", "-t", "1", "-r", "2"];
    let sizes = ["-p", "16", "-n", "4", "-d", "0,40", "--step", "32"];
    let json = realm(&[&line[..], &sizes, &["--json"]].concat());
    let list: Value = serde_json::from_str(&json).unwrap();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|test| &test["test"]).collect();
    assert_eq!(names, ["pp16", "tg4", "pp16@d40", "tg4@d40"]);
    for test in list.as_array().unwrap() {
        for key in ["median", "min", "max"] {
            assert!(test["tokens_per_second"][key].as_f64().unwrap() > 0.0, "{key} in {test}");
        }
        for key in ["fraction_of_bandwidth", "fraction_of_peak", "load_seconds"] {
            assert!(test[key].as_f64().unwrap() > 0.0, "{key} in {test}");
        }
        assert_eq!((&test["threads"], &test["device"]), (&1.into(), &"cpu".into()));
        assert_eq!(test["model"], path.as_str());
        assert!(!cfg!(target_os = "linux") || test["peak_rss_bytes"].is_u64(), "{test}");
    }

    let table = realm(&[&line[..], &sizes, &["--ops"]].concat());
    for part in ["tg4@d40", "bandwidth", "GB/s", "Linear ffn_down", "Attention"] {
        assert!(table.contains(part), "{part} in {table}");
    }
}

#[test]
fn the_precision_in_effect_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, precision) in [("f16", "f32"), ("q4_k_m", "int8")] {
        let path = folder.path().join(kind).to_str().unwrap().to_owned();
        realm(&["synth", "tiny", "--type", kind, &path]);
        let line = ["bench", "-m", &path, "--device", "cpu", "-t", "1", "-r", "1", "--json"];
        let json = realm(&[&line[..], &["-p", "8", "-n", "0", "--ops"]].concat());
        let list: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(list[0]["precision"], precision, "{kind}");
        let peak = |key: &str| list[0][key].as_f64().unwrap();
        let (own, float) = (peak("ops_per_second"), peak("f32_ops_per_second"));
        assert!(float > 0.0 && (precision == "int8" || own == float), "{kind}: {own}, {float}");
    }
}

#[test]
fn more_context_than_the_model_was_trained_for_is_noted() {
    for (depth, noted) in [("500", false), ("600", true)] {
        let line = ["bench", "--device", "cpu", "-p", "4", "-n", "0", "-r", "1", "-d", depth];
        let output = Command::new(env!("CARGO_BIN_EXE_realm")).args(line).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        assert_eq!(errors.contains("is more than the 512 that the model was trained for"), noted);
    }
}

#[test]
fn tests_that_cannot_be_run_are_misuse() {
    for (line, part) in [
        (&["-p", "0", "-n", "0"][..], "nothing to measure"),
        (&["-p", "512", "--ctx", "100"], "--ctx 100 is too small"),
        (&["--plot", "a/ok.PNG"], "--plot a/ok.PNG: the picture is SVG, not png; name it a/ok.svg"),
    ] {
        let line = [&["bench", "-m", "nowhere.gguf"], line].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_realm")).args(&line).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line:?}: {errors}");
        assert!(output.stdout.is_empty());
        assert!(errors.lines().count() == 1 && errors.contains(part), "{line:?}: {errors}");
    }
}
