//! SentencePiece-BPE, the kind `llama`: merging by the score of the token that comes out.
//!
//! Own code, because Hugging Face's `BPE` merges by ranked pairs of tokens, which these
//! vocabularies do not have. Pairs made up from the scores give other ids than llama.cpp, for which
//! the files are made: of equal scores the lower rank would go first, not the leftmost, and a
//! character that is no token by itself could not take part in a merge. The algorithm is that of
//! SentencePiece's `bpe_model.cc`, as llama.cpp has it (`llm_tokenizer_spm_session` in
//! `src/llama-vocab.cpp`).

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap, HashSet},
    ops::Range,
};

use crate::error::TokenizerError;

/// Stands for a space inside tokens: U+2581.
pub(crate) const SPACE: char = '▁';

/// Marks the end of the chain of symbols, and a symbol that is no token.
const NONE: u32 = u32::MAX;

/// Most bytes of a text: it is merged as a whole, which takes some forty bytes for each of its own.
const MAX_TEXT: usize = 1 << 25;

/// A stretch of the text, part of a doubly linked chain.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// 0: merged into the symbol before.
    len: u32,
    prev: u32,
    next: u32,
    /// The token with this text, or `NONE`.
    id: u32,
}

impl Symbol {
    fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// A merge that was possible when it was found. The greatest goes first: the highest score, and of
/// equal ones the leftmost.
struct Merge {
    score: f32,
    left: u32,
    right: u32,
    /// Of the result. Another length of the two symbols now shows that the entry is out of date.
    len: u32,
    id: u32,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        // Scores are no NaN: `Tokenizer::new` has seen to it. -0.0 equals 0.0, unlike in
        // `total_cmp`.
        let by_score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

/// What merging needs beside the vocabulary's texts.
#[derive(Debug)]
pub(crate) struct Spm {
    /// `[vocab_size]`.
    scores: Vec<f32>,
    /// The token of each byte, where there is one.
    bytes: Box<[Option<u32>; 256]>,
    /// Length in bytes of the longest token.
    longest: usize,
    /// All pairs of characters that stand side by side in some token. Between any others nothing
    /// can ever merge, so a text falls apart there, mostly into words: short queues instead of one
    /// long one.
    joints: HashSet<(char, char)>,
    /// Whether a text gets a space in front.
    pub(crate) space_prefix: bool,
}

impl Spm {
    /// `scores` are `[vocab_size]` and no NaN; `ids` is the inverse of the vocabulary.
    pub(crate) fn new(scores: Vec<f32>, ids: &HashMap<Box<str>, u32>, space_prefix: bool) -> Self {
        let bytes = std::array::from_fn(|byte| {
            let by_name = ids.get(format!("<0x{byte:02X}>").as_str());
            let by_itself = || {
                u8::try_from(byte)
                    .ok()
                    .filter(u8::is_ascii)
                    .map(|byte| char::from(byte).to_string())
            };
            by_name.copied().or_else(|| ids.get(by_itself()?.as_str()).copied())
        });
        let longest = ids.keys().map(|text| text.len()).max().unwrap_or(0);
        let pairs = ids.keys().flat_map(|text| text.chars().zip(text.chars().skip(1)));
        let joints = pairs.collect();
        Self { scores, bytes: Box::new(bytes), longest, joints, space_prefix }
    }

    /// Appends the ids of `text`; `at_start`: it starts a text or follows a special token.
    pub(crate) fn encode(
        &self,
        ids: &HashMap<Box<str>, u32>,
        text: &str,
        at_start: bool,
        output: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if text.len() > MAX_TEXT {
            return Err(TokenizerError::TextTooLong { len: text.len() });
        }
        let mut escaped = String::with_capacity(text.len() + text.len() / 2);
        if at_start && self.space_prefix {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));

        let mut merger = Merger { spm: self, ids, symbols: Vec::new(), queue: BinaryHeap::new() };
        let mut start = 0;
        let next_chars = escaped.char_indices().skip(1);
        for (before, (at, after)) in escaped.chars().zip(next_chars) {
            if !self.joints.contains(&(before, after)) {
                merger.encode(&escaped[start..at], output)?;
                start = at;
            }
        }
        merger.encode(&escaped[start..], output)
    }
}

/// A stretch of text on its way from characters to tokens; kept for the next stretch.
struct Merger<'a> {
    spm: &'a Spm,
    ids: &'a HashMap<Box<str>, u32>,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Merge>,
}

impl Merger<'_> {
    /// Appends the ids of `text`, which is shorter than 2³² bytes.
    fn encode(&mut self, text: &str, output: &mut Vec<u32>) -> Result<(), TokenizerError> {
        self.start(text);
        self.merge(text);
        for symbol in self.symbols.iter().filter(|symbol| symbol.len > 0) {
            if symbol.id != NONE {
                output.push(symbol.id);
                continue;
            }
            for &byte in &text.as_bytes()[symbol.range()] {
                let id = self.spm.bytes[usize::from(byte)];
                output.push(id.ok_or(TokenizerError::NoByteToken { byte })?);
            }
        }
        Ok(())
    }

    /// One symbol a character.
    fn start(&mut self, text: &str) {
        self.symbols.clear();
        self.symbols.extend(text.char_indices().zip(0u32..).map(|((start, c), index)| Symbol {
            start: start as u32,
            len: c.len_utf8() as u32,
            prev: index.checked_sub(1).unwrap_or(NONE),
            next: index + 1,
            id: self.ids.get(&text[start..start + c.len_utf8()]).copied().unwrap_or(NONE),
        }));
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
        for right in 1..self.symbols.len() as u32 {
            self.propose(text, right - 1, right);
        }
    }

    /// Puts the merge of two neighbours into the queue if it makes a token.
    fn propose(&mut self, text: &str, left: u32, right: u32) {
        if left == NONE || right == NONE {
            return;
        }
        let start = self.symbols[left as usize].start as usize;
        let len = self.symbols[left as usize].len + self.symbols[right as usize].len;
        if len as usize > self.spm.longest {
            return;
        }
        if let Some(&id) = self.ids.get(&text[start..start + len as usize]) {
            let score = self.spm.scores[id as usize];
            self.queue.push(Merge { score, left, right, len, id });
        }
    }

    /// Merges until no two neighbours make a token. O(n log n) in the number of characters.
    fn merge(&mut self, text: &str) {
        while let Some(merge) = self.queue.pop() {
            let left = self.symbols[merge.left as usize];
            let right = self.symbols[merge.right as usize];
            if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
                continue;
            }
            let merged = &mut self.symbols[merge.left as usize];
            merged.len = merge.len;
            merged.id = merge.id;
            merged.next = right.next;
            self.symbols[merge.right as usize].len = 0;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = merge.left;
            }
            self.propose(text, left.prev, merge.left);
            self.propose(text, merge.left, right.next);
        }
    }
}
