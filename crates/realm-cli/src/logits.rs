//! `realm logits`: what a model thinks of every token of a prompt, as numbers.

use std::{io, path::PathBuf};

use clap::{ValueHint, error::ErrorKind};
use realm_runtime::RuntimeError;

use crate::{
    args::{self, EngineArgs, IdsArgs, ModelArgs},
    console,
    error::{CliError, Result},
    load,
    npy::MatrixWriter,
    output, stats,
};

/// Options of `realm logits`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    ids: IdsArgs,
    /// The .npy file to write; one that is there is replaced
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Writes the logits.
pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    let Some(ids) = args.ids.read()? else {
        let problem = "token ids are needed: give --ids 1,2,3 or --ids-file FILE.npy";
        return Err(args::usage("logits", ErrorKind::MissingRequiredArgument, problem));
    };
    let model = args.model.open()?;
    let inputs = model.file().parts().chain(args.ids.ids_file.as_deref());
    let file = output::create(&args.out, inputs)?;
    let mut writer = MatrixWriter::new(file, [ids.len(), model.vocabulary()])?;
    let mut device = args.engine.device.open()?;
    let mut options = args.engine.options();
    // The cache need not be larger than these tokens.
    options.context = options.context.or(Some(ids.len().clamp(1, model.context())));
    let mut engine = load::engine(&model, &mut device, &options)?;
    let mut refusal: Option<io::Error> = None;
    let result = console::with_token_progress("computing logits", |bar| {
        let (mut done, total) = (0, ids.len() as u64);
        bar.set(done, total);
        engine.logits(&ids, |rows| {
            done += (rows.len() / model.vocabulary()) as u64;
            bar.set(done, total);
            writer.write(rows).map_err(|error| {
                let problem = error.to_string();
                refusal = Some(error);
                RuntimeError::Request(problem)
            })
        })
    });
    if let Some(source) = refusal {
        return Err(CliError::io(&args.out, "write the file", source));
    }
    engine.take_notes().iter().for_each(console::note);
    result.map_err(CliError::engine(model.file().path()))?;
    writer.finish()?;
    console::say(format_args!(
        "wrote      {}: [{}, {}]",
        args.out.display(),
        ids.len(),
        model.vocabulary()
    ));
    stats::choices(&engine, &args.engine.options()).iter().take(2).for_each(console::say);
    Ok(())
}
