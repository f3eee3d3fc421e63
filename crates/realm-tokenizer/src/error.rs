use thiserror::Error;

/// Why a tokenizer could not be built, or a text or an id list not converted.
///
/// Every message is one line: what is wrong, which metadata key it stands in, and what can be done.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.ggml.model` names a kind of tokenizer that this crate does not implement.
    #[error(
        "tokenizer kind '{kind}' (tokenizer.ggml.model) is not supported; supported are: llama, \
         gpt2, bert; feed token ids instead of text"
    )]
    UnsupportedKind {
        /// The kind named by the file.
        kind: String,
    },
    /// `tokenizer.ggml.pre` names a way of splitting text that this crate does not implement.
    #[error(
        "pre-tokenizer '{pre}' (tokenizer.ggml.pre) is not supported; supported are {supported} and \
         their other names; feed token ids instead of text"
    )]
    UnsupportedPreTokenizer {
        /// The pre-tokenizer named by the file.
        pre: String,
        /// One name of each way to split that is supported, separated by commas.
        supported: String,
    },
    /// There are no tokens at all.
    #[error("the vocabulary is empty: tokenizer.ggml.tokens is missing or has no entries")]
    EmptyVocabulary,
    /// There are more tokens than 32-bit ids.
    #[error("tokenizer.ggml.tokens has {found} entries: more than ids of 32 bits can number")]
    TooManyTokens {
        /// Number of tokens in the file.
        found: usize,
    },
    /// A metadata array that this kind of tokenizer cannot do without is missing.
    #[error(
        "tokenizer.ggml.{field} is missing, which a tokenizer of kind '{kind}' needs; convert the \
         model again"
    )]
    MissingField {
        /// The kind of the tokenizer.
        kind: &'static str,
        /// The missing key, without its prefix.
        field: &'static str,
    },
    /// A `bert` vocabulary that is not written as GGUF files write it: every word would be unknown.
    #[error(
        "no token of this tokenizer of kind 'bert' (tokenizer.ggml.tokens) starts a word with \
         U+2581; convert the model again"
    )]
    NoWordStarts,
    /// An array that runs beside the tokens has another length than they have.
    #[error(
        "tokenizer.ggml.{field} has {found} entries but there are {expected} tokens; the file is \
         damaged or was converted wrongly"
    )]
    LengthMismatch {
        /// The array's key, without its prefix.
        field: &'static str,
        /// The array's length.
        found: usize,
        /// The number of tokens.
        expected: usize,
    },
    /// Two ids have the same text, so that the text's id is ambiguous.
    #[error("token '{text}' stands twice in tokenizer.ggml.tokens, as {first} and as {second}")]
    DuplicateToken {
        /// The token, escaped and shortened.
        text: String,
        /// Its first id.
        first: u32,
        /// Its second id.
        second: u32,
    },
    /// A score is not a number, so that merges have no order.
    #[error("tokenizer.ggml.scores[{id}] is not a number; the file is damaged")]
    BadScore {
        /// The token with that score.
        id: u32,
    },
    /// A merge rule does not consist of two tokens with a space between.
    #[error("tokenizer.ggml.merges[{index}] is '{merge}', not two tokens with a space between")]
    MalformedMerge {
        /// Position in the list of merges.
        index: usize,
        /// The rule, escaped and shortened.
        merge: String,
    },
    /// A merge rule names, or would make, a token that is not in the vocabulary.
    #[error(
        "tokenizer.ggml.merges[{index}] needs the token '{token}', which is not in the vocabulary"
    )]
    UnknownMergeToken {
        /// Position in the list of merges.
        index: usize,
        /// The token, escaped and shortened.
        token: String,
    },
    /// A special token's id lies outside the vocabulary.
    #[error("tokenizer.ggml.{key} is {id}, but the vocabulary has only {vocab_size} tokens")]
    SpecialOutOfRange {
        /// The key, without its prefix.
        key: &'static str,
        /// Its value.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// The tokenizer adds a token to every text, but the file does not say which one.
    #[error(
        "this tokenizer adds a token at the {place} of a text (tokenizer.ggml.{flag}), but \
         tokenizer.ggml.{key} is missing"
    )]
    MissingSpecial {
        /// `start` or `end`.
        place: &'static str,
        /// The key that asks for the token, without its prefix.
        flag: &'static str,
        /// The key that should name it, without its prefix.
        key: &'static str,
    },
    /// The text has a byte that no token of a vocabulary of kind `llama` can express.
    #[error("the vocabulary has no token for byte 0x{byte:02X}: this text cannot be encoded")]
    NoByteToken {
        /// The byte.
        byte: u8,
    },
    /// A stretch of text that has no place to split, too long to be merged in bounded memory.
    #[error(
        "the text has a stretch of {len} bytes without a place to split, and at most {most} can be \
         merged: put spaces or line ends into it"
    )]
    WordTooLong {
        /// Its length in bytes.
        len: usize,
        /// The most that is taken.
        most: usize,
    },
    /// The text is too long to be merged as a whole in bounded memory.
    #[error("the text has {len} bytes: split it into parts of at most 32 MiB")]
    TextTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// An id lies outside the vocabulary.
    #[error("token id {id} is out of range: the vocabulary has {vocab_size} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// A chat template is larger than any that models come with.
    #[error(
        "the chat template has {len} bytes, more than the {limit} that are read; use another \
         template"
    )]
    TemplateTooLarge {
        /// Its length in bytes.
        len: usize,
        /// The most that is read.
        limit: usize,
    },
    /// A chat template is not valid, or uses what this crate does not know.
    #[error("chat template, line {line}: {reason}; mend the template or use another")]
    TemplateSyntax {
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A chat template failed on this conversation.
    #[error(
        "chat template, line {line}: {reason}; change the messages or tools, or use another template"
    )]
    TemplateFailed {
        /// Line of the template, from 1; 0 where it is not known.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A chat template refused this conversation by itself, by `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// What it says.
        message: String,
    },
    /// A chat template did more work than conversations of this size need.
    #[error(
        "chat template, line {line}: stopped, because it {what}; mend the template or use another"
    )]
    TemplateLimit {
        /// Line of the template, from 1; 0 where it is not known.
        line: usize,
        /// What it did too much of.
        what: &'static str,
    },
    /// The messages, tools or other values for a chat template contain each other too deeply.
    #[error("{what} are nested more than {limit} deep: make them flatter")]
    ChatTooDeep {
        /// Which values.
        what: &'static str,
        /// The greatest depth.
        limit: usize,
    },
    /// A library underneath refused; not expected for any vocabulary that passed the other checks.
    #[error("the {part} of the tokenizer could not be built or run: {reason}")]
    Library {
        /// Which part.
        part: &'static str,
        /// What the library said.
        reason: String,
    },
}

/// A text from a file as it may stand in a one-line message: escaped, and cut after 48 characters.
pub(crate) fn shown(text: &str) -> String {
    let escaped: String = text.chars().take(48).flat_map(char::escape_debug).collect();
    if text.chars().nth(48).is_some() { escaped + "…" } else { escaped }
}
