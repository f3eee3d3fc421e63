//! Bad input: one line that says what and where, exit code 1; 2 for a wrong command line.

mod common;

use std::{ffi::OsString, io::Write, path::Path};

use common::{
    realm, realm_with,
    tiny::{A, CONTEXT, SPACE, Tiny},
};
use realm_gguf::{Strings, Value};

fn run(model: &Path) -> [OsString; 6] {
    args!["run", "-m", model, "a", "-n", "2"]
}

/// Runs a file that is `tiny` after `change`, and wants these words in its error.
#[track_caller]
fn refused(change: impl FnOnce(&mut Tiny), parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.gguf");
    let mut tiny = Tiny::saying("x");
    change(&mut tiny);
    tiny.write(&path);
    let mut all = vec!["bad.gguf"];
    all.extend(parts);
    realm(run(&path)).fails(&all);
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.gguf");
    let fails = |parts: &[&str]| {
        for command in ["run", "inspect", "tokenize", "detokenize"] {
            realm(args![command, "-m", path]).fails(parts);
        }
        let out = folder.path().join("out.npy");
        realm(args!["logits", "-m", path, "--ids", "1", "--out", out]).fails(parts);
        assert!(!out.exists());
    };
    fails(&["bad.gguf", "cannot open the file"]);
    std::fs::create_dir(&path).unwrap();
    fails(&["bad.gguf", "not a regular file"]);
    std::fs::remove_dir(&path).unwrap();
    for (content, part) in [("", "bad.gguf"), ("{\"a\": 1}", "not a GGUF file"), ("GGUF", "ends")] {
        std::fs::write(&path, content).unwrap();
        fails(&["bad.gguf", part]);
    }
}

#[test]
fn split_files_with_a_part_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::saying("x");
    tiny.set("split.count", 2u16).set("split.no", 0u16);
    let first = folder.path().join("bad-00001-of-00002.gguf");
    tiny.write(&first);
    realm(run(&first)).fails(&["bad-00001-of-00002.gguf", "part 2 of 2 is missing"]);
    tiny.set("split.no", 1u16);
    let second = folder.path().join("bad-00002-of-00002.gguf");
    tiny.write(&second);
    realm(run(&second)).fails(&["open the first", "bad-00001-of-00002.gguf"]);
    // Both parts hold the same tensors.
    realm(run(&first)).fails(&["twice"]);
}

#[test]
fn truncated_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.gguf");
    let bytes = Tiny::saying("x").bytes();
    for step in 0..40 {
        let len = (bytes.len() - 1) * step / 39;
        std::fs::write(&path, &bytes[..len]).unwrap();
        realm(run(&path)).fails(&["bad.gguf"]);
    }
}

#[test]
fn hostile_headers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.gguf");
    let bytes = Tiny::saying("x").bytes();
    let huge = u64::MAX.to_le_bytes();
    // Version; number of tensors; of metadata; length of the first key; of its value.
    for (at, new) in [(4, &huge[..4]), (8, &huge), (16, &huge), (24, &huge), (56, &huge)] {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        std::fs::write(&path, &bytes).unwrap();
        realm(run(&path)).fails(&["bad.gguf"]);
    }
    let at = bytes.windows(15).position(|window| window == b"blk.0.attn_q.we").unwrap();
    // Behind the name: dimensions, two of eight bytes each, type, offset.
    let behind = at + "blk.0.attn_q.weight".len();
    for (offset, new, part) in [
        (0, &7u32.to_le_bytes()[..], "attn_q"),
        (4, &huge[..], "attn_q"),
        (12, &(1u64 << 40).to_le_bytes()[..], "attn_q"),
        (20, &9999u32.to_le_bytes()[..], "9999"),
        (20, &39u32.to_le_bytes()[..], "MXFP4"),
        (24, &huge[..], "attn_q"),
        (24, &0u64.to_le_bytes()[..], "overlaps"),
    ] {
        let mut bytes = bytes.clone();
        bytes[behind + offset..behind + offset + new.len()].copy_from_slice(new);
        std::fs::write(&path, &bytes).unwrap();
        realm(run(&path)).fails(&["bad.gguf", part]);
    }
}

#[test]
fn unknown_architectures_and_missing_settings() {
    refused(|file| _ = file.set("general.architecture", "made\nup"), &["made\\nup", "llama"]);
    refused(|file| _ = file.remove("general.architecture"), &["general.architecture", "missing"]);
    refused(|file| _ = file.set("general.architecture", 7u32), &["general.architecture", "u32"]);
    for key in ["block_count", "embedding_length", "attention.head_count", "context_length"] {
        refused(|file| _ = file.remove(&format!("llama.{key}")), &[key]);
        refused(|file| _ = file.set(&format!("llama.{key}"), 0u32), &[key]);
        refused(|file| _ = file.set(&format!("llama.{key}"), "x"), &[key]);
        refused(|file| _ = file.set(&format!("llama.{key}"), -1i32), &[key]);
    }
}

#[test]
fn settings_that_do_not_fit_the_tensors() {
    for (key, value) in [
        ("block_count", 2),
        ("block_count", u32::MAX),
        ("embedding_length", 64),
        ("embedding_length", u32::MAX),
        ("feed_forward_length", 65),
        ("feed_forward_length", u32::MAX),
        ("attention.head_count", 3),
        ("attention.head_count", u32::MAX),
        ("attention.head_count_kv", 2),
        ("attention.head_count_kv", u32::MAX),
        ("attention.key_length", u32::MAX),
        ("attention.value_length", 8),
        ("rope.dimension_count", 3),
        ("rope.dimension_count", u32::MAX),
        ("expert_count", 8),
    ] {
        refused(|file| _ = file.set(&format!("llama.{key}"), value), &[]);
    }
    for (key, value) in [
        ("attention.layer_norm_rms_epsilon", f32::NAN),
        ("rope.freq_base", 0.0),
        ("rope.freq_base", f32::INFINITY),
        ("rope.freq_base", -1.0),
    ] {
        refused(|file| _ = file.set(&format!("llama.{key}"), value), &[key]);
    }
    refused(|file| _ = file.set("llama.rope.scaling.type", "made-up"), &["made-up"]);
}

#[test]
fn wrong_shapes_and_missing_tensors() {
    let names: Vec<String> = Tiny::saying("x").tensors.into_iter().map(|(name, _)| name).collect();
    for name in &names {
        // Without an output matrix the embedding table serves.
        if name != "output.weight" {
            refused(|file| _ = file.remove(name), &[name]);
        }
        refused(|file| _ = file.reshape(name, &[31, 5]), &[]);
        refused(|file| _ = file.reshape(name, &[1]), &[]);
    }
    refused(|file| _ = file.reshape("blk.0.attn_q.weight", &[32, 16]), &["attn_q", "[32, 32]"]);
    refused(|file| _ = file.reshape("blk.0.attn_norm.weight", &[16]), &["attn_norm"]);
}

#[test]
fn missing_and_broken_tokenizers() {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    for name in ["model", "tokens", "scores"] {
        refused(|file| _ = file.remove(&key(name)), &[name]);
        refused(|file| _ = file.set(&key(name), 1u32), &[name]);
    }
    refused(|file| _ = file.set(&key("model"), "made-up"), &["made-up"]);
    let unknown_pre = |file: &mut Tiny| {
        file.set(&key("model"), "gpt2").set(&key("pre"), "made-up");
        file.set(&key("merges"), strings(&["a b"]));
    };
    refused(unknown_pre, &["made-up"]);
    refused(|file| _ = file.set(&key("bos_token_id"), 999u32), &["bos_token_id", "999"]);
    refused(|file| _ = file.set(&key("token_type"), vec![1i32; 3]), &["token_type"]);
    refused(|file| _ = file.set(&key("scores"), vec![f32::NAN; 262]), &["scores"]);
    refused(|file| _ = file.set(&key("tokens"), strings(&["a"; 262])), &["tokens"]);
    let more: Vec<String> = (0..300).map(|id| id.to_string()).collect();
    let grow = |file: &mut Tiny| {
        file.set(&key("tokens"), strings(&more));
        file.set(&key("scores"), vec![0f32; 300]).set(&key("token_type"), vec![1i32; 300]);
    };
    refused(grow, &["300", "262"]);
}

fn strings(texts: &[impl AsRef<str>]) -> Value {
    texts.iter().map(AsRef::as_ref).collect::<Strings>().into()
}

#[test]
fn prompts_that_cannot_be_run() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    let mut tiny = Tiny::saying("x");
    tiny.write(&model);
    let long = "a".repeat(1000);
    let out = folder.path().join("out.npy");
    realm(args!["run", "-m", model, long]).fails(&["model.gguf: ", "context", "64"]);
    realm(args!["run", "-m", model, "aaaa", "--ctx", "3"]).fails(&["model.gguf: ", "context", "3"]);
    realm(args!["run", "-m", model, "--ids", "1,262"]).fails(&["model.gguf: ", "262"]);
    realm(args!["run", "-m", model, "--ids", "4294967295"]).fails(&["4294967295"]);
    realm(args!["run", "-m", model, "--ids", ""]).fails(&["no tokens"]);
    realm_with(args!["run", "-m", model], b"a\xff").fails(&["stdin", "byte 1", "UTF-8"]);
    let ids = vec!["1"; CONTEXT as usize + 1].join(",");
    realm(args!["logits", "-m", model, "--ids", ids, "--out", out]).fails(&[
        "model.gguf: ",
        "65",
        "64",
    ]);
    realm(args!["logits", "-m", model, "--ids", "999", "--out", out])
        .fails(&["model.gguf: ", "999"]);
    realm(args!["logits", "-m", model, "--ids", "", "--out", out]).fails(&["no tokens"]);
    let nowhere = folder.path().join("missing/out.npy");
    realm(args!["logits", "-m", model, "--ids", "1", "--out", nowhere]).fails(&["missing/out.npy"]);
    realm(args!["inspect", "-m", model, "--graph", nowhere]).fails(&["missing/out.npy"]);
    // Nothing is left behind.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    // A vocabulary that adds nothing makes nothing of nothing.
    tiny.set("tokenizer.ggml.add_bos_token", false).write(&model);
    realm(args!["run", "-m", model, ""]).fails(&["no tokens"]);
    realm(args!["run", "-m", model]).fails(&["no tokens"]);
}

#[test]
fn ids_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    Tiny::saying("x").write(&model);
    let npy = folder.path().join("ids.npy");
    let fails = |parts: &[&str]| {
        realm(args!["run", "-m", model, "--ids-file", npy]).fails(parts);
    };
    fails(&["ids.npy"]);
    std::fs::write(&npy, "1,2,3").unwrap();
    fails(&["ids.npy", "not a .npy file"]);
    common::npy::write(&npy, "<f4", 1, &[0; 4]);
    fails(&["ids.npy", "<f4"]);
    common::npy::write(&npy, "<i4", 2, &[0; 4]);
    fails(&["ids.npy", "1 of 2"]);
    common::npy::write(&npy, "<i4", 1, &[0xff; 4]);
    fails(&["ids.npy", "-1"]);
    std::fs::remove_file(&npy).unwrap();
    std::fs::create_dir(&npy).unwrap();
    fails(&["ids.npy"]);
    realm_with(args!["detokenize", "-m", model], "1 two").fails(&["stdin", "two"]);
    realm(args!["detokenize", "-m", model, "1 two"]).fails(&["two"]);
    realm(args!["detokenize", "-m", model, "262"]).fails(&["model.gguf", "262"]);
    realm_with(args!["tokenize", "-m", model], b"\xc3").fails(&["stdin", "byte 0"]);
}

#[test]
fn devices_and_memory_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    Tiny::saying("x").write(&model);
    let fails = |options: &[&str], parts: &[&str]| {
        let ids = format!("{A},{SPACE}");
        let args = args!["run", "-m", model, "--ids", ids];
        let ran = realm(args.into_iter().chain(options.iter().map(Into::into)));
        ran.fails(parts);
        // A file is named once.
        assert!(ran.stderr.matches("model.gguf").count() <= 1, "{}", ran.stderr);
    };
    fails(&["--device", "cuda:99"], &["cuda"]);
    fails(&["--device", "wgpu:99"], &["wgpu"]);
    // Heads of 16 are no whole block of 32.
    fails(&["--kv-type", "q8_0"], &["model.gguf: ", "q8_0", "16"]);
}

#[test]
fn caches_larger_than_memory() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    let mut tiny = Tiny::saying("x");
    tiny.set("llama.attention.key_length", 4096u32);
    for (name, shape) in
        [("q", [32, 8192]), ("k", [32, 4096]), ("v", [32, 4096]), ("output", [8192, 32])]
    {
        tiny.reshape(&format!("blk.0.attn_{name}.weight"), &shape);
    }
    tiny.write(&model);
    // 16 kB a token: 70 TB.
    let args = args!["run", "-m", model, "a", "--ctx", "4294967295"];
    realm(args).fails(&["model.gguf", "4294967295", "--ctx"]);
    realm(args!["run", "-m", model, "a", "--temperature", "0"]).good();
}

#[test]
fn models_larger_than_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.gguf");
    let mut tiny = Tiny::saying("x");
    // The embedding table alone, at the end, and as large as a file of holes can be.
    tiny.remove("output.weight");
    tiny.tensors.rotate_left(1);
    let mut bytes = tiny.bytes();
    let name = b"token_embd.weight";
    let rows = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let rows = rows + name.len() + 4 + 8;
    let more = 1u64 << 35;
    bytes[rows..rows + 8].copy_from_slice(&more.to_le_bytes());
    let file = std::fs::File::create(&path).unwrap();
    (&file).write_all(&bytes).unwrap();
    if let Err(error) = file.set_len(bytes.len() as u64 + more * 32 * 4) {
        println!("skipped: no file of 4 TB here, not even of holes: {error}");
        return;
    }
    realm(run(&path)).fails(&["bad.gguf", "do not fit"]);
    let ran = realm(args!["inspect", "-m", path]).good();
    assert!(ran.text().contains("no memory plan"), "{}", ran.text());
}

#[test]
fn wrong_command_lines() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    Tiny::saying("x").write(&model);
    realm([""; 0]).misused("Usage");
    realm(args!["fly"]).misused("fly");
    realm(args!["logits", "-m", model, "--out", "x.npy"]).misused("--ids");
    realm(args!["logits", "-m", model, "--ids", "1"]).misused("--out");
    for (options, part) in [
        ("--ids 1,x", "no token id"),
        ("--ids 1 text", "cannot be used with"),
        ("--ids 1 --ids-file x.npy", "cannot be used with"),
        ("-p text text", "cannot be used with"),
        ("--prompt text --ids 1", "cannot be used with"),
        ("-n 0 a", "--tokens"),
        ("--temperature nan a", "temperature"),
        ("--temperature=-1 a", "temperature"),
        ("--temp -1 a", "a temperature is a number from 0 up"),
        ("--top-k -1 a", "-1 is not in 0..=4294967295"),
        ("--top-p -0.5 a", "a probability is a number from 0 to 1"),
        ("--min-p -1 a", "a probability is a number from 0 to 1"),
        ("--seed -1 a", "a seed is a whole number from 0 to 18446744073709551615"),
        ("-n -1 a", "-1 is not in 1..=4294967295"),
        ("-c -1 a", "-1 is not in 1..=4294967295"),
        ("-t -1 a", "-1 is not in 1..=1024"),
        ("--require-gpu --device cpu a", "--require-gpu contradicts --device cpu"),
        ("--top-p 1.5 a", "top-p"),
        ("--min-p x a", "min-p"),
        ("--seed x a", "seed"),
        ("--typical-p 2 a", "a probability is a number from 0 to 1"),
        ("--repeat-penalty 0 a", "a repetition penalty is a number above 0"),
        ("--repetition-penalty -1 a", "a repetition penalty is a number above 0"),
        ("--frequency-penalty inf a", "a penalty is a number"),
        ("--presence-penalty x a", "a penalty is a number"),
        ("--logit-bias 5 a", "a bias is a token's id and a number or -inf"),
        ("--logit-bias 5=nan a", "a bias is a token's id"),
        ("--stop= a", "--stop"),
        ("--logprobs 1 a", "--json"),
        ("--json --logprobs -1 a", "-1 is not in 0..=1000"),
        ("--json --print-ids a", "cannot be used with"),
        ("--log loud a", "choose off, error, warn"),
        ("--device gpu a", "auto, cpu"),
        ("--precision f64 a", "bf16"),
        ("--kv-type q4_0 a", "q8_0"),
        ("--ctx 0 a", "ctx"),
        ("-t 0 a", "threads"),
        ("--made-up a", "made-up"),
    ] {
        let args = args!["run", "-m", model].into_iter().chain(options.split(' ').map(Into::into));
        realm(args).misused(part);
    }
    realm(args!["devices", "--require-gpu", "--device", "cpu"]).misused("contradicts");
    let inspect = args!["inspect", "-m", model, "--batch", "-1"];
    realm(inspect).misused("-1 is not in 1..=65535");
    let out = folder.path().join("out.gguf");
    realm(args!["synth", "tiny", out, "--seed", "-1"]).misused("a seed is a whole number");
    realm(args!["synth", "tiny", out, "--ctx", "-1"]).misused("-1 is not in 1..=4294967295");
    assert!(!out.exists());
}
