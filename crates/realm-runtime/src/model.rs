//! A model file, read but not yet on a device.

use std::path::Path;

use realm_core::{Bytes, Graph, graph::WeightInfo};
use realm_gguf::GgufFile;
use realm_tokenizer::Tokenizer;

use crate::{RuntimeError, models, vocab};

/// A model file: its graph, its tensors (mapped) and, where it has one, its tokenizer.
pub struct Model {
    file: GgufFile,
    built: models::Built,
}

impl Model {
    /// Reads a GGUF file's metadata and builds its graph. No tensor is read.
    ///
    /// # Errors
    /// A file that is damaged, or of an architecture that is not known.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RuntimeError> {
        Self::new(GgufFile::open(path)?)
    }

    /// Builds the graph of a file that is open already.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn new(file: GgufFile) -> Result<Self, RuntimeError> {
        let built = models::build(&file)?;
        let (path, layers) = (file.path().display(), built.graph.layers());
        tracing::info!(%path, layers, context = built.context, "opened a model");
        Ok(Self { file, built })
    }

    /// The file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// The plain graph, before fusion.
    pub fn graph(&self) -> &Graph {
        &self.built.graph
    }

    /// The bytes of one of the graph's weights, where they lie in the mapped file.
    ///
    /// # Errors
    /// A weight of another model, and a file that has shrunk.
    pub fn data(&self, weight: &WeightInfo) -> Result<Bytes, RuntimeError> {
        let Some(part) = self.built.parts.get(&weight.name) else {
            return Ok(self.file.require(&weight.name)?.data()?);
        };
        let data = self.file.require(&part.tensor)?.data()?;
        let row = weight.dtype.row_bytes(weight.cols).unwrap_or(0);
        let at = |rows: usize| row.checked_mul(rows);
        let range = at(part.rows.start).zip(at(part.rows.end));
        let slice = range.and_then(|(start, end)| data.slice(start..end));
        slice.ok_or_else(|| RuntimeError::Model {
            path: self.file.path().display().to_string(),
            problem: format!("tensor {} has no {:?}", part.tensor, part.rows),
        })
    }

    /// Tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        self.built.vocabulary
    }

    /// Longest context that it was trained for.
    pub fn context(&self) -> usize {
        self.built.context
    }

    /// The file's tokenizer.
    ///
    /// # Errors
    /// Where the file has none, or one that is not supported, or more tokens than the model.
    pub fn tokenizer(&self) -> Result<Tokenizer, RuntimeError> {
        let tokenizer = vocab::tokenizer(&self.file)?;
        if tokenizer.vocab_size() > self.built.vocabulary {
            return Err(RuntimeError::Model {
                path: self.file.path().display().to_string(),
                problem: format!(
                    "the tokenizer has {} tokens, the model knows {}",
                    tokenizer.vocab_size(),
                    self.built.vocabulary
                ),
            });
        }
        Ok(tokenizer)
    }
}
