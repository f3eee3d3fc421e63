//! Files of every type, written and run.

use clap::Parser;
use realm_core::DType;
use realm_gguf::GgufFile;
use realm_runtime::{
    Engine, EngineOptions, Model, Request, SamplingParams,
    device::{self, DeviceOptions},
};

use super::*;
use crate::args::{Cli, Command};

/// The arguments of `realm synth` as the command line gives them.
fn parse(line: &[&str]) -> Result<SynthArgs, clap::Error> {
    let Command::Synth(args) = Cli::try_parse_from([&["realm", "synth"], line].concat())?.command
    else {
        unreachable!("the command is synth");
    };
    Ok(args)
}

/// Writes the tiny shape and returns the folder and the file's path.
fn tiny(options: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    run(&parse(&[&["tiny", path.to_str().unwrap()], options].concat()).unwrap()).unwrap();
    (folder, path)
}

#[test]
fn every_type_runs() {
    let options = DeviceOptions { name: "cpu".into(), ..DeviceOptions::default() };
    let device = device::open(&options).unwrap();
    for file_type in FILE_TYPES {
        let (_folder, path) = tiny(&["--type", file_type.name]);
        let model = Model::open(&path).unwrap();
        assert_eq!(model.tokenizer().unwrap().vocab_size(), model.vocabulary());
        let options = EngineOptions { context: Some(64), ..EngineOptions::default() };
        let mut engine = Engine::new(&model, device.backend().clone(), &options).unwrap();
        let mut rows = 0;
        let finite = |row: &[f32]| {
            let square = row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
            assert!((0.1..10.0).contains(&square.sqrt()), "{}: {square}", file_type.name);
            rows += row.len();
            Ok(())
        };
        engine.logits(&[1, 300, 400, 1023], finite).unwrap();
        assert_eq!(rows, 4 * model.vocabulary());
        let request = Request {
            prompt: vec![1, 500],
            max_tokens: 4,
            sampling: SamplingParams::GREEDY,
            stop_tokens: vec![],
            logprobs: None,
        };
        engine.submit(request).unwrap();
        let mut tokens = Vec::new();
        while !engine.is_idle() {
            tokens.extend(engine.step().unwrap());
        }
        assert_eq!(tokens.len(), 4, "{}", file_type.name);
    }
}

#[test]
fn types_are_as_asked_for() {
    let (_folder, path) = tiny(&["--type", "Q4_K_M", "--ctx", "77"]);
    let file = GgufFile::open(&path).unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.get::<u32>("general.file_type").unwrap(), 15);
    assert_eq!(metadata.get::<u32>("llama.context_length").unwrap(), 77);
    let dtype = |name: &str| file.require(name).unwrap().dtype().unwrap();
    assert_eq!(dtype("output.weight"), DType::Q6_K);
    assert_eq!(dtype("token_embd.weight"), DType::Q4_K);
    assert_eq!(dtype("blk.0.attn_v.weight"), DType::Q4_K);
    assert_eq!(dtype("blk.1.attn_v.weight"), DType::Q6_K);
    assert_eq!(dtype("blk.1.ffn_norm.weight"), DType::F32);

    let (_folder, path) = tiny(&["--type", "q4_0", "--pure"]);
    let file = GgufFile::open(&path).unwrap();
    let matrices = file.tensors().iter().filter(|tensor| tensor.shape().len() == 2);
    assert!(matrices.clone().all(|tensor| tensor.dtype() == Some(DType::Q4_0)));
    assert_eq!(matrices.count(), 16);
}

#[test]
fn the_seed_decides_the_file() {
    let (one, again, other) =
        (tiny(&["--seed", "1"]), tiny(&["--seed", "1"]), tiny(&["--seed", "2"]));
    let read = |(_, path): &(tempfile::TempDir, PathBuf)| std::fs::read(path).unwrap();
    assert_eq!(read(&one), read(&again));
    assert_ne!(read(&one), read(&other));
}

#[test]
fn files_are_not_replaced_unasked() {
    let (folder, path) = tiny(&[]);
    let line = |extra: &[&'static str]| {
        let args = [&["tiny", path.to_str().unwrap()], extra].concat();
        run(&parse(&args).unwrap())
    };
    let error = line(&[]).unwrap_err().to_string();
    assert!(error.contains("tiny.gguf") && error.contains("--force"), "{error}");
    line(&["--force", "--type", "f16"]).unwrap();
    assert_eq!(
        GgufFile::open(&path).unwrap().metadata().get::<u32>("general.file_type").unwrap(),
        1
    );

    let folder = folder.path().to_str().unwrap();
    let error = run(&parse(&["tiny", folder, "--force"]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("is no file"), "{error}");
    let missing = format!("{folder}/nowhere/tiny.gguf");
    let error = run(&parse(&["tiny", &missing]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn unknown_shapes_and_types_are_refused_with_the_known_ones() {
    let error = parse(&["huge", "out.gguf"]).unwrap_err().to_string();
    assert!(error.contains("tinyllama-1.1b"), "{error}");
    let error = parse(&["tiny", "out.gguf", "--type", "q7"]).unwrap_err().to_string();
    assert!(error.contains("q4_k_m"), "{error}");
    assert!(parse(&["tiny", "out.gguf", "--ctx", "0"]).is_err());
}
