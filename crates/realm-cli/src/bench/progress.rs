//! How far a bench is, on a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over all repetitions of all tests, from the first second on. It is drawn between them and
/// has no thread of its own, unlike the bars of [`crate::console`]: while a time is taken, nothing
/// else runs.
pub(super) struct Progress {
    bar: ProgressBar,
    start: Instant,
}

impl Progress {
    /// Of so many repetitions, warm-ups included; nothing where nobody watches.
    pub(super) fn new(repetitions: u64) -> Self {
        let style = ProgressStyle::with_template("{bar:20} {pos} of {len}  {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let target = ProgressDrawTarget::hidden();
        let bar = ProgressBar::with_draw_target(Some(repetitions), target).with_style(style);
        Self { bar, start: Instant::now() }
    }

    /// Says what comes next.
    pub(super) fn begin(&self, what: String) {
        if self.bar.is_hidden() && self.start.elapsed() > Duration::from_secs(1) {
            // Stays hidden where stderr is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_message(what);
    }

    /// A repetition is done.
    pub(super) fn done(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
