//! A generation from its first step to its last: what comes, how long it takes, how it ends.

use std::{
    fmt,
    time::{Duration, Instant},
};

use realm_runtime::{
    RuntimeError,
    text::{FinishReason, Piece, TextStream},
};

use crate::{
    console,
    error::{CliError, Result},
    interrupt::Generation,
    stats::Speed,
};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Finished(FinishReason),
    /// By Ctrl-C.
    Interrupted,
}

impl End {
    /// A word for programs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::End) => "end",
            Self::Finished(FinishReason::StopString) => "stop",
            Self::Finished(FinishReason::Length) => "length",
            Self::Finished(FinishReason::Context) => "context",
            Self::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished(FinishReason::End) => "ended by the model",
            Self::Finished(FinishReason::StopString) => "ended by a stop text",
            Self::Finished(FinishReason::Length) => "as many as asked for",
            Self::Finished(FinishReason::Context) => "the context is full",
            Self::Interrupted => "interrupted",
        })
    }
}

/// What a generation took.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// The prompt, up to the first token of the answer.
    pub(crate) prompt: Speed,
    /// Tokens of the prompt that the cache had from before.
    pub(crate) known: usize,
    /// The tokens that came.
    pub(crate) generated: Speed,
    /// Why there are no more.
    pub(crate) end: End,
}

/// Runs a generation to its end, or until Ctrl-C, and gives its pieces to `take`. A person who waits for
/// the first one sees how much of the prompt is taken in; `step_tokens` of it go into one step.
///
/// # Errors
/// The engine's, told by `of_model`, and those of `take`.
pub(crate) fn drive(
    mut stream: TextStream<'_>,
    step_tokens: usize,
    generation: &Generation,
    of_model: impl Fn(RuntimeError) -> CliError,
    mut take: impl FnMut(&Piece) -> Result<()>,
) -> Result<Figures> {
    let prompt = stream.prompt_tokens();
    let start = Instant::now();
    let mut piece = console::with_token_progress("reading the prompt", |bar| -> Result<_> {
        let mut done = 0;
        while !stream.is_done() && !generation.is_interrupted() {
            bar.set(done.min(prompt) as u64, prompt as u64);
            if let Some(piece) = stream.poll().map_err(&of_model)? {
                return Ok(Some(piece));
            }
            done += step_tokens;
        }
        Ok(None)
    })?;
    let first = start.elapsed();
    let (mut tokens, mut end) = (0, End::Interrupted);
    while let Some(mut found) = piece {
        tokens += 1;
        if let Some(finish) = found.finish {
            end = End::Finished(finish);
        } else if generation.is_interrupted() {
            found.text += &stream.stop();
        }
        take(&found)?;
        if stream.is_done() {
            break;
        }
        piece = stream.next().transpose().map_err(&of_model)?;
    }
    // The first token came of the prompt's last row.
    let rest = start.elapsed().saturating_sub(first);
    let timed = if tokens == 0 { 0 } else { prompt };
    Ok(Figures {
        prompt: Speed { tokens: prompt, timed, time: first },
        generated: Speed { tokens, timed: usize::saturating_sub(tokens, 1), time: rest },
        known: 0,
        end,
    })
}

impl Figures {
    /// Leaves those tokens of the prompt out of its speed that the cache had from before.
    pub(crate) fn set_known(&mut self, tokens: usize) {
        self.known = tokens;
        self.prompt.timed = self.prompt.timed.saturating_sub(tokens);
    }

    /// The prompt and what came of it, a line each.
    pub(crate) fn lines(&self) -> [String; 2] {
        let end = match self.end {
            // That is what was asked for.
            End::Finished(FinishReason::Length | FinishReason::Context) => String::new(),
            end => format!(", {end}"),
        };
        let known = match self.known {
            0 => String::new(),
            known => format!(", {known} of them known from before"),
        };
        [
            format!("prompt     {}{known}", self.prompt),
            format!("generated  {}{end}", self.generated),
        ]
    }
}

/// Tokens a second, where there is a time.
pub(crate) fn rate(speed: &Speed) -> Option<f64> {
    (speed.timed > 0 && speed.time > Duration::ZERO)
        .then(|| speed.timed as f64 / speed.time.as_secs_f64())
}
