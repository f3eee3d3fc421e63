//! The reference data's files: written by other tools, read here, written again.

use std::path::{Path, PathBuf};

use realm_gguf::{GgufFile, GgufWriter, Strings};

use crate::build::touch;

/// The reference folder, or `None` with a line that says so.
fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("REALM_REFERENCE").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: REALM_REFERENCE is not set");
    }
    folder
}

/// All `.gguf` files under `folder`, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("the reference folder can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "gguf") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn models_are_read_whole() {
    let Some(folder) = folder() else { return };
    let paths = files(&folder.join("models"));
    assert!(paths.len() >= 23, "only {} models", paths.len());
    for path in paths {
        let file = GgufFile::open(&path).unwrap_or_else(|e| panic!("{e}"));
        touch(&file);
        let architecture: &str = file.metadata().get("general.architecture").expect("named");
        let embedding: u32 =
            file.metadata().get(&format!("{architecture}.embedding_length")).expect("given");
        let table = file.require("token_embd.weight").expect("every model has one");
        assert_eq!(table.cols(), embedding as usize);
        assert!(table.shape().len() == 2 && table.rows() > 1);
        for tensor in file.tensors() {
            assert!(tensor.dtype().is_some(), "{}: {}", path.display(), tensor.type_name());
        }
        // The last tensor ends the file, but for padding.
        let end = file.tensors().iter().map(|t| t.byte_range().end).max().expect("tensors");
        assert!(file.file_bytes() - (end as u64) < file.alignment(), "{}", path.display());
    }
}

#[test]
fn vocabularies_are_read_whole() {
    let Some(folder) = folder() else { return };
    let paths = files(&folder.join("vocab"));
    assert!(paths.len() >= 9, "only {} vocabularies", paths.len());
    for path in paths {
        let file = GgufFile::open(&path).unwrap_or_else(|e| panic!("{e}"));
        touch(&file);
        assert!(file.tensors().is_empty());
        let meta = file.metadata();
        let tokens: &Strings = meta.get("tokenizer.ggml.tokens").expect("tokens");
        let types: Vec<i32> = meta.get("tokenizer.ggml.token_type").expect("types");
        assert!(tokens.len() > 30_000 && tokens.len() == types.len(), "{}", path.display());
    }
}

/// Metadata and tensors of real files survive being written and read again, and files by a writer
/// with the same layout come out byte for byte.
#[test]
fn files_survive_being_written_again() {
    let Some(folder) = folder() else { return };
    let mut same = 0;
    for path in files(&folder) {
        let file = GgufFile::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let mut writer = GgufWriter::new();
        for (key, value) in file.metadata().iter() {
            writer.set(key, value.clone()).expect("as read");
        }
        for tensor in file.tensors() {
            let dtype = tensor.dtype().expect("known");
            writer.tensor(tensor.name(), tensor.shape(), dtype).expect("as read");
        }
        let mut next = file.tensors().iter();
        let bytes = writer
            .to_bytes(|_, out| out.write_all(&next.next().expect("as many").data().expect("known")))
            .expect("written");
        same += usize::from(bytes == std::fs::read(&path).expect("read"));
        let copy = GgufFile::parse(bytes).expect("valid");
        assert_eq!(copy.metadata(), file.metadata(), "{}", path.display());
        for (a, b) in copy.tensors().iter().zip(file.tensors()) {
            assert_eq!((a.name(), a.shape(), a.dtype()), (b.name(), b.shape(), b.dtype()));
            assert!(a.data().expect("known")[..] == b.data().expect("known")[..]);
        }
        assert_eq!(copy.tensors().len(), file.tensors().len());
    }
    assert!(same > 0, "no file came out byte for byte");
    println!("{same} files are the same byte for byte");
}
