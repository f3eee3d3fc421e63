//! The tokens of a template's tags, cut as minijinja cuts them.
//!
//! Only what the guarding pass (`guard.rs`) must know: where operands begin and end.

/// The most brackets that may be open at once in a tag.
const BRACKETS: usize = 40;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Text,
    Number,
    Sign,
}

/// A token: its kind and its bytes in the source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What is wrong with a template's source, and at which byte.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn new(at: usize, reason: impl Into<String>) -> Self {
        Self { at, reason: reason.into() }
    }
}

/// A stretch of the source between two stretches of plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    /// `{{ … }}`.
    Output,
    /// `{% … %}`.
    Statement,
}

/// Finds the next tag from `from` on, past comments and raw blocks: its kind and the byte after
/// its opening.
pub(super) fn next_tag(source: &str, from: usize) -> Result<Option<(Tag, usize)>, Fault> {
    let bytes = source.as_bytes();
    let mut from = from;
    while let Some(at) = source[from..].find('{').map(|at| from + at) {
        let marked = at + 2 + usize::from(matches!(bytes.get(at + 2), Some(b'-' | b'+')));
        from = match bytes.get(at + 1) {
            Some(b'{') => return Ok(Some((Tag::Output, marked))),
            Some(b'%') => match basic_tag(&source[marked..], "raw", false) {
                None => return Ok(Some((Tag::Statement, marked))),
                Some(len) => end_of_raw(source, marked + len)
                    .ok_or_else(|| Fault::new(at, "this raw block does not end"))?,
            },
            Some(b'#') => match source[marked..].find("#}") {
                Some(end) => marked + end + 2,
                None => return Err(Fault::new(at, "this comment does not end")),
            },
            _ => at + 1,
        };
    }
    Ok(None)
}

/// The length of ` name %}` at the start of `text`, without the tag's opening.
fn basic_tag(text: &str, name: &str, sign: bool) -> Option<usize> {
    let white = |c: char| c.is_ascii_whitespace();
    let rest = if sign { text.strip_prefix(['-', '+']).unwrap_or(text) } else { text };
    let rest = rest.trim_start_matches(white).strip_prefix(name)?.trim_start_matches(white);
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

fn end_of_raw(source: &str, from: usize) -> Option<usize> {
    let mut from = from;
    loop {
        from += source[from..].find("{%")? + 2;
        if let Some(len) = basic_tag(&source[from..], "endraw", true) {
            return Some(from + len);
        }
    }
}

/// The tokens of a tag that begins at `from`, and the byte after the tag.
pub(super) fn tokens(source: &str, tag: Tag, from: usize) -> Result<(Vec<Token>, usize), Fault> {
    let bytes = source.as_bytes();
    let close = if tag == Tag::Output { "}}" } else { "%}" };
    let mut tokens = Vec::new();
    let mut open: Vec<u8> = Vec::new();
    let mut at = from;
    while let Some(&byte) = bytes.get(at) {
        let rest = &source[at..];
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if open.is_empty() {
            let bare = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if bare.starts_with(close) {
                return Ok((tokens, source.len() - bare.len() + 2));
            }
        }
        let (kind, len) = token(rest, byte).map_err(|reason| Fault::new(at, reason))?;
        match byte {
            b'(' => open.push(b')'),
            b'[' => open.push(b']'),
            b'{' => open.push(b'}'),
            b')' | b']' | b'}' if open.pop() != Some(byte) => {
                let reason = format!("`{}` closes nothing that is open", char::from(byte));
                return Err(Fault::new(at, reason));
            }
            _ => {}
        }
        if open.len() > BRACKETS {
            return Err(Fault::new(at, format!("more than {BRACKETS} brackets are open")));
        }
        tokens.push(Token { kind, start: at, end: at + len });
        at += len;
    }
    Err(Fault::new(from, format!("this tag does not end in `{close}`")))
}

/// The kind and length of the token at the start of `rest`.
fn token(rest: &str, byte: u8) -> Result<(Kind, usize), &'static str> {
    let name = |c: char| c == '_' || c.is_alphanumeric() || !c.is_ascii();
    match byte {
        b'"' | b'\'' => {
            let mut escaped = false;
            for (index, &byte_in) in rest.as_bytes().iter().enumerate().skip(1) {
                match byte_in {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    _ if byte_in == byte => return Ok((Kind::Text, index + 1)),
                    _ => {}
                }
            }
            Err("this string does not end")
        }
        b'0'..=b'9' => Ok((Kind::Number, number(rest))),
        _ if rest.starts_with(name) => {
            Ok((Kind::Name, rest.find(|c| !name(c)).unwrap_or(rest.len())))
        }
        _ if ["//", "**", "==", "!=", ">=", "<="].iter().any(|sign| rest.starts_with(sign)) => {
            Ok((Kind::Sign, 2))
        }
        b'+' | b'-' | b'*' | b'/' | b'%' | b'.' | b',' | b':' | b'~' | b'|' | b'=' | b'>'
        | b'<' | b'(' | b')' | b'[' | b']' | b'{' | b'}' => Ok((Kind::Sign, 1)),
        _ => Err("this character has no meaning here"),
    }
}

/// The length of the number at the start of `rest`.
fn number(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let exponent =
            matches!(bytes[at.saturating_sub(1)], b'e' | b'E') && !rest.starts_with("0x");
        let goes_on = byte == b'_'
            || byte.is_ascii_alphanumeric()
            || (byte == b'.' && is_digit(at + 1))
            || (matches!(byte, b'-' | b'+') && exponent && is_digit(at + 1));
        if !goes_on {
            break;
        }
        at += 1;
    }
    at
}

/// A string literal with its escapes as minijinja reads them; `None` for a broken escape.
///
/// An unknown escape stands for itself, backslash included, as in Python. Newlines stay what they
/// are, plain or escaped, so that lines keep their numbers. `\\N{…}` is not known.
pub(super) fn rewritten(literal: &str) -> Option<String> {
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
