//! Any vocabulary and any text through the tokenizers. What is refused gives one line; what is
//! accepted encodes every text and decodes any ids, whole and piece by piece alike.
#![no_main]

mod common;
#[path = "../../crates/realm-tokenizer/tests/common/ways.rs"]
mod ways;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use realm_tokenizer::{
    DecodeOptions, EncodeOptions, Tokenizer, TokenizerError, Vocab, supported_pre_tokenizers,
};
use ways::PRE_TOKENIZERS;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input { rest: bytes };
    if input.byte() % 2 == 0 {
        let ready = &READY[usize::from(input.byte()) % READY.len()];
        // Ids from the text's own bytes, so that decoding meets some that no encoding gives.
        let text = String::from_utf8_lossy(input.rest);
        let ids = input.rest.iter().map(|&byte| u32::from(byte));
        use_it(&ready.tokenizer, &text, &ids.collect::<Vec<_>>());
        come_back(ready, &text);
    } else {
        let vocab = vocabulary(&mut input);
        let ids: Vec<u32> = (0..input.byte() % 16).map(|_| u32::from(input.byte())).collect();
        let text = String::from_utf8_lossy(input.rest);
        match Tokenizer::new(vocab) {
            Ok(tokenizer) => use_it(&tokenizer, &text, &ids),
            Err(error) => one_line(&error),
        }
    }
});

/// A vocabulary in which every text can be written.
struct Ready {
    kind: &'static str,
    tokenizer: Tokenizer,
}

static READY: LazyLock<Vec<Ready>> = LazyLock::new(|| {
    let byte_level = PRE_TOKENIZERS.map(|pre| ("gpt2", byte_level(pre)));
    let all = [("llama", sentence_piece()), ("bert", word_piece())].into_iter().chain(byte_level);
    let ready = |(kind, vocab)| {
        let tokenizer = Tokenizer::new(vocab).expect("made with care");
        Ready { kind, tokenizer }
    };
    all.map(ready).collect()
});

const MARKUP: [(&str, i32); 4] = [("<s>", 3), ("</s>", 3), ("<user>", 4), ("  ", 4)];

fn byte_level(pre: &str) -> Vocab {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 161..=172 | 174..=255);
    let mut spare = 256;
    let bytes = (0..=255u8).map(|byte| {
        let code = if printable(&byte) {
            u32::from(byte)
        } else {
            spare += 1;
            spare - 1
        };
        char::from_u32(code).expect("below U+0200").to_string()
    });
    let merges = ["Ġ t", "h e", "Ġt he", "a a", "aa aa", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "1 2", "Ã ©"];
    let tokens = bytes.chain(merges.map(|merge| merge.replace(' ', ""))).collect();
    with_markup(Vocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        merges: merges.map(str::to_owned).to_vec(),
        add_bos: Some(false),
        ..Vocab::default()
    })
}

fn sentence_piece() -> Vocab {
    let bytes = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6));
    let pieces = ["▁", "t", "h", "e", "a", "xx", "é", "▁t", "he", "▁the", "▁▁", "aa", "ab", "aab"];
    let pieces = pieces.iter().zip(1u8..);
    let pieces = pieces.map(|(piece, score)| ((*piece).to_owned(), -f32::from(score % 5), 1));
    let unknown = [("<unk>".to_owned(), 0.0, 2)];
    let all: Vec<_> = unknown.into_iter().chain(bytes).chain(pieces).collect();
    with_markup(Vocab {
        model: "llama".into(),
        scores: all.iter().map(|token| token.1).collect(),
        types: all.iter().map(|token| token.2).collect(),
        tokens: all.into_iter().map(|token| token.0).collect(),
        ..Vocab::default()
    })
}

fn word_piece() -> Vocab {
    let tokens = ["[UNK]", "[CLS]", "[SEP]", "▁", "▁a", "a", "aa", "ab", "▁the", "he", "e", "▁."];
    with_markup(Vocab {
        model: "bert".into(),
        tokens: tokens.map(str::to_owned).to_vec(),
        unk: Some(0),
        cls: Some(1),
        sep: Some(2),
        ..Vocab::default()
    })
}

fn with_markup(mut vocab: Vocab) -> Vocab {
    vocab.types.resize(vocab.tokens.len(), 1);
    for (text, kind) in MARKUP {
        vocab.tokens.push(text.into());
        vocab.types.push(kind);
    }
    if !vocab.scores.is_empty() {
        vocab.scores.resize(vocab.tokens.len(), 0.0);
    }
    vocab
}

/// What is left of the fuzzer's bytes.
struct Input<'a> {
    rest: &'a [u8],
}

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        first
    }

    /// A short string, its length in front.
    fn text(&mut self, longest: u8) -> String {
        let len = usize::from(self.byte() % (longest + 1)).min(self.rest.len());
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    fn texts(&mut self, most: u8, longest: u8) -> Vec<String> {
        (0..self.byte() % (most + 1)).map(|_| self.text(longest)).collect()
    }

    /// `None`, or a number that is mostly an id.
    fn id(&mut self) -> Option<u32> {
        let byte = self.byte();
        (byte % 4 != 0).then_some(u32::from(byte >> 3))
    }

    fn flag(&mut self) -> Option<bool> {
        [None, Some(false), Some(true)][usize::from(self.byte() % 3)]
    }
}

fn vocabulary(input: &mut Input<'_>) -> Vocab {
    let model = ["gpt2", "llama", "bert"][usize::from(input.byte() % 3)];
    // Building the larger ones takes milliseconds: mostly a small one.
    let pre = match input.byte() {
        0..32 => Some(input.text(8)),
        32..36 => {
            let names = supported_pre_tokenizers();
            Some(names[usize::from(input.byte()) % names.len()].to_owned())
        }
        _ => Some("bloom".to_owned()),
    };
    let mut tokens = input.texts(32, 8);
    if input.byte() % 2 == 0 {
        // Most merges and words fail otherwise.
        tokens.extend(["a", "b", "ab", "▁", "▁a", "<0x61>"].map(str::to_owned));
        tokens.sort();
        tokens.dedup();
    }
    let fit = input.byte() % 4 != 0;
    let count = if fit { tokens.len() } else { usize::from(input.byte() % 8) };
    let scores = (0..count).map(|_| match input.byte() {
        255 => f32::NAN,
        254 => f32::INFINITY,
        253 => f32::NEG_INFINITY,
        byte => f32::from(byte),
    });
    let scores = scores.collect();
    let types = (0..count).map(|_| i32::from(input.byte() % 9) - 1).collect();
    Vocab {
        model: model.into(),
        pre,
        name: (input.byte() % 2 == 0).then(|| "phi-3".to_owned()),
        merges: input.texts(8, 8),
        bos: input.id(),
        eos: input.id(),
        eot: input.id(),
        eom: input.id(),
        unk: input.id(),
        pad: input.id(),
        cls: input.id(),
        sep: input.id(),
        add_bos: input.flag(),
        add_eos: input.flag(),
        add_space_prefix: input.flag(),
        lowercase: input.flag(),
        strip_accents: input.flag(),
        tokens,
        scores,
        types,
    }
}

fn one_line(error: &TokenizerError) {
    common::one_line(error, 3000);
}

/// Encodes `text` in all ways, and decodes what comes of it and `ids`.
fn use_it(tokenizer: &Tokenizer, text: &str, ids: &[u32]) {
    for (add_special, parse_special) in [(false, false), (false, true), (true, false), (true, true)]
    {
        match tokenizer.encode(text, EncodeOptions { add_special, parse_special }) {
            Ok(ids) => {
                // A byte is at most one token, and SentencePiece adds a space (three bytes) to each
                // stretch of text.
                assert!(ids.len() <= text.len() * 4 + 5, "{} of {text:?}", ids.len());
                decode(tokenizer, &ids);
            }
            Err(error @ TokenizerError::NoByteToken { .. }) => one_line(&error),
            Err(error) => panic!("{error}"),
        }
    }
    decode(tokenizer, ids);
    for id in 0..=tokenizer.vocab_size() as u32 {
        let known = (id as usize) < tokenizer.vocab_size();
        assert_eq!(tokenizer.token_bytes(id).is_ok(), known);
        assert_eq!(tokenizer.token_text(id).is_some(), known);
        assert_eq!(tokenizer.token_type(id).is_some(), known);
        if let Some(text) = tokenizer.token_text(id) {
            assert_eq!(tokenizer.token_id(text), Some(id));
        }
        assert_eq!(tokenizer.is_end_of_generation(id), tokenizer.end_of_generation().contains(&id));
    }
}

/// Whole and piece by piece.
fn decode(tokenizer: &Tokenizer, ids: &[u32]) {
    for (special, continuation) in [(false, false), (false, true), (true, false), (true, true)] {
        let options = DecodeOptions { special, continuation };
        let mut stream = tokenizer.decode_stream(options);
        let mut text = String::new();
        let mut failed = false;
        for &id in ids {
            match stream.push(id) {
                Ok(part) => text.push_str(part),
                Err(error) => {
                    assert_eq!(
                        error,
                        TokenizerError::UnknownId { id, vocab_size: tokenizer.vocab_size() }
                    );
                    one_line(&error);
                    failed = true;
                }
            }
        }
        text.push_str(stream.finish());
        match tokenizer.decode(ids, options) {
            Ok(whole) => assert!(!failed && whole == text, "{whole:?} {text:?}"),
            Err(_) => assert!(failed),
        }
    }
}

/// Where nothing is lost, the text comes back.
fn come_back(ready: &Ready, text: &str) {
    let tokenizer = &ready.tokenizer;
    for parse_special in [false, true] {
        let options = EncodeOptions { add_special: false, parse_special };
        let ids = tokenizer.encode(text, options).expect("every byte has a token");
        let shown = DecodeOptions { special: true, continuation: true };
        let back = tokenizer.decode(&ids, shown).expect("known ids");
        match ready.kind {
            "gpt2" => assert_eq!(back, text),
            "llama" => {
                let plain = |text: &str| text.replace([' ', '▁'], "");
                assert_eq!(plain(&back), plain(text));
            }
            // U+2581 is written as a space.
            _ if ids.contains(&0) || text.contains('▁') => {}
            _ => {
                let again = tokenizer.encode(&back, options).expect("every text has ids");
                assert_eq!(again, ids, "{back:?}");
            }
        }
    }
}
