//! Where a file's bytes come from: a mapping or memory. The only `unsafe` of the crate.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::{GgufError, GgufErrorKind, Place};

/// Owns bytes for as long as anyone uses a part of them.
pub(crate) type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// One file's bytes and its path, which errors name.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) path: Arc<Path>,
    pub(crate) owner: Owner,
}

impl Source {
    /// Bytes in memory.
    pub(crate) fn memory(owner: Owner) -> Self {
        Self { path: Arc::from(PathBuf::from("<memory>")), owner }
    }

    /// Maps the file at `path` for reading.
    pub(crate) fn map(path: &Path) -> Result<Self, GgufError> {
        let io = |action| move |error| GgufError::io(path, action, error);
        // Before opening, since opening a pipe waits for its writer.
        let about = std::fs::metadata(path).map_err(io("open the file"))?;
        if !about.is_file() {
            return Err(GgufError::new(path, Place::File, GgufErrorKind::NotRegularFile));
        }
        let file = File::open(path).map_err(io("open the file"))?;
        // SAFETY: the mapping is read-only and private to this process, and nothing in this crate
        // keeps a conclusion about its content beyond the copy it was drawn from (names are copied
        // before they are checked as UTF-8; ranges are checked against the mapped length, which
        // never changes). What no reader can rule out is another process writing to the file
        // meanwhile: changed bytes show up as other weights or metadata, and if the file is
        // truncated, touching a page past the new end kills this process with SIGBUS. Realm
        // therefore writes files under a temporary name and renames them (`NewFile`), and
        // documents that a model file must not be changed in place while it is in use.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map the file"))?;
        Ok(Self { path: Arc::from(path), owner: Arc::new(map) })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        (*self.owner).as_ref()
    }

    pub(crate) fn error(&self, place: Place, kind: GgufErrorKind) -> GgufError {
        GgufError::new(&self.path, place, kind)
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.bytes().len())
    }
}
