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

mod patterns;
#[cfg(test)]
mod tests;

use std::ops::Range;

use patterns::{ENTRIES, Pass};
use regex_automata::{Input, PatternID, meta::Regex};

use crate::error::{TokenizerError, shown};

/// A compiled pass.
#[derive(Debug)]
struct Splitter {
    regex: Regex,
    run: Option<PatternID>,
}

impl Splitter {
    fn new(pass: &Pass) -> Result<Self, TokenizerError> {
        let regex = compile(pass.alternatives)?;
        let last = pass.alternatives.len() - 1;
        Ok(Self { regex, run: pass.run.then(|| PatternID::must(last)) })
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

/// One automaton of `alternatives`, the first of which that matches counts.
pub(crate) fn compile(alternatives: &[&str]) -> Result<Regex, TokenizerError> {
    let dated = alternatives.iter().map(|pattern| dated(pattern)).collect::<Vec<_>>();
    Regex::builder().build_many(&dated).map_err(|error| TokenizerError::Library {
        part: "pre-tokenizer",
        reason: error.to_string(),
    })
}

/// `pattern` with its character classes as of Unicode 15.1.
fn dated(pattern: &str) -> String {
    const CLASSES: [&str; 11] = ["L", "Lu", "Ll", "Lt", "M", "N", "P", "S", "Cc", "Cf", "Co"];
    CLASSES.iter().fold(pattern.to_owned(), |pattern, class| {
        let class = format!(r"\p{{{class}}}");
        pattern.replace(&class, &format!(r"[{class}&&\p{{age=15.1}}]"))
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
                supported: ENTRIES
                    .iter()
                    .map(|entry| entry.names[0])
                    .collect::<Vec<_>>()
                    .join(", "),
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
