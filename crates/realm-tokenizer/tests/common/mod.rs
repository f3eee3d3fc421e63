//! What the tests share: the reference folder, and vocabularies out of GGUF files.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod small;
pub(crate) mod ways;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use realm_gguf::{FromValue, GgufFile, Metadata, Strings};
use realm_tokenizer::{Tokenizer, Vocab};

/// The folder with reference data; says so and gives `None` where there is none.
pub(crate) fn reference() -> Option<PathBuf> {
    let folder = std::env::var_os("REALM_REFERENCE");
    if folder.is_none() {
        println!("skipped: REALM_REFERENCE is not set");
    }
    folder.map(PathBuf::from)
}

/// The tokenizer of a file.
pub(crate) fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::new(vocab(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The vocabulary in a file's metadata.
pub(crate) fn vocab(path: &Path) -> Vocab {
    let file = GgufFile::open(path).unwrap_or_else(|error| panic!("{error}"));
    let meta = file.metadata();
    let id = |name: &str| find::<u32>(meta, &format!("{name}_token_id"));
    let strings = |key: &str| {
        let strings = find::<&Strings>(meta, key);
        strings.map(|list| list.iter().map(Into::into).collect()).unwrap_or_default()
    };
    Vocab {
        model: find::<&str>(meta, "model").unwrap().to_owned(),
        pre: find::<&str>(meta, "pre").map(str::to_owned),
        name: meta.find::<&str>("general.name").unwrap().map(str::to_owned),
        tokens: strings("tokens"),
        scores: find::<&[f32]>(meta, "scores").unwrap_or_default().to_vec(),
        types: find::<Vec<i32>>(meta, "token_type").unwrap_or_default(),
        merges: strings("merges"),
        bos: id("bos"),
        eos: id("eos"),
        eot: id("eot"),
        eom: id("eom"),
        unk: id("unknown"),
        pad: id("padding"),
        cls: id("cls"),
        sep: id("seperator"),
        add_bos: find(meta, "add_bos_token"),
        add_eos: find(meta, "add_eos_token"),
        add_space_prefix: find(meta, "add_space_prefix"),
        lowercase: find(meta, "normalizer.lowercase"),
        strip_accents: find(meta, "normalizer.strip_accents"),
    }
}

fn find<'m, T: FromValue<'m>>(meta: &'m Metadata, key: &str) -> Option<T> {
    meta.find(&format!("tokenizer.ggml.{key}")).unwrap_or_else(|error| panic!("{error}"))
}

/// SentencePiece-BPE by its definition: again and again, the best merge of all.
pub(crate) fn naive_spm(vocab: &Vocab, text: &str) -> Vec<u32> {
    let ids: HashMap<&str, usize> =
        vocab.tokens.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let id = |text: &str| ids.get(text).copied();
    let prefix = if vocab.add_space_prefix.unwrap_or(true) { "▁" } else { "" };
    let text = prefix.to_owned() + &text.replace(' ', "▁");
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(usize, f32)> = None;
        for at in 1..parts.len() {
            if let Some(id) = id(&(parts[at - 1].clone() + &parts[at]))
                && best.is_none_or(|(_, score)| vocab.scores[id] > score)
            {
                best = Some((at, vocab.scores[id]));
            }
        }
        let Some((at, _)) = best else { break };
        let right = parts.remove(at);
        parts[at - 1] += &right;
    }
    let ids = parts.iter().flat_map(|part| match id(part) {
        Some(id) => vec![id],
        None => part.bytes().map(|byte| id(&format!("<0x{byte:02X}>")).unwrap()).collect(),
    });
    ids.map(|id| id as u32).collect()
}
