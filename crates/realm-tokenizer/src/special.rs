//! Cutting a text at special tokens.

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use crate::{error::TokenizerError, roles::Role};

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'t> {
    /// Text still to be encoded.
    Text(&'t str),
    /// A special token that stood there.
    Token(u32),
}

#[derive(Debug)]
struct Special {
    id: u32,
    text: Box<str>,
    /// Found in plain text too, where markup is not asked for.
    always: bool,
    /// White space after it vanishes.
    swallows_space: bool,
}

/// The tokens that are cut out before anything else happens, and a way to find them.
#[derive(Debug)]
pub(crate) struct Specials {
    /// The longest text first, equal ones by id: the order in which they are cut out.
    tokens: Vec<Special>,
    /// Finds `tokens`, in their order. `None`: there are none.
    finder: Option<AhoCorasick>,
    any_always: bool,
}

impl Specials {
    /// Collects them; `name` is the model's (see [`Vocab::name`](crate::Vocab::name)).
    pub(crate) fn new(
        texts: &[String],
        roles: &[Role],
        name: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let phi3 =
            name.map(str::to_lowercase).is_some_and(|n| n.contains("phi-3") || n.contains("phi3"));
        let mut tokens: Vec<Special> = (0u32..)
            .zip(texts.iter().zip(roles))
            .filter(|(_, (_, role))| matches!(role, Role::Special | Role::UserDefined))
            .map(|(id, (text, role))| Special {
                id,
                text: text.as_str().into(),
                always: *role == Role::UserDefined,
                swallows_space: phi3 && !matches!(text.as_str(), "<unk>" | "<s>" | "<|endoftext|>"),
            })
            .collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        let finder = (!tokens.is_empty())
            .then(|| {
                AhoCorasick::builder()
                    .kind(Some(AhoCorasickKind::ContiguousNFA))
                    .build(tokens.iter().map(|token| token.text.as_bytes()))
                    .map_err(|error| TokenizerError::Library {
                        part: "search for special tokens",
                        reason: error.to_string(),
                    })
            })
            .transpose()?;
        let any_always = tokens.iter().any(|token| token.always);
        Ok(Self { tokens, finder, any_always })
    }

    /// Cuts `text` at its special tokens: at user-defined ones alone, or with `parse_special` at
    /// all.
    ///
    /// As in llama.cpp, a longer token goes before a shorter one wherever they stand: the text is
    /// cut at all places of the longest token, the rest at all places of the next, and so on.
    pub(crate) fn cut<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        push_text(&mut fragments, text);
        for token in self.present(text, parse_special) {
            let mut finer = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                match fragment {
                    Fragment::Token(_) => finer.push(fragment),
                    Fragment::Text(text) => token.cut_out(text, &mut finer),
                }
            }
            fragments = finer;
        }
        fragments
    }

    /// The tokens that stand anywhere in `text`, in the order of `tokens`.
    fn present(&self, text: &str, parse_special: bool) -> impl Iterator<Item = &Special> {
        let mut found = vec![false; self.tokens.len()];
        if let Some(finder) = &self.finder
            && (parse_special || self.any_always)
        {
            for hit in finder.find_overlapping_iter(text) {
                found[hit.pattern().as_usize()] = true;
            }
        }
        self.tokens
            .iter()
            .zip(found)
            .filter(move |(token, found)| *found && (parse_special || token.always))
            .map(|(token, _)| token)
    }
}

impl Special {
    fn cut_out<'t>(&self, mut text: &'t str, fragments: &mut Vec<Fragment<'t>>) {
        while let Some(at) = text.find(&*self.text) {
            push_text(fragments, &text[..at]);
            fragments.push(Fragment::Token(self.id));
            text = &text[at + self.text.len()..];
            if self.swallows_space {
                text = text.trim_start_matches([' ', '\t', '\n', '\x0B', '\x0C', '\r']);
            }
        }
        push_text(fragments, text);
    }
}

fn push_text<'t>(fragments: &mut Vec<Fragment<'t>>, text: &'t str) {
    if !text.is_empty() {
        fragments.push(Fragment::Text(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Fragment::{Text, Token};

    fn specials(name: Option<&str>) -> Specials {
        let texts = ["<s>", "[INST]", "  ", "ab", "bcd", "plain"].map(str::to_owned);
        let roles = [
            Role::Special,
            Role::Special,
            Role::UserDefined,
            Role::UserDefined,
            Role::UserDefined,
            Role::Text,
        ];
        Specials::new(&texts, &roles, name).unwrap()
    }

    #[test]
    fn control_tokens_only_where_asked_for() {
        let specials = specials(None);
        let text = "<s>[INST] x  y";
        assert_eq!(specials.cut(text, false), [Text("<s>[INST] x"), Token(2), Text("y")]);
        let all = [Token(0), Token(1), Text(" x"), Token(2), Text("y")];
        assert_eq!(specials.cut(text, true), all);
    }

    #[test]
    fn the_longest_token_goes_first() {
        let specials = specials(None);
        assert_eq!(specials.cut("abcdab", false), [Text("a"), Token(4), Token(3)]);
        assert_eq!(specials.cut("     ", false), [Token(2), Token(2), Text(" ")]);
    }

    #[test]
    fn nothing_from_nothing() {
        assert_eq!(specials(None).cut("", true), []);
        assert_eq!(Specials::new(&[], &[], None).unwrap().cut("a", true), [Text("a")]);
    }

    #[test]
    fn phi3_swallows_space_after_markup() {
        let specials = specials(Some("Phi-3-mini"));
        let expected = [Token(0), Text(" "), Token(1), Text("x"), Token(1)];
        assert_eq!(specials.cut("<s> [INST]\n\t x[INST] ", true), expected);
    }
}
