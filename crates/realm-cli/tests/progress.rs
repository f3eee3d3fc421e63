//! What shows that long work goes on: something at a terminal, nothing off one.
#![cfg(unix)]

mod common;

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{file, tiny::Tiny};

/// Runs its arguments at a pseudo-terminal and copies what comes to stdout.
const AT_A_TERMINAL: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
/// The texts go in and the ids out beside the terminal.
const TOKENIZE: &str = r#"stty rows 30 cols 90; exec "$0" tokenize -0 -m "$1" < "$2" > "$3""#;
/// The most text that is taken from stdin.
const MOST: usize = 1 << 26;

#[test]
fn progress_shows_at_a_terminal_alone() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: no python3 for pseudo-terminals");
        return;
    }
    let (folder, model) = file(&Tiny::saying("x"));
    let [text, piped, shown] = ["text", "piped", "shown"].map(|name| folder.path().join(name));
    // As much as takes a while here.
    let mut bytes = 1 << 23;
    loop {
        fs::write(&text, "The sea was calm.\0".repeat(bytes / 18)).unwrap();
        let mut off = common::command(args!["tokenize", "-0", "-m", model]);
        off.stdin(File::open(&text).unwrap()).stdout(File::create(&piped).unwrap());
        let start = Instant::now();
        let output = off.output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        assert!(output.status.success());
        if start.elapsed() > Duration::from_millis(2500) {
            break;
        }
        bytes *= 2;
        if bytes > MOST {
            println!("skipped: 64 MiB are tokenized too fast here");
            return;
        }
    }
    let terminal = Command::new("python3")
        .args(args!["-c", AT_A_TERMINAL, "sh", "-c", TOKENIZE])
        .args(args![env!("CARGO_BIN_EXE_realm"), model, text, shown])
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&terminal.stdout);
    assert!(terminal.status.success(), "{said}");
    assert!(said.contains("tokenizing"), "{said:?}");
    assert!(fs::read(&piped).unwrap() == fs::read(&shown).unwrap(), "the ids differ");
}
