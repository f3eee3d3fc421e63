//! Real vocabularies against ids recorded from llama.cpp.

mod common;

use std::fs;

use realm_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer};

/// Texts and their ids, `add_special` and `parse_special` being false.
fn cases(name: &str) -> Option<(Tokenizer, Vec<(String, Vec<u32>)>)> {
    let folder = common::reference()?.join("vocab");
    let file = folder.join(format!("ggml-vocab-{name}.gguf"));
    let read = |end: &str| fs::read_to_string(format!("{}.{end}", file.display())).unwrap();
    let (texts, ids) = (read("inp"), read("out"));
    let texts = texts.split("\n__ggml_vocab_test__\n");
    let ids = ids.lines().map(|line| {
        line.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<u32>>()
    });
    let (texts, ids): (Vec<_>, Vec<_>) = (texts.map(str::to_owned).collect(), ids.collect());
    // The last text is followed by a separator's first half only, and has no line of ids.
    assert!(texts.len().abs_diff(ids.len()) <= 1 && ids.len() > 40, "{} {}", texts.len(), ids.len());
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
