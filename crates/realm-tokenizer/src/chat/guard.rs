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
//!   namespace holds no namespaces;
//! - makes the tags `generation` and `endgeneration` of transformers, which change no text, a
//!   plain block, and reads escapes in strings as Python does.
//!
//! Lines stay what they were, so that errors show the right ones.
use super::lexer::{Fault, Kind, Tag, Token, next_tag, tokens};

/// The filter for an operand.
pub(super) const ANY: &str = "__any";
/// The filter for an operand of `*` and of what binds as it does.
pub(super) const FACTOR: &str = "__factor";
/// The filter for an operand of `~`.
pub(super) const TEXT: &str = "__text";
/// The filter for an operand that may go into a namespace.
pub(super) const STORED: &str = "__stored";

/// The filter for what a `for` goes over.
pub(super) const ITERATED: &str = "__iterated";

/// The most blocks, `elif`s included, that may stand in each other.
const BLOCKS: usize = 80;
/// The most operators, filters, tests, lookups and calls in one tag.
const OPERATORS: usize = 300;

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

struct Guard<'s> {
    source: &'s str,
    out: String,
    /// The source up to here is in `out`.
    copied: usize,
    /// For every open block the number of levels that it takes.
    blocks: Vec<usize>,
}

impl Guard<'_> {
    fn copy_to(&mut self, end: usize) {
        if end > self.copied {
            self.out.push_str(&self.source[self.copied..end]);
            self.copied = end;
        }
    }

    fn replace(&mut self, token: Token, with: &str) {
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

/// How tightly the operator beside an operand binds, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Factor,
    Tilde,
    Other,
}

fn beside(sign: &str) -> Beside {
    match sign {
        "*" | "/" | "//" | "%" | "**" => Beside::Factor,
        "~" => Beside::Tilde,
        _ => Beside::Other,
    }
}

/// An operand that may still go on.
#[derive(Debug, Clone, Copy)]
struct Operand {
    end: usize,
    before: Beside,
    /// Whether a filter may and must follow it.
    guarded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bracket {
    /// `(…)` around an expression, or a tuple.
    Group,
    /// The parameters of a macro or of a `call` block.
    Parameters,
    /// All others.
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    bracket: Bracket,
    before: Beside,
    guarded: bool,
}

/// The walk over the tokens of one tag.
struct Walk<'g, 's, 't> {
    guard: &'g mut Guard<'s>,
    tokens: &'t [Token],
    at: usize,
    open: Vec<Open>,
    operand: Option<Operand>,
    before: Beside,
    /// Whether operands outside of brackets take a filter.
    outer_guarded: bool,
    /// Whether the next operand takes a filter.
    next_guarded: bool,
    /// Whether the values go into a namespace.
    storing: bool,
    /// Whether the next operand may be all that a `for` goes over.
    iterating: bool,
    operators: usize,
}

impl<'g, 's, 't> Walk<'g, 's, 't> {
    fn new(guard: &'g mut Guard<'s>, tokens: &'t [Token]) -> Self {
        Self {
            guard,
            tokens,
            at: 0,
            open: Vec::new(),
            operand: None,
            before: Beside::Other,
            outer_guarded: true,
            next_guarded: true,
            storing: false,
            iterating: false,
            operators: 0,
        }
    }

    fn text(&self, token: Token) -> &'s str {
        &self.guard.source[token.start..token.end]
    }

    /// The token at the cursor and its text; an empty text for strings, so that no string is taken
    /// for a name.
    fn peek(&self) -> Option<(Token, &'s str)> {
        let token = *self.tokens.get(self.at)?;
        Some((token, if token.kind == Kind::Text { "" } else { self.text(token) }))
    }

    fn next_is(&self, sign: &str) -> bool {
        self.peek().is_some_and(|(_, text)| text == sign)
    }

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
            let before = Beside::Other;
            self.operand = Some(Operand { end: keyword.end, before, guarded: false });
        }
        self.expression()
    }

    /// Moves past names, dots and brackets to the next of `signs`, or to the end.
    fn skip_to(&mut self, signs: &[&str]) -> Result<Option<&'s str>, Fault> {
        while let Some((token, text)) = self.peek() {
            if signs.contains(&text) {
                return Ok(Some(text));
            }
            self.at += 1;
            self.operators += 1;
            self.check_operators(token)?;
        }
        Ok(None)
    }

    fn parameters(&mut self) {
        if self.next_is("(") {
            self.at += 1;
            let (bracket, before) = (Bracket::Parameters, Beside::Other);
            self.open.push(Open { bracket, before, guarded: false });
            self.next_guarded = false;
        }
    }

    fn expression(&mut self) -> Result<(), Fault> {
        while let Some((token, text)) = self.peek() {
            self.at += 1;
            self.literal(token)?;
            match self.operand {
                None => self.expected(token, text),
                Some(operand) => self.after(operand, token, text),
            }
            self.check_operators(token)?;
        }
        self.finish(Beside::Other);
        Ok(())
    }

    fn check_operators(&self, token: Token) -> Result<(), Fault> {
        if self.operators > OPERATORS {
            let reason = format!("this tag has more than {OPERATORS} operators and calls");
            return Err(Fault::new(token.start, reason));
        }
        Ok(())
    }

    /// A string with escapes, written again so that minijinja reads what Python reads.
    fn literal(&mut self, token: Token) -> Result<(), Fault> {
        let text = self.text(token);
        if token.kind == Kind::Text && text.contains('\\') {
            let text = rewritten(text)
                .ok_or_else(|| Fault::new(token.start, "this string has a broken escape"))?;
            self.guard.replace(token, &text);
        }
        Ok(())
    }

    /// A token where an operand may begin.
    fn expected(&mut self, token: Token, text: &str) {
        let outer = self.open.is_empty();
        let guarded = self.next_guarded && (self.outer_guarded || !outer);
        match text {
            "(" => self.enter(Bracket::Group, guarded),
            "[" | "{" => self.enter(Bracket::Other, guarded),
            ")" | "]" | "}" => self.leave(token),
            "not" | "-" | "+" => self.operators += 1,
            "if" | "else" | "and" | "or" | "in" | "is" => {}
            "," => self.next_operand(","),
            _ if token.kind == Kind::Sign => {}
            _ => {
                let plain = token.kind != Kind::Name
                    || matches!(text, "true" | "True" | "false" | "False" | "none" | "None");
                let (end, before) = (token.end, self.before);
                self.operand = Some(Operand { end, before, guarded: guarded && !plain });
                self.next_guarded = true;
            }
        }
    }

    /// A token after an operand.
    fn after(&mut self, operand: Operand, token: Token, text: &str) {
        // A literal takes a filter too where something is looked up in it or called.
        let guarded = operand.guarded || (self.outer_guarded || !self.open.is_empty());
        match text {
            "." => {
                self.operators += 1;
                let end = self.peek().map_or(token.end, |(next, _)| next.end);
                self.at += 1;
                self.operand = Some(Operand { end, guarded, ..operand });
            }
            "(" | "[" => {
                self.before = operand.before;
                self.operators += 1;
                self.enter(Bracket::Other, guarded);
            }
            "|" => {
                self.operators += 1;
                let end = self.name().unwrap_or(token.end);
                self.operand = Some(Operand { end, guarded, ..operand });
            }
            "is" => {
                self.finish(Beside::Other);
                self.operators += 1;
                self.test(token);
            }
            ")" | "]" | "}" => {
                self.finish(Beside::Other);
                self.leave(token);
            }
            _ if token.kind == Kind::Text || token.kind == Kind::Number => {
                self.operand = Some(Operand { end: token.end, ..operand });
            }
            "=" => self.next_operand("="),
            _ => {
                self.operators += usize::from(!matches!(text, "," | ":"));
                self.iterating &= !self.open.is_empty() || matches!(text, "if" | "recursive");
                self.finish(beside(text));
                self.next_operand(text);
            }
        }
    }

    /// After `is`: a name, and perhaps an argument, with or without brackets.
    fn test(&mut self, is: Token) {
        if self.next_is("not") {
            self.at += 1;
        }
        let end = self.name().unwrap_or(is.end);
        let argument = match self.peek() {
            Some((_, "and" | "or" | "else" | "is")) => false,
            Some((next, text)) => next.kind != Kind::Sign || matches!(text, "-" | "+" | "[" | "{"),
            None => false,
        };
        if argument {
            // Its argument is an operand without filters: one here would filter the test's result.
            self.before = Beside::Other;
            self.operand = None;
            self.next_guarded = false;
        } else {
            self.operand = Some(Operand { end, before: Beside::Other, guarded: false });
        }
    }

    /// Moves past a name that may have dots; its end.
    fn name(&mut self) -> Option<usize> {
        let mut end = None;
        while let Some((token, text)) = self.peek() {
            match (token.kind, end) {
                (Kind::Name, _) => end = Some(token.end),
                (Kind::Sign, Some(_)) if text == "." => {}
                _ => break,
            }
            self.at += 1;
            if token.kind == Kind::Name && !self.next_is(".") {
                break;
            }
        }
        end
    }

    fn enter(&mut self, bracket: Bracket, guarded: bool) {
        self.open.push(Open { bracket, before: self.before, guarded });
        self.operand = None;
        self.before = Beside::Other;
        self.next_guarded = true;
        self.operators += 1;
    }

    fn leave(&mut self, token: Token) {
        // The lexer has checked that brackets match.
        let Some(Open { bracket, before, guarded }) = self.open.pop() else { return };
        self.before = before;
        self.next_guarded = true;
        self.operand = match bracket {
            Bracket::Parameters => None,
            _ => Some(Operand { end: token.end, before, guarded }),
        };
    }

    /// After `sign` another operand may begin.
    fn next_operand(&mut self, sign: &str) {
        self.operand = None;
        self.before = beside(sign);
        let parameters = self.open.last().is_some_and(|open| open.bracket == Bracket::Parameters);
        self.next_guarded = !(parameters && sign == ",");
    }

    /// The operand is complete: its filter is written.
    fn finish(&mut self, after: Beside) {
        let Some(Operand { end, before, guarded: true }) = self.operand.take() else { return };
        let iterated = self.iterating && self.open.is_empty();
        self.iterating &= !iterated;
        let store = self.storing && self.open.iter().all(|open| open.bracket == Bracket::Group);
        let filter = match (before, after) {
            (Beside::Factor, _) | (_, Beside::Factor) => FACTOR,
            (Beside::Tilde, _) | (_, Beside::Tilde) => TEXT,
            _ if store => STORED,
            _ if iterated => ITERATED,
            _ => ANY,
        };
        self.guard.copy_to(end);
        self.guard.out.push('|');
        self.guard.out.push_str(filter);
    }
}

/// A string literal with its escapes as minijinja reads them; `None` for a broken escape.
///
/// An unknown escape stands for itself, backslash included, as in Python. Newlines stay what they
/// are, plain or escaped, so that lines keep their numbers. `\\N{…}` is not known.
fn rewritten(literal: &str) -> Option<String> {
    let mut out = String::with_capacity(literal.len());
    let mut chars = literal.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let escape = chars.next()?;
        let mut code = 0;
        match escape {
            'x' | 'u' | 'U' => {
                for _ in 0..match escape {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                } {
                    code = code * 16 + chars.next()?.to_digit(16)?;
                }
            }
            '0'..='7' => {
                code = escape.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    chars.next();
                }
            }
            'a' => code = 0x07,
            'b' => code = 0x08,
            'f' => code = 0x0c,
            'v' => code = 0x0b,
            '\n' => continue,
            '\\' | '\'' | '"' | 'n' | 'r' | 't' => {
                out.extend(['\\', escape]);
                continue;
            }
            _ => {
                out.extend(['\\', '\\', escape]);
                continue;
            }
        }
        // Half of a surrogate pair is no character of its own.
        match char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER) {
            c @ ('\\' | '\'' | '"') => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    Some(out)
}
