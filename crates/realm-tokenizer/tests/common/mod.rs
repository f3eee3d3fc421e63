//! What the tests share: the reference folder, and just enough of a GGUF reader to get vocabularies
//! out of it (this crate knows nothing of the file format).
#![allow(dead_code, reason = "each test file uses a part")]

use std::{collections::HashMap, fs, path::Path, path::PathBuf};

use realm_tokenizer::{Tokenizer, Vocab};

/// The folder with reference data; says so and gives `None` where there is none.
pub fn reference() -> Option<PathBuf> {
    let folder = std::env::var_os("REALM_REFERENCE");
    if folder.is_none() {
        println!("skipped: REALM_REFERENCE is not set");
    }
    folder.map(PathBuf::from)
}

/// The tokenizer of a file.
pub fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::new(vocab(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The vocabulary in a file's metadata.
pub fn vocab(path: &Path) -> Vocab {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut meta = metadata(&bytes);
    let mut take = |key: &str| meta.remove(key);
    let mut strings = |key: &str| match take(&format!("tokenizer.ggml.{key}")) {
        Some(Value::List(list)) => list.into_iter().map(Value::string).collect(),
        _ => Vec::new(),
    };
    let (tokens, merges) = (strings("tokens"), strings("merges"));
    let mut numbers = |key: &str| match take(&format!("tokenizer.ggml.{key}")) {
        Some(Value::List(list)) => list.into_iter().map(Value::number).collect(),
        _ => Vec::new(),
    };
    let scores = numbers("scores").into_iter().map(|score| score as f32).collect();
    let types = numbers("token_type").into_iter().map(|kind| kind as i32).collect();
    let mut number =
        |key: &str| take(&format!("tokenizer.ggml.{key}")).map(|value| value.number() as u32);
    Vocab {
        tokens,
        merges,
        scores,
        types,
        bos: number("bos_token_id"),
        eos: number("eos_token_id"),
        eot: number("eot_token_id"),
        eom: number("eom_token_id"),
        unk: number("unknown_token_id"),
        pad: number("padding_token_id"),
        add_bos: number("add_bos_token").map(|flag| flag != 0),
        add_eos: number("add_eos_token").map(|flag| flag != 0),
        add_space_prefix: number("add_space_prefix").map(|flag| flag != 0),
        model: take("tokenizer.ggml.model").unwrap().string(),
        pre: take("tokenizer.ggml.pre").map(Value::string),
        name: take("general.name").map(Value::string),
    }
}

enum Value {
    Number(f64),
    String(String),
    List(Vec<Value>),
}

impl Value {
    fn number(self) -> f64 {
        let Self::Number(number) = self else { panic!("not a number") };
        number
    }

    fn string(self) -> String {
        let Self::String(string) = self else { panic!("not a string") };
        string
    }
}

fn metadata(bytes: &[u8]) -> HashMap<String, Value> {
    assert_eq!(&bytes[..4], b"GGUF");
    let mut cursor = Cursor { bytes, at: 16 };
    let count = cursor.u64();
    (0..count)
        .map(|_| {
            let key = cursor.string();
            let kind = cursor.u32();
            (key, cursor.value(kind))
        })
        .collect()
}

struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at += N;
        self.bytes[self.at - N..self.at].try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn string(&mut self) -> String {
        let len = self.u64() as usize;
        self.at += len;
        String::from_utf8(self.bytes[self.at - len..self.at].to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 | 7 => Value::Number(f64::from(self.take::<1>()[0])),
            1 => Value::Number(f64::from(i8::from_le_bytes(self.take()))),
            2 => Value::Number(f64::from(u16::from_le_bytes(self.take()))),
            3 => Value::Number(f64::from(i16::from_le_bytes(self.take()))),
            4 => Value::Number(f64::from(self.u32())),
            5 => Value::Number(f64::from(i32::from_le_bytes(self.take()))),
            6 => Value::Number(f64::from(f32::from_le_bytes(self.take()))),
            8 => Value::String(self.string()),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                Value::List((0..len).map(|_| self.value(kind)).collect())
            }
            10 | 11 => Value::Number(self.u64() as f64),
            12 => Value::Number(f64::from_le_bytes(self.take())),
            other => panic!("value type {other}"),
        }
    }
}
