//! `realm`: quantized language models from the command line. Text goes to stdout, everything else
//! to stderr; `inspect`, `devices` and `bench` print what was asked for on stdout.

mod args;
mod bench;
mod console;
mod detokenize;
mod devices;
mod error;
mod inspect;
mod load;
mod logits;
mod npy;
mod output;
mod run;
mod stats;
mod synth;
mod tokenize;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use error::CliError;

fn main() -> ExitCode {
    let words = args::long_names(std::env::args_os());
    let result = match Cli::parse_from(words).command {
        Command::Run(args) => run::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Detokenize(args) => detokenize::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Synth(args) => synth::run(&args),
    };
    match result {
        // Whoever read the output has enough of it, which is no failure.
        Ok(()) | Err(CliError::Closed) => ExitCode::SUCCESS,
        Err(CliError::Usage(error)) => error.exit(),
        Err(error) => {
            console::error(&error);
            ExitCode::FAILURE
        }
    }
}
