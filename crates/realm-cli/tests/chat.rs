//! `realm chat` with lines from a pipe: a small file whose answers are known.

mod common;

use std::{fs, path::PathBuf};

use common::{Ran, file, realm_with, tiny::Tiny};
use tempfile::TempDir;

/// A file that answers `xyz` to everything.
fn chatting() -> (TempDir, PathBuf) {
    file(&Tiny::saying("xyz").chatting())
}

fn chat(model: &PathBuf, options: &[&str], input: impl AsRef<[u8]>) -> Ran {
    let args = args!["chat", "-m", model, "--device", "cpu", "--temperature", "0"].into_iter();
    realm_with(args.chain(options.iter().map(Into::into)), input)
}

#[test]
fn every_line_gets_an_answer_and_nothing_else() {
    let (_folder, model) = chatting();
    let ran = chat(&model, &[], "hi\n\n  \na\\\nb").good();
    assert_eq!(ran.text(), "xyz\nxyz\n");
    assert_eq!(ran.stderr, "");
    assert_eq!(chat(&model, &[], "").good().text(), "");
    assert_eq!(chat(&model, &[], "hello\n/exit\nnever read\n").good().text(), "xyz\n");
    let short = chat(&model, &["-n", "2"], "hello").good();
    assert_eq!(short.text(), "xy\n");
    assert!(short.stderr.contains("note: (as long as an answer may be"), "{}", short.stderr);
    assert_eq!(chat(&model, &["--stop", "z"], "hello").good().text(), "xy\n");
}

#[test]
fn conversations_are_kept_and_changed() {
    let (folder, model) = chatting();
    let saved = folder.path().join("talk.json");
    let save = format!("/save {}\n", saved.display());
    let after = |options: &[&str], input: &str| {
        let ran = chat(&model, options, input.to_owned() + &save).good();
        let value: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&saved).unwrap()).unwrap();
        let shown = |message: &serde_json::Value| {
            format!(
                "{}: {}",
                message["role"].as_str().unwrap(),
                message["content"].as_str().unwrap()
            )
        };
        let shown = value.as_array().unwrap().iter().map(shown).collect::<Vec<_>>();
        (shown.join("|"), ran)
    };
    let talk = |options: &[&str], input: &str| after(options, input).0;
    assert_eq!(talk(&[], "a b\\\nc\n"), "user: a b\nc|assistant: xyz");
    assert_eq!(talk(&[], "//etc\n"), "user: /etc|assistant: xyz");
    assert_eq!(talk(&["--system", "Sing."], "one\n"), "system: Sing.|user: one|assistant: xyz");
    assert_eq!(talk(&["--system", "Sing."], "one\n/clear\n"), "system: Sing.");
    assert_eq!(
        talk(&[], "one\n/system Be\\\nbrief.\n"),
        "system: Be\nbrief.|user: one|assistant: xyz"
    );
    assert_eq!(talk(&["--system", "Sing."], "/system none\n"), "");
    assert_eq!(talk(&[], "one\ntwo\n/undo\n"), "user: one|assistant: xyz");
    let (said, ran) = after(&[], "one\n/set tokens 1\n/regenerate\n/retry\n");
    assert_eq!((said.as_str(), ran.text()), ("user: one|assistant: x", "xyz\nx\nx\n"));
    let load = format!("/load {}\n", saved.display());
    assert_eq!(talk(&[], &(load + "two\n")), "user: one|assistant: x|user: two|assistant: xyz");
}

#[test]
fn commands_tell_on_stderr() {
    let (_folder, model) = chatting();
    let tells = |input: &str, parts: &[&str]| {
        let ran = chat(&model, &["-s", "7"], input).good();
        for part in parts {
            assert!(ran.stderr.contains(part), "{input}: {part}: {}", ran.stderr);
        }
        assert!(!ran.text().contains('/') && !ran.stderr.contains('\x1b'));
    };
    tells("/help", &["/regenerate, /retry", "/set NAME VALUE", "Ctrl-C"]);
    tells("/system", &["no system text"]);
    tells("/system Sing.\n/system", &["Sing."]);
    tells("/set", &["temperature        0 ", "seed               7 ", "tokens             none"]);
    tells("/set top-k 5\n/set top-k", &["top-k is 5"]);
    tells(
        "a\n/stats",
        &["generated  4 tokens", "ended by the model", "of 64 tokens are used", "turns      1"],
    );
    tells("/stats", &["turns      0", "model.gguf"]);
}

#[test]
fn the_oldest_turns_make_room() {
    // 64 tokens of context; each turn takes about 30, the system text 20.
    let (_folder, model) = chatting();
    let ran = chat(&model, &["--system", "Sing."], "one\ntwo\nthree\nfour\nfive\n").good();
    assert_eq!(ran.text(), "xyz\n".repeat(5));
    assert_eq!(ran.stderr.matches("outgrew the context of 64 tokens").count(), 1, "{}", ran.stderr);
    let long = "word ".repeat(100);
    chat(&model, &[], &long).fails(&["model.gguf: ", "the prompt has ", "the context holds 64"]);
    // At a chat's end, not at its beginning.
    let ran = chat(&model, &[], format!("one\n{long}\n"));
    assert_eq!((ran.code, ran.text()), (Some(1), "xyz\n"));
}

#[test]
fn an_answer_may_fill_the_context() {
    let (_folder, model) = file(&Tiny::repeating("xyz", 64).chatting());
    let ran = chat(&model, &[], "one").good();
    assert!(ran.text().starts_with("xyzxyz") && ran.text().ends_with('\n'));
    assert!(ran.stderr.contains("note: (the context of 64 tokens is full"), "{}", ran.stderr);
}

#[test]
fn a_model_without_a_template_cannot_chat() {
    let (folder, model) = file(&Tiny::saying("xyz"));
    chat(&model, &[], "hello").fails(&[
        "model.gguf",
        "no chat template",
        "--chat-template FILE",
        "realm run",
    ]);
    let template = folder.path().join("t.jinja");
    fs::write(&template, "{{ messages[-1].content }} a").unwrap();
    let ran = chat(&model, &["--chat-template", template.to_str().unwrap()], "hello").good();
    assert_eq!(ran.text(), "xyz\n");
}

#[test]
fn templates_that_cannot_be_used() {
    let (folder, model) = chatting();
    let template = folder.path().join("t.jinja");
    let fails = |parts: &[&str]| {
        let ran = chat(&model, &["--chat-template", template.to_str().unwrap()], "hello");
        ran.fails(parts);
    };
    fails(&["t.jinja", "cannot read the chat template"]);
    for (content, parts) in [
        (&b"{% for"[..], &["t.jinja", "line 1"][..]),
        (b"a\n{{ 1 + }}", &["t.jinja", "line 2"]),
        (b"\xff", &["t.jinja", "UTF-8"]),
        (b"{{ raise_exception('only cats') }}", &["t.jinja", "only cats"]),
        (b"{% for i in range(100000000) %}{% for j in range(100000000) %}{% endfor %}{% endfor %}", &["t.jinja"]),
        (b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", &["t.jinja"]),
        (b"{{ messages.wibble.wobble }}", &["t.jinja"]),
    ] {
        fs::write(&template, content).unwrap();
        fails(parts);
    }
    fs::write(&template, vec![b'x'; 2 << 20]).unwrap();
    fails(&["t.jinja", "1 MiB"]);
    // An empty prompt is no prompt: the vocabulary's start is there all the same.
    for constant in ["", "Say something."] {
        fs::write(&template, constant).unwrap();
        let options = ["--chat-template", template.to_str().unwrap(), "-n", "1"];
        let ran = chat(&model, &options, "hello\nhello").good();
        let noted = ran.stderr.matches("the chat template leaves the conversation out").count();
        assert_eq!(noted, 1, "{}", ran.stderr);
    }
}

#[test]
fn lines_that_cannot_be_answered() {
    let (folder, model) = chatting();
    let fails = |input: &[u8], parts: &[&str]| {
        let ran = chat(&model, &[], input);
        ran.fails(parts);
    };
    fails(b"/hlep", &["/hlep", "did you mean /help?"]);
    fails(b"/wibble", &["/wibble", "/help lists them"]);
    fails(b"/set tmperature 1", &["did you mean temperature?"]);
    fails(b"/set temperature hot", &["temperature", "a number from 0 up"]);
    fails(b"/set logit-bias 262=1", &["logit-bias", "token 262", "from 0 to 261"]);
    fails(b"/undo", &["nothing was said yet"]);
    fails(b"/regenerate", &["nothing was said yet"]);
    fails(b"/save", &["/save FILE"]);
    fails(b"\xff\n", &["stdin: line 1 is no UTF-8"]);
    let at = |name: &str| folder.path().join(name);
    fails(format!("/load {}", at("none.json").display()).as_bytes(), &["none.json", "cannot read"]);
    let nowhere = format!("/save {}", at("nosuch/x.json").display());
    fails(nowhere.as_bytes(), &["nosuch/x.json: there is no folder", "create it"]);
    fs::write(at("bad.json"), "[1]").unwrap();
    fails(format!("/load {}", at("bad.json").display()).as_bytes(), &["bad.json", "message 1"]);
    // The model itself is not overwritten.
    let before = fs::read(&model).unwrap();
    fails(format!("/save {}", model.display()).as_bytes(), &["model.gguf", "reads"]);
    assert_eq!(fs::read(&model).unwrap(), before);
}

#[test]
fn what_a_model_says_nothing_to_is_taken_back() {
    let (folder, model) = file(&Tiny::saying("").chatting());
    let saved = folder.path().join("talk.json");
    let ran = chat(&model, &[], format!("hello\n/save {}\n", saved.display())).good();
    assert_eq!(ran.text(), "");
    assert!(ran.stderr.contains("note: the model said nothing"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(saved).unwrap(), "[]\n");
}

#[test]
fn without_a_file_the_model_in_the_box_talks() {
    let args = args!["chat", "--device", "cpu", "--temperature", "0"];
    let ran = realm_with(args, "Hello").good();
    assert!(ran.text().contains(char::is_alphabetic), "{:?}", ran.text());
    // An answer that the model did not end would be noted, too.
    assert!(ran.stderr.starts_with("note: no -m: using the built-in demo model"), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_chat_without_a_terminal() {
    use std::{
        io::{Read, Write},
        process::Command,
    };
    let (_folder, model) = file(&Tiny::repeating("xyz", 1 << 20).chatting());
    let args = args!["chat", "-m", model, "--device", "cpu", "--temperature", "0"];
    let mut child = common::command(args).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"go on\nnever answered\n").unwrap();
    let (mut stdout, mut text) = (child.stdout.take().unwrap(), vec![0; 6]);
    stdout.read_exact(&mut text).unwrap();
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    stdout.read_to_end(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(130), ""));
    // What was said is a whole line.
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("xyzxyz") && text.ends_with('\n') && text.lines().count() == 1);
}

/// At a terminal: line editing, history, Ctrl-C and Ctrl-D, with Python's pseudo-terminals.
#[cfg(unix)]
#[test]
fn a_person_at_a_terminal() {
    use std::process::Command;
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: no python3 for pseudo-terminals");
        return;
    }
    let (folder, model) = chatting();
    let endless = folder.path().join("endless.gguf");
    Tiny::repeating("xyz", 1 << 20).chatting().write(&endless);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/terminal.py");
    let output = Command::new("python3")
        .args(args![script, env!("CARGO_BIN_EXE_realm"), model, endless, folder.path()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    println!("{said}");
}
