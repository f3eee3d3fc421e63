//! Token ids to text.

use std::borrow::Borrow;

use crate::{
    byte_level::ByteAlphabet,
    error::TokenizerError,
    roles::Role,
    spm::SPACE,
    tokenizer::{Kind, Tokenizer},
};

/// The bytes of every token, one after the other.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// `[vocab_size]`: where each token's bytes end.
    ends: Vec<usize>,
}

impl Pieces {
    /// `texts` and `roles` are `[vocab_size]`.
    pub(crate) fn new(kind: Kind, texts: &[String], roles: &[Role]) -> Self {
        let alphabet = ByteAlphabet::new();
        let mut bytes = Vec::with_capacity(texts.iter().map(String::len).sum());
        let mut ends = Vec::with_capacity(texts.len());
        for (text, role) in texts.iter().zip(roles) {
            match (role, kind) {
                (Role::Special | Role::UserDefined, _) => bytes.extend(text.bytes()),
                (Role::Silent, _) => {}
                (Role::Byte, _) => match byte_of(text) {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend(text.bytes()),
                },
                (Role::Text, Kind::Llama | Kind::Bert) => {
                    bytes.extend(text.replace(SPACE, " ").bytes());
                }
                (Role::Text, Kind::Gpt2) => {
                    for c in text.chars() {
                        match alphabet.byte(c) {
                            Some(byte) => bytes.push(byte),
                            None => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
                        }
                    }
                }
            }
            ends.push(bytes.len());
        }
        Self { bytes, ends }
    }

    /// The bytes of token `id`; `None` where there is no such token.
    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// How ids become text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Writes control tokens as their text (`<|eot_id|>`); otherwise they vanish.
    pub special: bool,
    /// The ids go on from text that is already there, as a model's answer goes on from its prompt:
    /// a leading space is then part of the text. Otherwise the ids are a text from its start, and a
    /// vocabulary that puts a space in front of every text has it taken away again.
    pub continuation: bool,
}

/// Turns ids into text as they come, never giving out half a character.
///
/// `T` is `&Tokenizer`, `Arc<Tokenizer>` or a `Tokenizer` itself. All that [`push`](Self::push) and
/// [`finish`](Self::finish) give, put together, is what [`Tokenizer::decode`] makes of the same
/// ids.
#[derive(Debug, Clone)]
pub struct DecodeStream<T> {
    tokenizer: T,
    special: bool,
    /// The next piece of text is the first, and a space in front of it was put there by encoding.
    drop_space: bool,
    /// Bytes that may be the start of a character: at most three between calls.
    pending: Vec<u8>,
    text: String,
}

impl<T: Borrow<Tokenizer>> DecodeStream<T> {
    /// A stream at its start.
    pub fn new(tokenizer: T, options: DecodeOptions) -> Self {
        let drop_space = tokenizer.borrow().adds_space_prefix() && !options.continuation;
        let (pending, text) = (Vec::new(), String::new());
        Self { tokenizer, special: options.special, drop_space, pending, text }
    }

    /// Takes one more id and returns the text that is now complete, which may be empty.
    ///
    /// Bytes that can't become a character turn into U+FFFD, as in [`String::from_utf8_lossy`]. An
    /// id outside the vocabulary is an error and changes nothing.
    pub fn push(&mut self, id: u32) -> Result<&str, TokenizerError> {
        let tokenizer = self.tokenizer.borrow();
        let piece = tokenizer.token_bytes(id)?;
        let role = tokenizer.role(id);
        self.text.clear();
        if !(role == Role::Special && !self.special || piece.is_empty()) {
            let text = matches!(role, Role::Text | Role::Byte);
            let drop = self.drop_space && text && piece[0] == b' ';
            self.drop_space = false;
            self.pending.extend_from_slice(&piece[usize::from(drop)..]);
            self.take_complete();
        }
        Ok(&self.text)
    }

    /// Ends the text: what is left of an unfinished character becomes U+FFFD. The stream is then as
    /// after [`new`](Self::new) for a continuation.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
        self.drop_space = false;
        &self.text
    }

    /// Moves everything but the start of an unfinished character from `pending` to `text`.
    fn take_complete(&mut self) {
        let mut rest = self.pending.as_slice();
        for chunk in self.pending.utf8_chunks() {
            self.text.push_str(chunk.valid());
            rest = &rest[chunk.valid().len()..];
            let unfinished = chunk.invalid().len() == rest.len()
                && std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
            if unfinished {
                break;
            }
            if !chunk.invalid().is_empty() {
                self.text.push(char::REPLACEMENT_CHARACTER);
                rest = &rest[chunk.invalid().len()..];
            }
        }
        let left = rest.len();
        self.pending.drain(..self.pending.len() - left);
    }
}
