use std::collections::HashMap;

use crate::{
    bpe::ByteLevelBpe,
    decode::{DecodeOptions, DecodeStream, Pieces},
    error::{TokenizerError, shown},
    pretokenizer::PreTokenizer,
    roles::{Role, Roles},
    special::{Fragment, Specials},
    spm::{SPACE, Spm},
    vocab::{TokenType, Vocab},
    wordpiece::{Plain, WordPiece},
};

/// The kinds of vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Llama,
    Gpt2,
    Bert,
}

impl Kind {
    fn new(model: &str) -> Result<Self, TokenizerError> {
        match model {
            "llama" => Ok(Self::Llama),
            "gpt2" => Ok(Self::Gpt2),
            "bert" => Ok(Self::Bert),
            _ => Err(TokenizerError::UnsupportedKind { kind: shown(model) }),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Gpt2 => "gpt2",
            Self::Bert => "bert",
        }
    }
}

#[derive(Debug)]
enum Model {
    Spm(Spm),
    Bpe(Box<ByteLevelBpe>),
    WordPiece(Box<WordPiece>),
}

/// How a text becomes ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Adds the tokens that the model wants around a text: BOS at its start, EOS at its end, each
    /// where the vocabulary says so; for the kind `bert` always `[CLS]` and `[SEP]`. For raw
    /// prompts; a chat template writes its own.
    pub add_special: bool,
    /// Reads markup like `<|eot_id|>` as the control token of that text. For prompts that a chat
    /// template has put together; never for text from outside.
    pub parse_special: bool,
}

/// Text to token ids and back, for one vocabulary.
///
/// Immutable and `Sync`: one serves all threads.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    /// `[vocab_size]`.
    texts: Vec<String>,
    types: Vec<i32>,
    ids: HashMap<Box<str>, u32>,
    pieces: Pieces,
    roles: Roles,
    specials: Specials,
    named: Named,
    /// What stands in front of a text and after it, where that is asked for.
    around: (Option<u32>, Option<u32>),
}

/// The special tokens that metadata name, after defaults.
#[derive(Debug, Clone, Copy)]
struct Named {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    sep: Option<u32>,
}

impl Tokenizer {
    /// Builds the tokenizer of a vocabulary.
    ///
    /// # Errors
    ///
    /// A kind or pre-tokenizer that is not supported; no tokens; scores or types of another number
    /// than the tokens; scores that are missing (kind `llama`) or not numbers; merges that are
    /// missing (kind `gpt2`); two equal tokens; a merge rule with a token that the vocabulary lacks;
    /// a special token out of range, or missing though every text should start or end with it. Tolerated, as in llama.cpp: missing types
    /// (all tokens are normal), empty tokens (each stands as `[EMPTY_n]`), a merge rule given twice
    /// (the first counts).
    pub fn new(vocab: Vocab) -> Result<Self, TokenizerError> {
        let kind = Kind::new(&vocab.model)?;
        let mut vocab = vocab;
        check_lengths(kind, &vocab)?;
        check_special_ids(kind, &vocab)?;
        for (id, text) in vocab.tokens.iter_mut().enumerate() {
            if text.is_empty() {
                *text = format!("[EMPTY_{id}]");
            }
        }
        let ids = invert(&vocab.tokens)?;
        let named = Named::new(kind, &vocab);
        let roles = Roles::new(&vocab, &ids, named.eos);
        let pieces = Pieces::new(kind, &vocab.tokens, &roles.of);
        let specials = Specials::new(&vocab.tokens, &roles.of, vocab.name.as_deref())?;
        let model = Model::new(kind, &mut vocab, &ids, named)?;
        let add_bos = vocab.add_bos.unwrap_or(match &model {
            Model::Spm(_) => true,
            Model::Bpe(bpe) => bpe.adds_bos(),
            Model::WordPiece(_) => false,
        });
        let add_eos = vocab.add_eos.unwrap_or(false);
        for (add, id, place, flag, key) in [
            (add_bos, named.bos, "start", "add_bos_token", "bos_token_id"),
            (add_eos, named.eos, "end", "add_eos_token", "eos_token_id"),
        ] {
            if add && id.is_none() && kind != Kind::Bert {
                return Err(TokenizerError::MissingSpecial { place, flag, key });
            }
        }
        let around = match kind {
            Kind::Bert => (named.bos, named.sep),
            _ => (named.bos.filter(|_| add_bos), named.eos.filter(|_| add_eos)),
        };
        let (texts, types) = (vocab.tokens, vocab.types);
        Ok(Self { model, texts, types, ids, pieces, roles, specials, named, around })
    }

    /// The ids of `text`: those of llama.cpp.
    ///
    /// The empty text has no ids but the added ones. Bytes for which a `gpt2` vocabulary has no
    /// token are left out, as llama.cpp does; a word that a `bert` vocabulary has no tokens for is
    /// its unknown token. Time is O(n log n) in the text's length, whatever its contents, times the
    /// length of the longest token.
    ///
    /// # Errors
    ///
    /// For the kind `llama`: [`TokenizerError::NoByteToken`] where the vocabulary cannot express
    /// the text, and [`TokenizerError::TextTooLong`] over 32 MiB. For the kind `gpt2`:
    /// [`TokenizerError::WordTooLong`], as for ten million letters without a space.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let mut output = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special {
            output.extend(self.around.0);
        }
        let mut at_start = true;
        for fragment in self.specials.cut(text, options.parse_special) {
            match (fragment, &self.model) {
                (Fragment::Token(id), _) => output.push(id),
                (Fragment::Text(text), Model::Spm(spm)) => {
                    spm.encode(&self.ids, text, at_start, &mut output)?;
                }
                (Fragment::Text(text), Model::Bpe(bpe)) => bpe.encode(text, &mut output)?,
                (Fragment::Text(text), Model::WordPiece(words)) => words.encode(text, &mut output),
            }
            at_start = matches!(fragment, Fragment::Token(_));
        }
        if options.add_special {
            output.extend(self.around.1);
        }
        Ok(output)
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD, as in [`String::from_utf8_lossy`].
    ///
    /// Nothing is tidied up: a byte-level vocabulary gives back every byte that was encoded. What
    /// encoding for the kind `bert` takes away (case, accents, the amount of white space) is gone,
    /// and each of its words has a space in front, punctuation too.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownId`].
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> Result<String, TokenizerError> {
        let mut stream = self.decode_stream(options);
        let mut text = String::new();
        for &id in ids {
            text.push_str(stream.push(id)?);
        }
        text.push_str(stream.finish());
        Ok(text)
    }

    /// A decoder that takes one id after the other. For one that owns its tokenizer, see
    /// [`DecodeStream::new`].
    pub fn decode_stream(&self, options: DecodeOptions) -> DecodeStream<&Self> {
        DecodeStream::new(self, options)
    }

    /// The bytes that token `id` stands for: whole characters or a part of one. Control tokens give
    /// their text, unused ones nothing.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnknownId`].
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], TokenizerError> {
        let unknown = || TokenizerError::UnknownId { id, vocab_size: self.vocab_size() };
        self.pieces.get(id).ok_or_else(unknown)
    }

    /// Token `id` as it is written in the vocabulary (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(String::as_str)
    }

    /// The id of the token that is written `text` in the vocabulary.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// What the file says that token `id` is.
    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        let in_range = (id as usize) < self.texts.len();
        let given = self.types.get(id as usize).copied().map(TokenType::from_gguf);
        in_range.then(|| given.unwrap_or(TokenType::Normal))
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.texts.len()
    }

    /// Whether a model that gives out `id` has come to an end: of the sequence, the turn or the
    /// message.
    ///
    /// True for `eos`, `eot` and `eom`, and for the tokens that llama.cpp knows by their text
    /// (`<|im_end|>`, `<|end_of_text|>`, `<end_of_turn>`, …).
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.roles.ends.binary_search(&id).is_ok()
    }

    /// All ids that end a generation, ascending.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.roles.ends
    }

    /// Whether `id` is markup, which plain decoding hides and only `parse_special` reads.
    pub fn is_special(&self, id: u32) -> bool {
        self.roles.of.get(id as usize) == Some(&Role::Special)
    }

    /// All markup tokens with their text, by ascending id.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let all = (0u32..).zip(&self.texts);
        all.filter(|&(id, _)| self.is_special(id)).map(|(id, text)| (id, text.as_str()))
    }

    /// The token that starts a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.named.bos
    }

    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.named.eos
    }

    /// The token that ends a turn of a conversation.
    pub fn eot(&self) -> Option<u32> {
        self.roles.eot
    }

    /// The token that ends a message of the model after which a tool answers.
    pub fn eom(&self) -> Option<u32> {
        self.roles.eom
    }

    /// The token that stands between two texts, and after one, for the kind `bert`.
    pub fn sep(&self) -> Option<u32> {
        self.named.sep
    }

    /// The token for what the vocabulary lacks; only the kind `bert` makes it in encoding.
    pub fn unk(&self) -> Option<u32> {
        self.named.unk
    }

    /// The token that fills up batches.
    pub fn pad(&self) -> Option<u32> {
        self.named.pad
    }

    /// Whether [`EncodeOptions::add_special`] puts BOS in front; for the kind `bert`, `[CLS]`.
    pub fn adds_bos(&self) -> bool {
        self.around.0.is_some()
    }

    /// Whether [`EncodeOptions::add_special`] puts EOS at the end; for the kind `bert`, `[SEP]`.
    pub fn adds_eos(&self) -> bool {
        self.around.1.is_some()
    }

    /// Whether encoding puts a space in front of a text and of what follows a special token; for
    /// the kind `bert`, in front of every word.
    pub fn adds_space_prefix(&self) -> bool {
        match &self.model {
            Model::Spm(spm) => spm.space_prefix,
            Model::Bpe(_) => false,
            Model::WordPiece(_) => true,
        }
    }

    /// The role of a token that exists.
    pub(crate) fn role(&self, id: u32) -> Role {
        self.roles.of[id as usize]
    }
}

impl Model {
    /// Takes from `vocab` what is not needed afterwards.
    fn new(
        kind: Kind,
        vocab: &mut Vocab,
        ids: &HashMap<Box<str>, u32>,
        named: Named,
    ) -> Result<Self, TokenizerError> {
        match kind {
            Kind::Llama => {
                let scores = std::mem::take(&mut vocab.scores);
                Ok(Self::Spm(Spm::new(scores, ids, vocab.add_space_prefix.unwrap_or(true))))
            }
            Kind::Gpt2 => {
                let pre = PreTokenizer::new(vocab.pre.as_deref())?;
                Ok(Self::Bpe(Box::new(ByteLevelBpe::new(ids, &vocab.merges, pre)?)))
            }
            Kind::Bert => {
                let missing = |field| TokenizerError::MissingField { kind: kind.name(), field };
                named.bos.ok_or(missing("cls_token_id"))?;
                named.sep.ok_or(missing("seperator_token_id"))?;
                let unknown = named.unk.ok_or(missing("unknown_token_id"))?;
                if !vocab.tokens.iter().any(|text| text.starts_with(SPACE)) {
                    return Err(TokenizerError::NoWordStarts);
                }
                let lowercase = vocab.lowercase.unwrap_or(true);
                let strip_accents = vocab.strip_accents.unwrap_or(lowercase);
                let plain = Plain { lowercase, strip_accents };
                Ok(Self::WordPiece(Box::new(WordPiece::new(&vocab.tokens, unknown, plain)?)))
            }
        }
    }
}

impl Vocab {
    /// The texts of the tokens that start and end a sequence, which chat templates name: those of
    /// [`Tokenizer::bos`] and [`Tokenizer::eos`], without the work of building a tokenizer.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::UnsupportedKind`]. Nothing else is checked: a token out of range has no
    /// text.
    pub fn bos_and_eos(&self) -> Result<[Option<&str>; 2], TokenizerError> {
        let named = Named::new(Kind::new(&self.model)?, self);
        let text = |id: Option<u32>| self.tokens.get(id? as usize).map(String::as_str);
        Ok([text(named.bos), text(named.eos)])
    }
}

impl Named {
    fn new(kind: Kind, vocab: &Vocab) -> Self {
        let [bos, eos, unk, pad, sep] = match kind {
            Kind::Llama => [Some(1), Some(2), Some(0), None, None],
            Kind::Gpt2 => [None; 5],
            Kind::Bert => [Some(101), None, Some(100), Some(0), Some(102)],
        }
        .map(|id: Option<u32>| id.filter(|&id| (id as usize) < vocab.tokens.len()));
        let ours = |id: Option<u32>| id.filter(|_| kind == Kind::Bert);
        Self {
            bos: vocab.bos.or(ours(vocab.cls)).or(bos),
            eos: vocab.eos.or(eos),
            unk: vocab.unk.or(unk),
            pad: vocab.pad.or(pad),
            sep: ours(vocab.sep).or(sep),
        }
    }
}

fn check_lengths(kind: Kind, vocab: &Vocab) -> Result<(), TokenizerError> {
    let expected = vocab.tokens.len();
    if expected == 0 {
        return Err(TokenizerError::EmptyVocabulary);
    }
    if expected >= u32::MAX as usize {
        return Err(TokenizerError::TooManyTokens { found: expected });
    }
    let check = |field, found: usize| {
        if found == expected {
            Ok(())
        } else {
            Err(TokenizerError::LengthMismatch { field, found, expected })
        }
    };
    if !vocab.types.is_empty() {
        check("token_type", vocab.types.len())?;
    }
    if kind == Kind::Llama {
        if vocab.scores.is_empty() {
            return Err(TokenizerError::MissingField { kind: kind.name(), field: "scores" });
        }
        check("scores", vocab.scores.len())?;
        if let Some(id) = (0u32..).zip(&vocab.scores).find_map(|(id, s)| s.is_nan().then_some(id)) {
            return Err(TokenizerError::BadScore { id });
        }
    }
    if kind == Kind::Gpt2 && vocab.merges.is_empty() {
        // Words that nothing makes: every text would fall into bytes.
        let kind_of = |id: usize| vocab.types.get(id).map(|&value| TokenType::from_gguf(value));
        let normal = |id| kind_of(id).is_none_or(|kind| kind == TokenType::Normal);
        if vocab.tokens.iter().enumerate().any(|(id, t)| t.chars().nth(1).is_some() && normal(id)) {
            return Err(TokenizerError::MissingField { kind: kind.name(), field: "merges" });
        }
    }
    Ok(())
}

fn check_special_ids(kind: Kind, vocab: &Vocab) -> Result<(), TokenizerError> {
    let bert = kind == Kind::Bert;
    let vocab_size = vocab.tokens.len();
    for (key, id) in [
        ("bos_token_id", vocab.bos),
        ("eos_token_id", vocab.eos),
        ("eot_token_id", vocab.eot),
        ("eom_token_id", vocab.eom),
        ("unknown_token_id", vocab.unk),
        ("padding_token_id", vocab.pad),
        ("seperator_token_id", vocab.sep.filter(|_| bert)),
        ("cls_token_id", vocab.cls.filter(|_| bert)),
    ] {
        if let Some(id) = id.filter(|&id| id as usize >= vocab_size) {
            return Err(TokenizerError::SpecialOutOfRange { key, id, vocab_size });
        }
    }
    Ok(())
}

fn invert(texts: &[String]) -> Result<HashMap<Box<str>, u32>, TokenizerError> {
    let mut ids = HashMap::with_capacity(texts.len());
    for (id, text) in (0u32..).zip(texts) {
        if let Some(first) = ids.insert(Box::from(text.as_str()), id) {
            return Err(TokenizerError::DuplicateToken { text: shown(text), first, second: id });
        }
    }
    Ok(ids)
}
