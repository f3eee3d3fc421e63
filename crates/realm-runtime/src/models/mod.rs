//! Architectures: each is a function from a file's metadata to a graph, one file each. Adding one takes
//! a file here and its name in `architectures!`.

mod config;
mod decoder;
mod source;

pub use source::{Part, Parts, Source};

use realm_core::{
    Graph,
    graph::{GraphBuilder, Value},
};
use realm_gguf::GgufFile;

use crate::RuntimeError;

/// What an architecture's function gives: the graph under construction and where it ends.
pub struct Definition {
    /// All nodes up to the logits.
    pub builder: GraphBuilder,
    /// `[outputs, vocabulary]`.
    pub logits: Value,
    /// Tokens the model knows.
    pub vocabulary: usize,
    /// Longest context it was trained for.
    pub context: usize,
}

type Build = fn(&Source<'_>) -> Result<Definition, RuntimeError>;

/// Each name is that of a file here and what the model files have as `general.architecture`.
macro_rules! architectures {
    ($($name:ident,)*) => {
        $(mod $name;)*

        /// `general.architecture` and its function.
        const ARCHITECTURES: &[(&str, Build)] = &[$((stringify!($name), $name::build),)*];
    };
}

architectures! {
    gemma2,
    gemma3,
    llama,
    mistral,
    phi3,
    qwen2,
    qwen3,
    qwen3moe,
}

/// The names of all architectures.
pub fn names() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name)
}

/// A file's model.
pub struct Built {
    /// The plain graph, ending in a `Sample` op.
    pub graph: Graph,
    /// Tokens the model knows.
    pub vocabulary: usize,
    /// Longest context it was trained for.
    pub context: usize,
    /// The weights that are parts of tensors.
    pub parts: Parts,
}

/// Builds the graph of a file's architecture.
///
/// # Errors
/// An architecture that is not known, and metadata or tensors that do not make one.
pub fn build(file: &GgufFile) -> Result<Built, RuntimeError> {
    let path = || file.path().display().to_string();
    let architecture: &str = file.metadata().get("general.architecture")?;
    let build = ARCHITECTURES.iter().find(|(name, _)| *name == architecture);
    let (_, build) = build.ok_or_else(|| RuntimeError::Architecture {
        path: path(),
        architecture: architecture.into(),
        supported: names().collect::<Vec<_>>().join(", "),
    })?;
    let source = Source::new(file, architecture);
    let Definition { mut builder, logits, vocabulary, context } = build(&source)?;
    source.check_all_used()?;
    builder.sample(logits);
    let graph = builder.finish(logits);
    let graph = graph.map_err(|source| RuntimeError::Graph { path: path(), source })?;
    Ok(Built { graph, vocabulary, context, parts: source.into_parts() })
}
