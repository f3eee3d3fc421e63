//! An open model: one GGUF file, or all parts of a split one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::shown;
use crate::header::{self, Header};
use crate::source::Source;
use crate::split::{self, SplitInfo, SplitPath};
use crate::tensor::TensorInfo;
use crate::{GgufError, GgufErrorKind, Metadata, Place};

/// An open GGUF model. Everything in it has been checked against the bytes of its file or files.
///
/// A model file must not be changed in place while it is open: it is mapped, and a process that
/// truncates it kills this one at the next touch (replacing it by renaming another over it is
/// fine).
#[derive(Debug)]
pub struct GgufFile {
    parts: Vec<Source>,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl GgufFile {
    /// Maps the file at `path` and reads its header. For the first part of a split model
    /// (`NAME-00001-of-00003.gguf`) it opens all parts, which must lie beside it.
    ///
    /// # Errors
    /// A file that can't be read, isn't GGUF or is damaged; for split models also a part that
    /// isn't the first (the error names the first) and a missing part (the error names it).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let first = Source::map(path)?;
        let header = header::parse(&first, 0)?;
        let Some(split) = SplitInfo::of(&header.metadata, path)? else {
            return Self::new(first, header);
        };
        let names = first_part_names(path, &split)?;
        let mut file = Self::new(first, header)?;
        for part in 1..split.count {
            let (source, header) = open_part(&names.sibling(part + 1), part, path, &split)?;
            file.add(source, header.tensors)?;
        }
        match split.tensors {
            Some(wanted) if wanted != file.tensors.len() as u64 => {
                let (found, count) = (file.tensors.len(), split.count);
                let text = format!(
                    "its {count} parts hold {found} tensors, but {wanted} are announced \
                     (split.tensors.count); download all parts of one version again"
                );
                Err(split::error(path, text))
            }
            _ => Ok(file),
        }
    }

    /// Reads a whole model from memory; the same code as for mapped files. Tensors share
    /// ownership of `bytes`.
    ///
    /// # Errors
    /// As [`open`](Self::open); a part of a split model is an error.
    pub fn parse(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self, GgufError> {
        Self::of(Source::memory(Arc::new(bytes)))
    }

    /// Reads a whole model that is part of the program; errors and [`path`](Self::path) call it
    /// `name`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, GgufError> {
        Self::of(Source { path: Arc::from(Path::new(name)), owner: Arc::new(bytes) })
    }

    /// A model that is one file.
    fn of(source: Source) -> Result<Self, GgufError> {
        let header = header::parse(&source, 0)?;
        if let Some(split) = SplitInfo::of(&header.metadata, &source.path)? {
            let text = format!("one of {} parts of a split model; open it by path", split.count);
            return Err(split::error(&source.path, text));
        }
        Self::new(source, header)
    }

    /// A model of the given first file; others are added by [`add`](Self::add).
    fn new(source: Source, header: Header) -> Result<Self, GgufError> {
        let Header { version, alignment, metadata, tensors } = header;
        let (parts, index) = (Vec::new(), HashMap::new());
        let mut file = Self { parts, version, alignment, metadata, tensors: Vec::new(), index };
        file.add(source, tensors)?;
        Ok(file)
    }

    /// Adds a file and its tensors.
    fn add(&mut self, source: Source, tensors: Vec<TensorInfo>) -> Result<(), GgufError> {
        for tensor in tensors {
            if let Some(earlier) = self.index.insert(tensor.name.clone(), self.tensors.len()) {
                let other = &self.tensors[earlier];
                let also = if other.part == tensor.part {
                    String::new()
                } else {
                    format!(", also in {}", shown(other.path()))
                };
                let kind = GgufErrorKind::DuplicateTensor(also);
                return Err(source.error(Place::Tensor(tensor.name), kind));
            }
            self.tensors.push(tensor);
        }
        self.parts.push(source);
        Ok(())
    }

    /// The path of the (first) file; `<memory>` for bytes in memory.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// The paths of all files of the model, in order; one unless it is split.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|part| &*part.path)
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes().len() as u64).sum()
    }

    /// The format's version, 2 or 3 (the first file's).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What tensor data is aligned to, in bytes (in the first file).
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The metadata; of a split model the first file's.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in the order of the file or files.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`GgufErrorKind::MissingTensor`] where there is none.
    pub fn require(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.tensor(name).ok_or_else(|| {
            self.parts[0].error(Place::Tensor(name.to_owned()), GgufErrorKind::MissingTensor)
        })
    }
}

/// The naming of a split model's files from the path of its first one.
fn first_part_names(path: &Path, split: &SplitInfo) -> Result<SplitPath, GgufError> {
    let count = split.count;
    let number = u128::from(split.part) + 1;
    let names = SplitPath::new(path).filter(|names| names.count == count);
    if split.part != 0 {
        let first = names.map_or_else(
            || format!("the file that ends in -00001-of-{count:05}.gguf"),
            |names| shown(&names.sibling(1)),
        );
        let text = format!("this is part {number} of {count}; open the first: {first}");
        return Err(split::error(path, text));
    }
    match names {
        Some(names) if names.number == 1 => Ok(names),
        _ => {
            let text = format!(
                "this is part 1 of {count}, so its name must end in -00001-of-{count:05}.gguf, \
                 like those of the other parts; rename it back"
            );
            Err(split::error(path, text))
        }
    }
}

/// Opens file number `part` (from 0) of the split model whose first file is `first`.
fn open_part(
    path: &Path,
    part: u64,
    first: &Path,
    split: &SplitInfo,
) -> Result<(Source, Header), GgufError> {
    if matches!(path.try_exists(), Ok(false)) {
        let text = format!(
            "part {} of {} is missing: {}; put all parts in one folder",
            part + 1,
            split.count,
            shown(path)
        );
        return Err(split::error(first, text));
    }
    let source = Source::map(path)?;
    let header = header::parse(&source, part as usize)?;
    match SplitInfo::of(&header.metadata, path)? {
        Some(found) if found.part == part && found.count == split.count => Ok((source, header)),
        found => {
            let found = found.map_or_else(
                || "a file that is not split".to_owned(),
                |found| format!("part {} of {}", u128::from(found.part) + 1, found.count),
            );
            let text = format!(
                "its metadata says {found}, but its name part {} of {}; \
                 download all parts of one version again",
                part + 1,
                split.count
            );
            Err(split::error(path, text))
        }
    }
}
