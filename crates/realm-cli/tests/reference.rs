//! The binary against recorded results of other implementations.

mod common;

use std::path::{Path, PathBuf};

use common::{npy, realm, realm_with, reference};

const MODELS: [&str; 3] = ["llama", "llama3-rope", "llama-256"];
/// Largest difference of logits, where weights and activations are f32.
const EXACT: f32 = 2e-4;

/// The logits that `realm logits` writes for a model's recorded tokens.
fn logits(model: &Path, tokens: &Path, options: &[&str]) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.npy");
    let args = args!["logits", "-m", model, "--ids-file", tokens, "--out", out];
    let ran = realm(args.into_iter().chain(options.iter().map(Into::into))).good();
    assert!(ran.stdout.is_empty());
    npy::read_f32(&out)
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let all_numbers = found.iter().all(|value| value.is_finite());
    println!("{what}: {worst:e}");
    assert!(worst <= EXACT && all_numbers, "{what}: logits differ by {worst}");
}

#[test]
fn logits_of_whole_models() {
    let Some(reference) = reference() else { return };
    for name in MODELS {
        let folder = reference.join("models").join(name);
        let found = logits(
            &folder.join("model-f32.gguf"),
            &folder.join("tokens.npy"),
            &["--precision", "f32"],
        );
        assert_close(&found, &npy::read_f32(&folder.join("logits.npy")), name);
    }
}

#[test]
fn greedy_tokens_of_whole_models() {
    let Some(reference) = reference() else { return };
    for name in MODELS {
        let folder = reference.join("models").join(name);
        let mut args = args![
            "run",
            "-m",
            folder.join("model-f32.gguf"),
            "--ids-file",
            folder.join("tokens.npy"),
        ]
        .to_vec();
        args.extend(
            "-n 16 --temperature 0 --ignore-eos --print-ids --precision f32"
                .split(' ')
                .map(Into::into),
        );
        let ran = realm(args).good();
        let expected = npy::read_i32(&folder.join("greedy.npy"));
        let expected: Vec<String> = expected.iter().map(i32::to_string).collect();
        assert_eq!(ran.text(), expected.join(" ") + "\n", "{name}");
        assert!(ran.stderr.contains("precision  f32, KV cache f32"), "{}", ran.stderr);
    }
}

/// Each quantized file and its recorded logits.
fn quantized(reference: &Path) -> Vec<(String, PathBuf, Vec<f32>)> {
    let folder = reference.join("models/llama-256/quant");
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.filter_map(|name| {
        let name = name.into_string().unwrap();
        Some(name.strip_prefix("model-")?.strip_suffix(".gguf")?.to_owned())
    });
    let mut files: Vec<_> = names
        .map(|name| {
            let expected = npy::read_f32(&folder.join(format!("logits-{name}.npy")));
            let file = folder.join(format!("model-{name}.gguf"));
            (name, file, expected)
        })
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(files.len() >= 9, "{} quantized files", files.len());
    files
}

#[test]
fn logits_of_dequantized_weights() {
    let Some(reference) = reference() else { return };
    let tokens = reference.join("models/llama-256/tokens.npy");
    for (name, file, expected) in quantized(&reference) {
        for isa in ["scalar", "avx2", "avx512"] {
            let found = logits(&file, &tokens, &["--precision", "f32", "--isa", isa]);
            assert_close(&found, &expected, &format!("{name} {isa}"));
        }
    }
}

/// Root of the mean squared difference.
fn rmse(found: &[f32], expected: &[f32]) -> f64 {
    let squares = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / found.len() as f64).sqrt()
}

/// Mean over rows of KL(expected ‖ found).
fn mean_kl(found: &[f32], expected: &[f32], vocabulary: usize) -> f64 {
    let log_probabilities = |row: &[f32]| -> Vec<f64> {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - most).exp()).sum();
        row.iter().map(|&x| f64::from(x - most) - sum.ln()).collect()
    };
    let rows = found.chunks(vocabulary).zip(expected.chunks(vocabulary));
    let kl = rows.map(|(found, expected)| {
        let (q, p) = (log_probabilities(found), log_probabilities(expected));
        p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    kl.sum::<f64>() / (found.len() / vocabulary) as f64
}

#[test]
fn logits_with_rounded_activations() {
    let Some(reference) = reference() else { return };
    let tokens = reference.join("models/llama-256/tokens.npy");
    for (name, file, expected) in quantized(&reference) {
        for options in [
            &["--precision", "int8"][..],
            &["--isa", "scalar"],
            &["--isa", "avx2"],
            &["--isa", "avx512"],
            &["--precision", "f16"],
            &["--precision", "bf16"],
            &["--kv-type", "bf16"],
            &["--kv-type", "q8_0"],
        ] {
            let found = logits(&file, &tokens, options);
            let vocabulary = expected.len() / npy::read_i32(&tokens).len();
            let (rmse, kl) = (rmse(&found, &expected), mean_kl(&found, &expected, vocabulary));
            println!("{name} {options:?}: RMSE {rmse:.4}, KL {kl:.6}");
            assert!(rmse <= 0.2, "{name} {options:?}: RMSE {rmse}");
            assert!(kl <= 0.01, "{name} {options:?}: KL {kl}");
        }
    }
}

#[test]
fn ids_of_real_vocabularies() {
    let Some(reference) = reference() else { return };
    for name in ["llama-spm", "llama-bpe", "gpt-2", "phi-3"] {
        let file = reference.join(format!("vocab/ggml-vocab-{name}.gguf"));
        let beside = |end: &str| {
            let path = reference.join(format!("vocab/ggml-vocab-{name}.gguf.{end}"));
            std::fs::read_to_string(path).unwrap()
        };
        let cases = beside("inp").replace("\n__ggml_vocab_test__\n", "\0");
        let ran = realm_with(args!["tokenize", "-m", file, "-0"], &cases).good();
        let expected = beside("out");
        let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected: Vec<String> = expected.lines().map(squeeze).collect();
        let found: Vec<&str> = ran.text().lines().collect();
        assert!(found.len() > 10, "{name}: {} lines", found.len());
        assert_eq!(found, expected, "{name}");
    }
}
