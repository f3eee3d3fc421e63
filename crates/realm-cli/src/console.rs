//! The terminal: notes and errors on stderr, results on stdout, text from stdin.

use std::{
    borrow::Cow,
    fmt::Display,
    io::{self, BufWriter, IsTerminal, Read, StdoutLock, Write},
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{CliError, Result};

/// Most bytes that are read from stdin: a tokenizer's work memory is several times its text.
const MOST_INPUT: u64 = 1 << 26;

/// A line for the user. That stderr may be closed is no reason to stop.
pub(crate) fn say(line: impl Display) {
    _ = writeln!(io::stderr(), "{line}");
}

/// Something the user should know about what was chosen.
pub(crate) fn note(line: impl Display) {
    say(format_args!("note: {}", one_line(&line.to_string())));
}

/// Why the command ends.
pub(crate) fn error(line: impl Display) {
    say(format_args!("error: {}", one_line(&line.to_string())));
}

/// Whether what goes to `stream` may have colours: a terminal that knows them, and no NO_COLOR
/// (<https://no-color.org>).
pub(crate) fn colors(stream: &impl IsTerminal) -> bool {
    let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && unset("NO_COLOR") && !dumb
}

/// A text with its control characters escaped, line ends and tabs aside.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(harmful) {
        return text.into();
    }
    let show = |c: char| if harmful(c) { c.escape_debug().to_string() } else { c.into() };
    text.chars().map(show).collect::<String>().into()
}

/// A text with its control characters escaped: names from files cannot break lines or move the
/// cursor.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_debug());
        } else {
            line.push(c);
        }
    }
    line
}

/// Stdout, for the results of a command. What is written shows when it is flushed.
pub(crate) struct Output {
    out: BufWriter<StdoutLock<'static>>,
    /// On a terminal, whose next line should start at its left edge.
    terminal: bool,
    mid_line: bool,
}

impl Output {
    /// Takes hold of stdout.
    pub(crate) fn new() -> Self {
        let out = io::stdout().lock();
        Self { terminal: out.is_terminal(), out: BufWriter::new(out), mid_line: false }
    }

    /// Writes text as it is.
    ///
    /// # Errors
    /// [`CliError::Closed`] where nobody reads any more, or the system's refusal.
    pub(crate) fn text(&mut self, text: &str) -> Result<()> {
        if let Some(last) = text.bytes().last() {
            self.mid_line = last != b'\n';
        }
        self.out.write_all(text.as_bytes()).map_err(CliError::stdout)
    }

    /// Writes what a model or a file says: on a terminal its control characters are escaped, so that it
    /// cannot move the cursor or change colours.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn foreign_text(&mut self, text: &str) -> Result<()> {
        if self.terminal { self.text(&harmless(text)) } else { self.text(text) }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn line(&mut self, line: impl Display) -> Result<()> {
        self.mid_line = false;
        writeln!(self.out, "{line}").map_err(CliError::stdout)
    }

    /// Makes everything so far visible.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(CliError::stdout)
    }

    /// Ends a line that text may have begun, and makes everything visible.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn end_line(&mut self) -> Result<()> {
        if self.mid_line {
            self.text("\n")?;
        }
        self.flush()
    }

    /// Ends text that may have stopped anywhere: a terminal gets the end of the line, a file or
    /// pipe nothing that is not text.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub(crate) fn end_text(&mut self) -> Result<()> {
        if self.terminal && self.mid_line {
            self.text("\n")?;
        }
        self.flush()
    }
}

/// All of stdin as text; `what` is asked for where a person sits at it.
///
/// # Errors
/// The system's refusal, bytes that are no UTF-8, more than 64 MiB.
pub(crate) fn read_stdin(what: &str) -> Result<String> {
    let stdin = io::stdin().lock();
    if stdin.is_terminal() {
        note(format_args!("type {what}; Ctrl-D on an empty line ends it"));
    }
    read_text(stdin, MOST_INPUT)
}

/// All of stdin, at most `most` bytes.
fn read_text(stdin: impl Read, most: u64) -> Result<String> {
    let mut bytes = Vec::new();
    let read = stdin.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|source| CliError::io("stdin", "read the input", source))?;
    if bytes.len() as u64 > most {
        let most = most >> 20;
        let problem = format!("stdin: more than {most} MiB of text; split it into parts");
        return Err(CliError::Input(problem));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::Input(format!(
            "stdin: byte {at} is no UTF-8 text; convert it first, for example with iconv"
        ))
    })
}

/// Does `work`; where that takes over a second and a person watches, shows that it goes on.
pub(crate) fn with_spinner<T>(message: String, work: impl FnOnce() -> T) -> T {
    with_bar(message, "{spinner} {msg}", |_| work())
}

/// How far some work is, for its progress bar.
pub(crate) struct Bar {
    done: AtomicU64,
    total: AtomicU64,
}

impl Bar {
    /// `done` of `total` bytes or tokens.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.total.store(total, Relaxed);
        self.done.store(done, Relaxed);
    }

    /// So many more are done.
    pub(crate) fn advance(&self, more: u64) {
        self.done.fetch_add(more, Relaxed);
    }
}

/// Does `work`; where that takes over a second and a person watches, shows how many bytes are done.
pub(crate) fn with_progress<T>(message: String, work: impl FnOnce(&Bar) -> T) -> T {
    with_bar(message, "{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta}", work)
}

/// Does `work`; where that takes over a second and a person watches, shows how many tokens are done.
pub(crate) fn with_token_progress<T>(message: &str, work: impl FnOnce(&Bar) -> T) -> T {
    with_bar(message.into(), "{msg} {bar:30} {pos} of {len} tokens", work)
}

fn with_bar<T>(message: String, template: &str, work: impl FnOnce(&Bar) -> T) -> T {
    let state = Bar { done: AtomicU64::new(0), total: AtomicU64::new(0) };
    if !io::stderr().is_terminal() {
        return work(&state);
    }
    let (done, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let wait = wait;
            if wait.recv_timeout(Duration::from_secs(1)) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(0).with_style(style).with_message(message);
            // Until the sender is gone.
            while wait.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                bar.set_length(state.total.load(Relaxed));
                bar.set_position(state.done.load(Relaxed));
                bar.tick();
            }
            bar.finish_and_clear();
        });
        let result = work(&state);
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_input_is_refused() {
        let error = read_text(io::repeat(b'a'), 1 << 20).unwrap_err().to_string();
        assert_eq!(error, "stdin: more than 1 MiB of text; split it into parts");
        assert_eq!(read_text(io::repeat(b'a').take(1 << 20), 1 << 20).unwrap().len(), 1 << 20);
    }

    #[test]
    fn what_a_model_says_cannot_move_the_cursor() {
        assert_eq!(harmless("a\tb\n\u{1f980}"), "a\tb\n\u{1f980}");
        assert_eq!(harmless("a\x1b[2J\rb"), "a\\u{1b}[2J\\rb");
    }

    #[test]
    fn control_characters_cannot_break_a_line() {
        assert_eq!(one_line("a\nb\x1b[2Jé"), "a\\nb\\u{1b}[2Jé");
    }
}
