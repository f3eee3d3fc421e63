//! Real vocabularies against ids recorded from llama.cpp.

mod common;

use std::fs;

use realm_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, Vocab};

/// A text and its ids.
type Case = (String, Vec<u32>);

/// Texts and their ids, `add_special` and `parse_special` being false.
fn cases(name: &str) -> Option<(Tokenizer, Vec<Case>)> {
    let folder = common::reference()?.join("vocab");
    let file = folder.join(format!("ggml-vocab-{name}.gguf"));
    let read = |end: &str| fs::read_to_string(format!("{}.{end}", file.display())).unwrap();
    let (texts, ids) = (read("inp"), read("out"));
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned).collect::<Vec<_>>();
    let numbers = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let ids = ids.split('\n').map(numbers).collect::<Vec<Vec<u32>>>();
    assert!(texts.len() == ids.len() && ids.len() > 40, "{} {}", texts.len(), ids.len());
    Some((common::tokenizer(&file), texts.into_iter().zip(ids).collect()))
}

fn check(name: &str) {
    let Some((tokenizer, cases)) = cases(name) else { return };
    let mut wrong = 0;
    for (text, expected) in &cases {
        let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
        if &ids != expected {
            println!("{name}: {text:?}\n  gives {ids:?}\n  not   {expected:?}");
            wrong += 1;
        }
        let back = tokenizer.decode(&ids, DecodeOptions::default()).unwrap();
        assert_eq!(&back, text, "{name}: decoded again");
    }
    assert_eq!(wrong, 0, "{name}: {wrong} of {} cases", cases.len());
    println!("{name}: {} cases", cases.len());
}

#[test]
fn llama_spm() {
    check("llama-spm");
}

#[test]
fn phi_3() {
    check("phi-3");
}

#[test]
fn llama_bpe() {
    check("llama-bpe");
}

#[test]
fn gpt_2() {
    check("gpt-2");
}

/// Texts with markup, `add_special` and `parse_special` being true; the ids were recorded from
/// llama.cpp 0c1e57098.
fn check_markup(name: &str, change: impl FnOnce(&mut Vocab), cases: &[(&str, &[u32])]) {
    let Some(root) = common::reference() else { return };
    let mut vocab = common::vocab(&root.join(format!("vocab/ggml-vocab-{name}.gguf")));
    change(&mut vocab);
    let tokenizer = Tokenizer::new(vocab).unwrap();
    for (text, expected) in cases {
        let options = EncodeOptions { add_special: true, parse_special: true };
        assert_eq!(&tokenizer.encode(text, options).unwrap(), expected, "{name}: {text:?}");
    }
}

#[test]
fn llama_spm_markup() {
    let prompt = "<s>[INST] Hi [/INST]</s> a";
    check_markup(
        "llama-spm",
        |_| {},
        &[
            (prompt, &[1, 1, 518, 25580, 29962, 6324, 518, 29914, 25580, 29962, 2, 29871, 263]),
            ("", &[1]),
            ("  <s>", &[1, 1678, 1]),
        ],
    );
}

/// White space after most of this model's special tokens vanishes.
#[test]
fn phi_3_markup() {
    let prompt = "<|user|>\n  Hi there<|end|> \n<|assistant|>\n";
    let mixed = "<s> a</s>  b <|endoftext|> c<unk>d";
    check_markup(
        "phi-3",
        |_| {},
        &[
            (prompt, &[1, 32010, 6324, 727, 32007, 32001]),
            (mixed, &[1, 1, 29871, 263, 2, 289, 29871, 32000, 29871, 274, 0, 270]),
            (" x <|end|>", &[1, 29871, 921, 29871, 32007]),
        ],
    );
}

#[test]
fn llama_bpe_markup() {
    let prompt = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi <|eot_id|> there";
    let ids = [128000, 128000, 128006, 882, 128007, 271, 13347, 220, 128009, 1070];
    check_markup(
        "llama-bpe",
        |_| {},
        &[(prompt, &ids), ("", &[128000]), ("<|eot_id", &[128000, 27, 91, 68, 354, 851])],
    );
}

/// What a file that names no pre-tokenizer gets.
#[test]
fn gpt_2_without_pre_tokenizer() {
    let text = "x=12345, \"it's\"  (a+b)^2 … §7";
    let ids = [
        87, 28, 10163, 2231, 11, 220, 1, 270, 6, 82, 1, 220, 220, 7, 64, 10, 65, 8, 61, 17, 220,
        1399, 220, 16273, 22,
    ];
    check_markup(
        "gpt-2",
        |vocab| vocab.pre = None,
        &[(text, &ids), ("<|endoftext|> a", &[50256, 257])],
    );
}

#[test]
fn ends_of_generation() {
    let Some(root) = common::reference() else { return };
    for (name, ends) in [
        ("vocab/ggml-vocab-llama-spm", vec![2]),
        ("vocab/ggml-vocab-phi-3", vec![2, 32000, 32007]),
        ("vocab/ggml-vocab-llama-bpe", vec![128001, 128009]),
        ("vocab/ggml-vocab-gpt-2", vec![50256]),
        ("models/llama-256/model-f32", vec![508, 511]),
    ] {
        let tokenizer = common::tokenizer(&root.join(format!("{name}.gguf")));
        assert_eq!(tokenizer.end_of_generation(), ends, "{name}");
    }
}
