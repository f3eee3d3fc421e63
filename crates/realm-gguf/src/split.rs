//! Names and metadata of split files: `NAME-00001-of-00003.gguf`.

use std::path::{Path, PathBuf};

use crate::{GgufError, GgufErrorKind, Metadata, Place};

const PART_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSORS_KEY: &str = "split.tensors.count";
/// Five digits stand in the file names.
const MAX_PARTS: u64 = 99_999;

/// What a file's metadata says about its place in a split model.
pub(crate) struct SplitInfo {
    /// This file's number, from 0.
    pub(crate) part: u64,
    /// How many files there are, 2 or more.
    pub(crate) count: u64,
    /// Tensors in all files together, where given.
    pub(crate) tensors: Option<u64>,
}

impl SplitInfo {
    /// `None` for a file that is whole by itself.
    pub(crate) fn of(metadata: &Metadata, path: &Path) -> Result<Option<Self>, GgufError> {
        let count = metadata.find::<u64>(COUNT_KEY)?.unwrap_or(1);
        if count <= 1 {
            return Ok(None);
        }
        if count > MAX_PARTS {
            let text = format!("holds {count}; at most {MAX_PARTS} parts are allowed");
            let place = Place::Key(COUNT_KEY.to_owned());
            return Err(GgufError::new(path, place, GgufErrorKind::Split(text)));
        }
        let part = metadata.get::<u64>(PART_KEY)?;
        let tensors = metadata.find::<u64>(TENSORS_KEY)?;
        Ok(Some(Self { part, count, tensors }))
    }
}

/// An error about the split of the file at `path`.
pub(crate) fn error(path: &Path, text: String) -> GgufError {
    GgufError::new(path, Place::File, GgufErrorKind::Split(text))
}

/// A path of the form `PREFIX-00001-of-00003.gguf`, taken apart.
pub(crate) struct SplitPath {
    folder: PathBuf,
    prefix: String,
    /// From 1, as in the name.
    pub(crate) number: u64,
    pub(crate) count: u64,
}

impl SplitPath {
    /// `None` where the name has another form.
    pub(crate) fn new(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (name, count) = name.rsplit_once("-of-")?;
        let (prefix, number) = name.rsplit_once('-')?;
        let five_digits = |text: &str| {
            (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()))
                .then(|| text.parse::<u64>().ok())
                .flatten()
        };
        Some(Self {
            folder: path.parent()?.to_path_buf(),
            prefix: prefix.to_owned(),
            number: five_digits(number)?,
            count: five_digits(count)?,
        })
    }

    /// The path of file `number`, from 1.
    pub(crate) fn sibling(&self, number: u64) -> PathBuf {
        let Self { folder, prefix, count, .. } = self;
        folder.join(format!("{prefix}-{number:05}-of-{count:05}.gguf"))
    }
}
