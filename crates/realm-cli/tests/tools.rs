//! `realm doctor`, `completions`, `man`, and the JSON of commands that machines read.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use common::{command, file, realm, realm_with, tiny::Tiny};
use serde_json::Value;

fn json(args: &[std::ffi::OsString]) -> Value {
    serde_json::from_str(realm(args).good().text()).unwrap()
}

/// The doctor's rows, a line each.
fn unwrapped(text: &str) -> String {
    text.replace(&format!("\n{}", " ".repeat(12)), " ")
}

#[test]
fn the_doctor_says_what_runs_where_and_why() {
    let (_folder, model) = file(&Tiny::saying("x"));
    let ran = realm(args!["doctor", "-m", model, "--device", "cpu", "--ctx", "48"]).good();
    for part in [
        "\ncuda ",
        "\nwgpu ",
        "\ncpu ",
        "architecture llama: supported, 1 layer",
        "tokenizer llama",
        "no chat template: `realm chat` needs --chat-template FILE",
        "cpu takes its one layer",
        "(48 tokens, f16)",
        "each generated token reads",
        "environment REALM_THREADS=2",
        "\nverdict     realm run will use cpu, because --device cpu asks for it\n",
    ] {
        assert!(unwrapped(ran.text()).contains(part), "{part:?} in {}", ran.text());
    }
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    // One screen, where no path is long.
    let ran = realm(["doctor", "--device", "cpu"]).good();
    assert!(ran.text().lines().count() <= 24, "{}", ran.text());
    for line in ran.text().lines() {
        assert!(line.chars().count() <= 80 && line == line.trim_end(), "{line:?}");
    }
    let text = unwrapped(ran.text());
    assert!(text.contains("\nmodel       built-in demo model (no -m): "), "{text}");
    assert!(text.contains("has a chat template") && text.contains("\nmemory "), "{text}");
}

#[test]
fn the_doctor_finds_what_keeps_a_model_from_running() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.gguf");
    let mut foreign = Tiny::saying("x");
    foreign.set("general.architecture", "made-\u{1b}up");
    let (_foreign, foreign) = file(&foreign);
    let mut empty = Tiny::saying("x");
    empty.tensors.clear();
    let (_empty, empty) = file(&empty);
    let (_good, good) = file(&Tiny::saying("x"));
    for (args, part) in [
        (args!["doctor", "-m", missing].to_vec(), "missing.gguf: cannot open the file"),
        (args!["doctor", "-m", foreign].to_vec(), "is not supported"),
        (args!["doctor", "-m", empty].to_vec(), "no tensors, so nothing to run"),
        (args!["doctor", "--device", "cuda:77"].to_vec(), "cuda"),
        (args!["doctor", "--device", "cuda:77", "-m", good].to_vec(), "architecture llama: supp"),
    ] {
        let ran = realm(&args);
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.stderr);
        let text = unwrapped(ran.text());
        assert!(text.contains("\nverdict     nothing can run: "), "{args:?}: {text}");
        assert!(text.contains(part) && !text.contains('\u{1b}'), "{args:?}: {text}");
        let json = realm(args.iter().cloned().chain(["--json".into()]));
        let object: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!((json.code, &object["runs"]), (Some(1), &Value::Bool(false)), "{object}");
    }
}

#[test]
fn realm_alone_shows_what_to_try() {
    let ran = realm([""; 0]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("\n  realm run \"Shall I compare thee\"\n"), "{}", ran.stderr);
}

#[test]
fn the_doctor_warns_of_settings_that_nothing_reads() {
    let output = command(["doctor"]).env("REALM_THREAD", "4\n").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let text = unwrapped(&text);
    assert!(text.contains("REALM_THREAD=4\\n (not a setting of realm: misspelt?)"), "{text}");
    let output = command(["doctor"]).env("REALM_DEVICE", "cpu").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("use cpu, because REALM_DEVICE=cpu asks for it"), "{text}");
}

#[test]
fn the_doctor_measures_where_it_is_asked_to() {
    let (_folder, model) = file(&Tiny::saying("x"));
    let object = json(&args!["doctor", "-m", model, "--device", "cpu", "--measure", "--json"]);
    let figure = |key: &str| object["model"][key].as_f64().unwrap();
    let most = figure("read_bytes_per_second") / figure("bytes_per_token");
    assert!((figure("most_tokens_per_second") / most - 1.0).abs() < 1e-9, "{object}");
    assert_eq!(object["model"]["built_in"], false);
    let object = json(&args!["doctor", "--device", "cpu", "--measure", "--json"]);
    assert!(object["model"]["most_tokens_per_second"].as_f64().unwrap() > 0.0, "{object}");
    assert_eq!(object["model"]["built_in"], true);
}

/// Every name in a JSON document, but of what a model file names itself.
fn keys(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                into.insert(key.clone());
                if key != "metadata" {
                    keys(value, into);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys(value, into)),
        _ => {}
    }
}

#[test]
fn every_name_in_json_is_documented() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/json.md");
    let page = fs::read_to_string(page).unwrap();
    let (_folder, model) = file(&Tiny::saying("x"));
    let bench = "bench --device cpu -p 4 -n 2 -r 1 --ops --json -m".split(' ').map(Into::into);
    for args in [
        args!["doctor", "-m", model, "--device", "cpu", "--json"].to_vec(),
        args!["devices", "--json"].to_vec(),
        args!["inspect", "-m", model, "--device", "cpu", "--json"].to_vec(),
        bench.chain([model.clone().into()]).collect(),
    ] {
        let name = args[0].to_str().unwrap().to_owned();
        let start = page.find(&format!("## `realm {name}")).expect(&name);
        let section = &page[start + 3..];
        let section = &section[..section.find("\n## ").unwrap_or(section.len())];
        let mut found = BTreeSet::new();
        keys(&json(&args), &mut found);
        assert!(found.len() > 5, "{found:?}");
        for key in found {
            assert!(
                section.contains(&format!("`{key}`")),
                "{key} of {name} is not in docs/json.md"
            );
        }
    }
}

#[test]
fn devices_and_tokens_come_as_json() {
    let object = json(&args!["devices", "--device", "cpu", "--json"]);
    assert_eq!((&object["wanted"], &object["chosen"]), (&"cpu".into(), &"cpu".into()));
    let devices = object["devices"].as_array().unwrap();
    assert!(devices.iter().any(|device| device["name"] == "cpu" && device["usable"] == true));
    let object = json(&args!["devices", "--device", "cuda:77", "--json"]);
    assert!(object["chosen"].is_null() && object["problem"].is_string(), "{object}");

    let (_folder, model) = file(&Tiny::saying("x"));
    let ran = realm_with(args!["tokenize", "-m", model, "-0", "--json"], "a\0é").good();
    let object: Value = serde_json::from_str(ran.text()).unwrap();
    let expected = serde_json::json!({ "texts": [
        { "ids": [259], "tokens": [" a"] },
        { "ids": [260, 198, 172], "tokens": [" ", "\u{fffd}", "\u{fffd}"] },
    ] });
    assert_eq!(object, expected);
    let ran = realm_with(args!["tokenize", "-m", model, "-0", "--json"], "").good();
    assert_eq!(ran.text(), "{\"texts\":[]}\n");
}

#[test]
fn bash_completes_commands_options_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("realm.bash");
    fs::write(&script, realm(["completions", "bash"]).good().stdout).unwrap();
    fs::write(folder.path().join("some.gguf"), "").unwrap();
    let bash = |line: &str| {
        let bash = Command::new("bash").args(["-c", line]).current_dir(folder.path()).output();
        bash.ok().map(|output| (output.status.success(), String::from_utf8(output.stdout).unwrap()))
    };
    let Some((good, _)) = bash("bash -n realm.bash") else {
        println!("skipped: there is no bash");
        return;
    };
    assert!(good);
    for (words, found) in [
        ("doc", &["doctor"][..]),
        ("com", &["completions"]),
        ("bench --pl", &["--plot"]),
        ("doctor --me", &["--measure"]),
        ("run --model so", &["some.gguf"]),
        ("completions po", &["powershell"]),
    ] {
        let all: Vec<&str> = ["realm"].into_iter().chain(words.split(' ')).collect();
        let (count, [.., before, last]) = (all.len() - 1, &all[..]) else { unreachable!() };
        let line = format!(
            "source realm.bash; compopt() {{ :; }}; COMP_WORDS=(realm {words}); COMP_CWORD={count}; \
             _realm realm {last} {before}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let (good, text) = bash(&line).unwrap();
        assert!(good && text.lines().eq(found.iter().copied()), "{words}: {text:?}");
    }
}

#[test]
fn every_shell_has_a_script() {
    for (shell, part) in [
        ("zsh", "#compdef realm"),
        ("fish", "complete -c realm"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion:arg-completer[realm]"),
    ] {
        let ran = realm(["completions", shell]).good();
        assert!(ran.text().contains(part) && ran.text().contains("doctor"), "{shell}");
    }
    realm(["completions", "cmd"]).misused("invalid value 'cmd'");
    let mut child = command(["completions", "bash"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What groff says of a page; `None` where there is none.
fn groff(page: &Path) -> Option<String> {
    let mut groff = Command::new("groff");
    let output =
        groff.args(["-man", "-ww", "-Wbreak", "-z", "-Tutf8"]).arg(page).stdout(Stdio::null());
    output.output().ok().map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_command_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new/man1");
    let ran = realm(args!["man", "--out", out]).good();
    assert!(ran.stdout.is_empty() && ran.stderr.contains("wrote "), "{}", ran.stderr);
    let help = realm(["--help"]).good();
    let commands = help.text().lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| line.starts_with("  "));
    let names = commands.filter_map(|line| line.split_whitespace().next());
    let names: BTreeSet<String> = names
        .filter(|name| *name != "help")
        .map(|name| format!("realm-{name}.1"))
        .chain(["realm.1".into()])
        .collect();
    let entries = fs::read_dir(&out).unwrap();
    let found: BTreeSet<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, names);
    for name in &names {
        let page = fs::read_to_string(out.join(name)).unwrap();
        let title = name.strip_suffix(".1").unwrap();
        assert!(page.contains(&format!(".TH {title} 1 \" \" \"realm ")), "{name}: {page}");
        for section in [".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n"] {
            assert_eq!(page.matches(section).count(), 1, "{section:?} in {name}");
        }
        assert!(page.is_ascii() && !page.contains(".SH EXTRA"), "{name}");
        match groff(&out.join(name)) {
            Some(said) => assert!(said.is_empty(), "{name}: {said}"),
            None => println!("skipped: there is no groff"),
        }
    }
    let main = realm(["man"]).good();
    assert_eq!(main.text(), fs::read_to_string(out.join("realm.1")).unwrap());
    // Nothing of the names is replaced that is no file.
    fs::remove_file(out.join("realm.1")).unwrap();
    fs::create_dir(out.join("realm.1")).unwrap();
    realm(args!["man", "--out", out]).fails(&["realm.1", "is there and is no file"]);
}
