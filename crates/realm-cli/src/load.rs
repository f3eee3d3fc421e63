//! Putting a model on a device, and saying how.

use realm_runtime::{Engine, EngineOptions, Model, device::Device};

use crate::{
    console::{self, with_spinner},
    error::{CliError, Result},
};

/// Loads a model; a person who waits sees that it goes on.
///
/// # Errors
/// Where it does not fit the device, or the device fails.
pub(crate) fn engine(model: &Model, device: &Device, options: &EngineOptions) -> Result<Engine> {
    let path = model.file().path();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let message = format!("loading {}", console::one_line(&name));
    let engine = with_spinner(message, || Engine::new(model, device.backend().clone(), options));
    let engine = engine.map_err(CliError::engine(path))?;
    if options.context.is_some_and(|context| context > model.context()) {
        let (context, trained) = (engine.context(), model.context());
        console::note(format_args!(
            "a context of {context} tokens is more than the {trained} that the model was trained for"
        ));
    }
    Ok(engine)
}
