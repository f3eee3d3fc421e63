//! Lines of a chat: edited at a terminal, read as they are from elsewhere.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rustyline::{
    Behavior, Cmd, ColorMode, ConditionalEventHandler, Config, Context, Editor, Event,
    EventContext, EventHandler, ExternalPrinter, Helper, KeyEvent, RepeatCount,
    completion::{Completer, FilenameCompleter, Pair},
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use crate::{
    console,
    error::{CliError, Result},
    interrupt,
};

use super::commands::COMMANDS;

/// Most bytes of a line that no terminal gives.
const MOST_LINE: u64 = 1 << 28;
/// Most lines that are remembered.
const MOST_HISTORY: usize = 1000;

/// What comes of asking for a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// One, or several that belong together.
    Text(String),
    /// Ctrl-C on a line with text: it is cleared.
    Cleared,
    /// Ctrl-C on an empty line.
    Interrupted,
    /// There are no more.
    End,
}

/// Where lines come from.
pub(super) enum Lines {
    /// A person at a terminal.
    Terminal(Box<Terminal>),
    /// A file or a pipe.
    Plain(Plain),
}

impl Lines {
    /// Lines from stdin. What is typed is remembered in a file where `remember` says so.
    ///
    /// # Errors
    /// A terminal that cannot be set up.
    pub(super) fn new(settings: Vec<String>, remember: bool) -> Result<Self> {
        if io::stdin().is_terminal() {
            Ok(Self::Terminal(Box::new(Terminal::new(settings, remember)?)))
        } else {
            Ok(Self::Plain(Plain { input: Box::new(io::stdin().lock()), number: 0 }))
        }
    }

    /// Whether a person sits there.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line.
    ///
    /// # Errors
    /// The system's refusal, and bytes that are no text.
    pub(super) fn next(&mut self) -> Result<Line> {
        match self {
            Self::Terminal(terminal) => terminal.next(),
            Self::Plain(plain) => plain.next(),
        }
    }
}

/// Lines that end with a backslash, joined with those after them.
fn joined(text: &str) -> String {
    text.replace("\\\r\n", "\n").replace("\\\n", "\n")
}

/// A terminal, with editing and history.
pub(super) struct Terminal {
    editor: Editor<Chat, FileHistory>,
    history: Option<PathBuf>,
    empty: Arc<AtomicBool>,
    /// Prints nothing: while there is one, the editor waits for signals too, whichever thread takes them,
    /// not for keys alone.
    _printer: Option<Box<dyn ExternalPrinter>>,
}

impl Terminal {
    fn new(settings: Vec<String>, remember: bool) -> Result<Self> {
        let colors =
            if console::colors(&io::stdout()) { ColorMode::Enabled } else { ColorMode::Disabled };
        // With the answers going elsewhere, lines are still edited at the terminal.
        let behavior =
            if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder()
            .max_history_size(MOST_HISTORY)
            .and_then(|config| config.history_ignore_dups(true))
            .map_err(refused)?
            .history_ignore_space(true)
            .color_mode(colors)
            .behavior(behavior)
            .build();
        let mut editor = Editor::with_config(config).map_err(refused)?;
        editor.set_helper(Some(Chat { files: FilenameCompleter::new(), settings }));
        let empty = Arc::new(AtomicBool::new(true));
        let watch = Watch(Arc::clone(&empty));
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(watch)));
        // Where there can be none, lines are not edited.
        let printer = editor.create_external_printer().ok();
        let printer = printer.map(|it| Box::new(it) as Box<dyn ExternalPrinter>);
        let history = history_file().filter(|_| remember);
        if let Some(path) = &history {
            make_private(path);
            // One that is missing or damaged is no reason not to begin.
            _ = editor.load_history(path);
        }
        Ok(Self { editor, history, empty, _printer: printer })
    }

    fn next(&mut self) -> Result<Line> {
        let prompt = ("> ", "\x1b[1;32m>\x1b[0m ");
        match interrupt::while_editing(|| self.editor.readline(&prompt)) {
            Ok(text) => {
                self.remember(&text);
                Ok(Line::Text(joined(&text)))
            }
            Err(ReadlineError::Interrupted) if self.empty.load(Relaxed) => Ok(Line::Interrupted),
            Err(ReadlineError::Interrupted) => Ok(Line::Cleared),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                let problem = "the terminal sent bytes that are no UTF-8 text; set it to UTF-8";
                Err(CliError::Input(problem.into()))
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// Adds a line to the history; that its file cannot be written is no reason to stop.
    fn remember(&mut self, text: &str) {
        if text.trim().is_empty() || !self.editor.add_history_entry(text).unwrap_or(false) {
            return;
        }
        if let Some(path) = &self.history {
            make_private_folder(path);
            _ = self.editor.append_history(path);
        }
    }
}

fn refused(error: ReadlineError) -> CliError {
    let source = match error {
        ReadlineError::Io(error) => error,
        error => io::Error::other(error),
    };
    CliError::io("terminal", "read a line", source)
}

/// Where lines are remembered: the state folder of the XDG Base Directory Specification 0.8, or the
/// local data folder of Windows.
fn history_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = if cfg!(windows) { folder("LOCALAPPDATA") } else { folder("XDG_STATE_HOME") };
    let state = state.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")))?;
    Some(state.join("realm").join("chat_history"))
}

/// Takes from others what rights they have in a file of old.
#[cfg(unix)]
fn make_private(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    // A device in its place is everybody's.
    let found = file.metadata().ok().filter(|found| found.is_file());
    if found.is_some_and(|found| found.permissions().mode() & 0o077 != 0) {
        _ = fs::set_permissions(file, fs::Permissions::from_mode(0o600));
    }
}

/// Below the local data folder others have no rights from the start.
#[cfg(not(unix))]
fn make_private(_: &Path) {}

/// Makes the folder of a file that is nobody else's business.
fn make_private_folder(file: &Path) {
    let Some(folder) = file.parent().filter(|folder| !folder.exists()) else { return };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    _ = builder.create(folder);
}

/// Notes whether the line was empty when Ctrl-C came, then lets it do what it does.
struct Watch(Arc<AtomicBool>);

impl ConditionalEventHandler for Watch {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext) -> Option<Cmd> {
        self.0.store(context.line().is_empty(), Relaxed);
        None
    }
}

/// What the editor needs to know of chats.
struct Chat {
    files: FilenameCompleter,
    /// What `/set` can change.
    settings: Vec<String>,
}

impl Helper for Chat {}

impl Hinter for Chat {
    type Hint = String;
}

impl Highlighter for Chat {}

impl Validator for Chat {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(if context.input().ends_with('\\') {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Completer for Chat {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..at];
        let Some((command, rest)) = typed.split_once(' ') else {
            let names = COMMANDS.iter().map(|about| about.name).filter(|_| typed.starts_with('/'));
            return Ok((0, beginning_with(typed, names)));
        };
        match command {
            "/save" | "/load" => self.files.complete(line, at, context),
            "/set" if !rest.contains(' ') => {
                let names = self.settings.iter().map(String::as_str);
                Ok((at - rest.len(), beginning_with(rest, names)))
            }
            _ => Ok((at, Vec::new())),
        }
    }
}

fn beginning_with<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Vec<Pair> {
    let pair = |name: &str| Pair { display: name.into(), replacement: format!("{name} ") };
    names.filter(|name| name.starts_with(typed)).map(pair).collect()
}

/// Lines from elsewhere.
pub(super) struct Plain {
    input: Box<dyn BufRead>,
    number: usize,
}

impl Plain {
    fn next(&mut self) -> Result<Line> {
        let mut text = String::new();
        loop {
            let mut bytes = Vec::new();
            let read = (&mut self.input).take(MOST_LINE).read_until(b'\n', &mut bytes);
            read.map_err(|source| CliError::io("stdin", "read the input", source))?;
            self.number += 1;
            if bytes.is_empty() {
                return Ok(if text.is_empty() { Line::End } else { Line::Text(joined(&text)) });
            }
            if (text.len() + bytes.len()) as u64 >= MOST_LINE {
                let most = MOST_LINE >> 20;
                let problem = format!("stdin: line {} has {most} MiB or more", self.number);
                return Err(CliError::Input(problem + "; a message is shorter"));
            }
            let line = String::from_utf8(bytes).map_err(|_| {
                CliError::Input(format!(
                    "stdin: line {} is no UTF-8 text; convert it first, for example with iconv",
                    self.number
                ))
            })?;
            text += &line;
            if !line.trim_end_matches(['\n', '\r']).ends_with('\\') {
                return Ok(Line::Text(joined(&text)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(input: &'static [u8]) -> Plain {
        Plain { input: Box::new(input), number: 0 }
    }

    fn text(text: &str) -> Line {
        Line::Text(text.into())
    }

    #[test]
    fn lines_that_end_with_a_backslash_go_on() {
        let mut lines = plain(b"a\nb\\\nc\\\r\nd\n\nlast");
        assert_eq!(lines.next().unwrap(), text("a\n"));
        assert_eq!(lines.next().unwrap(), text("b\nc\nd\n"));
        assert_eq!(lines.next().unwrap(), text("\n"));
        assert_eq!(lines.next().unwrap(), text("last"));
        assert_eq!(lines.next().unwrap(), Line::End);
        assert_eq!(lines.next().unwrap(), Line::End);
        assert_eq!(plain(b"a\\\n").next().unwrap(), text("a\n"));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_line() {
        let mut lines = plain(b"a\nb\xff\n");
        lines.next().unwrap();
        assert!(lines.next().unwrap_err().to_string().contains("line 2 is no UTF-8"));
    }

    #[test]
    fn tab_completes_commands_and_settings() {
        let chat = Chat { files: FilenameCompleter::new(), settings: vec!["top-k".into()] };
        let history = FileHistory::new();
        let complete = |line: &str| {
            let (at, pairs) = chat.complete(line, line.len(), &Context::new(&history)).unwrap();
            (at, pairs.into_iter().map(|pair| pair.replacement).collect::<Vec<_>>())
        };
        assert_eq!(complete("/he"), (0, vec!["/help ".to_owned()]));
        assert_eq!(complete("/set to"), (5, vec!["top-k ".to_owned()]));
        assert_eq!(complete("/"), (0, COMMANDS.iter().map(|c| format!("{} ", c.name)).collect()));
        for none in ["", "he", "hello /he", "/set top-k 4", "/undo x"] {
            assert!(complete(none).1.is_empty(), "{none}");
        }
    }
}
