//! The tokenizer of any GGUF file: of whole models and of files that hold a vocabulary alone.

use std::path::Path;

use realm_gguf::{GgufFile, Strings};
use realm_tokenizer::{Tokenizer, Vocab};

use crate::error::{CliError, Result};

/// The tokenizer of the file at `path`.
///
/// # Errors
/// A file that cannot be read, and one without a tokenizer or with one that is not supported.
pub(crate) fn open(path: &Path) -> Result<Tokenizer> {
    let file = GgufFile::open(path)?;
    let metadata = file.metadata();
    let strings = |key: &str| -> Result<Vec<String>> {
        let list: Option<&Strings> = metadata.find(key)?;
        Ok(list.map_or_else(Vec::new, |list| list.iter().map(|text| text.into_owned()).collect()))
    };
    let id = |name: &str| metadata.find::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
    let flag = |name: &str| metadata.find::<bool>(&format!("tokenizer.ggml.{name}"));
    let vocab = Vocab {
        model: metadata.get::<&str>("tokenizer.ggml.model")?.to_owned(),
        pre: metadata.find::<&str>("tokenizer.ggml.pre")?.map(str::to_owned),
        name: metadata.find::<&str>("general.name")?.map(str::to_owned),
        tokens: strings("tokenizer.ggml.tokens")?,
        scores: metadata.find::<&[f32]>("tokenizer.ggml.scores")?.unwrap_or_default().to_vec(),
        types: metadata.find("tokenizer.ggml.token_type")?.unwrap_or_default(),
        merges: strings("tokenizer.ggml.merges")?,
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        eom: id("eom")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
    };
    Tokenizer::new(vocab).map_err(|source| CliError::Tokenizer { path: path.to_path_buf(), source })
}
