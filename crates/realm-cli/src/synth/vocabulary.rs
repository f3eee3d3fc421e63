//! Made-up vocabularies that Realm and llama.cpp accept: any text can be encoded and comes back, and
//! what a random model says can be pronounced.

use std::collections::HashSet;

use realm_gguf::{GgufError, GgufWriter, Strings};

use super::random::Rng;

/// The kinds of vocabulary, by `tokenizer.ggml.model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SentencePiece-BPE with byte tokens, as Llama 2 has it.
    Llama,
    /// Byte-level BPE with Llama 3's pre-tokenizer and control tokens.
    Gpt2,
}

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// Llama 3's control tokens that have names, by their place among the 256. Those between are
/// `<|reserved_special_token_N|>`, numbered from 0.
const LLAMA_3_CONTROL: [(usize, &str); 9] = [
    (0, "<|begin_of_text|>"),
    (1, "<|end_of_text|>"),
    (4, "<|finetune_right_pad_id|>"),
    (6, "<|start_header_id|>"),
    (7, "<|end_header_id|>"),
    (8, "<|eom_id|>"),
    (9, "<|eot_id|>"),
    (10, "<|python_tag|>"),
    (11, "<|image|>"),
];
const CONTROLS: usize = 256;
const BYTES: usize = 256;

/// The vocabulary as a file holds it.
#[derive(Debug, Default)]
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
}

impl Vocabulary {
    fn push(&mut self, token: String, kind: i32, score: f32) {
        self.tokens.push(token);
        self.types.push(kind);
        self.scores.push(score);
    }
}

/// Adds the metadata of a vocabulary of `size` tokens, at least 600.
///
/// # Errors
/// Metadata that is there already.
pub(crate) fn write(
    kind: Kind,
    size: usize,
    rng: &mut Rng,
    writer: &mut GgufWriter,
) -> Result<(), GgufError> {
    let (model, pre) = match kind {
        Kind::Llama => ("llama", "default"),
        Kind::Gpt2 => ("gpt2", "llama-bpe"),
    };
    let Vocabulary { tokens, types, scores, merges } = match kind {
        Kind::Llama => llama(size, rng),
        Kind::Gpt2 => gpt2(size, rng),
    };
    let list = |texts: &[String]| texts.iter().collect::<Strings>();
    writer.set("tokenizer.ggml.model", model)?.set("tokenizer.ggml.pre", pre)?;
    writer.set("tokenizer.ggml.tokens", list(&tokens))?;
    let id = |name: &str| format!("tokenizer.ggml.{name}_token_id");
    match kind {
        Kind::Llama => {
            writer.set("tokenizer.ggml.scores", scores)?;
            writer.set(id("bos"), 1u32)?.set(id("eos"), 2u32)?.set(id("unknown"), 0u32)?;
        }
        Kind::Gpt2 => {
            writer.set("tokenizer.ggml.merges", list(&merges))?;
            let first = (size - CONTROLS) as u32;
            writer.set(id("bos"), first)?.set(id("eos"), first + 1)?;
            writer.set(id("eom"), first + 8)?.set(id("eot"), first + 9)?;
        }
    }
    writer.set("tokenizer.ggml.token_type", types)?;
    writer.set("tokenizer.ggml.add_bos_token", true)?;
    Ok(())
}

/// Unknown, start and end, a token for each byte, words (the earlier, the better their score), and
/// single characters last.
fn llama(size: usize, rng: &mut Rng) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    vocabulary.push("<unk>".into(), UNKNOWN, 0.0);
    vocabulary.push("<s>".into(), CONTROL, 0.0);
    vocabulary.push("</s>".into(), CONTROL, 0.0);
    for byte in 0..BYTES {
        vocabulary.push(format!("<0x{byte:02X}>"), BYTE, 0.0);
    }
    let characters = std::iter::once('▁').chain('!'..='~');
    let words = size - vocabulary.tokens.len() - characters.clone().count();
    let words = invent('▁', words, rng).into_iter().map(|(left, right)| left + &right);
    for (rank, text) in words.chain(characters.map(String::from)).enumerate() {
        vocabulary.push(text, NORMAL, -(rank as f32));
    }
    vocabulary
}

/// A token for each byte, words with the pairs that they are merged from, and Llama 3's control tokens.
fn gpt2(size: usize, rng: &mut Rng) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    for c in byte_characters() {
        vocabulary.push(c.into(), NORMAL, 0.0);
    }
    for (left, right) in invent('Ġ', size - BYTES - CONTROLS, rng) {
        vocabulary.merges.push(format!("{left} {right}"));
        vocabulary.push(left + &right, NORMAL, 0.0);
    }
    let mut reserved = 0;
    for at in 0..CONTROLS {
        let name = LLAMA_3_CONTROL.iter().find(|(known, _)| *known == at);
        let text = name.map(|(_, name)| (*name).to_owned()).unwrap_or_else(|| {
            reserved += 1;
            format!("<|reserved_special_token_{}|>", reserved - 1)
        });
        vocabulary.push(text, CONTROL, 0.0);
    }
    vocabulary
}

/// GPT-2's characters for the 256 bytes, in the order of its vocabulary: printable Latin-1 as it is,
/// then the other bytes, as U+0100 and up.
fn byte_characters() -> Vec<char> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let others = (0x100..).filter_map(char::from_u32);
    printable.chain(others).take(BYTES).collect()
}

const CONSONANTS: &str = "bcdfghjklmnprstvwz";
const VOWELS: &str = "aeiou";
/// Most letters of a word, its space included.
const LONGEST: usize = 12;

/// Words by the two parts that each is put together from: single letters, `space`, or earlier words.
/// Consonants and vowels alternate; all words differ.
fn invent(space: char, count: usize, rng: &mut Rng) -> Vec<(String, String)> {
    let mut starts: Vec<String> =
        CONSONANTS.chars().chain(VOWELS.chars()).map(String::from).collect();
    // Parts that may stand second: those without a space.
    let mut ends = starts.clone();
    starts.push(space.into());
    let mut known: HashSet<String> = starts.iter().cloned().collect();
    let mut words = Vec::with_capacity(count);
    let vowel = |c: Option<char>| c.is_some_and(|c| VOWELS.contains(c));
    while words.len() < count {
        let (left, right) = (pick(&starts, rng), pick(&ends, rng));
        let alternate = vowel(left.chars().next_back()) != vowel(right.chars().next());
        let fits = left.chars().count() + right.chars().count() <= LONGEST;
        let alone = left.chars().eq([space]);
        let word = format!("{left}{right}");
        if !(fits && (alternate || alone)) || known.contains(&word) {
            continue;
        }
        words.push((left.clone(), right.clone()));
        known.insert(word.clone());
        if !word.starts_with(space) {
            ends.push(word.clone());
        }
        starts.push(word);
    }
    words
}

/// One of `parts`, more likely an early and short one.
fn pick<'a>(parts: &'a [String], rng: &mut Rng) -> &'a String {
    let at = rng.unit().powi(2) * parts.len() as f32;
    &parts[(at as usize).min(parts.len() - 1)]
}

#[cfg(test)]
mod tests {
    use realm_gguf::GgufFile;
    use realm_tokenizer::{DecodeOptions, EncodeOptions, TokenType, Tokenizer};

    use super::*;

    fn tokenizer(kind: Kind, size: usize) -> Tokenizer {
        let mut writer = GgufWriter::new();
        write(kind, size, &mut Rng::new(5), &mut writer).unwrap();
        let file = GgufFile::parse(writer.to_bytes(|_, _| Ok(())).unwrap()).unwrap();
        let tokenizer = realm_runtime::tokenizer(&file).unwrap();
        assert_eq!(tokenizer.vocab_size(), size);
        tokenizer
    }

    const TEXTS: [&str; 5] = [
        "The sea was calm that night, and nobody spoke.",
        "  two spaces\n\ttabs 1234567 — “quotes” ’s",
        "Ünïcödé, 日本語, עברית, 🦀🦀, \u{0}\u{7f}",
        "fn main() { println!(\"{}\", 0x1F); }\r\n",
        "",
    ];

    fn round_trip(tokenizer: &Tokenizer) {
        for text in TEXTS {
            let options = EncodeOptions { add_special: true, parse_special: false };
            let ids = tokenizer.encode(text, options).unwrap();
            assert_eq!(Some(ids[0]), tokenizer.bos());
            let decoded = tokenizer.decode(&ids, DecodeOptions::default()).unwrap();
            assert_eq!(decoded.trim_start_matches(' '), text.trim_start_matches(' '));
        }
    }

    #[test]
    fn llama_vocabularies_take_any_text() {
        for size in [1024, 32_000] {
            let tokenizer = tokenizer(Kind::Llama, size);
            round_trip(&tokenizer);
            assert_eq!(
                (tokenizer.bos(), tokenizer.eos(), tokenizer.unk()),
                (Some(1), Some(2), Some(0))
            );
            assert_eq!(tokenizer.token_text(3), Some("<0x00>"));
            assert_eq!(tokenizer.token_type(258), Some(TokenType::Byte));
            assert!(tokenizer.is_end_of_generation(2));
        }
    }

    #[test]
    fn llama_3_vocabularies_take_any_text() {
        let tokenizer = tokenizer(Kind::Gpt2, 128_256);
        round_trip(&tokenizer);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(128_000), Some(128_001)));
        assert_eq!((tokenizer.eom(), tokenizer.eot()), (Some(128_008), Some(128_009)));
        let names = [
            (128_000, "<|begin_of_text|>"),
            (128_002, "<|reserved_special_token_0|>"),
            (128_009, "<|eot_id|>"),
        ];
        for (id, name) in names {
            assert_eq!(tokenizer.token_text(id), Some(name));
            assert_eq!(tokenizer.token_type(id), Some(TokenType::Control));
        }
        assert!(tokenizer.is_end_of_generation(128_009));
    }

    #[test]
    fn words_are_used_and_merged_from_earlier_ones() {
        // The words that `tokenizer` has too: they come in the same order, however many there are.
        let words = invent('Ġ', 2000, &mut Rng::new(5));
        let mut known: HashSet<String> = byte_characters().into_iter().map(String::from).collect();
        for (left, right) in &words {
            assert!(known.contains(left) && known.contains(right), "{left} {right}");
            assert!(known.insert(format!("{left}{right}")));
        }
        // Text made of the vocabulary's own words takes far fewer tokens than bytes.
        let tokenizer = tokenizer(Kind::Gpt2, 4096);
        let text: Vec<String> =
            words.iter().map(|(l, r)| format!("{l}{r}").replace('Ġ', "")).collect();
        let text = text[..50].join(" ");
        let ids = tokenizer.encode(&text, EncodeOptions::default()).unwrap();
        assert!(ids.len() * 2 < text.len(), "{} of {}", ids.len(), text.len());
    }
}
