//! The commands on a small file whose text is known.

mod common;

use std::io::{Read, Write};

use common::{
    command, file, realm, realm_with,
    tiny::{A, BOS, CONTEXT, EOS, Tiny, VOCABULARY, byte},
};

const GREEDY: [&str; 2] = ["--temperature", "0"];

#[test]
fn run_writes_the_text_and_nothing_else() {
    let (_folder, model) = file(&Tiny::saying(" né🦀!"));
    let ran = realm(args!["run", "-m", model, "a", "--temperature", "0"]).good();
    assert_eq!(ran.text(), " né🦀!");
    for part in [
        "prompt     2 tokens",
        "generated  10 tokens",
        "ended by the model",
        "precision  int8 (auto), in effect f32 as no weight is quantized, KV cache f16",
        "context    64 tokens (the model's)",
        "loaded     in",
        "device     cpu",
    ] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("seed"), "{}", ran.stderr);
}

#[test]
fn f16_that_overflows_is_said_and_bf16_goes_on() {
    let (folder, model) = file(&Tiny::saying("xyz").overflowing());
    let note = "note: step 1 gave no numbers as logits of token 2 of sequence 0, as happens where \
                products in f16 overflow: bf16 takes its place";
    let args = args!["run", "-m", model, "a", "--temperature", "0", "--precision", "f16"];
    let ran = realm(args.clone()).good();
    assert_eq!(ran.text(), "xyz");
    assert_eq!(ran.stderr.matches(note).count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("precision  bf16, KV cache f16"), "{}", ran.stderr);
    let json = realm(args.into_iter().chain(["--json".into()])).good();
    let last: serde_json::Value =
        serde_json::from_str(json.text().lines().last().unwrap()).unwrap();
    assert_eq!((&last["precision"], &last["invariant"]), (&"bf16".into(), &true.into()));
    let out = folder.path().join("logits.npy");
    let args = args!["logits", "-m", model, "--ids", "1,259", "--precision", "f16", "--out", out];
    let wrote = realm(args).good();
    assert!(wrote.stderr.contains("as logits of token 2, as happens"), "{}", wrote.stderr);
    let calm = realm(args!["run", "-m", model, "a", "--temperature", "0"]).good();
    assert!(calm.text() == "xyz" && !calm.stderr.contains("overflow"), "{}", calm.stderr);
}

#[test]
fn types_are_explained() {
    let (_folder, model) = file(&Tiny::saying("xyz"));
    let help = realm(args!["run", "--help"]).good();
    let devices = realm(args!["devices"]).good();
    for said in [help.text(), devices.text()] {
        for part in ["f32 with --precision f32, else f16", "the range of f32", "goes on in bf16"] {
            assert!(said.replace('\n', " ").contains(part), "{part}: {said}");
        }
    }
    assert!(help.text().contains("--invariant <BOOL>"), "{}", help.text());
    let args = args!["inspect", "-m", model, "--kv-type", "auto", "--precision", "f32"];
    let plan = realm(args).good();
    assert!(plan.text().contains("f32 (auto): 4 bytes an element"), "{}", plan.text());
    let doctor = realm(args!["doctor", "-m", model, "--precision", "bf16"]).good();
    let doctor = doctor.text().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(doctor.contains("precision products bf16: rounded to 8 bits"), "{doctor}");
    let run = realm(args!["run", "-m", model, "a", "--invariant", "false"]).good();
    assert!(run.stderr.contains("by the batch (--invariant false)"), "{}", run.stderr);
}

#[test]
fn prompts_come_from_arguments_ids_or_stdin() {
    let (folder, model) = file(&Tiny::saying("xyz"));
    let from = |args: &[&str], input: &str| {
        let args = args!["run", "-m", model].into_iter().chain(args.iter().map(Into::into));
        realm_with(args.chain(GREEDY.map(Into::into)), input).good().text().to_owned()
    };
    let ids = folder.path().join("ids.npy");
    let data: Vec<u8> = [BOS, A].iter().flat_map(|id| u64::from(*id).to_le_bytes()).collect();
    common::npy::write(&ids, "<i8", 2, &data);
    assert_eq!(from(&["a"], ""), "xyz");
    assert_eq!(from(&["-p", "a"], ""), "xyz");
    assert_eq!(from(&["--prompt", "- a"], ""), "xyz");
    assert_eq!(from(&["-p", "-"], "a"), "xyz");
    assert_eq!(from(&["-"], "a"), "xyz");
    assert_eq!(from(&[], "a\n"), "xyz");
    assert_eq!(from(&[], "a\r\n"), "xyz");
    assert_eq!(from(&["--ids", "1,259"], ""), "xyz");
    assert_eq!(from(&["--ids-file", ids.to_str().unwrap()], ""), "xyz");
    // A token with its own name is markup.
    assert_eq!(from(&["</s><s>a"], ""), "xyz");
}

#[test]
fn ids_go_in_and_out_without_a_tokenizer() {
    let mut tiny = Tiny::saying("xyz");
    let (_folder, model) = file(&tiny);
    let args =
        |model| args!["run", "-m", model, "--ids", "259", "--print-ids", "--temperature", "0"];
    let expected = format!("{} {} {} {EOS}\n", byte(b'x'), byte(b'y'), byte(b'z'));
    assert_eq!(realm(args(&model)).good().text(), expected);
    // Without its tokens, the file still names the token that ends a text.
    tiny.remove("tokenizer.ggml.tokens").remove("tokenizer.ggml.model");
    let (_folder, bare) = file(&tiny);
    let ran = realm(args(&bare)).good();
    assert_eq!(ran.text(), expected);
    assert!(ran.stderr.contains("note: "), "{}", ran.stderr);
    let text = realm(args!["run", "-m", bare, "--ids", "259"]);
    text.fails(&["model.gguf", "tokenizer.ggml.model", "--print-ids"]);
}

#[test]
fn generation_ends_where_it_should() {
    let (_folder, model) = file(&Tiny::saying("abc"));
    let ids = |more: &[&str]| {
        let args = args!["run", "-m", model, "a", "--print-ids", "--temperature", "0"];
        let ran = realm(args.into_iter().chain(more.iter().map(Into::into))).good();
        (ran.text().split_whitespace().count(), ran.stderr)
    };
    assert_eq!(ids(&[]).0, 4);
    assert_eq!(ids(&["-n", "2"]).0, 2);
    assert_eq!(ids(&["--ignore-eos", "-n", "9"]).0, 9);
    // Two of the context's tokens are the prompt's; the last generated one need not enter it.
    let (count, stderr) = ids(&["--ignore-eos", "-n", "1000"]);
    assert_eq!(count, CONTEXT as usize - 2 + 1);
    assert!(stderr.contains("note: -n 1000 is cut to 63"), "{stderr}");
    let (count, stderr) = ids(&["--ignore-eos", "-c", "8"]);
    assert_eq!(count, 7);
    assert!(stderr.contains("context    8 tokens (--ctx)"), "{stderr}");
    let (count, stderr) = ids(&["--ignore-eos", "--ctx", "128"]);
    assert_eq!(count, 127);
    assert!(stderr.contains("more than the 64"), "{stderr}");
}

#[test]
fn characters_come_whole() {
    let (_folder, model) = file(&Tiny::saying("é🦀한!"));
    let mut child = command(args!["run", "-m", model, "a", "--temperature", "0"]).spawn().unwrap();
    drop(child.stdin.take());
    let mut stdout = child.stdout.take().unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stdout.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        text += std::str::from_utf8(&buffer[..read]).expect("whole characters");
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(text, "é🦀한!");
}

#[test]
fn an_unfinished_character_at_the_end_is_marked() {
    let (_folder, model) = file(&Tiny::saying("x🦀"));
    let ran = realm(args!["run", "-m", model, "a", "-n", "3", "--temperature", "0"]).good();
    assert_eq!(ran.text(), "x\u{fffd}");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let (_folder, model) = file(&Tiny::saying("abc"));
    let hot = |seed: Option<&str>| {
        let mut args =
            args!["run", "-m", model, "-n", "20", "--temperature", "9", "--top-k", "0"].to_vec();
        args.extend("--top-p 1 --min-p 0 --print-ids --ignore-eos a".split(' ').map(Into::into));
        args.extend(seed.into_iter().flat_map(|seed| ["-s".into(), seed.into()]));
        realm(args).good()
    };
    let help = realm(args!["run", "--help"]).good();
    for alias in ["--temp]", "-s, --seed", "-c, --ctx", "-p, --prompt"] {
        assert!(help.text().contains(alias), "{alias}: {}", help.text());
    }
    let first = hot(None);
    let seed = first.stderr.lines().find_map(|line| line.strip_prefix("seed       "));
    let seed = seed.expect("a seed on stderr");
    assert_eq!(hot(Some(seed)).text(), first.text());
    assert_ne!(hot(None).text(), first.text());
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let (_folder, model) = file(&Tiny::saying("abc"));
    for args in [
        args!["run", "-m", model, "--ignore-eos", "-n", "60"].to_vec(),
        args!["tokenize", "-m", model].to_vec(),
        args!["detokenize", "-m", model].to_vec(),
    ] {
        let mut child = command(&args).spawn().unwrap();
        drop(child.stdout.take());
        child.stdin.take().unwrap().write_all(b"9").unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{args:?}: {stderr}");
    }
    for args in [args!["inspect", "-m", model].to_vec(), args!["devices"].to_vec()] {
        let mut child = command(&args).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let (_folder, model) = file(&Tiny::saying("abc"));
    for args in [args!["run", "-m", model, "a"].to_vec(), args!["inspect", "-m", model].to_vec()] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(&args).stdout(full).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: stdout: cannot write the output"), "{stderr}");
    }
}

#[test]
fn logits_are_those_of_the_chain() {
    let (folder, model) = file(&Tiny::saying("xy"));
    let out = folder.path().join("logits.npy");
    let ids = format!("{A},{},{}", byte(b'x'), byte(b'y'));
    let ran = realm(args!["logits", "-m", model, "--ids", ids, "--out", out]).good();
    assert!(ran.stdout.is_empty());
    let logits = common::npy::read_f32(&out);
    assert_eq!(logits.len(), 3 * VOCABULARY);
    let best = logits.chunks(VOCABULARY).map(|row| {
        let (at, _) = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        at as u32
    });
    assert_eq!(best.collect::<Vec<_>>(), [byte(b'x'), byte(b'y'), EOS]);
    // Nothing but the model and this file lies in the folder.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn text_to_ids_and_back() {
    let (_folder, model) = file(&Tiny::saying("x"));
    let ids = |args: &[&str], input: &str| {
        let args = args!["tokenize", "-m", model].into_iter().chain(args.iter().map(Into::into));
        realm_with(args, input).good().text().to_owned()
    };
    assert_eq!(ids(&[], "a"), "259\n");
    assert_eq!(ids(&["--add-special"], "a"), "1 259\n");
    assert_eq!(ids(&["--parse-special"], "</s>"), "2\n");
    assert_eq!(ids(&[], ""), "\n");
    assert_eq!(ids(&["-0"], ""), "");
    assert_eq!(ids(&["-0"], "a\0\0a"), "259\n\n259\n");
    assert_eq!(ids(&["-0"], "a\0"), "259\n");
    let text = |args: &[&str], input: &str| {
        let args = args!["detokenize", "-m", model].into_iter().chain(args.iter().map(Into::into));
        realm_with(args, input).good().text().to_owned()
    };
    assert_eq!(text(&["259", "261"], ""), "aa");
    assert_eq!(text(&["259,2,261"], ""), "aa");
    assert_eq!(text(&["--special", "259", "2"], ""), "a</s>");
    assert_eq!(text(&[], "259 261\n"), "aa");
    assert_eq!(text(&[], &ids(&[], "né 🦀\n")), "né 🦀\n");
}

#[test]
fn inspect_shows_what_is_there() {
    let tiny = Tiny::saying("x");
    let (folder, model) = file(&tiny);
    let graph = folder.path().join("graph.mmd");
    let ran = realm(args!["inspect", "-m", model, "--ctx", "48", "--batch", "3", "--graph", graph])
        .good();
    for part in [
        "general.architecture",
        "262 × string",
        "blk.0.attn_k.weight",
        "memory on cpu for 3 sequences of 48 tokens (--ctx)",
        "KV cache (f16)",
    ] {
        assert!(ran.text().contains(part), "{part}: {}", ran.text());
    }
    let graph = std::fs::read_to_string(graph).unwrap();
    assert!(graph.starts_with("flowchart"), "{graph}");
    assert!(graph.contains("GatedLinear"), "the graph is fused: {graph}");
    let json = realm(args!["inspect", "-m", model, "--json", "--kv-type", "f32"]).good();
    let json: serde_json::Value = serde_json::from_str(json.text()).unwrap();
    assert_eq!(json["memory"]["context"], CONTEXT);
    assert_eq!(json["memory"]["kv_type"], "f32");
    assert_eq!(json["tensors"][0]["shape"][1], VOCABULARY);
    assert_eq!(json["metadata"]["llama.attention.layer_norm_rms_epsilon"], 1e-5);
}

#[test]
fn inspect_takes_files_that_cannot_run() {
    let mut foreign = Tiny::saying("x");
    foreign.set("general.architecture", "made-up");
    let (_folder, model) = file(&foreign);
    let ran = realm(args!["inspect", "-m", model]).good();
    assert!(ran.text().contains("no memory plan: "), "{}", ran.text());
    assert!(ran.text().contains("made-up"), "{}", ran.text());
    let mut vocabulary = Tiny::saying("x");
    vocabulary.tensors.clear();
    let (_folder, model) = file(&vocabulary);
    let ran = realm(args!["inspect", "-m", model, "--json"]).good();
    let json: serde_json::Value = serde_json::from_str(ran.text()).unwrap();
    assert!(json["problem"].as_str().unwrap().contains("no tensors"), "{json}");
    assert_eq!(realm_with(args!["tokenize", "-m", model], "a").good().text(), "259\n");
}

#[test]
fn devices_are_listed_with_reasons() {
    let ran = realm(args!["devices"]).good();
    for name in ["cuda", "wgpu", "cpu"] {
        let mut lines = ran.text().lines();
        assert!(lines.any(|line| line.starts_with(name)), "{name}: {}", ran.text());
    }
    assert!(ran.text().contains("2 threads"), "{}", ran.text());
}
