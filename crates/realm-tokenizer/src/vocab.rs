/// A vocabulary as plain data, as the metadata of a GGUF file gives it.
///
/// The caller fills it; each field names its key. Absent keys are empty lists or `None`: what then
/// holds is said at the field. [`Tokenizer::new`](crate::Tokenizer::new) checks it all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocab {
    /// `tokenizer.ggml.model`: the kind, `llama`, `gpt2` or `bert`.
    pub model: String,
    /// `tokenizer.ggml.pre`: how a `gpt2` vocabulary splits text before merging. `None` or empty is
    /// llama.cpp's fallback `default`. Ignored by the other kinds.
    pub pre: Option<String>,
    /// `general.name`. Only used as llama.cpp uses it: a name with `phi-3` or `phi3` in it makes
    /// white space after special tokens vanish.
    pub name: Option<String>,
    /// `tokenizer.ggml.tokens`: the text of each token, `[vocab_size]`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, `[vocab_size]`: needed by `llama` alone.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, `[vocab_size]`: see [`TokenType`]. Empty: all are normal.
    pub types: Vec<i32>,
    /// `tokenizer.ggml.merges`: pairs of tokens with a space between, most important first; needed
    /// by `gpt2` alone, but for a vocabulary of bytes.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`. Absent: 1 for `llama`, none for `gpt2`, and for
    /// `bert` `cls`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`. Absent: 2 for `llama`, none for the others.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`. Absent: found by its text.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`. Absent: found by its text.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`. Absent: 0 for `llama`, none for `gpt2`, 100 for
    /// `bert`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`. Absent: 0 for `bert`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.cls_token_id`: what a `bert` text starts with. Absent: 101. Ignored by the
    /// other kinds.
    pub cls: Option<u32>,
    /// `tokenizer.ggml.seperator_token_id` (spelled so): what a `bert` text ends with. Absent:
    /// 102. Ignored by the other kinds.
    pub sep: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`. Absent: true for `llama` and for the pre-tokenizers of
    /// Llama 3, Mistral Nemo and Chameleon. Ignored by `bert`, which always adds its two tokens.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`. Absent: false. Ignored by `bert`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`: whether a text gets a space in front. Absent: true for
    /// `llama`. Ignored by the other kinds.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.normalizer.lowercase`: whether `bert` words become lower-case. Absent: true.
    pub lowercase: Option<bool>,
    /// `tokenizer.ggml.normalizer.strip_accents`: whether `bert` words lose their accents. Absent:
    /// as `lowercase`.
    pub strip_accents: Option<bool>,
}

/// What a token is, by `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenType {
    /// 1: a piece of text.
    Normal,
    /// 2: stands for text outside the vocabulary.
    Unknown,
    /// 3: steers the model (`<s>`, `<|eot_id|>`); never made from plain text.
    Control,
    /// 4: added by hand; found in plain text before anything else is.
    UserDefined,
    /// 5: has no text.
    Unused,
    /// 6: one byte, written `<0xNN>`.
    Byte,
    /// 0, or any other number.
    Undefined,
}

impl TokenType {
    /// The type that a GGUF file writes as `value`.
    pub fn from_gguf(value: i32) -> Self {
        match value {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Undefined,
        }
    }
}
