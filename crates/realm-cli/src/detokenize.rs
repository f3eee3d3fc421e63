//! `realm detokenize`: token ids to text.

use realm_tokenizer::DecodeOptions;

use crate::{
    args::{ModelArgs, parse_ids},
    console::{self, Output},
    error::{CliError, Result},
};

const EXAMPLES: &str = "\
Examples:
      realm detokenize -m model.gguf 15043 3186
      realm tokenize -m model.gguf < text.txt | realm detokenize -m model.gguf

The text is written as it is, without a line end of its own. Files that hold a vocabulary and no \
tensors will do.";

/// Options of `realm detokenize`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DetokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids, with spaces or commas between; without any, they are read from stdin
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Write control tokens as their names, like <|eot_id|>
    #[arg(long)]
    special: bool,
}

/// Writes the ids' text.
pub(crate) fn run(args: &DetokenizeArgs) -> Result<()> {
    let file = args.model.file()?;
    let tokenizer = realm_runtime::tokenizer(&file)?;
    let (from, text) = if args.ids.is_empty() {
        ("stdin: ", console::read_stdin("token ids")?)
    } else {
        ("", args.ids.join(" "))
    };
    let ids = parse_ids(&text).map_err(|problem| CliError::Input(format!("{from}{problem}")))?;
    let how = DecodeOptions { special: args.special, continuation: false };
    let text = tokenizer.decode(&ids.0, how);
    let text = text.map_err(|source| CliError::Tokenizer { path: file.path().into(), source })?;
    let mut out = Output::new();
    out.text(&text)?;
    out.end_text()
}
