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
    /// replaced as a file is. The system's refusal, for example a folder that is missing.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let io = |action| move |error| GgufError::io(path, action, error);
        // Asks at the end of links, also of those that `/proc` has and no text leads along.
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(GgufError::new(path, Place::File, GgufErrorKind::NoFile));
        }
        let target = resolve(path).map_err(io("follow the link"))?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".realm-").suffix(".part");
        #[cfg(unix)]
        {
            // Like any new file, not the owner-only rights of temporary files.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let part = builder.tempfile_in(folder(&target));
        let part = part.map_err(io("create a temporary file in its folder"))?;
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
