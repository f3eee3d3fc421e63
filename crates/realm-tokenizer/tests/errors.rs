//! Vocabularies and ids that are wrong: each gives one line that says what and where.

mod common;

use common::small;
use realm_tokenizer::{DecodeOptions, EncodeOptions, TokenType, Tokenizer, TokenizerError, Vocab};

/// The message for a vocabulary with one thing wrong.
fn refusal(mut vocab: Vocab, wrong: impl FnOnce(&mut Vocab)) -> String {
    wrong(&mut vocab);
    let message = Tokenizer::new(vocab).unwrap_err().to_string();
    assert!(!message.contains('\n') && message.len() < 500, "{message}");
    message
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn kinds_and_pre_tokenizers() {
    let message = refusal(small::spm(), |vocab| vocab.model = "t5".into());
    assert_says(&message, &["'t5'", "tokenizer.ggml.model", "llama", "gpt2", "bert"]);
    let message = refusal(small::spm(), |vocab| vocab.model = String::new());
    assert_says(&message, &["''", "tokenizer.ggml.model"]);
    let message = refusal(small::byte_level("qwen9"), |_| {});
    assert_says(&message, &["'qwen9'", "tokenizer.ggml.pre", "llama-bpe", "gpt-2", "qwen2"]);
    // Known to llama.cpp, but not to us; and a wrong spelling.
    for pre in ["kimi-k2", "superbpe", "whitespace", "Qwen2", "qwen2 ", "falcon\0"] {
        assert_says(&refusal(small::byte_level(pre), |_| {}), &["tokenizer.ggml.pre"]);
    }
    let message = refusal(small::byte_level("gpt-2"), |vocab| vocab.pre = Some("x\n".repeat(1000)));
    assert_says(&message, &["x\\nx"]);
    for pre in realm_tokenizer::supported_pre_tokenizers() {
        Tokenizer::new(small::byte_level(pre)).unwrap();
    }
}

#[test]
fn lengths() {
    let message = refusal(small::spm(), |vocab| vocab.tokens.clear());
    assert_says(&message, &["tokenizer.ggml.tokens", "missing"]);
    let message = refusal(small::spm(), |vocab| vocab.scores.clear());
    assert_says(&message, &["tokenizer.ggml.scores", "missing", "llama"]);
    let message = refusal(small::spm(), |vocab| vocab.scores.truncate(10));
    assert_says(&message, &["tokenizer.ggml.scores", "10 entries"]);
    let message = refusal(small::byte_level("gpt-2"), |vocab| vocab.types.push(1));
    assert_says(&message, &["tokenizer.ggml.token_type", "272 entries", "271 tokens"]);
    let message = refusal(small::spm(), |vocab| vocab.scores[7] = f32::NAN);
    assert_says(&message, &["tokenizer.ggml.scores[7]"]);
    let message = refusal(small::byte_level("gpt-2"), |vocab| vocab.merges.clear());
    assert_says(&message, &["tokenizer.ggml.merges", "missing", "gpt2"]);
    // Bytes need no merges.
    let mut bytes = small::byte_level("gpt-2");
    bytes.merges.clear();
    for (text, kind) in bytes.tokens.iter().zip(&mut bytes.types) {
        *kind = if text.chars().count() > 1 { 3 } else { *kind };
    }
    assert!(Tokenizer::new(bytes).is_ok());
}

#[test]
fn tokens_and_merges() {
    let message = refusal(small::byte_level("gpt-2"), |vocab| vocab.tokens[9] = "a".into());
    assert_says(&message, &["'a'", "as 9", "as 97"]);
    let message = refusal(small::byte_level("gpt-2"), |vocab| vocab.merges[2] = "Ġt hexe".into());
    assert_says(&message, &["tokenizer.ggml.merges[2]", "'hexe'"]);
    let message = refusal(small::byte_level("gpt-2"), |vocab| vocab.merges[3] = "a b".into());
    assert_says(&message, &["tokenizer.ggml.merges[3]", "'ab'"]);
    for merge in ["", "a", " a", "a "] {
        let message = refusal(small::byte_level("gpt-2"), |vocab| vocab.merges[1] = merge.into());
        assert_says(&message, &["tokenizer.ggml.merges[1]", &format!("'{merge}'")]);
    }
}

#[test]
fn special_tokens() {
    let message = refusal(small::spm(), |vocab| vocab.bos = Some(u32::MAX));
    assert_says(&message, &["tokenizer.ggml.bos_token_id is 4294967295", "278 tokens"]);
    let message = refusal(small::spm(), |vocab| vocab.pad = Some(278));
    assert_says(&message, &["tokenizer.ggml.padding_token_id is 278"]);
    let message = refusal(small::byte_level("gpt-2"), |vocab| vocab.bos = None);
    assert_says(
        &message,
        &["start", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id"],
    );
    let message = refusal(small::byte_level("gpt-2"), |vocab| {
        (vocab.eos, vocab.add_eos) = (None, Some(true));
    });
    assert_says(&message, &["end", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id"]);
}

#[test]
fn word_pieces_need_their_special_tokens() {
    let message = refusal(small::word_piece(), |vocab| vocab.cls = None);
    assert_says(&message, &["tokenizer.ggml.cls_token_id", "'bert'"]);
    let message = refusal(small::word_piece(), |vocab| vocab.sep = None);
    assert_says(&message, &["tokenizer.ggml.seperator_token_id"]);
    let message = refusal(small::word_piece(), |vocab| vocab.unk = None);
    assert_says(&message, &["tokenizer.ggml.unknown_token_id"]);
    let message = refusal(small::word_piece(), |vocab| vocab.sep = Some(1 << 20));
    assert_says(&message, &["tokenizer.ggml.seperator_token_id is 1048576"]);
    // BERT's own spelling: words plain, pieces inside them with `##`.
    let message = refusal(small::word_piece(), |vocab| {
        for text in &mut vocab.tokens {
            *text = text.strip_prefix('▁').map_or(format!("##{text}"), str::to_owned);
        }
        vocab.tokens[30] = "y".into();
    });
    assert_says(&message, &["'bert'", "U+2581"]);
}

#[test]
fn ids_out_of_range() {
    let tokenizer = Tokenizer::new(small::spm()).unwrap();
    let unknown = TokenizerError::UnknownId { id: 278, vocab_size: 278 };
    assert_eq!(tokenizer.decode(&[5, 278], DecodeOptions::default()), Err(unknown.clone()));
    assert_eq!(tokenizer.token_bytes(278), Err(unknown));
    assert_eq!(tokenizer.token_text(u32::MAX), None);
    assert_eq!(tokenizer.token_type(278), None);
    assert!(!tokenizer.is_special(278) && !tokenizer.is_end_of_generation(278));
}

#[test]
fn tolerated() {
    // No types: all normal. An empty token gets a name. A merge given twice counts where it first
    // stands.
    let mut vocab = small::byte_level("gpt-2");
    vocab.types.clear();
    vocab.tokens[0].clear();
    vocab.merges.push(vocab.merges[0].clone());
    let tokenizer = Tokenizer::new(vocab).unwrap();
    assert_eq!(tokenizer.token_text(0), Some("[EMPTY_0]"));
    assert_eq!(tokenizer.token_type(0), Some(TokenType::Normal));
    let ids = tokenizer.encode(" the\0the", EncodeOptions::default()).unwrap();
    assert_eq!(texts(&tokenizer, &ids), ["Ġthe", "t", "he"]);
}

#[test]
fn bytes_without_a_token_are_left_out() {
    let mut vocab = small::byte_level("gpt-2");
    vocab.tokens[usize::from(b'x')] = "nothing".into();
    let tokenizer = Tokenizer::new(vocab).unwrap();
    let ids = tokenizer.encode("thex hxe xx", EncodeOptions::default()).unwrap();
    // What stands on the two sides of one does not merge.
    assert_eq!(texts(&tokenizer, &ids), ["t", "he", "Ġ", "h", "e", "Ġ"]);
}

fn texts<'t>(tokenizer: &'t Tokenizer, ids: &[u32]) -> Vec<&'t str> {
    ids.iter().map(|&id| tokenizer.token_text(id).unwrap()).collect()
}

#[test]
fn a_llama_vocabulary_without_bytes_says_so() {
    let mut vocab = small::spm();
    vocab.tokens[1 + 0xC3] = "nothing".into();
    let tokenizer = Tokenizer::new(vocab).unwrap();
    assert!(tokenizer.encode("é", EncodeOptions::default()).is_ok());
    let error = tokenizer.encode("ä", EncodeOptions::default()).unwrap_err();
    assert_eq!(error, TokenizerError::NoByteToken { byte: 0xC3 });
}

#[test]
fn start_and_end_are_the_tokenizers() {
    for mut vocab in [small::spm(), small::byte_level("qwen2"), small::word_piece()] {
        for _ in 0..2 {
            let said = vocab.bos_and_eos().unwrap().map(|text| text.map(str::to_owned));
            let tokenizer = Tokenizer::new(vocab.clone()).unwrap();
            let text = |id: Option<u32>| tokenizer.token_text(id?).map(str::to_owned);
            assert_eq!(said, [text(tokenizer.bos()), text(tokenizer.eos())]);
            // What holds where the file is silent.
            (vocab.bos, vocab.eos, vocab.add_bos) = (None, None, Some(false));
        }
    }
    let unknown = Vocab { model: "t5".into(), ..Vocab::default() };
    assert!(matches!(unknown.bos_and_eos(), Err(TokenizerError::UnsupportedKind { .. })));
}

#[test]
fn what_the_vocabulary_says_can_be_asked() {
    let tokenizer = Tokenizer::new(small::spm()).unwrap();
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.eot()),
        (Some(275), Some(276), Some(276))
    );
    assert_eq!((tokenizer.unk(), tokenizer.pad(), tokenizer.eom()), (Some(0), None, None));
    assert!(tokenizer.adds_bos() && !tokenizer.adds_eos() && tokenizer.adds_space_prefix());
    assert_eq!(tokenizer.end_of_generation(), [276]);
    let special: Vec<_> = tokenizer.special_tokens().collect();
    assert_eq!(special, [(0, "<unk>"), (275, "<|bos|>"), (276, "<|eot_id|>")]);
    assert_eq!(tokenizer.token_bytes(1 + 0x0A).unwrap(), b"\n");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_id("▁the").unwrap()).unwrap(), b" the");
    assert_eq!(tokenizer.token_type(277), Some(TokenType::UserDefined));
}

#[test]
fn a_word_that_would_take_gigabytes_is_refused() {
    let tokenizer = Tokenizer::new(small::byte_level("gpt-2")).unwrap();
    let most = 1 << 22;
    // A space in front belongs to the word.
    let mut text = "a ".repeat(1000) + &"x".repeat(most - 1);
    assert!(tokenizer.encode(&text, EncodeOptions::default()).is_ok());
    text.push('x');
    let error = tokenizer.encode(&text, EncodeOptions::default()).unwrap_err();
    let len = most + 1;
    assert_eq!(error, TokenizerError::WordTooLong { len, most });
    assert_says(&error.to_string(), &["without a place to split", "put spaces or line ends"]);
}
