//! How far a bench is, on a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over all repetitions of all tests. It is drawn between them and has no thread of its own:
/// while a time is taken, nothing else runs.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Of so many repetitions, warm-ups included; nothing where nobody watches.
    pub(super) fn new(repetitions: u64) -> Self {
        let target = match io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:20} {pos} of {len}  {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::with_draw_target(Some(repetitions), target).with_style(style))
    }

    /// Says what comes next.
    pub(super) fn begin(&self, what: String) {
        self.0.set_message(what);
    }

    /// A repetition is done.
    pub(super) fn done(&self) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
