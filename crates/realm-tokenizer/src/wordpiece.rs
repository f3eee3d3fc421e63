//! WordPiece, the kind `bert`: plain words, each from the left by the longest token that fits.
//!
//! GGUF files write a token that starts a word as `▁word`, and one inside a word without the `##`
//! of BERT's own vocabularies; a word is looked up with `▁` in front. The steps are those of
//! llama.cpp (`llm_tokenizer_wpm_session` in `src/llama-vocab.cpp`), which differ from BERT's: of a
//! character's decomposition only the first stays (a Hangul syllable is cut to its first jamo), and
//! all marks count as accents, spacing ones too.

use aho_corasick::{AhoCorasick, AhoCorasickKind, Anchored, Input, MatchKind, StartKind};
use regex_automata::meta::Regex;
use unicode_normalization::char::decompose_canonical;

use crate::{error::TokenizerError, pretokenizer::compile, spm::SPACE};

/// How words are made plain before they are looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain {
    /// Words become lower-case.
    pub(crate) lowercase: bool,
    /// Letters lose their accents.
    pub(crate) strip_accents: bool,
}

/// A WordPiece model.
#[derive(Debug)]
pub(crate) struct WordPiece {
    /// Finds the longest token at a place; the pattern's index is the token's id.
    tokens: AhoCorasick,
    /// Stands for a word that the tokens don't make up.
    unknown: u32,
    plain: Plain,
    /// What is no plain text, by the alternatives below.
    breaks: Regex,
}

/// The alternatives of [`WordPiece::breaks`]; what alternative 1 finds is left out.
const SPACES: usize = 0;
/// Each character is a word of its own.
const ALONE: usize = 2;
/// Characters that llama.cpp's tables don't know (after Unicode 15.1): they have no lower case.
const YOUNG: usize = 3;

const CONTROLS: &str = r"[[\p{Cc}\p{Cf}\p{Co}\x{FFFD}]--\s]+";
const CONTROLS_AND_ACCENTS: &str = r"[[\p{Cc}\p{Cf}\p{Co}\p{M}\x{FFFD}]--\s]+";
/// Punctuation, ASCII's symbols, and the blocks of Chinese characters as BERT lists them (the gap
/// in front of U+2B920 is Hugging Face's).
const SINGLES: &str = concat!(
    r"[\p{P}$+<=>^`|~\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}",
    r"\x{2B740}-\x{2B81F}\x{2B920}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]"
);

impl WordPiece {
    /// `texts` are `[vocab_size]` and not empty.
    pub(crate) fn new(
        texts: &[String],
        unknown: u32,
        plain: Plain,
    ) -> Result<Self, TokenizerError> {
        let tokens = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Anchored)
            .build(texts)
            .map_err(|error| TokenizerError::Library {
                part: "search for word pieces",
                reason: error.to_string(),
            })?;
        let ignored = if plain.strip_accents { CONTROLS_AND_ACCENTS } else { CONTROLS };
        let breaks = compile(&[r"\s+", ignored, SINGLES, r"[^\p{age=15.1}]+"])?;
        Ok(Self { tokens, unknown, plain, breaks })
    }

    /// Appends the ids of `text`, whose words are whole.
    pub(crate) fn encode(&self, text: &str, output: &mut Vec<u32>) {
        let text: String = if self.plain.strip_accents {
            text.chars().map(base).collect()
        } else {
            text.to_owned()
        };
        let mut word = String::new();
        let mut at = 0;
        for found in self.breaks.find_iter(&text) {
            self.extend(&mut word, &text[at..found.start()]);
            match found.pattern().as_usize() {
                SPACES => self.finish(&mut word, output),
                ALONE => {
                    self.finish(&mut word, output);
                    self.extend(&mut word, &text[found.range()]);
                    self.finish(&mut word, output);
                }
                YOUNG => word.push_str(&text[found.range()]),
                // Left out.
                _ => {}
            }
            at = found.end();
        }
        self.extend(&mut word, &text[at..]);
        self.finish(&mut word, output);
    }

    /// Appends text to a word.
    fn extend(&self, word: &mut String, text: &str) {
        if self.plain.lowercase {
            word.extend(text.chars().map(|c| c.to_lowercase().next().unwrap_or(c)));
        } else {
            word.push_str(text);
        }
    }

    /// Appends the ids of a word, if there is one, and empties it.
    fn finish(&self, word: &mut String, output: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        word.insert(0, SPACE);
        let before = output.len();
        let mut at = 0;
        while at < word.len() {
            let input = Input::new(word.as_str()).range(at..).anchored(Anchored::Yes);
            let Some(found) = self.tokens.find(input) else {
                output.truncate(before);
                output.push(self.unknown);
                break;
            };
            output.push(found.pattern().as_u32());
            at = found.end();
        }
        word.clear();
    }
}

/// The first character of the canonical decomposition of `c`.
fn base(c: char) -> char {
    // The decompositions that Unicode 16 added.
    let young = matches!(
        c,
        '\u{105C9}' | '\u{105E4}' | '\u{11380}'..='\u{113FF}' | '\u{16100}'..='\u{1613F}'
            | '\u{16D40}'..='\u{16D7F}'
    );
    if c.is_ascii() || young {
        return c;
    }
    let mut first = None;
    decompose_canonical(c, |part| {
        first.get_or_insert(part);
    });
    first.unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Plain = Plain { lowercase: true, strip_accents: true };

    fn model(tokens: &[&str], plain: Plain) -> WordPiece {
        let texts: Vec<String> = tokens.iter().map(|&token| token.to_owned()).collect();
        WordPiece::new(&texts, 0, plain).unwrap()
    }

    fn pieces(model: &WordPiece, tokens: &[&'static str], text: &str) -> Vec<&'static str> {
        let mut ids = Vec::new();
        model.encode(text, &mut ids);
        ids.into_iter().map(|id| tokens[id as usize]).collect()
    }

    #[test]
    fn the_longest_token_goes_first_and_a_word_is_all_or_nothing() {
        let tokens = ["[UNK]", "▁un", "▁unaff", "aff", "able", "ab", "▁", "u", "nab"];
        let model = model(&tokens, ALL);
        let cases: &[(&str, &[&str])] = &[
            ("unaffable", &["▁unaff", "able"]),
            ("unab", &["▁un", "ab"]),
            ("unable UNAB", &["▁un", "able", "▁un", "ab"]),
            ("unaffx un", &["[UNK]", "▁un"]),
            ("unable.un", &["▁un", "able", "[UNK]", "▁un"]),
            ("  ", &[]),
            ("", &[]),
            ("[UNK]", &["[UNK]", "[UNK]", "[UNK]"]),
        ];
        for (text, expected) in cases {
            assert_eq!(&pieces(&model, &tokens, text), expected, "{text:?}");
        }
    }

    #[test]
    fn words_are_made_plain() {
        let tokens = ["[UNK]", "▁e", "e", "▁ᄀ", "▁中", "▁$", "▁i", "▁≠", "▁İ", "▁É", "▁é"];
        let plain = model(&tokens, ALL);
        for (text, expected) in [
            ("É\u{AD}é\0", vec!["▁e", "e"]),
            ("e\u{301}e\u{903}", vec!["▁e", "e"]),
            ("가", vec!["▁ᄀ"]),
            ("e中e$", vec!["▁e", "▁中", "▁e", "▁$"]),
            ("\u{2F800}İ", vec!["[UNK]", "▁i"]),
            ("e\u{3000}e\u{85}e", vec!["▁e", "▁e", "▁e"]),
        ] {
            assert_eq!(pieces(&plain, &tokens, text), expected, "{text:?}");
        }
        let as_is = model(&tokens, Plain { lowercase: false, strip_accents: false });
        assert_eq!(pieces(&as_is, &tokens, "É é E"), ["▁É", "▁é", "[UNK]"]);
        let lower = model(&tokens, Plain { lowercase: true, strip_accents: false });
        assert_eq!(pieces(&lower, &tokens, "É e\u{301}"), ["▁é", "[UNK]"]);
    }
}
