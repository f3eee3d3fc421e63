//! `realm bench`: the speed of prompts and of generation, beside what the machine can do at most.

mod claims;
mod measure;
mod ops;
mod plan;
mod plot;
mod progress;
mod report;
#[cfg(test)]
mod tests;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::{ValueHint, error::ErrorKind};
use realm_core::{Graph, backend::Precision};
use realm_gguf::NewFile;
use realm_runtime::{EngineOptions, device::Device};

use crate::{
    args::{EngineArgs, ModelArgs},
    console::{self, one_line, with_spinner},
    error::{CliError, Result},
    load, output, stats,
};
use measure::{Bench, Measured};
use plan::Plan;
use progress::Progress;
use report::{Ceilings, PeakMemory, Setting};

/// Options of `realm bench`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of a prompt; several with commas, 0 for no such test
    #[arg(short, long, value_name = "TOKENS", value_delimiter = ',', default_value = "512")]
    prompt: Vec<u32>,
    /// Tokens to generate; several with commas, 0 for no such test
    #[arg(short = 'n', long, value_name = "TOKENS", value_delimiter = ',', default_value = "128")]
    generate: Vec<u32>,
    /// Tokens of context before each test; several with commas. Before a prompt, where they are not
    /// whole steps, room for a second sequence is taken
    #[arg(short, long, value_name = "TOKENS", value_delimiter = ',', default_value = "0")]
    depth: Vec<u32>,
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
    /// Tokens of a step: longer prompts are cut into steps of this size
    #[arg(
        long,
        value_name = "TOKENS",
        default_value = "512",
        value_parser = clap::value_parser!(u32).range(1..=65_535)
    )]
    step: u32,
    /// How often each test is measured
    #[arg(
        short,
        long,
        value_name = "N",
        default_value = "5",
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    repetitions: u32,
    /// Show what each kind of op takes and which part of the machine's limits it reaches: int8
    /// products of the int8 peak, everything else of the f32 peak. Taking the times costs a little
    #[arg(long)]
    ops: bool,
    /// Draw the machine's roofline with the ops of each test on it, as an SVG picture
    ///
    /// Across stands how many operations an op does for each byte that it must read, upwards how
    /// many a second it reached; the lines are what memory and arithmetic can give at most. The
    /// times of the ops are taken as by --ops.
    #[arg(long, value_name = "OUT.svg", value_hint = ValueHint::FilePath)]
    plot: Option<PathBuf>,
    /// Measure what Realm promises of this device, each beside the same work done the plain way
    ///
    /// Says of each promise the ratio that was measured and the one that must be, and of both sides which
    /// part of the device's limit they reach, so that a slow plain way flatters nobody. The model is
    /// generated with and its prompt taken in on the device and on the CPU (the first -n and -p); kernels
    /// are compared at sizes of an 8B model, in Q4_K. What needs a GPU says so where there is none.
    #[arg(long, conflicts_with_all = ["ops", "plot"])]
    claims: bool,
    /// Print a JSON list, an object for each test, instead of a table
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
    if args.claims {
        return claims::run(args);
    }
    let plan = plan(args)?;
    args.plot.as_deref().map_or(Ok(()), check_picture)?;
    let mut options = options(args, &plan)?;
    let model = args.model.open()?;
    // Begun before anything is measured: a path that cannot be written is found out at once.
    let plot = args.plot.as_deref().map(|path| output::create(path, model.file().parts()));
    let plot = plot.transpose()?;
    let mut device = args.engine.device.open()?;
    // All sequences fit at once: none makes room for another one.
    let block = device.backend().info().kv_block_tokens;
    let whole = |context: usize| context.next_multiple_of(block).saturating_mul(plan.sequences);
    options.kv_tokens = options.context.map(whole);
    let precision = match options.precision {
        Precision::Auto => device.backend().info().auto_precision,
        precision => precision,
    };
    let precision = stats::in_effect(model.graph(), precision);
    // Measured before and after the tests: a shared machine has good and bad minutes.
    let early = ceilings(&device, precision, options.times);
    let peak = PeakMemory::reset();
    let engine = load::engine(&model, &mut device, &options)?;
    // The context is the tests'.
    let lines = stats::setting(&engine, &options);
    lines.iter().filter(|line| !line.starts_with("context")).for_each(console::say);

    let mut setting = Setting::new(model.file().path(), &engine, args.repetitions);
    let name = model.file().metadata().find::<&str>("general.name");
    setting.name = name.ok().flatten().map(str::to_owned);
    let mut bench = Bench::new(engine, model.vocabulary(), args.repetitions, options.times);
    let progress = Progress::new(plan.tests.len() as u64 * (1 + u64::from(args.repetitions)));
    let results = plan.tests.iter().map(|test| bench.run(test, &progress));
    let results = results.collect::<Result<Vec<_>>>()?;
    drop(progress);
    setting.peak_rss_bytes = peak.bytes();
    setting.ceilings = Ceilings::best(early, ceilings(&device, precision, options.times));

    let graph = bench.graph();
    let draw = |(path, file)| write_plot(path, file, &setting, graph, &results);
    // Should that fail, the figures are shown first.
    let drawn = args.plot.as_deref().zip(plot).map(draw).transpose();
    let mut out = console::Output::new();
    if args.json {
        out.line(report::json(&setting, graph, &results))?;
    } else {
        out.text(&report::table(&setting, &results))?;
        for result in results.iter().filter(|_| args.ops) {
            out.text(&ops::table(&setting, graph, result))?;
        }
    }
    console::say(setting.summary());
    out.flush()?;
    drawn.map(|_| ())
}

fn write_plot(
    path: &Path,
    mut file: NewFile,
    setting: &Setting,
    graph: &Graph,
    results: &[Measured],
) -> Result<()> {
    let svg = plot::svg(path, setting, graph, results)?;
    let write = file.write_all(svg.as_bytes());
    write.map_err(|source| CliError::io(path, "write the file", source))?;
    file.finish()?;
    console::say(format_args!("wrote {}", one_line(&path.display().to_string())));
    Ok(())
}

/// What the machine can do with products of that precision, and in f32 where `floats` asks for it.
fn ceilings(device: &Device, precision: Precision, floats: bool) -> Option<Ceilings> {
    let measure =
        |precision| with_spinner("measuring the machine".into(), || device.roofline(precision));
    let own = measure(precision)?;
    let mut ceilings = Ceilings::new(own.read_bytes_per_second, own.ops_per_second, own.path)?;
    if precision != Precision::Int8 {
        ceilings.f32_ops_per_second = Some(own.ops_per_second);
    } else if floats {
        let float = measure(Precision::F32)?;
        ceilings.f32_ops_per_second = Some(float.ops_per_second);
        ceilings.bytes_per_second = ceilings.bytes_per_second.max(float.read_bytes_per_second);
    }
    Some(ceilings)
}

/// Tests that cannot be run as they were asked for.
fn misuse(problem: impl std::fmt::Display) -> CliError {
    CliError::Usage(clap::Error::raw(ErrorKind::ValueValidation, format!("{problem}\n")))
}

/// Endings of pictures and pages that are no SVG.
const OTHER_PICTURES: [&str; 16] = [
    "png", "jpg", "jpeg", "gif", "webp", "bmp", "tif", "tiff", "avif", "heic", "ico", "pdf", "ps",
    "eps", "svgz", "html",
];

/// Whether a picture's name fits what is in it.
///
/// # Errors
/// One that promises another format.
fn check_picture(path: &Path) -> Result<()> {
    let other = path.extension().and_then(|it| it.to_str()).map(str::to_lowercase);
    match other.filter(|other| OTHER_PICTURES.contains(&other.as_str())) {
        Some(other) => Err(misuse(format_args!(
            "--plot {}: the picture is SVG, not {other}; name it {}",
            one_line(&path.display().to_string()),
            one_line(&path.with_extension("svg").display().to_string())
        ))),
        None => Ok(()),
    }
}

fn plan(args: &BenchArgs) -> Result<Plan> {
    let sizes = |list: &[u32]| list.iter().map(|&tokens| tokens as usize).collect::<Vec<_>>();
    let plan = Plan::new(
        &sizes(&args.prompt),
        &sizes(&args.generate),
        &sizes(&args.depth),
        &sizes(&args.batch),
        args.step as usize,
    );
    if plan.tests.is_empty() {
        let problem = "nothing to measure; ask for a prompt with -p or for generation with -n";
        return Err(misuse(problem));
    }
    Ok(plan)
}

/// A context that holds the longest test, or what `--ctx` asks for where that is more.
fn options(args: &BenchArgs, plan: &Plan) -> Result<EngineOptions> {
    let context = args.engine.ctx.map_or(plan.context, |tokens| tokens as usize);
    if context < plan.context {
        return Err(misuse(format_args!(
            "--ctx {context} is too small: the longest test takes {} tokens",
            plan.context
        )));
    }
    Ok(EngineOptions {
        context: Some(context),
        sequences: plan.sequences,
        step_tokens: plan.step_tokens,
        times: args.ops || args.plot.is_some(),
        // Prompts are random: none begins as another one does.
        prefix_cache: false,
        ..args.engine.options()
    })
}
