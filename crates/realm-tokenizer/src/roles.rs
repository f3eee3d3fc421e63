//! What each token is for: which ones are markup, and which of those end a generation.
//!
//! GGUF files often leave this unsaid or say it wrongly, so the texts decide, as in llama.cpp
//! (`llama_vocab::impl::load`). Where several texts of one row are in a vocabulary, the first of
//! the row counts (llama.cpp takes the one its hash table lists first).

use std::collections::HashMap;

use crate::vocab::{TokenType, Vocab};

/// How a token behaves in encoding and decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A piece of text.
    Text,
    /// One byte, written `<0xNN>`.
    Byte,
    /// No text (unused and undefined tokens).
    Silent,
    /// Found in any text as it stands.
    UserDefined,
    /// Control and unknown tokens: found only where the caller asks for it, hidden in plain output.
    Special,
}

/// Texts of the token that ends a turn, where the file names none.
const EOT: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
/// Texts of the token that ends a message (a tool call follows), where the file names none.
const EOM: &[&str] = &["<|eom_id|>"];
/// Markup of fill-in-the-middle prompts; it does not end a generation.
const FILL_IN: [&[&str]; 3] = [
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
];
/// Markup of fill-in-the-middle prompts that ends a generation: padding, repository, file
/// separator.
const FILL_IN_ENDS: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];
/// Every one of these ends a generation.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Markup of gpt-oss that belongs to the visible output, whatever the file says.
const VISIBLE: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// The roles of all tokens.
#[derive(Debug)]
pub(crate) struct Roles {
    /// `[vocab_size]`.
    pub(crate) of: Vec<Role>,
    /// The ids that end a generation, ascending.
    pub(crate) ends: Vec<u32>,
    /// End of turn.
    pub(crate) eot: Option<u32>,
    /// End of message.
    pub(crate) eom: Option<u32>,
}

impl Roles {
    /// Reads the roles from types and texts; `ids` is the inverse of `vocab.tokens`, and `eos` the
    /// end-of-sequence token after defaults. All ids are in range.
    pub(crate) fn new(vocab: &Vocab, ids: &HashMap<Box<str>, u32>, eos: Option<u32>) -> Self {
        let mut of = initial(vocab);
        let first = |texts: &[&str]| texts.iter().find_map(|&text| ids.get(text).copied());
        let all = |texts: &[&str]| {
            texts.iter().filter_map(|&text| ids.get(text).copied()).collect::<Vec<u32>>()
        };

        let eot = vocab.eot.or_else(|| first(EOT));
        let eom = vocab.eom.or_else(|| first(EOM));
        let by_text = [vocab.eot.is_none().then_some(eot), vocab.eom.is_none().then_some(eom)];
        let fill_in = FILL_IN.iter().map(|texts| first(texts));
        let mut ends: Vec<u32> = FILL_IN_ENDS.iter().filter_map(|texts| first(texts)).collect();
        ends.extend(all(ENDS));
        for id in by_text.into_iter().flatten().chain(fill_in).flatten().chain(ends.iter().copied())
        {
            of[id as usize] = Role::Special;
        }
        for id in all(VISIBLE) {
            of[id as usize] = Role::UserDefined;
        }
        ends.extend([eos, eot, eom].into_iter().flatten());

        let has = |text: &str| ids.get(text).copied().filter(|id| ends.contains(id));
        let mut not_ends = Vec::new();
        // gpt-oss and Solar: `<|end|>` ends a part of the answer, `<|return|>` and the like the
        // whole.
        let calls = has("<|call|>").or(has("<|calls|>")).is_some();
        if let Some(end) = has("<|end|>")
            && calls
            && has("<|return|>").or(has("<|flush|>")).is_some()
        {
            of[end as usize] = Role::UserDefined;
            not_ends.push(end);
        }
        // Gemma 4 has `</s>` as plain text.
        if let Some(s) = has("</s>")
            && has("<|tool_response>").is_some()
        {
            of[s as usize] = Role::Text;
            not_ends.push(s);
        }
        ends.retain(|id| !not_ends.contains(id));
        ends.sort_unstable();
        ends.dedup();
        Self { of, ends, eot, eom }
    }
}

/// The roles by token type alone.
fn initial(vocab: &Vocab) -> Vec<Role> {
    if vocab.types.is_empty() {
        return vec![Role::Text; vocab.tokens.len()];
    }
    let role = |&value: &i32| match TokenType::from_gguf(value) {
        TokenType::Normal => Role::Text,
        TokenType::Byte => Role::Byte,
        TokenType::Control | TokenType::Unknown => Role::Special,
        TokenType::UserDefined => Role::UserDefined,
        TokenType::Unused | TokenType::Undefined => Role::Silent,
    };
    vocab.types.iter().map(role).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(tokens: &[(&str, i32)], eos: Option<u32>) -> Roles {
        let vocab = Vocab {
            tokens: tokens.iter().map(|(text, _)| (*text).to_owned()).collect(),
            types: tokens.iter().map(|(_, kind)| *kind).collect(),
            ..Vocab::default()
        };
        let ids =
            (0u32..).zip(&vocab.tokens).map(|(id, text)| (text.as_str().into(), id)).collect();
        Roles::new(&vocab, &ids, eos)
    }

    #[test]
    fn ends_are_found_by_text_whatever_their_type() {
        let roles = roles(
            &[
                ("a", 1),
                ("<|eot_id|>", 3),
                ("<|im_end|>", 1),
                ("</s>", 4),
                ("<|file_sep|>", 4),
                ("x", 3),
            ],
            Some(0),
        );
        assert_eq!(roles.ends, [0, 1, 2, 3, 4]);
        assert_eq!((roles.eot, roles.eom), (Some(1), None));
        assert_eq!(
            roles.of,
            [Role::Text, Role::Special, Role::Special, Role::Special, Role::Special, Role::Special]
        );
    }

    #[test]
    fn gpt_oss_goes_on_after_end() {
        let tokens = [("<|return|>", 3), ("<|call|>", 3), ("<|end|>", 3), ("<|channel|>", 3)];
        let roles = roles(&tokens, Some(0));
        assert_eq!(roles.ends, [0, 1]);
        assert_eq!(roles.of[2..], [Role::UserDefined, Role::UserDefined]);
    }

    #[test]
    fn fill_in_markup_is_special_but_no_end() {
        let roles = roles(&[("<PRE>", 1), ("<SUF>", 4), ("<MID>", 1)], None);
        assert!(roles.ends.is_empty());
        assert_eq!(roles.of, [Role::Special; 3]);
    }
}
