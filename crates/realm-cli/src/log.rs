//! What the libraries report while they work, on stderr where it is asked for.

use std::io;

use tracing_subscriber::{EnvFilter, fmt::time};

use crate::console;

/// What to report: a level, or a level a module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LogArgs {
    /// Report on stderr what goes on inside: off, error, warn, info, debug or trace; of a part alone:
    /// realm_runtime=debug
    #[arg(
        long,
        env = "REALM_LOG",
        value_name = "LEVEL",
        default_value = "off",
        value_parser = filter,
        global = true,
        display_order = 1000,
        hide_default_value = true
    )]
    log: String,
}

impl LogArgs {
    /// Begins to report.
    pub(crate) fn start(&self) {
        let Ok(filter) = EnvFilter::builder().parse(&self.log) else { return };
        if self.log == "off" {
            return;
        }
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(console::colors(&io::stderr()))
            .with_timer(time::uptime())
            .init();
    }
}

fn filter(text: &str) -> Result<String, String> {
    let known = text.split(',').all(|part| {
        let level = part.rsplit('=').next().unwrap_or(part).trim().to_ascii_lowercase();
        ["off", "error", "warn", "info", "debug", "trace"].contains(&&*level)
    });
    match EnvFilter::builder().parse(text) {
        // A word that is no level would be taken as the name of a part.
        Ok(_) if known => Ok(text.into()),
        _ => Err("choose off, error, warn, info, debug or trace, or PART=LEVEL".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_may_be_those_of_parts() {
        for good in ["off", "debug", "INFO", "realm_runtime=debug", "warn,realm_runtime=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "realm_runtime", "realm_runtime=loud", "a=b=c,"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
