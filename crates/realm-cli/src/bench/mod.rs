//! `realm bench`: the speed of prompts and of generation, beside what the machine can do at most.

mod measure;
mod ops;
mod report;
mod tests_of;

use std::time::Duration;

use realm_runtime::{Engine, EngineOptions, Model};

use crate::{
    args::{EngineArgs, ModelArgs},
    console::{self, with_spinner},
    error::{CliError, Result},
    load,
};
use measure::Bench;
use tests_of::{Plan, Test};

/// Measure a model's speed.
///
/// Each test is run once to warm up and then as often as --repetitions says; the table shows median,
/// slowest and fastest. In the same run the machine's read bandwidth and the arithmetic peak of the
/// instructions in use are measured, and the table says which part of each a test reached: a test
/// whose parts are both far below 1 leaves speed on the table.
///
/// pp512 is a prompt of 512 tokens, tg128 the generation of 128 tokens one by one, pp512@d4096 and
/// tg128@d4096 the same after 4096 tokens of context, tg128x8 generation in 8 sequences side by side.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of a prompt; several with commas, 0 for none
    #[arg(short = 'p', long, value_name = "TOKENS", value_delimiter = ',', default_value = "512")]
    prompt: Vec<u32>,
    /// Tokens to generate; several with commas, 0 for none
    #[arg(short = 'n', long, value_name = "TOKENS", value_delimiter = ',', default_value = "128")]
    generate: Vec<u32>,
    /// Tokens of context before each test; several with commas. Before a prompt they are rounded up
    /// to a multiple of the longest prompt, so that its rows are a step of their own
    #[arg(short, long, value_name = "TOKENS", value_delimiter = ',', default_value = "0")]
    depth: Vec<u32>,
    /// How often each test is measured
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    repetitions: u32,
    /// Sequences that generate side by side; several with commas
    #[arg(
        short,
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    batch: Vec<u32>,
    /// Show each op's share of the time and of the machine's limits. Taking the times costs a little
    #[arg(long)]
    ops: bool,
    /// Print a JSON list instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Measures and prints.
///
/// # Errors
/// A model that cannot be loaded, tests that do not fit the memory, the device's failure.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let sizes = |list: &[u32]| list.iter().map(|&tokens| tokens as usize).collect::<Vec<_>>();
    let plan = Plan::new(
        &sizes(&args.prompt),
        &sizes(&args.generate),
        &sizes(&args.depth),
        &sizes(&args.batch),
    )?;
    let model = Model::open(&args.model.model)?;
    let device = args.engine.device.open()?;
    let options = options(args, &plan)?;
    let engine = load::engine(&model, &device, &options)?;
    let precision = engine.precision();
    let roofline = with_spinner("measuring the machine".into(), || device.roofline(precision));
    let setting = report::Setting::new(&model, &engine, roofline, args.repetitions as usize);
    let mut bench = Bench::new(engine, model.vocabulary(), args.repetitions as usize, args.ops);
    let mut results = Vec::new();
    for test in &plan.tests {
        results.push(bench.run(test)?);
    }
    let mut out = console::Output::new();
    if args.json {
        out.line(report::json(&setting, &results, args.ops.then(|| bench.graph())))?;
    } else {
        out.text(&report::table(&setting, &results))?;
        if args.ops {
            for result in &results {
                out.text(&ops::table(bench.graph(), result, setting.roofline.as_ref()))?;
            }
        }
    }
    report::say(&setting);
    out.flush()
}
