//! Properties that hold for any text and any ids.

mod common;

use std::{
    sync::{Arc, LazyLock},
    time::Instant,
};

use common::{small, ways::PRE_TOKENIZERS};
use proptest::prelude::*;
use realm_tokenizer::{
    DecodeOptions, DecodeStream, EncodeOptions, Tokenizer, TokenizerError, Vocab,
};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const MARKUP: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };

/// A SentencePiece one, then the byte-level ones, the first of which is Llama 3's.
fn tokenizers() -> &'static [Tokenizer] {
    static ALL: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
        let byte_level = PRE_TOKENIZERS.map(small::byte_level);
        let all = [small::spm()].into_iter().chain(byte_level);
        all.map(|vocab| Tokenizer::new(vocab).unwrap()).collect()
    });
    &ALL
}

fn word_piece() -> &'static Tokenizer {
    static ONE: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::new(small::word_piece()).unwrap());
    &ONE
}

/// Texts full of what the vocabularies have tokens for, and of anything else.
fn texts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(vec![
            "a", "b", "aa", "ab", " ", "  ", "    ", " the", "he", "t", "x", "\n", "\n\n", "\r\n",
            "12", "é", "😀", "▁", "'s", "<|bos|>", "<user>", "<0x41>", "\u{301}", "...",
        ]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        1 => any::<String>(),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

#[test]
fn one_tokenizer_serves_all_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&tokenizers()[0]);
}

fn decoded(tokenizer: &Tokenizer, ids: &[u32], options: DecodeOptions) -> String {
    let mut stream = tokenizer.decode_stream(options);
    let mut text = String::new();
    for &id in ids {
        text += stream.push(id).unwrap();
    }
    text + stream.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_text_comes_back(text in texts()) {
        for tokenizer in tokenizers() {
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            let continuation = DecodeOptions { continuation: true, ..DecodeOptions::default() };
            let back = tokenizer.decode(&ids, continuation).unwrap();
            if tokenizer.adds_space_prefix() {
                // One space stands before the text and after each user-defined token, unless the
                // text ends there; and U+2581 is this vocabulary's way to write a space.
                let expected = text.replace('▁', " ").split("<user>").map(|part| {
                    if part.is_empty() { String::new() } else { format!(" {part}") }
                }).collect::<Vec<_>>().join("<user>");
                prop_assert_eq!(&back, &expected);
                let fresh = tokenizer.decode(&ids, DecodeOptions::default()).unwrap();
                let leading = !text.is_empty() && !text.starts_with("<user>");
                prop_assert_eq!(&fresh, &expected[usize::from(leading)..]);
            } else {
                prop_assert_eq!(&back, &text);
            }
        }
    }

    #[test]
    fn markup_comes_back_too(text in texts()) {
        let tokenizer = &tokenizers()[1];
        let ids = tokenizer.encode(&text, MARKUP).unwrap();
        let count = |id| ids.iter().filter(|&&found| found == id).count();
        prop_assert_eq!(count(tokenizer.bos().unwrap()), text.matches("<|bos|>").count());
        let user = tokenizer.token_id("<user>").unwrap();
        prop_assert_eq!(count(user), text.matches("<user>").count());
        let shown = DecodeOptions { special: true, ..DecodeOptions::default() };
        prop_assert_eq!(&tokenizer.decode(&ids, shown).unwrap(), &text);
        let hidden = tokenizer.decode(&ids, DecodeOptions::default()).unwrap();
        prop_assert_eq!(&hidden, &text.replace("<|bos|>", ""));
    }

    #[test]
    fn streaming_gives_what_the_bytes_give(
        seeds in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        special: bool,
        continuation: bool,
    ) {
        for tokenizer in tokenizers()[..2].iter().chain([word_piece()]) {
            let size = tokenizer.vocab_size();
            let ids: Vec<u32> = seeds.iter().map(|seed| seed.index(size) as u32).collect();
            let options = DecodeOptions { special, continuation };
            let mut bytes = Vec::new();
            let mut first = !continuation && tokenizer.adds_space_prefix();
            for &id in ids.iter().filter(|&&id| special || !tokenizer.is_special(id)) {
                let piece = tokenizer.token_bytes(id).unwrap();
                bytes.extend(if first { piece.strip_prefix(b" ").unwrap_or(piece) } else { piece });
                first = false;
            }
            let expected = String::from_utf8_lossy(&bytes);
            prop_assert_eq!(&decoded(tokenizer, &ids, options), &expected);
            prop_assert_eq!(&tokenizer.decode(&ids, options).unwrap(), &expected);
        }
    }

    #[test]
    fn words_come_back_plain(text in texts()) {
        let tokenizer = word_piece();
        for (options, special) in [(PLAIN, false), (MARKUP, true)] {
            let ids = tokenizer.encode(&text, options).unwrap();
            let shown = DecodeOptions { special: true, ..DecodeOptions::default() };
            let back = tokenizer.decode(&ids, shown).unwrap();
            // What is plain stays as it is, though now with a space in front of every word (and
            // U+2581 is this vocabulary's way to write one).
            if !ids.contains(&tokenizer.unk().unwrap()) && !text.contains('▁') {
                prop_assert_eq!(&tokenizer.encode(&back, options).unwrap(), &ids, "{:?}", back);
            }
            for markup in small::MARKUP {
                let id = tokenizer.token_id(markup.0).unwrap();
                let count = ids.iter().filter(|&&found| found == id).count();
                let expected = if special || markup.1 == 4 { text.matches(markup.0).count() } else { 0 };
                prop_assert_eq!(count, expected);
            }
        }
        let around = EncodeOptions { add_special: true, ..PLAIN };
        let ids = tokenizer.encode(&text, around).unwrap();
        prop_assert_eq!((ids[0], ids[ids.len() - 1]), (1, 2));
        prop_assert_eq!(&ids[1..ids.len() - 1], &tokenizer.encode(&text, PLAIN).unwrap());
    }

    #[test]
    fn no_vocabulary_makes_it_panic(
        model in prop::sample::select(vec!["gpt2", "llama", "bert"]),
        tokens in prop::collection::vec("[ab▁Ġ<>0x]{0,4}", 0..12),
        scores in prop::collection::vec(any::<f32>(), 0..12),
        types in prop::collection::vec(-1..8i32, 0..12),
        merges in prop::collection::vec("[ab ]{0,4}", 0..4),
        fit: bool,
        special in prop::option::of(0..14u32),
        text in "[ab <>▁é0x]{0,12}",
    ) {
        let (mut scores, mut types) = (scores, types);
        if fit {
            scores.resize(tokens.len(), -1.0);
            types.resize(tokens.len(), 1);
        }
        let vocab = Vocab {
            model: model.into(), tokens, scores, types, merges, bos: special, eot: special,
            sep: special, unk: special, ..Vocab::default()
        };
        if let Ok(tokenizer) = Tokenizer::new(vocab) {
            let all = EncodeOptions { add_special: true, parse_special: true };
            for options in [PLAIN, all] {
                match tokenizer.encode(&text, options) {
                    Ok(ids) => {
                        tokenizer.decode(&ids, DecodeOptions::default()).unwrap();
                    }
                    Err(TokenizerError::NoByteToken { .. }) => {}
                    Err(error) => prop_assert!(false, "{}", error),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn spm_merges_by_the_definition(text in "[ab th é😀x]{1,40}") {
        let tokenizer = Tokenizer::new(small::spm()).unwrap();
        let expected = common::naive_spm(&small::spm(), &text);
        prop_assert_eq!(tokenizer.encode(&text, PLAIN).unwrap(), expected);
    }
}

/// Texts on which a careless tokenizer is quadratic, each of some `len` bytes.
fn long_texts(len: usize) -> impl Iterator<Item = String> {
    let units = ["a", " ", "\n", "é", "1", "ab", "  \n", "-", "<user>", "\u{301}", "中", "A", "'"];
    let repeated = units.into_iter().map(move |unit| unit.repeat(len / unit.len()));
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    let words = ["the", " the", "he", "x12", "é", "\n", " ", "aab", ", ", "中文", "<|bos|>", "A"];
    let words = (0..len / 3).map(move |_| words[random() % words.len()]).collect();
    // Long runs that end in something else, where looking ahead costs most.
    let runs = [" ", "a", "1"].map(move |unit| (unit.repeat(len / 20) + "x\n").repeat(20));
    repeated.chain([words]).chain(runs)
}

#[test]
fn long_texts_take_no_quadratic_time() {
    let start = Instant::now();
    for tokenizer in tokenizers().iter().chain([word_piece()]) {
        for text in long_texts(100_000) {
            let ids = tokenizer.encode(&text, MARKUP).unwrap();
            assert!(ids.len() <= text.len() * 2);
        }
    }
    // 450 texts of 100 kB: some ten seconds without optimisation. If quadratic, 10¹⁰ steps for one.
    assert!(start.elapsed().as_secs() < 100, "{:?}", start.elapsed());
}

/// One of each kind of code, on texts of a megabyte: a second each without optimisation, where a
/// quadratic one would take 10¹² steps.
#[test]
fn a_megabyte_takes_no_quadratic_time() {
    let bert = word_piece();
    for tokenizer in [&tokenizers()[0], &tokenizers()[1], &tokenizers()[16], bert] {
        for text in long_texts(1_000_000) {
            let start = Instant::now();
            let ids = tokenizer.encode(&text, MARKUP).unwrap();
            tokenizer.decode(&ids, DecodeOptions::default()).unwrap();
            assert!(start.elapsed().as_secs() < 60, "{:?} {:?}", start.elapsed(), text.get(..8));
        }
    }
}

#[test]
fn a_stream_can_own_its_tokenizer_and_never_gives_half_a_character() {
    let tokenizer = Arc::new(Tokenizer::new(small::byte_level("gpt-2")).unwrap());
    let ids = tokenizer.encode("é😁\u{301}", PLAIN).unwrap();
    let mut stream = DecodeStream::new(Arc::clone(&tokenizer), DecodeOptions::default());
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap().to_owned()).collect();
    assert_eq!(parts, ["é", "", "😁", "", "\u{301}"]);
    assert_eq!(stream.finish(), "");

    // An unfinished character at the end; then one that is cut off by another.
    stream.push(ids[1]).unwrap();
    assert_eq!(stream.finish(), "\u{FFFD}");
    assert_eq!(stream.finish(), "");
    assert_eq!(stream.push(ids[1]).unwrap(), "");
    assert_eq!(stream.push(ids[0]).unwrap(), "\u{FFFD}é");
}

#[test]
fn the_space_in_front_goes_only_from_the_start_of_a_text() {
    let tokenizer = Tokenizer::new(small::spm()).unwrap();
    let all = EncodeOptions { add_special: true, parse_special: true };
    let ids = tokenizer.encode("the the<|eot_id|>the", all).unwrap();
    let texts: Vec<&str> = ids.iter().map(|&id| tokenizer.token_text(id).unwrap()).collect();
    assert_eq!(texts, ["<|bos|>", "▁the", "▁the", "<|eot_id|>", "▁the"]);
    let decode = |ids: &[u32], special, continuation| {
        tokenizer.decode(ids, DecodeOptions { special, continuation }).unwrap()
    };
    assert_eq!(decode(&ids, false, false), "the the the");
    assert_eq!(decode(&ids, true, false), "<|bos|> the the<|eot_id|> the");
    assert_eq!(decode(&ids[2..3], false, true), " the");
    assert_eq!(decode(&ids[2..3], false, false), "the");
}
