//! Files that commands write: what is at their path, and what an interrupted command leaves.

mod common;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use common::{realm, tiny::Tiny};
use tempfile::TempDir;

/// A folder with a small model.
fn file() -> (TempDir, PathBuf) {
    common::file(&Tiny::saying("x"))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every command that writes a file, writing to `out`.
fn writers(model: &Path, out: &Path) -> [Vec<OsString>; 4] {
    let bench = "bench --device cpu -p 4 -n 1 -r 1 --plot".split(' ').map(Into::into);
    [
        args!["logits", "-m", model, "--ids", "1", "--out", out].to_vec(),
        args!["inspect", "-m", model, "--graph", out].to_vec(),
        bench.chain(args![out, "-m", model]).collect(),
        args!["synth", "tiny", out, "--force"].to_vec(),
    ]
}

#[test]
fn files_are_replaced_whole() {
    let (folder, model) = file();
    let out = folder.path().join("out");
    for (args, start) in
        writers(&model, &out).iter().zip([&b"\x93NUMPY"[..], b"flow", b"<svg", b"GGUF"])
    {
        fs::write(&out, "old").unwrap();
        realm(args).good();
        assert!(fs::read(&out).unwrap().starts_with(start), "{args:?}");
        assert_eq!(names(folder.path()), ["model.gguf", "out"]);
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_stay() {
    let (folder, model) = file();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    std::os::unix::fs::symlink("sub/target", at("link")).unwrap();
    // First to nothing, then to the file of the command before.
    for args in writers(&model, &at("link")) {
        realm(&args).good();
        assert!(at("link").is_symlink(), "{args:?}");
        assert!(!at("sub/target").is_symlink());
        assert!(fs::read(at("sub/target")).unwrap().len() > 100);
        assert_eq!(names(&at("sub")), ["target"]);
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_left_alone() {
    use std::os::unix::{fs::FileTypeExt, fs::symlink, net::UnixListener};
    let (folder, model) = file();
    let at = |name: &str| folder.path().join(name);
    let made = std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap();
    assert!(made.success());
    let _listener = UnixListener::bind(at("socket")).unwrap();
    fs::create_dir(at("sub")).unwrap();
    symlink("pipe", at("to-pipe")).unwrap();
    let before = names(folder.path());
    for name in ["pipe", "to-pipe", "socket", "sub"] {
        for args in writers(&model, &at(name)) {
            realm(&args).fails(&[name, "is there and is no file; choose another name"]);
        }
    }
    assert_eq!(names(folder.path()), before);
    let kind = |name: &str| fs::symlink_metadata(at(name)).unwrap().file_type();
    assert!(kind("pipe").is_fifo() && kind("socket").is_socket());
    assert!(kind("sub").is_dir() && kind("to-pipe").is_symlink());
}

#[cfg(unix)]
#[test]
fn inputs_are_not_overwritten() {
    let (folder, model) = file();
    let at = |name: &str| folder.path().join(name);
    let bytes = fs::read(&model).unwrap();
    std::os::unix::fs::symlink(&model, at("link.gguf")).unwrap();
    fs::hard_link(&model, at("hard.gguf")).unwrap();
    for name in ["model.gguf", "./model.gguf", "link.gguf", "hard.gguf"] {
        for (args, _) in writers(&model, &at(name)).iter().zip(["logits", "inspect", "bench"]) {
            realm(args).fails(&[name, "reads", "choose another name"]);
        }
        assert_eq!(fs::read(at(name)).unwrap(), bytes);
    }
    let ids = at("ids.npy");
    common::npy::write(&ids, "<i4", 1, &[1, 0, 0, 0]);
    let before = fs::read(&ids).unwrap();
    let args = args!["logits", "-m", model, "--ids-file", ids, "--out", ids];
    realm(args).fails(&["ids.npy", "reads"]);
    assert_eq!(fs::read(&ids).unwrap(), before);
}

#[test]
fn later_parts_of_a_split_model_are_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut tiny = Tiny::saying("x");
    let all = tiny.tensors.split_off(0);
    let (first, rest) = all.split_at(3);
    for (no, tensors) in [first, rest].into_iter().enumerate() {
        tiny.tensors = tensors.to_vec();
        tiny.set("split.count", 2u16).set("split.no", no as u16);
        tiny.write(&at(&format!("m-0000{}-of-00002.gguf", no + 1)));
    }
    let (model, part) = (at("m-00001-of-00002.gguf"), at("m-00002-of-00002.gguf"));
    realm(args!["run", "-m", model, "a", "--temp", "0"]).good();
    let before = fs::read(&part).unwrap();
    for (args, _) in writers(&model, &part).iter().zip(["logits", "inspect", "bench"]) {
        realm(args).fails(&["m-00002-of-00002.gguf", "reads"]);
    }
    assert_eq!(fs::read(&part).unwrap(), before);
}

#[test]
fn a_hyphen_is_stdout_or_refused() {
    let (folder, model) = file();
    let [logits, inspect, bench, synth] = writers(&model, Path::new("-"));
    for args in [logits, bench, synth] {
        realm(args).fails(&["stdout", "./-"]);
    }
    let ran = realm(inspect).good();
    assert!(ran.text().starts_with("flowchart"), "{}", ran.text());
    assert!(!ran.text().contains("metadata"), "the graph alone: {}", ran.text());
    realm(args!["inspect", "-m", model, "--graph", "-", "--json"]).misused("--json");
    assert_eq!(names(folder.path()), ["model.gguf"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_command_leaves_nothing() {
    use std::{process::Command, thread::sleep, time::Duration};
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.gguf");
        let args = args!["synth", "llama-3.1-8b", out, "--type", "f32"];
        let mut child = common::command(args).spawn().unwrap();
        let mut waits = 0;
        while names(folder.path()).is_empty() {
            assert!(child.try_wait().unwrap().is_none() && waits < 3000, "no file was begun");
            sleep(Duration::from_millis(10));
            waits += 1;
        }
        let killed = Command::new("kill").arg(signal).arg(child.id().to_string()).status();
        assert!(killed.unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert!(names(folder.path()).is_empty(), "{signal}: {:?}", names(folder.path()));
    }
}
