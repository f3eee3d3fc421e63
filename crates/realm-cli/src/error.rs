//! What ends a command.

use std::{io, path::Path, path::PathBuf};

use realm_gguf::GgufError;
use realm_runtime::RuntimeError;
use realm_tokenizer::TokenizerError;

use crate::npy::NpyError;

/// What a command gives where nothing went wrong.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

/// Any failure of a command, in one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The engine, its devices or the model.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// What the engine says of a model without naming its file.
    #[error("{}: {source}", path.display())]
    Model {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        source: Box<RuntimeError>,
    },
    /// A GGUF file, or a file that is written.
    #[error(transparent)]
    File(#[from] GgufError),
    /// A text or ids that a file's tokenizer cannot take.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        source: TokenizerError,
    },
    /// A NumPy file.
    #[error("{}: {source}", path.display())]
    Npy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: NpyError,
    },
    /// The system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file, or `stdin`, `stdout`.
        path: PathBuf,
        /// What was tried: `write the file`.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// An input that cannot be used: what, where, and what to do.
    #[error("{0}")]
    Input(String),
    /// A command line that does not say enough.
    #[error(transparent)]
    Usage(clap::Error),
    /// The user ended it; what was asked for is there so far.
    #[error("interrupted")]
    Interrupted,
    /// A failure that the command's own output tells.
    #[error("see the output")]
    Told,
    /// Nobody reads the output any more.
    #[error("stdout was closed")]
    Closed,
}

impl CliError {
    /// The engine's failure with the model at `path`; those that name a file or a device stay as
    /// they are.
    pub(crate) fn engine(path: &Path) -> impl Fn(RuntimeError) -> Self {
        |source| match source {
            RuntimeError::File(_)
            | RuntimeError::Tokenizer { .. }
            | RuntimeError::Architecture { .. }
            | RuntimeError::Model { .. }
            | RuntimeError::Graph { .. }
            | RuntimeError::Memory(_)
            | RuntimeError::Device(_) => Self::Runtime(source),
            _ => Self::Model { path: path.to_path_buf(), source: Box::new(source) },
        }
    }

    /// The system's refusal at a file.
    pub(crate) fn io(path: impl AsRef<Path>, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// The system's refusal to take output; a reader that left is [`CliError::Closed`].
    pub(crate) fn stdout(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::io("stdout", "write the output", source),
        }
    }
}
