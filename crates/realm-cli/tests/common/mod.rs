//! What the tests share: running the binary, and small model files.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod npy;
pub(crate) mod tiny;

use std::{
    ffi::OsStr,
    io::Write,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tiny::Tiny;

/// The folder with reference data; says so and gives `None` where there is none.
pub(crate) fn reference() -> Option<PathBuf> {
    let folder = std::env::var_os("REALM_REFERENCE");
    if folder.is_none() {
        println!("skipped: REALM_REFERENCE is not set");
    }
    folder.map(PathBuf::from)
}

/// A folder with the file of `tiny`.
pub(crate) fn file(tiny: &Tiny) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    tiny.write(&path);
    (folder, path)
}

/// What a run of the binary gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is UTF-8")
    }

    /// It went well.
    #[track_caller]
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// It ended with exit code 1 and one line that has all of `parts`, after notes at most.
    #[track_caller]
    pub(crate) fn fails(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "stderr: {}", self.stderr);
        let lines: Vec<&str> = self.stderr.lines().collect();
        let (last, notes) = lines.split_last().expect("a line on stderr");
        assert!(last.starts_with("error: "), "{}", self.stderr);
        assert!(notes.iter().all(|line| line.starts_with("note: ")), "{}", self.stderr);
        for part in parts {
            assert!(last.contains(part), "{last:?} lacks {part:?}");
        }
        assert!(self.stdout.is_empty(), "stdout: {:?}", String::from_utf8_lossy(&self.stdout));
    }

    /// It was called wrongly.
    #[track_caller]
    pub(crate) fn misused(&self, part: &str) {
        assert_eq!(self.code, Some(2), "stderr: {}", self.stderr);
        assert!(self.stderr.contains(part), "{:?} lacks {part:?}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        assert!(self.stdout.is_empty());
    }
}

/// The binary, with settings of the caller's environment left out.
pub(crate) fn command<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realm"));
    command.args(args);
    // What the tests themselves were told is not for the program.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REALM_") {
            command.env_remove(name);
        }
    }
    command.env("REALM_THREADS", "2");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a process ended that should do so soon.
pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("it still runs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the binary with `input` on stdin.
pub(crate) fn realm_with<A: AsRef<OsStr>>(
    args: impl IntoIterator<Item = A>,
    input: impl AsRef<[u8]>,
) -> Ran {
    let mut child = command(args).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let input = input.as_ref().to_vec();
    // A command that fails early never reads it.
    let writer = std::thread::spawn(move || _ = stdin.write_all(&input));
    let output = child.wait_with_output().expect("the binary ends");
    writer.join().expect("the writer ends");
    Ran {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

/// Runs the binary with nothing on stdin.
pub(crate) fn realm<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ran {
    realm_with(args, [])
}

/// Arguments of mixed kinds.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        [$(std::ffi::OsStr::new(&$arg).to_owned()),*]
    };
}
