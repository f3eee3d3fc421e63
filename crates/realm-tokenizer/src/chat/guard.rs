//! The pass over a template's source that makes it safe to run.
//!
//! minijinja bounds a template's work by fuel and the depth of most recursions, but not all of
//! both: a chain of operators or of `elif` recurses in its compiler, lists that contain each other
//! (`[a, a]`, again and again) cost their whole expansion when they are compared or joined to a
//! string, a list repeated a hundred million times costs nothing until it is compared, and a
//! namespace may contain itself. So this pass
//!
//! - refuses tags and blocks that are deeper than templates need;
//! - sends every operand through a filter of `values.rs`, which turns lists and maps into this
//!   crate's own: shallow, and metered when they are walked. Operands of `*` may not be lists,
//!   operands of `~` become text as Python writes it, `for` goes over strings and not over none, a
//!   namespace holds no namespaces, and bounds of slices are far from where 64 bits end;
//! - makes the tags `generation` and `endgeneration` of transformers, which change no text, a
//!   plain block, and reads escapes in strings as Python does.
//!
//! Lines stay what they were, so that errors show the right ones.
use super::lexer::{Fault, Tag, Token, next_tag, tokens};
use super::operands::Walk;

/// The most blocks, `elif`s included, that may stand in each other.
const BLOCKS: usize = 80;

/// Rewrites a template's source.
pub(super) fn guard(source: &str) -> Result<String, Fault> {
    let mut guard = Guard { source, out: String::new(), copied: 0, blocks: Vec::new() };
    guard.out.reserve(source.len() + source.len() / 2);
    let mut from = 0;
    while let Some((tag, start)) = next_tag(source, from)? {
        let (tokens, end) = tokens(source, tag, start)?;
        let mut walk = Walk::new(&mut guard, &tokens);
        if tag == Tag::Statement {
            walk.statement()?;
        } else {
            walk.expression()?;
        }
        from = end;
    }
    guard.copy_to(source.len());
    Ok(guard.out)
}

/// The pass: the source, what is written of the new one, and the blocks that are open.
pub(super) struct Guard<'s> {
    pub(super) source: &'s str,
    pub(super) out: String,
    /// The source up to here is in `out`.
    copied: usize,
    /// For every open block the number of levels that it takes.
    blocks: Vec<usize>,
}

impl Guard<'_> {
    pub(super) fn copy_to(&mut self, end: usize) {
        if end > self.copied {
            self.out.push_str(&self.source[self.copied..end]);
            self.copied = end;
        }
    }

    pub(super) fn replace(&mut self, token: Token, with: &str) {
        self.copy_to(token.start);
        self.out.push_str(with);
        self.copied = token.end;
    }

    fn enter_block(&mut self, at: usize) -> Result<(), Fault> {
        self.blocks.push(1);
        self.check_blocks(at)
    }

    fn check_blocks(&self, at: usize) -> Result<(), Fault> {
        if self.blocks.iter().sum::<usize>() > BLOCKS {
            return Err(Fault::new(at, format!("blocks stand more than {BLOCKS} deep")));
        }
        Ok(())
    }
}

/// The tags `{% … %}`, by their first words.
impl Walk<'_, '_, '_> {
    fn statement(&mut self) -> Result<(), Fault> {
        let Some((keyword, name)) = self.peek() else { return Ok(()) };
        self.at += 1;
        match name {
            "elif" => {
                if let Some(levels) = self.guard.blocks.last_mut() {
                    *levels += 1;
                }
                self.guard.check_blocks(keyword.start)?;
                self.expression()
            }
            "for" => {
                self.guard.enter_block(keyword.start)?;
                self.skip_to(&["in"])?;
                self.at += 1;
                self.iterating = true;
                self.expression()
            }
            "set" => self.set(keyword),
            "macro" => {
                self.guard.enter_block(keyword.start)?;
                self.at += 1;
                self.parameters();
                self.expression()
            }
            "call" => {
                self.guard.enter_block(keyword.start)?;
                self.outer_guarded = false;
                self.parameters();
                self.expression()
            }
            "if" | "with" | "autoescape" => {
                self.guard.enter_block(keyword.start)?;
                self.expression()
            }
            "filter" => {
                self.guard.enter_block(keyword.start)?;
                self.outer_guarded = false;
                self.expression()
            }
            "generation" => {
                self.guard.replace(keyword, "if true");
                self.guard.enter_block(keyword.start)
            }
            "endgeneration" => {
                self.guard.replace(keyword, "endif");
                self.guard.blocks.pop();
                Ok(())
            }
            "do" => self.expression(),
            _ if name.starts_with("end") => {
                self.guard.blocks.pop();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn set(&mut self, keyword: Token) -> Result<(), Fault> {
        let targets = self.at;
        let sign = self.skip_to(&["=", "|"])?;
        self.storing = self.tokens[targets..self.at].iter().any(|&token| self.text(token) == ".");
        if sign == Some("=") {
            self.at += 1;
            return self.expression();
        }
        self.guard.enter_block(keyword.start)?;
        if sign == Some("|") {
            self.begin_filters(keyword);
        }
        self.expression()
    }
}
