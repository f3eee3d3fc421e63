//! Files that come into being whole: under their name there is the old file or the new one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{GgufError, GgufErrorKind, Place};

/// Most links that are followed, as many as Linux follows.
const MOST_LINKS: usize = 40;

/// A file in the making. Its bytes go to a temporary file, `.realm-*.part`, in the folder of the
/// file that is to be; [`finish`](Self::finish) syncs and renames it. Until then a file that was
/// there stays, also for processes that have it mapped. Dropped unfinished, it leaves nothing
/// behind; a crash leaves at most the temporary file.
///
/// It is not buffered.
#[derive(Debug)]
pub struct NewFile {
    /// As given, for errors.
    path: PathBuf,
    /// What is to be replaced: `path`, or where links at `path` lead.
    target: PathBuf,
    part: NamedTempFile,
}

impl NewFile {
    /// Begins the file that is to be at `path`. Where a symbolic link is there, the file that it
    /// names is to be replaced and the link stays.
    ///
    /// # Errors
    /// Something at `path` that is no regular file (a device, a pipe, a folder): it would be
    /// replaced as a file is. A folder that is missing, and the system's refusal to make files there.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let io = |action| move |error| GgufError::io(path, action, error);
        // Asks at the end of links, also of those that `/proc` has and no text leads along.
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(GgufError::new(path, Place::File, GgufErrorKind::NoFile));
        }
        let target = resolve(path).map_err(io("follow the link"))?;
        let folder = folder(&target);
        let missing = match folder.metadata() {
            Ok(found) => !found.is_dir(),
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
        };
        if missing {
            let kind = GgufErrorKind::NoFolder { folder: folder.display().to_string() };
            return Err(GgufError::new(path, Place::File, kind));
        }
        // With the rights of any new file, not the owner-only ones of temporary files; and what the
        // system says stays free of the temporary name, which nobody asked for.
        let open = |part: &Path| {
            std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(part)
        };
        let mut builder = tempfile::Builder::new();
        let part = builder.prefix(".realm-").suffix(".part").make_in(folder, open);
        let part = part.map_err(|error| {
            GgufError::new(path, Place::File, GgufErrorKind::FolderRefused { error })
        })?;
        Ok(Self { path: path.to_path_buf(), target, part })
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the bytes are until the file is finished: whoever ends the process without unwinding
    /// has to remove it.
    pub fn temporary_path(&self) -> &Path {
        self.part.path()
    }

    /// Syncs the file to disk and puts it in its place.
    ///
    /// # Errors
    /// The system's refusal; what was there is there still.
    pub fn finish(self) -> Result<(), GgufError> {
        let Self { path, target, part } = self;
        let path = path.as_path();
        let io = |action| move |error| GgufError::io(path, action, error);
        part.as_file().sync_all().map_err(io("sync the file to disk"))?;
        part.persist(&target).map_err(|error| io("rename the file")(error.error))?;
        // The rename is durable once its folder is; some file systems can't sync folders.
        #[cfg(unix)]
        let _ = std::fs::File::open(folder(&target)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.part.as_file_mut().flush()
    }
}

/// Where the links at `path` lead, also if nothing is there.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        if !path.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
            return Ok(path);
        }
        let link = path.read_link()?;
        path = folder(&path).join(link);
    }
    Err(io::Error::other("too many links; name the file itself"))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for place in [folder.path().join("nosuch"), file] {
            let error = NewFile::create(place.join("x.svg")).unwrap_err().to_string();
            let (asked, folder) = (place.join("x.svg"), place.file_name().unwrap());
            assert!(error.starts_with(&asked.display().to_string()), "{error}");
            assert!(error.contains(folder.to_str().unwrap()) && error.contains("create it"));
            assert!(!error.contains(".part"), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_takes_no_files_is_told_without_the_temporary_name() {
        let error = NewFile::create("/proc/self/x.svg").unwrap_err().to_string();
        assert!(error.starts_with("/proc/self/x.svg: cannot create a file"), "{error}");
        assert!(error.contains("choose another") && !error.contains(".part"), "{error}");
    }
}
