//! The model that a command uses: a file, or the one in the box.

use std::{path::Path, sync::Once};

use realm_gguf::{GgufFile, TensorInfo};
use realm_runtime::Model;

use crate::{console, demo, error::Result};

/// Opens the file at `path`; where none is named, the built-in model, and says so.
///
/// # Errors
/// A file that cannot be read or is damaged.
pub(crate) fn file(path: Option<&Path>) -> Result<GgufFile> {
    let Some(path) = path else {
        let file = demo::file()?;
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            let weights: usize = file.tensors().iter().map(TensorInfo::elements).sum();
            let millions = (weights as f64 / 1e6).round();
            console::note(format_args!(
                "no -m: using the built-in demo model, {millions} M parameters trained on \
                 Shakespeare, Austen and Doyle; for real work name a GGUF file with -m"
            ));
        });
        return Ok(file);
    };
    Ok(GgufFile::open(path)?)
}

/// Opens the model at `path`; where none is named, the built-in one, and says so.
///
/// # Errors
/// As [`file()`], and an architecture that is not known.
pub(crate) fn open(path: Option<&Path>) -> Result<Model> {
    Ok(Model::new(file(path)?)?)
}
