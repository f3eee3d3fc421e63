//! Ctrl-C and the signals that end a process: the one place that handles them.
//!
//! Ctrl-C ends the process at once, with the code that shells give that signal, unless a generation is
//! under way: then the first one is left to [`Generation`], and the second one ends the process. Before
//! the process ends, the temporary files of [`output`](crate::output) are removed, and a terminal on
//! which a line is edited gets back its settings.

use std::sync::{
    Once,
    atomic::{AtomicBool, Ordering::SeqCst},
};

/// Exit code of a process that Ctrl-C ended: 128 and the signal's number, as shells have it.
pub(crate) const EXIT_CODE: u8 = 130;

/// Whether the next Ctrl-C ends the process.
static ENDS: AtomicBool = AtomicBool::new(true);
/// Whether Ctrl-C came since the generation began.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A generation that Ctrl-C ends cleanly while this lives.
pub(crate) struct Generation(());

impl Generation {
    /// Begins one.
    pub(crate) fn begin() -> Self {
        handle();
        let new = Self(());
        new.reset();
        new
    }

    /// Forgets a Ctrl-C that came before.
    pub(crate) fn reset(&self) {
        INTERRUPTED.store(false, SeqCst);
        ENDS.store(false, SeqCst);
    }

    /// Whether the user wants it to end.
    pub(crate) fn is_interrupted(&self) -> bool {
        INTERRUPTED.load(SeqCst)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        ENDS.store(true, SeqCst);
    }
}

/// Does `edit`, which edits a line at the terminal and takes Ctrl-C itself; a signal that ends the process
/// meanwhile does so when `edit` has given the terminal back.
pub(crate) fn while_editing<T>(edit: impl FnOnce() -> T) -> T {
    system::while_editing(edit)
}

/// Starts to handle signals. Where the system refuses, a signal ends the process as it always does:
/// files may stay behind, which is no reason not to begin.
pub(crate) fn handle() {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(system::handle);
}

#[cfg(unix)]
mod system {
    use std::{
        sync::atomic::{AtomicBool, AtomicI32},
        time::Duration,
    };

    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
        low_level,
    };

    use super::{ENDS, INTERRUPTED, SeqCst};
    use crate::output;

    /// Whether a line is edited, with the terminal in a mode of its own.
    static EDITING: AtomicBool = AtomicBool::new(false);
    /// The signal that is to end the process when the line is given up; 0: none.
    static ENDING: AtomicI32 = AtomicI32::new(0);

    pub(super) fn while_editing<T>(edit: impl FnOnce() -> T) -> T {
        EDITING.store(true, SeqCst);
        let edited = edit();
        EDITING.store(false, SeqCst);
        match ENDING.load(SeqCst) {
            0 => edited,
            signal => output::exit(128 + signal),
        }
    }

    /// Makes the editor give up its line, where there is one: it takes Ctrl-C as a reason. `false` where
    /// nothing is edited, or where the editor was told and a signal came nevertheless.
    fn give_up_line(signal: i32) -> bool {
        let told = EDITING.load(SeqCst)
            && !is_in_background()
            && ENDING.swap(signal, SeqCst) == 0
            && low_level::raise(SIGINT).is_ok();
        if told {
            // It may wait for a key elsewhere than in the line.
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(1));
                output::exit(128 + signal);
            });
        }
        told
    }

    /// Whether the terminal is another job's, as after Ctrl-Z, so far as the system tells: then there is
    /// nothing to give back, and trying would stop the process.
    fn is_in_background() -> bool {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // proc_pid_stat(5): after the name in parentheses come state, parent, group, session, terminal
        // and the terminal's group.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        matches!(fields[..], [_, _, group, _, _, of_terminal, ..] if group != of_terminal)
    }

    /// Takes note of Ctrl-C; `false` where it is to end the process.
    pub(super) fn note_interrupt() -> bool {
        INTERRUPTED.store(true, SeqCst);
        !ENDS.swap(true, SeqCst)
    }

    pub(super) fn handle() {
        // A hangup that is ignored, as `nohup` arranges, is to be survived.
        let hangup = (!hangups_are_ignored()).then_some(SIGHUP);
        let signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup));
        let Ok(mut signals) = signals else { return };
        std::thread::spawn(move || {
            for signal in signals.forever() {
                let ending = ENDING.load(SeqCst);
                let goes_on = match signal {
                    // The editor was not there any more.
                    _ if ending != 0 => false,
                    SIGINT => note_interrupt(),
                    signal => give_up_line(signal),
                };
                if !goes_on {
                    output::exit(128 + if ending == 0 { signal } else { ending });
                }
            }
        });
    }

    /// Whether hangups (signal 1) are ignored, as far as the system tells.
    fn hangups_are_ignored() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & 1 == 1)
    }
}

/// Elsewhere there is Ctrl-C alone, and temporary files stay behind where it ends the process.
#[cfg(not(unix))]
mod system {
    use signal_hook::{consts::SIGINT, flag};

    use super::{ENDS, EXIT_CODE, INTERRUPTED};

    pub(super) fn while_editing<T>(edit: impl FnOnce() -> T) -> T {
        edit()
    }

    pub(super) fn handle() {
        // In this order: the second one finds what the first one set.
        _ = flag::register_conditional_shutdown(SIGINT, EXIT_CODE.into(), &ENDS)
            .and_then(|_| flag::register(SIGINT, &INTERRUPTED))
            .and_then(|_| flag::register(SIGINT, &ENDS));
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::{system::note_interrupt, *};

    #[test]
    fn the_first_interrupt_ends_a_generation_and_the_second_the_process() {
        assert!(!note_interrupt());
        let generation = Generation::begin();
        assert!(!generation.is_interrupted());
        assert!(note_interrupt());
        assert!(generation.is_interrupted());
        assert!(!note_interrupt());
        drop(generation);
        assert!(!note_interrupt());
        assert!(!Generation::begin().is_interrupted());
    }
}
