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
    let sizes = ["-p", "16", "-n", "4", "-d", "0,32", "--step", "32"];
    let json = realm(&[&line[..], &sizes, &["--json"]].concat());
    let list: Value = serde_json::from_str(&json).unwrap();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|test| &test["test"]).collect();
    assert_eq!(names, ["pp16", "tg4", "pp16@d32", "tg4@d32"]);
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
    for part in ["tg4@d32", "bandwidth", "GB/s", "Linear ffn_down", "Attention"] {
        assert!(table.contains(part), "{part} in {table}");
    }
}
