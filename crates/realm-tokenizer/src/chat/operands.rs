//! The part of the guarding pass (`guard.rs`) that walks over one tag and writes the filters of its
//! operands.
use super::guard::Guard;
use super::lexer::{Fault, Kind, Token, rewritten};

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
/// The filter for a bound or the step of a slice.
pub(super) const BOUND: &str = "__bound";

/// The most operators, filters, tests, lookups and calls in one tag.
const OPERATORS: usize = 300;

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
    /// `[…:…]` after an operand.
    Slice,
    /// All others.
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    bracket: Bracket,
    before: Beside,
    guarded: bool,
    /// Whether a bracket around a slice's bound is open.
    in_bound: bool,
}

/// The walk over the tokens of one tag.
pub(super) struct Walk<'g, 's, 't> {
    pub(super) guard: &'g mut Guard<'s>,
    pub(super) tokens: &'t [Token],
    pub(super) at: usize,
    open: Vec<Open>,
    operand: Option<Operand>,
    before: Beside,
    /// Whether operands outside of brackets take a filter.
    pub(super) outer_guarded: bool,
    /// Whether the next operand takes a filter.
    next_guarded: bool,
    /// Whether the values go into a namespace.
    pub(super) storing: bool,
    /// Whether the next operand may be all that a `for` goes over.
    pub(super) iterating: bool,
    operators: usize,
}

impl<'g, 's, 't> Walk<'g, 's, 't> {
    pub(super) fn new(guard: &'g mut Guard<'s>, tokens: &'t [Token]) -> Self {
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

    pub(super) fn text(&self, token: Token) -> &'s str {
        &self.guard.source[token.start..token.end]
    }

    /// The token at the cursor and its text; an empty text for strings, so that no string is taken
    /// for a name.
    pub(super) fn peek(&self) -> Option<(Token, &'s str)> {
        let token = *self.tokens.get(self.at)?;
        Some((token, if token.kind == Kind::Text { "" } else { self.text(token) }))
    }

    fn next_is(&self, sign: &str) -> bool {
        self.peek().is_some_and(|(_, text)| text == sign)
    }

    /// Moves past names, dots and brackets to the next of `signs`, or to the end.
    pub(super) fn skip_to(&mut self, signs: &[&str]) -> Result<Option<&'s str>, Fault> {
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

    pub(super) fn parameters(&mut self) {
        if self.next_is("(") {
            self.at += 1;
            let (bracket, before) = (Bracket::Parameters, Beside::Other);
            self.open.push(Open { bracket, before, guarded: false, in_bound: false });
            self.next_guarded = false;
        }
    }

    /// After `token` follow filters of a block, which have no operand.
    pub(super) fn begin_filters(&mut self, token: Token) {
        let (end, before) = (token.end, Beside::Other);
        self.operand = Some(Operand { end, before, guarded: false });
    }

    pub(super) fn expression(&mut self) -> Result<(), Fault> {
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
            ":" => self.next_bound(token),
            "not" | "-" | "+" => self.operators += 1,
            "if" | "else" | "and" | "or" | "in" | "is" => {}
            "," => self.next_operand(","),
            _ if token.kind == Kind::Sign => {}
            _ => {
                // Literals need no filter but where they have no items, or are strings with some.
                let plain = !(self.iterating && outer)
                    && (token.kind != Kind::Name
                        || matches!(text, "true" | "True" | "false" | "False" | "none" | "None"));
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
                if text == "[" && self.is_slice() {
                    self.enter(Bracket::Slice, guarded);
                    self.begin_bound(token);
                } else {
                    self.enter(Bracket::Other, guarded);
                }
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
                if text == ":" {
                    self.next_bound(token);
                }
            }
        }
    }

    /// Whether the bracket before the cursor holds a `:` of its own.
    fn is_slice(&self) -> bool {
        let mut depth = 0;
        for &token in &self.tokens[self.at..] {
            match if token.kind == Kind::Sign { self.text(token) } else { "" } {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" if depth == 0 => return false,
                ")" | "]" | "}" => depth -= 1,
                ":" if depth == 0 => return true,
                _ => {}
            }
        }
        false
    }

    /// Opens a bracket around the bound of a slice that begins after `token`, if there is one.
    fn begin_bound(&mut self, token: Token) {
        let bound = !self.next_is(":") && !self.next_is("]");
        if bound {
            self.guard.copy_to(token.end);
            self.guard.out.push('(');
        }
        if let Some(open) = self.open.last_mut() {
            open.in_bound = bound;
        }
    }

    /// Closes that bracket before `token`.
    fn end_bound(&mut self, token: Token) {
        if self.open.last().is_some_and(|open| open.in_bound) {
            self.guard.copy_to(token.start);
            self.guard.out.push_str(")|");
            self.guard.out.push_str(BOUND);
        }
    }

    fn next_bound(&mut self, colon: Token) {
        if self.open.last().is_some_and(|open| open.bracket == Bracket::Slice) {
            self.end_bound(colon);
            self.begin_bound(colon);
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
        self.open.push(Open { bracket, before: self.before, guarded, in_bound: false });
        self.operand = None;
        self.before = Beside::Other;
        self.next_guarded = true;
        self.operators += 1;
    }

    fn leave(&mut self, token: Token) {
        self.end_bound(token);
        // The lexer has checked that brackets match.
        let Some(Open { bracket, before, guarded, .. }) = self.open.pop() else { return };
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
