//! `realm`: quantized language models from the command line. What was asked for (text, answers, ids,
//! tables, JSON, scripts) goes to stdout, everything said beside it to stderr.

mod args;
mod bench;
mod chat;
mod completions;
mod console;
mod demo;
mod detokenize;
mod devices;
mod doctor;
mod error;
mod generate;
mod inspect;
mod interrupt;
mod load;
mod log;
mod logits;
mod man;
mod model;
mod npy;
mod output;
mod precision;
mod run;
mod sampling;
mod stats;
mod synth;
mod tokenize;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use error::CliError;

fn main() -> ExitCode {
    let words = args::long_names(std::env::args_os());
    let cli = Cli::parse_from(words);
    cli.log.start();
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Detokenize(args) => detokenize::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    };
    match result {
        // Whoever read the output has enough of it, which is no failure.
        Ok(()) | Err(CliError::Closed) => ExitCode::SUCCESS,
        Err(CliError::Usage(error)) => error.exit(),
        Err(CliError::Told) => ExitCode::FAILURE,
        Err(CliError::Interrupted) => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) => {
            console::error(&error);
            ExitCode::FAILURE
        }
    }
}
