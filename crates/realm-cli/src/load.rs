//! Putting a model on a device, and saying how.

use realm_runtime::{Engine, EngineOptions, Loaded, Model, device::Device};

use crate::{
    console::{self, with_progress},
    error::{CliError, Result},
    stats,
};

/// Loads a model; a person who waits sees that it goes on. What a GPU's memory will hold is said
/// before anything goes there.
///
/// # Errors
/// Where it does not fit the device, or the device fails.
pub(crate) fn engine(
    model: &Model,
    device: &mut Device,
    options: &EngineOptions,
) -> Result<Engine> {
    let path = model.file().path();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut placement = device.place(model, options).map_err(CliError::engine(path))?;
    let engine = loop {
        placement.notes().iter().for_each(console::note);
        let plan = placement.memory();
        if stats::uploads(plan) {
            stats::memory(plan).iter().for_each(console::say);
        }
        let message = format!("loading {}", console::one_line(&name));
        let loaded = with_progress(message, |bar| {
            device.load(model, placement, &mut |progress| bar.set(progress.loaded, progress.total))
        });
        match loaded.map_err(CliError::engine(path))? {
            Loaded::Engine(engine) => break *engine,
            // Another device takes the model: that one's plan is said before it is loaded, too.
            Loaded::Moved(next) => placement = *next,
        }
    };
    if options.context.is_some_and(|context| context > model.context()) {
        let (context, trained) = (engine.context(), model.context());
        console::note(format_args!(
            "a context of {context} tokens is more than the {trained} that the model was trained for"
        ));
    }
    Ok(engine)
}
