//! The environment that templates run in, its limits, and minijinja's errors as this crate's.
use std::error::Error as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::filters::{Raised, install};
use super::guard::guard;
use super::values::{BYTES_PER_FUEL, Meter};
use crate::TokenizerError;

/// The largest template, in bytes. The largest known ones have about 50,000.
const SOURCE: usize = 1 << 20;
/// The depth of macros, includes and loops; a macro takes five.
const RECURSION: usize = 250;
/// The fuel of an empty conversation: about as many steps, or 64 times as many bytes of text.
const FUEL: u64 = 1_000_000;
/// The fuel that a message or another value adds.
const FUEL_PER_VALUE: u64 = 2_000;
/// How often a text of the conversation may be read or copied.
const PASSES: u64 = 32;

const NAME: &str = "chat";

/// Compiles a template.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, TokenizerError> {
    if source.len() > SOURCE {
        return Err(TokenizerError::TemplateTooLarge { len: source.len(), limit: SOURCE });
    }
    // As Jinja does before all else.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let syntax = |line, reason| TokenizerError::TemplateSyntax { line, reason };
    let guarded = guard(&source)
        .map_err(|fault| syntax(1 + source[..fault.at].matches('\n').count(), fault.reason))?;
    let mut env = Environment::new();
    install(&mut env);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_recursion_limit(RECURSION);
    let config = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(config.map_err(|error| failed(&error))?);
    env.add_template_owned(NAME, guarded)
        .map_err(|error| syntax(error.line().unwrap_or(0), reason(&error)))?;
    Ok(env)
}

/// Runs a template with these variables. `values` are the parts of the conversation, `bytes` the
/// length of its texts.
pub(super) fn render(
    env: &Environment<'static>,
    variables: Value,
    values: u64,
    bytes: u64,
) -> Result<String, TokenizerError> {
    let fuel = FUEL + values * FUEL_PER_VALUE + bytes * PASSES / BYTES_PER_FUEL as u64;
    let mut env = env.clone();
    env.set_fuel(Some(fuel));
    let _meter = Meter::start(fuel);
    let text = env.get_template(NAME).and_then(|template| template.render(variables));
    let text = text.map_err(|error| failed(&error))?;
    if Meter::is_empty() {
        return Err(TokenizerError::TemplateLimit { line: 0, what: TOO_MUCH });
    }
    Ok(text)
}

const TOO_MUCH: &str = "did more work, or made more text, than conversations of this size need";

fn failed(error: &Error) -> TokenizerError {
    let line = error.line().unwrap_or(0);
    let mut below: Option<&(dyn std::error::Error + 'static)> = error.source();
    let mut kind = error.kind();
    while let Some(source) = below {
        if let Some(Raised(message)) = source.downcast_ref() {
            return TokenizerError::TemplateRaised { message: one_line(message) };
        }
        if let Some(source) = source.downcast_ref::<Error>() {
            kind = source.kind();
        }
        below = source.source();
    }
    if kind == ErrorKind::OutOfFuel {
        return TokenizerError::TemplateLimit { line, what: TOO_MUCH };
    }
    let reason = reason(error);
    if reason.contains("recursion limit") {
        return TokenizerError::TemplateLimit { line, what: "calls itself too deeply" };
    }
    TokenizerError::TemplateFailed { line, reason }
}

/// What minijinja says, without the line.
fn reason(error: &Error) -> String {
    let kind = error.kind();
    one_line(&match error.detail() {
        Some(detail) => format!("{kind}: {detail}"),
        None => kind.to_string(),
    })
}

/// A text on one line, cut after 300 characters.
fn one_line(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line = line.replace(char::is_control, "\u{fffd}");
    if let Some((cut, _)) = line.char_indices().nth(300) {
        line.truncate(cut);
        line.push('…');
    }
    line
}
