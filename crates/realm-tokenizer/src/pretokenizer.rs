//! Splitting a text into the words inside which byte-level BPE merges.
//!
//! The published patterns end in `\s+(?!\S)|\s+`. A look-ahead needs a backtracking engine, which
//! gives up after a number of steps (Hugging Face's `Split` then silently leaves the rest of the
//! text unsplit: wrong ids after a million spaces in a row). So the alternatives run as patterns
//! of one automaton, linear in the text, and the look-ahead is played by hand: a run of white space
//! that is followed by something else gives its last character back.
//!
//! What is a letter, a number or punctuation is asked of Unicode 15.1, the version of llama.cpp's
//! tables: characters that are younger are none of these.

use std::ops::Range;

use regex_automata::{Input, PatternID, meta::Regex};

use crate::error::{TokenizerError, shown};

/// One pass over the text: at each place the first alternative that matches makes a piece; what
/// none matches makes pieces too.
struct Pass {
    alternatives: &'static [&'static str],
    /// The alternative that means `\s+(?!\S)|\s+`.
    run: Option<usize>,
}

/// A pre-tokenizer as llama.cpp knows it (`src/llama-vocab.cpp`, the table by
/// `tokenizer.ggml.pre`).
struct Entry {
    names: &'static [&'static str],
    passes: &'static [&'static Pass],
    /// A word that is a token as a whole is that token, whatever the merges say.
    ignore_merges: bool,
    /// Whether a text starts with the BOS token where the file does not say.
    add_bos: bool,
}

const GPT2: Pass = Pass {
    alternatives: &[
        "'s|'t|'re|'ve|'m|'ll|'d",
        r" ?\p{L}+",
        r" ?\p{N}+",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+",
    ],
    run: Some(4),
};

/// The contractions are spelled out: `(?i:'s)` would also match the long s, U+017F.
const LLAMA3: Pass = Pass {
    alternatives: &[
        "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+",
    ],
    run: Some(5),
};

const PUNCTUATION: Pass = Pass { alternatives: &[r"[\p{P}$+<=>^~|]+"], run: None };
const NUMBERS: Pass = Pass { alternatives: &[r"\p{N}+"], run: None };
const THREE_DIGITS: Pass = Pass { alternatives: &["[0-9][0-9][0-9]"], run: None };

const ENTRIES: &[Entry] = &[
    // What llama.cpp falls back to when a file names no pre-tokenizer.
    Entry {
        names: &["default"],
        passes: &[&PUNCTUATION, &GPT2, &NUMBERS, &THREE_DIGITS],
        ignore_merges: false,
        add_bos: false,
    },
    Entry {
        names: &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "olmo",
            "mpt",
            "jais",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "trillion",
            "granite-docling",
        ],
        passes: &[&GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Entry {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        passes: &[&LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Entry {
        names: &["dbrx", "smaug-bpe"],
        passes: &[&LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
];

/// A compiled pass.
#[derive(Debug)]
struct Splitter {
    regex: Regex,
    run: Option<PatternID>,
}

impl Splitter {
    fn new(pass: &Pass) -> Result<Self, TokenizerError> {
        let dated = pass.alternatives.iter().map(|pattern| dated(pattern)).collect::<Vec<_>>();
        let regex = Regex::new_many(&dated).map_err(|error| TokenizerError::Library {
            part: "pre-tokenizer",
            reason: error.to_string(),
        })?;
        Ok(Self { regex, run: pass.run.map(PatternID::must) })
    }

    /// Appends the pieces of `text[span]`, which cover it without gaps, as ranges of `text`.
    fn split(&self, text: &str, span: Range<usize>, pieces: &mut Vec<Range<usize>>) {
        let piece = &text[span.clone()];
        let mut at = 0;
        while at < piece.len() {
            let Some(found) = self.regex.search(&Input::new(piece).range(at..)) else { break };
            let mut end = found.end();
            if Some(found.pattern()) == self.run && end < piece.len() {
                let run = &piece[found.start()..end];
                let last = run.chars().next_back().map_or(0, char::len_utf8);
                if last < run.len() {
                    end -= last;
                }
            }
            if at < found.start() {
                pieces.push(span.start + at..span.start + found.start());
            }
            pieces.push(span.start + found.start()..span.start + end);
            at = end;
        }
        if at < piece.len() {
            pieces.push(span.start + at..span.end);
        }
    }
}

/// `pattern` with its character classes as of Unicode 15.1.
fn dated(pattern: &str) -> String {
    [r"\p{L}", r"\p{N}", r"\p{P}"].iter().fold(pattern.to_owned(), |pattern, class| {
        pattern.replace(class, &format!(r"[{class}&&\p{{age=15.1}}]"))
    })
}

/// A pre-tokenizer ready for use.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    splitters: Vec<Splitter>,
    pub(crate) ignore_merges: bool,
    pub(crate) add_bos: bool,
}

impl PreTokenizer {
    /// The pre-tokenizer that `tokenizer.ggml.pre` names; absent or empty is `default`.
    pub(crate) fn new(name: Option<&str>) -> Result<Self, TokenizerError> {
        let name = name.filter(|name| !name.is_empty()).unwrap_or("default");
        let entry = ENTRIES.iter().find(|entry| entry.names.contains(&name)).ok_or_else(|| {
            TokenizerError::UnsupportedPreTokenizer {
                pre: shown(name),
                supported: names().join(", "),
            }
        })?;
        Ok(Self {
            splitters: entry
                .passes
                .iter()
                .map(|pass| Splitter::new(pass))
                .collect::<Result<_, _>>()?,
            ignore_merges: entry.ignore_merges,
            add_bos: entry.add_bos,
        })
    }

    /// The words of `text`, in order and without gaps, as ranges of it.
    pub(crate) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let whole = 0..text.len();
        let mut pieces = vec![whole];
        for splitter in &self.splitters {
            let mut finer = Vec::with_capacity(pieces.len() + text.len() / 6);
            for piece in pieces {
                splitter.split(text, piece, &mut finer);
            }
            pieces = finer;
        }
        pieces
    }
}

/// The names of all supported pre-tokenizers.
pub(crate) fn names() -> Vec<&'static str> {
    ENTRIES.iter().flat_map(|entry| entry.names).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'t>(pre: &str, text: &'t str) -> Vec<&'t str> {
        let pre = PreTokenizer::new(Some(pre)).unwrap();
        pre.split(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn gpt2_words() {
        let cases: &[(&str, &[&str])] = &[
            ("Hello world", &["Hello", " world"]),
            ("  two", &[" ", " two"]),
            ("a\n\nb", &["a", "\n", "\n", "b"]),
            ("a \n", &["a", " \n"]),
            ("it's IT'S", &["it", "'s", " IT", "'", "S"]),
            ("x1234 ²", &["x", "1234", " ²"]),
            ("a!?! b", &["a", "!?!", " b"]),
            ("\u{a0}x", &["\u{a0}", "x"]),
        ];
        for (text, expected) in cases {
            assert_eq!(&words("gpt-2", text), expected, "{text:?}");
        }
    }

    #[test]
    fn llama3_words() {
        let cases: &[(&str, &[&str])] = &[
            ("  two", &[" ", " two"]),
            ("a  \n \n  b", &["a", "  \n \n", " ", " b"]),
            ("IT'S it'LL", &["IT", "'S", " it", "'LL"]),
            ("'ſa", &["'ſa"]),
            ("1234567", &["123", "456", "7"]),
            ("(word) !\r\nx", &["(word", ")", " !\r\n", "x"]),
            ("\tx", &["\tx"]),
            ("x \t", &["x", " \t"]),
            // A letter since Unicode 15.1, and one since 16.0.
            ("\u{2EBF0}a", &["\u{2EBF0}a"]),
            ("\u{13A22}\u{13A22}'s", &["\u{13A22}\u{13A22}'", "s"]),
            ("x\u{2003}\u{2003}1", &["x", "\u{2003}", "\u{2003}", "1"]),
        ];
        for (text, expected) in cases {
            assert_eq!(&words("llama-bpe", text), expected, "{text:?}");
        }
    }

    #[test]
    fn default_words() {
        let cases: &[(&str, &[&str])] = &[
            ("a, b", &["a", ",", " b"]),
            ("12345", &["123", "45"]),
            (" 1234567", &[" ", "123", "456", "7"]),
            ("x  ...y", &["x", "  ", "...", "y"]),
        ];
        for (text, expected) in cases {
            assert_eq!(&words("default", text), expected, "{text:?}");
        }
        assert_eq!(words("", "a, 1"), words("default", "a, 1"));
    }

    #[test]
    fn unknown_name_is_refused_with_the_supported_ones() {
        let error = PreTokenizer::new(Some("qwen99")).unwrap_err().to_string();
        assert!(error.contains("'qwen99'") && error.contains("llama-bpe"), "{error}");
    }
}
