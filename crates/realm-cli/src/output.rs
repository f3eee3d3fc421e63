//! Files that commands write: whole or not at all, and never over what a command reads.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use realm_gguf::NewFile;

use crate::{
    error::{CliError, Result},
    interrupt,
};

/// Temporary files that this process began.
static PARTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Begins the file at `path`; `inputs` are those that the command reads. If the command is
/// interrupted or ended, nothing is left of it.
///
/// # Errors
/// A path that is one of the inputs, or at which there is something else than a file; `-`, which
/// means stdout elsewhere. The system's refusal.
pub(crate) fn create<'a>(
    path: &Path,
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<NewFile> {
    if path == Path::new("-") {
        let problem = "-: this output cannot go to stdout; name a file (./- for one of that name)";
        return Err(CliError::Input(problem.into()));
    }
    if inputs.into_iter().any(|input| is_same(path, input)) {
        let path = path.display();
        return Err(CliError::Input(format!(
            "{path}: is a file that this command reads; choose another name for its output"
        )));
    }
    interrupt::handle();
    let mut parts = PARTS.lock().unwrap_or_else(PoisonError::into_inner);
    let file = NewFile::create(path)?;
    parts.push(file.temporary_path().to_path_buf());
    Ok(file)
}

/// Whether both are there and are one file, by whatever names.
fn is_same(one: &Path, other: &Path) -> bool {
    let same = || -> io::Result<bool> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let id = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino()));
            Ok(id(one)? == id(other)?)
        }
        #[cfg(not(unix))]
        Ok(one.canonicalize()? == other.canonicalize()?)
    };
    same().unwrap_or(false)
}

/// Removes the temporary files, then ends the process with this code.
#[cfg(unix)]
pub(crate) fn exit(code: i32) -> ! {
    // Held to the end, so that no file is begun meanwhile.
    let parts = PARTS.lock().unwrap_or_else(PoisonError::into_inner);
    for part in parts.iter() {
        // One that was finished has its own name by now.
        _ = std::fs::remove_file(part);
    }
    std::process::exit(code);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_file_by_two_names_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "x").unwrap();
        fs::write(at("b"), "x").unwrap();
        assert!(is_same(&at("a"), &folder.path().join(".").join("a")));
        assert!(!is_same(&at("a"), &at("b")));
        assert!(!is_same(&at("a"), &at("missing")));
        assert!(!is_same(&at("missing"), &at("missing")));
        let refused = create(&at("b"), [at("a"), at("b")].iter().map(PathBuf::as_path));
        assert!(refused.unwrap_err().to_string().contains("reads"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn stdout_is_no_place_for_files() {
        assert!(create(Path::new("-"), []).unwrap_err().to_string().contains("stdout"));
    }
}
