//! `realm tokenize`: text to token ids.

use std::fmt::Write;

use realm_tokenizer::{EncodeOptions, Tokenizer};
use serde_json::{Value, json};

use crate::{
    args::ModelArgs,
    console::{self, Output},
    error::{CliError, Result},
};

const EXAMPLES: &str = "\
Examples:
      echo -n \"Hello world\" | realm tokenize -m model.gguf
      printf 'one\\0two' | realm tokenize -m model.gguf -0

The text is taken as it is, with the line end that `echo` adds. Files that hold a vocabulary and no \
tensors will do.";

/// Options of `realm tokenize`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Add the tokens that the model wants around a text
    #[arg(long)]
    add_special: bool,
    /// Read markup like <|eot_id|> as the token of that name
    #[arg(long)]
    parse_special: bool,
    /// Texts on stdin end with a NUL character each (the last may do without); a line of ids for
    /// each
    #[arg(short = '0', long = "null")]
    null: bool,
    /// Print a JSON object instead: of each text the ids, and the token that each id stands for
    #[arg(long)]
    json: bool,
}

/// Writes the ids of stdin's text or texts.
pub(crate) fn run(args: &TokenizeArgs) -> Result<()> {
    let file = args.model.file()?;
    let tokenizer = realm_runtime::tokenizer(&file)?;
    let input = console::read_stdin("a text")?;
    let &TokenizeArgs { add_special, parse_special, .. } = args;
    let how = EncodeOptions { add_special, parse_special };
    let encode = |text| {
        let ids = tokenizer.encode(text, how);
        ids.map_err(|source| CliError::Tokenizer { path: file.path().into(), source })
    };
    let texts = texts(&input, args.null).into_iter().map(encode);
    // Written when all is done: a spinner and results that come meanwhile would mix on a terminal.
    let result = console::with_spinner("tokenizing".into(), || -> Result<String> {
        if args.json {
            let texts = texts.map(|ids| ids.map(|ids| object(&tokenizer, &ids)));
            return Ok(format!("{}\n", json!({ "texts": texts.collect::<Result<Vec<_>>>()? })));
        }
        let mut lines = String::new();
        for ids in texts {
            push_line(&mut lines, &ids?);
        }
        Ok(lines)
    })?;
    let mut out = Output::new();
    out.text(&result)?;
    out.flush()
}

/// Adds a line with a text's ids.
fn push_line(lines: &mut String, ids: &[u32]) {
    for (at, id) in ids.iter().enumerate() {
        let space = if at == 0 { "" } else { " " };
        _ = write!(lines, "{space}{id}");
    }
    lines.push('\n');
}

/// A text's tokens. What a token stands for alone need not be a text: bytes that are no UTF-8 become
/// U+FFFD.
fn object(tokenizer: &Tokenizer, ids: &[u32]) -> Value {
    let token = |&id: &u32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    json!({ "ids": ids, "tokens": ids.iter().map(token).collect::<Vec<_>>() })
}

/// The texts of an input: one, or where NULs end them, as many as there are.
fn texts(input: &str, null: bool) -> Vec<&str> {
    match input {
        _ if !null => vec![input],
        "" => vec![],
        _ => input.strip_suffix('\0').unwrap_or(input).split('\0').collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_ends_a_text() {
        assert_eq!(texts("a\0b", true), ["a", "b"]);
        assert_eq!(texts("a\0b\0", true), ["a", "b"]);
        assert_eq!(texts("a\0\0", true), ["a", ""]);
        assert_eq!(texts("\0", true), [""]);
        assert!(texts("", true).is_empty());
        assert_eq!(texts("a\0b", false), ["a\0b"]);
        assert_eq!(texts("", false), [""]);
    }
}
