//! `realm chat`: a conversation with a model.

mod commands;
mod conversation;
mod editor;
mod session;
mod settings;

use std::{io::Read, path::Path, path::PathBuf};

use clap::ValueHint;
use realm_runtime::{Model, RuntimeError, text::Llm};
use realm_tokenizer::chat::{self, Chat, ChatTemplate};
use serde_json::Map;

use crate::{
    args::{EngineArgs, ModelArgs},
    console,
    error::{CliError, Result},
    load,
    sampling::SamplingArgs,
};
use session::Session;

/// Most bytes of a chat template.
const MOST_TEMPLATE: u64 = 1 << 20;

const EXAMPLES: &str = "\
Examples:
      realm chat
      realm chat -m model.gguf --system \"Answer in one sentence.\"
      realm chat -m model.gguf --chat-template template.jinja
      printf 'What is a lake?\\nAnd a pond?\\n' | realm chat -m model.gguf > answers.txt

At a terminal lines can be edited as in a shell, Tab completes commands, and the arrow up brings back \
what was said before, in earlier chats too: it is kept in ~/.local/state/realm/chat_history (or below \
XDG_STATE_HOME), readable by you alone; lines that begin with a space are not. A line that ends with \\ \
goes on in the next one. A paste of several lines is one message where the terminal marks pastes; where \
it does not, they are messages, one after the other. /help lists the commands: to begin anew, to answer again, to save and load, to \
change settings. Ctrl-C ends an answer and keeps what was said; at the prompt it clears the line, and \
twice on an empty line, or Ctrl-D, leaves.

Where stdin is no terminal, each of its lines is a message or a command, the answers alone go to \
stdout, and the first error ends the chat with exit code 1.

When a conversation outgrows the context, its oldest turns are left out and the system text stays; a \
note says so. NO_COLOR=1 turns colours off.";

/// Options of `realm chat`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before the conversation: how to answer, who to be
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// A Jinja chat template in place of the model's own
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    chat_template: Option<PathBuf>,
    /// Most tokens of an answer [default: as many as the context leaves]
    #[arg(
        short,
        long = "tokens",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    n: Option<u32>,
    /// Neither read nor write the file of lines typed before
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Talks.
///
/// # Errors
/// A model without a chat template, or one that cannot be loaded. At a terminal nothing else ends a
/// chat; elsewhere every error does.
pub(crate) fn run(args: &ChatArgs) -> Result<()> {
    let model = args.model.open()?;
    args.sampling.check(&model)?;
    let template = template(args, &model)?;
    if leaves_out(&template) {
        console::note(
            "the chat template leaves the conversation out: the model will not see what you say; \
             --chat-template FILE gives another one",
        );
    }
    let tokenizer = model.tokenizer()?;
    let mut device = args.engine.device.open()?;
    let options = args.engine.options();
    let engine = load::engine(&model, &mut device, &options)?;
    let llm = Llm::new(&model, engine, Some(tokenizer), Some(template));
    Session::new(llm, &model, args)?.run()
}

/// The chat template: that of the command line, or the model's own.
fn template(args: &ChatArgs, model: &Model) -> Result<ChatTemplate> {
    let Some(path) = &args.chat_template else {
        let none =
            || RuntimeError::NoChatTemplate { path: model.file().path().display().to_string() };
        return Ok(model.chat_template()?.ok_or_else(none)?);
    };
    let source = read_template(path)?;
    model.chat_template_of(&source).map_err(|error| match error {
        RuntimeError::Tokenizer { source, .. } => {
            CliError::Tokenizer { path: path.clone(), source }
        }
        error => error.into(),
    })
}

/// Whether a template has no place for what the user says. One that fails tells that itself, at the
/// first message.
fn leaves_out(template: &ChatTemplate) -> bool {
    // A word that reads the same however a template quotes or trims it.
    const WORD: &str = "wibblewobble";
    let (messages, extra) = ([chat::message("user", WORD)], Map::new());
    let rendered = template.render(&Chat {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        extra: &extra,
        now: None,
    });
    rendered.is_ok_and(|text| !text.to_lowercase().contains(WORD))
}

fn read_template(path: &Path) -> Result<String> {
    let refused = |source| CliError::io(path, "read the chat template", source);
    let file = std::fs::File::open(path).map_err(refused)?;
    let mut bytes = Vec::new();
    file.take(MOST_TEMPLATE + 1).read_to_end(&mut bytes).map_err(refused)?;
    let wrong = |what: &str| {
        let path = path.display();
        CliError::Input(format!("{path}: {what}; a chat template is a Jinja text"))
    };
    if bytes.len() as u64 > MOST_TEMPLATE {
        return Err(wrong("is larger than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("is no UTF-8 text"))?;
    // Some editors begin a file with a byte order mark, which is no part of its text.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
}
