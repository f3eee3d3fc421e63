//! A file's tokenizer out of its metadata.

use realm_gguf::{GgufFile, Strings};
use realm_tokenizer::{Tokenizer, Vocab};

use crate::RuntimeError;

fn strings(file: &GgufFile, key: &str) -> Result<Vec<String>, RuntimeError> {
    let list: Option<&Strings> = file.metadata().find(key)?;
    Ok(list.map_or_else(Vec::new, |list| list.iter().map(|text| text.into_owned()).collect()))
}

/// The tokenizer of a model or vocabulary file.
///
/// # Errors
/// Where the file has none, or one that is not supported.
pub fn tokenizer(file: &GgufFile) -> Result<Tokenizer, RuntimeError> {
    let path = file.path().display().to_string();
    Tokenizer::new(read(file)?).map_err(|source| RuntimeError::Tokenizer { path, source })
}

/// A file's vocabulary as it stands there, unchecked.
pub(crate) fn read(file: &GgufFile) -> Result<Vocab, RuntimeError> {
    let metadata = file.metadata();
    let id = |name: &str| metadata.find::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
    let flag = |name: &str| metadata.find::<bool>(&format!("tokenizer.ggml.{name}"));
    Ok(Vocab {
        model: metadata.get::<&str>("tokenizer.ggml.model")?.to_owned(),
        pre: metadata.find::<&str>("tokenizer.ggml.pre")?.map(str::to_owned),
        name: metadata.find::<&str>("general.name")?.map(str::to_owned),
        tokens: strings(file, "tokenizer.ggml.tokens")?,
        scores: metadata.find::<&[f32]>("tokenizer.ggml.scores")?.unwrap_or_default().to_vec(),
        types: metadata.find("tokenizer.ggml.token_type")?.unwrap_or_default(),
        merges: strings(file, "tokenizer.ggml.merges")?,
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        eom: id("eom")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        cls: id("cls")?,
        sep: id("seperator")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
        lowercase: flag("normalizer.lowercase")?,
        strip_accents: flag("normalizer.strip_accents")?,
    })
}
