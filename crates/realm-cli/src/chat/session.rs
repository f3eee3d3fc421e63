//! A chat under way: lines in, answers out.

use std::{
    io::{self, Write},
    path::Path,
};

use realm_runtime::{
    Model, RuntimeError,
    text::{FinishReason, GenerateOptions, Llm},
};
use realm_tokenizer::TokenizerError;

use crate::{
    console::{self, Output},
    error::{CliError, Result},
    generate::{self, End, Figures},
    interrupt::Generation,
    output,
    sampling::is_random,
    stats,
};

use super::{
    ChatArgs,
    commands::{self, Command, Input},
    conversation::Conversation,
    editor::{Line, Lines},
    settings::Settings,
};

/// A chat.
pub(super) struct Session<'a> {
    llm: Llm,
    model: &'a Path,
    /// The template's file, where it is not the model's own.
    template: Option<&'a Path>,
    step_tokens: usize,
    lines: Lines,
    talk: Conversation,
    settings: Settings,
    /// How often the last message was answered before.
    again: u64,
    /// Whether it was said that turns are left out.
    said_shortened: bool,
    last: Option<Last>,
    /// Whether what is said beside the answers is to be dim.
    dim: bool,
}

/// The last answer.
struct Last {
    figures: Figures,
    seed: Option<u64>,
}

/// What comes after a line.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Line,
    Leave,
}

impl<'a> Session<'a> {
    /// A chat with `llm`, which is `model`.
    ///
    /// # Errors
    /// A terminal that cannot be set up.
    pub(super) fn new(llm: Llm, model: &'a Model, args: &'a ChatArgs) -> Result<Self> {
        Ok(Self {
            llm,
            model: model.file().path(),
            template: args.chat_template.as_deref(),
            step_tokens: args.engine.options().step_tokens,
            lines: Lines::new(Settings::names(), !args.no_history)?,
            talk: Conversation::new(args.system.as_deref()),
            settings: Settings::new(
                args.sampling.clone(),
                args.n.map(|tokens| tokens as usize),
                model.vocabulary(),
            ),
            again: 0,
            said_shortened: false,
            last: None,
            dim: console::colors(&io::stderr()),
        })
    }

    /// Talks until the user leaves.
    ///
    /// # Errors
    /// At a terminal that of stdout or the terminal, elsewhere the first of any kind.
    pub(super) fn run(mut self) -> Result<()> {
        if !self.lines.is_terminal() {
            while let Line::Text(line) = self.lines.next()? {
                if self.line(&line, &Generation::begin())? == Next::Leave {
                    break;
                }
            }
            return Ok(());
        }
        // Held throughout: a Ctrl-C that comes when an answer has just ended must not end the chat.
        let generation = Generation::begin();
        self.welcome();
        let mut leaving = false;
        loop {
            let line = match self.lines.next() {
                Err(error @ CliError::Input(_)) => {
                    console::error(error);
                    continue;
                }
                line => line?,
            };
            let left = std::mem::replace(&mut leaving, line == Line::Interrupted);
            match line {
                Line::End => return Ok(()),
                Line::Interrupted if left => return Ok(()),
                Line::Interrupted => self.tell("Ctrl-C again, or Ctrl-D, leaves"),
                Line::Cleared => {}
                Line::Text(line) => {
                    generation.reset();
                    match self.line(&line, &generation) {
                        Ok(Next::Line) => {}
                        Ok(Next::Leave) => return Ok(()),
                        Err(error @ CliError::Closed) => return Err(error),
                        Err(error) => {
                            console::error(error);
                            console::say("");
                        }
                    }
                }
            }
        }
    }

    fn welcome(&self) {
        let name = self.model.file_name().unwrap_or(self.model.as_os_str()).to_string_lossy();
        let engine = self.llm.engine();
        self.tell(format_args!(
            "Chat with {} on {}, {} tokens of context",
            console::one_line(&name),
            engine.backend().info().name,
            engine.context()
        ));
        self.tell("/help lists the commands, Ctrl-D leaves");
        console::say("");
    }

    /// Says something beside the answers.
    fn tell(&self, text: impl std::fmt::Display) {
        match self.lines.is_terminal() {
            true if self.dim => console::say(format_args!("\x1b[2m{text}\x1b[0m")),
            true => console::say(text),
            false => console::note(text),
        }
    }

    /// Says what a command did.
    fn done(&self, text: impl std::fmt::Display) {
        self.tell(text);
        if self.lines.is_terminal() {
            console::say("");
        }
    }

    /// Does what a line asks for.
    fn line(&mut self, line: &str, generation: &Generation) -> Result<Next> {
        match commands::parse(line)? {
            Input::Nothing => {}
            Input::Message(text) => {
                self.again = 0;
                let before = self.talk.clone();
                self.answer(&text, before, generation)?;
            }
            Input::Command(Command::Exit) => return Ok(Next::Leave),
            Input::Command(command) => self.command(command, generation)?,
        }
        Ok(Next::Line)
    }

    fn command(&mut self, command: Command, generation: &Generation) -> Result<()> {
        match command {
            Command::Help => self.show(commands::help()),
            Command::Exit => {}
            Command::Clear => {
                self.talk.clear();
                self.again = 0;
                self.said_shortened = false;
                self.done("a new conversation");
            }
            Command::System(None) => match self.talk.system() {
                Some(text) => self.show(console::harmless(text)),
                None => self.done("there is no system text; /system TEXT sets one"),
            },
            Command::System(Some(text)) => {
                let text = Some(text.as_str()).filter(|text| *text != "none");
                self.talk.set_system(text);
                let is = if text.is_some() { "set" } else { "removed" };
                self.done(format_args!("the system text is {is}"));
            }
            Command::Regenerate => {
                let before = self.talk.clone();
                let text = self.talk.undo().ok_or_else(nothing_said)?;
                self.again += 1;
                self.answer(&text, before, generation)?;
            }
            Command::Undo => {
                let text = self.talk.undo().ok_or_else(nothing_said)?;
                self.again = 0;
                self.done(format_args!("taken back: {}", shortened(&text)));
            }
            Command::Save(path) => self.save(&path)?,
            Command::Load(path) => {
                self.talk = Conversation::read(&path)?;
                self.again = 0;
                self.said_shortened = false;
                self.done(format_args!("{} from {}", self.turns(), path.display()));
            }
            Command::Set(None) => self.show(self.settings.list()),
            Command::Set(Some((name, value))) if value.is_empty() => {
                self.show(self.settings.get(&name)?);
            }
            Command::Set(Some((name, value))) => {
                self.settings.set(&name, &value)?;
                self.done(self.settings.get(&name)?);
            }
            Command::Stats => self.show(self.stats()),
        }
        Ok(())
    }

    /// Shows what a command asked for.
    fn show(&self, text: impl std::fmt::Display) {
        console::say(text);
        if self.lines.is_terminal() {
            console::say("");
        }
    }

    /// Answers `text` at the end of the conversation. Where no answer comes, all is as it was `before`.
    fn answer(&mut self, text: &str, before: Conversation, generation: &Generation) -> Result<()> {
        self.talk.ask(text);
        let answer = self.generate(generation);
        match &answer {
            Ok(text) if !text.is_empty() => self.talk.answer(text),
            _ => self.talk = before,
        }
        self.say_end(&answer?)
    }

    /// Says why an answer ended, where that is not the model's doing.
    fn say_end(&self, text: &str) -> Result<()> {
        let end = self.last.as_ref().map(|last| last.figures.end);
        let (terminal, context) = (self.lines.is_terminal(), self.llm.engine().context());
        match end {
            Some(End::Interrupted) if !terminal => return Err(CliError::Interrupted),
            _ if text.is_empty() => {
                self.tell("the model said nothing; so all is as before");
            }
            Some(End::Interrupted) => self.tell("(interrupted)"),
            Some(End::Finished(FinishReason::Length)) => {
                self.tell("(as long as an answer may be; /set tokens changes that)");
            }
            Some(End::Finished(FinishReason::Context)) => self.tell(format_args!(
                "(the context of {context} tokens is full; --ctx makes it larger)"
            )),
            _ => {}
        }
        if terminal {
            console::say("");
        }
        Ok(())
    }

    /// Writes an answer as it comes, and gives its text.
    fn generate(&mut self, generation: &Generation) -> Result<String> {
        let of_model = of_model(self.model, self.template);
        let context = self.llm.engine().context();
        // What an answer should have at least.
        let reserve = self.settings.tokens.unwrap_or(usize::MAX).min(context / 4);
        let encode = || self.talk.prompt(&self.llm, reserve);
        let prompt = console::with_spinner("tokenizing the prompt".into(), encode);
        let prompt = prompt.map_err(&of_model)?;
        if prompt.shortened && !self.said_shortened {
            self.said_shortened = true;
            self.tell(format_args!(
                "the conversation outgrew the context of {context} tokens: its oldest turns are left \
                 out from now on"
            ));
        }
        let sampling = self.settings.sampling.params(self.again);
        let seed = is_random(&sampling).then_some(sampling.seed);
        let options = GenerateOptions {
            max_tokens: self.settings.tokens,
            sampling,
            stop: self.settings.sampling.stop.clone(),
            ..GenerateOptions::default()
        };
        let known = self.llm.engine().stats().cached_prompt_tokens;
        let stream = self.llm.generate_ids(prompt.ids, &options).map_err(&of_model)?;
        let (mut out, mut text) = (Output::new(), String::new());
        let mut figures =
            generate::drive(stream, self.step_tokens, generation, of_model, |piece| {
                // White space before the first word is none of the answer.
                let new = if text.is_empty() { piece.text.trim_start() } else { &piece.text };
                text += new;
                out.foreign_text(new)?;
                out.flush()
            })?;
        if !text.is_empty() {
            out.end_line()?;
        }
        self.llm.engine_mut().take_notes().iter().for_each(console::note);
        let known = self.llm.engine().stats().cached_prompt_tokens - known;
        figures.set_known(known as usize);
        self.last = Some(Last { figures, seed });
        Ok(text.trim_end().to_owned())
    }

    fn save(&self, path: &Path) -> Result<()> {
        let mut file = output::create(path, [self.model])?;
        let write = file.write_all(self.talk.to_json().as_bytes());
        write.map_err(|source| CliError::io(path, "write the file", source))?;
        file.finish()?;
        self.done(format_args!("{} in {}", self.turns(), path.display()));
        Ok(())
    }

    /// How long the conversation is.
    fn turns(&self) -> String {
        match self.talk.turns() {
            1 => "1 turn".into(),
            turns => format!("{turns} turns"),
        }
    }

    fn stats(&self) -> String {
        let engine = self.llm.engine();
        let mut lines = Vec::new();
        if let Some(Last { figures, seed }) = &self.last {
            lines.extend(figures.lines());
            let used = figures.prompt.tokens + figures.generated.tokens;
            lines.push(format!("context    {used} of {} tokens are used", engine.context()));
            lines.extend(seed.map(|seed| format!("seed       {seed}")));
        }
        lines.push(format!("turns      {}", self.talk.turns()));
        lines.push(format!("model      {}", console::one_line(&self.model.to_string_lossy())));
        let info = engine.backend().info();
        lines.push(format!("device     {}: {}", info.name, info.description));
        let memory = engine.memory();
        let kv_type = memory.kv.kv_type;
        lines.push(format!("precision  {}, KV cache {kv_type}", engine.precision()));
        lines.extend(stats::memory(memory));
        lines.join("\n")
    }
}

/// The engine's failure, told of the model's file or of the template's.
fn of_model<'a>(
    model: &'a Path,
    template: Option<&'a Path>,
) -> impl Fn(RuntimeError) -> CliError + 'a {
    move |error| match (error, template) {
        (
            RuntimeError::Tokenizer {
                source:
                    source @ (TokenizerError::TemplateFailed { .. }
                    | TokenizerError::TemplateRaised { .. }
                    | TokenizerError::TemplateLimit { .. }),
                ..
            },
            Some(path),
        ) => CliError::Tokenizer { path: path.into(), source },
        (error, _) => CliError::engine(model)(error),
    }
}

fn nothing_said() -> CliError {
    CliError::Input("nothing was said yet".into())
}

/// A text in a line.
fn shortened(text: &str) -> String {
    let start: String = text.chars().take(60).collect();
    let rest = if start.len() < text.len() { "…" } else { "" };
    console::one_line(&start) + rest
}
