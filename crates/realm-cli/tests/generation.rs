//! `realm run` on a small file whose text is known: how it ends, what it writes of each token.

mod common;

use std::{
    io::Read,
    process::Child,
    time::{Duration, Instant},
};

use common::{
    command, ended, file, realm, realm_with,
    tiny::{EOS, Tiny, byte},
};
use tempfile::TempDir;

/// A run that goes on for very long, after its first text.
fn endless(options: &[&str]) -> (TempDir, Child) {
    let (folder, model) = file(&Tiny::repeating("xyz", 1 << 20));
    let args = args!["run", "-m", model, "a", "-n", "1000000", "--temperature", "0"].into_iter();
    let mut child = command(args.chain(options.iter().map(Into::into))).spawn().unwrap();
    let mut first = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    (folder, child)
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    let mut kill = std::process::Command::new("kill");
    assert!(kill.args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn every_token_is_a_line_of_json() {
    let (_folder, model) = file(&Tiny::saying("xé"));
    let args = args!["run", "-m", model, "a", "--json", "--logprobs", "2", "--temperature", "0"];
    let ran = realm(args).good();
    let lines: Vec<serde_json::Value> =
        ran.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, tokens) = lines.split_last().unwrap();
    let texts: Vec<&str> = tokens.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["x", "", "é", ""]);
    let ids: Vec<u64> = tokens.iter().map(|line| line["token"].as_u64().unwrap()).collect();
    assert_eq!(
        ids,
        [b'x', 0xc3, 0xa9]
            .map(byte)
            .map(u64::from)
            .into_iter()
            .chain([EOS.into()])
            .collect::<Vec<_>>()
    );
    for token in tokens {
        let logprobs = &token["logprobs"];
        let top = logprobs["top"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy: the likeliest is the chosen one, and the probabilities are no more than 1.
        assert_eq!(top[0]["token"], token["token"]);
        assert_eq!(top[0]["logprob"], logprobs["chosen"]);
        assert!(logprobs["chosen"].as_f64().unwrap() <= 0.0);
        assert!(top[1]["logprob"].as_f64() < top[0]["logprob"].as_f64());
    }
    assert_eq!(last["finish"], "end");
    assert_eq!((&last["prompt_tokens"], &last["generated_tokens"]), (&2.into(), &4.into()));
    assert!(last["seed"].is_null() && last["generated_tokens_per_second"].is_number(), "{last}");
    let last = |options: &[&str]| {
        let args = args!["run", "-m", model, "a", "--json"].into_iter();
        let ran = realm(args.chain(options.iter().map(Into::into))).good();
        let line = ran.text().lines().last().unwrap();
        serde_json::from_str::<serde_json::Value>(line).unwrap()
    };
    assert_eq!(last(&["--temperature", "0", "-n", "1"])["finish"], "length");
    assert_eq!(last(&["--temperature", "0", "-c", "3", "--ignore-eos"])["finish"], "context");
    assert_eq!(last(&["--temperature", "0", "--stop", "é"])["finish"], "stop");
    assert_eq!(last(&["--seed", "7"])["seed"], 7);
}

#[test]
fn stop_texts_end_and_are_left_out() {
    let (_folder, model) = file(&Tiny::saying("abcdef"));
    let run = |options: &[&str]| {
        let args = args!["run", "-m", model, "a", "--temperature", "0"].into_iter();
        let ran = realm(args.chain(options.iter().map(Into::into))).good();
        (ran.text().to_owned(), ran.stderr)
    };
    let (text, stderr) = run(&["--stop", "cd"]);
    assert_eq!(text, "ab");
    assert!(stderr.contains("ended by a stop text"), "{stderr}");
    assert_eq!(run(&["--stop", "ef", "--stop", "de"]).0, "abc");
    // One that begins but never comes holds nothing back at the end.
    let (text, stderr) = run(&["--stop", "fg"]);
    assert_eq!(text, "abcdef");
    assert!(stderr.contains("ended by the model"), "{stderr}");
    let (text, stderr) = run(&["--stop", "never", "--ignore-eos", "-n", "30"]);
    assert!(text.starts_with("abcdef") && stderr.contains("generated  30 tokens"), "{stderr}");
}

#[test]
fn bias_and_penalties_reach_the_choice() {
    let (_folder, model) = file(&Tiny::saying("xyz"));
    let ids = |options: &[&str]| {
        let args = args!["run", "-m", model, "a", "--print-ids", "--temperature", "0"].into_iter();
        realm(args.chain(options.iter().map(Into::into))).good().text().trim().to_owned()
    };
    let usual = [byte(b'x'), byte(b'y'), byte(b'z'), EOS].map(|id| id.to_string()).join(" ");
    assert_eq!(ids(&[]), usual);
    assert_eq!(ids(&["--logit-bias", &format!("{EOS}=100"), "-n", "1"]), EOS.to_string());
    let banned = ids(&["--logit-bias", &format!("{}=-inf", byte(b'x')), "-n", "1"]);
    assert_ne!(banned, byte(b'x').to_string());
    let wild = realm(args!["run", "-m", model, "a", "--logit-bias", "99999=1"]);
    wild.fails(&["--logit-bias: token 99999 is not in the model's vocabulary", "from 0 to 261"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_generation_cleanly() {
    for (options, json) in [(&[][..], false), (&["--json"], true)] {
        let (_folder, mut child) = endless(options);
        interrupt(&child);
        let mut rest = String::new();
        child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert!(stderr.contains("generated  ") && stderr.contains(", interrupted"), "{stderr}");
        assert!(!stderr.contains("error"), "{stderr}");
        if json {
            let last: serde_json::Value =
                serde_json::from_str(rest.lines().last().unwrap()).unwrap();
            assert_eq!(last["finish"], "interrupted");
        }
    }
}

/// A run that waits for its reader cannot end by itself.
#[cfg(unix)]
#[test]
fn a_second_ctrl_c_ends_the_program_at_once() {
    let (_folder, mut child) = endless(&["--json"]);
    // Soon the pipe is full.
    std::thread::sleep(Duration::from_millis(500));
    for _ in 0..2 {
        interrupt(&child);
        std::thread::sleep(Duration::from_millis(200));
    }
    let status = ended(&mut child);
    assert_eq!(status.code(), Some(130));
}

#[test]
fn a_reader_that_leaves_ends_a_run_quietly() {
    for options in [&[][..], &["--json"], &["--print-ids"]] {
        let (_folder, mut child) = endless(options);
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{stderr}");
    }
}

#[test]
fn a_prompt_of_ten_megabytes_is_refused_soon() {
    let (_folder, model) = file(&Tiny::saying("x").chatting());
    let text = "Call me Ishmael. ".repeat(10_000_000 / 17);
    let start = Instant::now();
    realm_with(args!["run", "-m", model], &text)
        .fails(&["model.gguf: the prompt has ", "holds 64"]);
    realm_with(args!["chat", "-m", model], &text)
        .fails(&["model.gguf: the prompt has ", "holds 64"]);
    let time = start.elapsed();
    assert!(time < Duration::from_secs(60), "{time:?}");
}

#[cfg(unix)]
#[test]
fn arguments_that_are_no_text_are_refused() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let (_folder, model) = file(&Tiny::saying("x"));
    let bad = OsStr::from_bytes(b"a\xff");
    realm(args!["run", "-m", model, bad]).misused("invalid UTF-8");
    realm(args!["run", "-m", model, "-p", bad]).misused("invalid UTF-8");
    realm(args!["run", "-m", model, "a", "--stop", bad]).misused("invalid UTF-8");
    realm(args!["chat", "-m", model, "--system", bad]).misused("invalid UTF-8");
    // Names of files need not be text.
    realm(args!["run", "-m", bad, "a"]).fails(&["cannot open the file"]);
}

#[test]
fn without_a_file_the_model_in_the_box_is_used() {
    let greedy = ["--temperature", "0", "-n", "20", "--device", "cpu"].map(Into::into);
    let line = args!["run", "Shall I compare thee"].into_iter().chain(greedy);
    let ran = realm(line).good();
    let note = ran.stderr.lines().next().unwrap();
    assert!(note.starts_with("note: no -m: using the built-in demo model, "), "{note}");
    let is_word = |text: &&str| text.len() > 1 && text.chars().all(char::is_alphabetic);
    let words = ran.text().split(|c: char| !c.is_alphabetic()).filter(is_word).count();
    assert!(words > 2, "{:?}", ran.text());
    for (args, input) in [
        (args!["tokenize"].to_vec(), "a"),
        (args!["detokenize", "5"].to_vec(), ""),
        (args!["inspect"].to_vec(), ""),
        (args!["bench", "-p", "4", "-n", "0", "-r", "1"].to_vec(), ""),
    ] {
        let ran = realm_with(&args, input).good();
        assert_eq!(ran.stderr.matches("note: no -m").count(), 1, "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn the_log_is_off_unless_asked_for() {
    let (_folder, model) = file(&Tiny::saying("x"));
    let run = |more: &[&str], env: Option<&str>| {
        let args = args!["run", "-m", model, "a", "--temperature", "0"].into_iter();
        let mut command = command(args.chain(more.iter().map(Into::into)));
        command.env_remove("REALM_LOG").envs(env.map(|level| ("REALM_LOG", level)));
        let output = command.output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "x");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!run(&[], None).contains("realm_runtime"));
    assert!(run(&["--log", "trace"], None).contains("realm_runtime"));
    assert!(run(&[], Some("realm_runtime=trace")).contains("realm_runtime"));
    assert!(!run(&["--log", "off"], Some("trace")).contains("realm_runtime"));
}
