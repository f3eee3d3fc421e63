//! Byte-level BPE, the kind `gpt2`: words by a pre-tokenizer, merged by ranked pairs.
//!
//! The merging is Hugging Face's `BPE`, which gives llama.cpp's ids: the lowest rank first, of
//! equal ones the leftmost. The splitting is our own (see [`crate::pretokenizer`]), and so is what
//! happens to bytes without a token, which some vocabularies have (Falcon's lacks a dozen control
//! characters): both leave them out, but in llama.cpp what stands on their two sides does not
//! merge.

use std::collections::{HashMap, HashSet};

use tokenizers::{Model, models::bpe::BPE};

use crate::{
    byte_level::ByteAlphabet,
    error::{TokenizerError, shown},
    pretokenizer::PreTokenizer,
};

/// Most bytes between two places where a pre-tokenizer splits. Words of a language are nowhere near;
/// runs of one character are.
const MOST_WORD: usize = 1 << 22;

/// A byte-level BPE model.
#[derive(Debug)]
pub(crate) struct ByteLevelBpe {
    model: BPE,
    pre: PreTokenizer,
    alphabet: ByteAlphabet,
    /// The characters of the alphabet that are no token.
    lacking: Vec<char>,
}

impl ByteLevelBpe {
    /// `ids` is the inverse of the vocabulary; `merges` as in
    /// [`Vocab::merges`](crate::Vocab::merges).
    pub(crate) fn new(
        ids: &HashMap<Box<str>, u32>,
        merges: &[String],
        pre: PreTokenizer,
    ) -> Result<Self, TokenizerError> {
        let vocab = ids
            .iter()
            .map(|(text, &id)| (text.to_string(), id))
            .collect::<tokenizers::models::bpe::Vocab>();
        let model = BPE::builder()
            .vocab_and_merges(vocab, pairs(ids, merges)?)
            .build()
            .map_err(library_error)?;
        let alphabet = ByteAlphabet::new();
        let chars = (0..=255).map(|byte| alphabet.char(byte));
        let lacking = chars.filter(|c| model.token_to_id(c.encode_utf8(&mut [0; 4])).is_none());
        let lacking = lacking.collect();
        Ok(Self { model, pre, alphabet, lacking })
    }

    /// Whether a text starts with the BOS token where the file does not say.
    pub(crate) fn adds_bos(&self) -> bool {
        self.pre.add_bos
    }

    /// Appends the ids of `text`, without the bytes that have no token.
    ///
    /// # Errors
    /// A word that is too long: merging takes about a hundred bytes for each of its own.
    pub(crate) fn encode(&self, text: &str, output: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut word = String::new();
        for range in self.pre.split(text) {
            if range.len() > MOST_WORD {
                return Err(TokenizerError::WordTooLong { len: range.len(), most: MOST_WORD });
            }
            word.clear();
            word.extend(text[range].bytes().map(|byte| self.alphabet.char(byte)));
            if self.pre.ignore_merges
                && let Some(id) = self.model.token_to_id(&word)
            {
                output.push(id);
                continue;
            }
            for part in word.split(self.lacking.as_slice()) {
                let tokens = self.model.tokenize(part).map_err(library_error)?;
                output.extend(tokens.iter().map(|token| token.id));
            }
        }
        Ok(())
    }
}

/// The merges as pairs of known tokens that make a known token. Of equal pairs the first counts.
fn pairs(
    ids: &HashMap<Box<str>, u32>,
    merges: &[String],
) -> Result<Vec<(String, String)>, TokenizerError> {
    let mut pairs = Vec::with_capacity(merges.len());
    let mut seen = HashSet::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        let malformed = || TokenizerError::MalformedMerge { index, merge: shown(merge) };
        // A space can't be the first token's start: in this alphabet it is written `Ġ`.
        let (left, right) = merge.split_once(' ').ok_or_else(malformed)?;
        if left.is_empty() || right.is_empty() {
            return Err(malformed());
        }
        for token in [left, right, &format!("{left}{right}")] {
            if !ids.contains_key(token) {
                return Err(TokenizerError::UnknownMergeToken { index, token: shown(token) });
            }
        }
        if seen.insert((left, right)) {
            pairs.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(pairs)
}

fn library_error(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Library { part: "BPE model", reason: error.to_string() }
}
