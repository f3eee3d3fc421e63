//! Small vocabularies against Hugging Face's `tokenizers`, which reads them from its own file
//! format, and SentencePiece ones against their definition.

mod common;

use std::path::Path;

use realm_tokenizer::{DecodeOptions, EncodeOptions, Tokenizer};

const SENTENCES: &[&str] = &[
    "",
    " ",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune…",
    "To be, or not to be:\n\n    that is the question!\r\n\t'Tis nobler",
    "don't you're I'LL we've",
    "1 12 123 1234 12345678 3.14159 x²",
    "   leading and trailing   ",
    "naïve café — “quoted” 中文 русский 😀👩‍🚀 \u{301}",
    "fn main() { println!(\"{}\", a[0] + b->c); } // done",
    "\n \n  \n   \n",
];

/// The model's GGUF and its `tokenizer.json` must agree; markup is read by the latter always.
fn check(model: &str, parse_special: bool) {
    let Some(folder) = common::reference().map(|root| root.join("models").join(model)) else {
        return;
    };
    let ours = common::tokenizer(&folder.join("model-f32.gguf"));
    let theirs = huggingface(&folder.join("tokenizer.json"));
    let markup = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi <|eot_id|> \
                  there<|endoftext|>";
    let texts = SENTENCES.iter().chain(parse_special.then_some(&markup));
    for text in texts {
        let ids = ours.encode(text, EncodeOptions { add_special: false, parse_special }).unwrap();
        assert_eq!(ids, theirs.encode(*text, false).unwrap().get_ids(), "{model}: {text:?}");
        let shown = DecodeOptions { special: true, ..DecodeOptions::default() };
        assert_eq!(&ours.decode(&ids, shown).unwrap(), text);
    }
    check_corpus(&ours, &theirs, model);
}

/// A part of a book, in pieces that start anywhere.
fn check_corpus(ours: &Tokenizer, theirs: &tokenizers::Tokenizer, model: &str) {
    let Some(root) = common::reference() else { return };
    let book = std::fs::read_to_string(root.join("corpus/pride-and-prejudice.txt")).unwrap();
    let letters: Vec<char> = book.chars().take(60_000).collect();
    for piece in letters.chunks(997) {
        let text: String = piece.iter().collect();
        let ids = ours.encode(&text, EncodeOptions::default()).unwrap();
        assert_eq!(
            ids,
            theirs.encode(text.as_str(), false).unwrap().get_ids(),
            "{model}: {text:?}"
        );
    }
}

fn huggingface(path: &Path) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_file(path).unwrap()
}

#[test]
fn llama_256() {
    check("llama-256", false);
    check("llama-256", true);
}

#[test]
fn llama3_rope() {
    check("llama3-rope", true);
}

#[test]
fn olmo2() {
    check("olmo2", true);
}

#[test]
fn qwen2() {
    check("qwen2", true);
}

#[test]
fn qwen3() {
    check("qwen3", true);
}

#[test]
fn starcoder2() {
    check("starcoder2", true);
}

#[test]
fn gpt_neox() {
    check("gpt_neox", true);
}

/// The merges of SentencePiece vocabularies, on pieces of a book and on random letters.
#[test]
fn spm_by_the_definition() {
    let Some(root) = common::reference() else { return };
    let book = std::fs::read_to_string(root.join("corpus/shakespeare-complete.txt")).unwrap();
    let letters: Vec<char> = book.chars().skip(7_000).take(40_000).collect();
    for file in [
        "models/llama/model-f32.gguf",
        "models/gemma2/model-f32.gguf",
        "vocab/ggml-vocab-llama-spm.gguf",
    ] {
        let vocab = common::vocab(&root.join(file));
        let ours = Tokenizer::new(vocab.clone()).unwrap();
        for piece in letters.chunks(331) {
            let mut text: String = piece.iter().collect();
            for _ in 0..2 {
                let ids = ours.encode(&text, EncodeOptions::default()).unwrap();
                assert_eq!(ids, common::naive_spm(&vocab, &text), "{file}: {text:?}");
                // The same letters without their order.
                let mut shuffled: Vec<char> = text.chars().collect();
                shuffled.sort_by_key(|&c| (c as usize).wrapping_mul(piece.len() * 7919 + 1) % 61);
                text = shuffled.into_iter().collect();
            }
        }
    }
}
