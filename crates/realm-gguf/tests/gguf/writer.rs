//! The writer's checks and its care for the file under the final name.

use std::io::{self, Write};
use std::path::Path;

use realm_core::DType;
use realm_gguf::{Array, GgufErrorKind, GgufFile, GgufWriter, Value};

use crate::build::{assert_says, error_text};

/// A writer with one tensor of 32 bytes.
fn writer() -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer.set("key", 1u32).expect("set").tensor("t", &[8], DType::F32).expect("added");
    writer
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn duplicates_and_bad_plans_are_refused() {
    let mut writer = writer();
    let text = error_text(&writer.set("key", 2u32).expect_err("twice"));
    assert_says(&text, &["\"key\"", "twice"]);
    let text = error_text(&writer.tensor("t", &[4], DType::F32).expect_err("twice"));
    assert_says(&text, &["\"t\"", "twice"]);
    for name in [String::new(), "n".repeat(64)] {
        assert!(writer.tensor(name, &[4], DType::F32).is_err());
    }
    assert!(writer.tensor("n".repeat(63), &[4], DType::F32).is_ok());
    for shape in [&[1; 5][..], &[4, 0], &[usize::MAX, 2], &[usize::MAX]] {
        let error = writer.tensor("u", shape, DType::F32).expect_err("a bad shape");
        assert!(matches!(error.kind(), GgufErrorKind::Shape { .. }), "{error}");
        error_text(&error);
    }
    let text = error_text(&writer.tensor("u", &[33], DType::Q8_0).expect_err("a broken row"));
    assert_says(&text, &["\"u\"", "33", "Q8_0", "32"]);
    assert!(writer.set("", 1u8).is_err());
    assert!(writer.set("k".repeat(65_536), 1u8).is_err());
    let deep = (0..4).fold(Array::U8(vec![]), |inner, _| Array::Array(vec![inner]));
    assert!(writer.set("deep", Value::Array(deep)).is_err());
    for alignment in [0u32, 4, 48] {
        let error = writer.set("general.alignment", alignment).expect_err("no alignment");
        assert!(matches!(error.kind(), GgufErrorKind::Alignment(_)));
    }
    assert!(writer.set("general.alignment", 32u64).is_err());
    assert_eq!((writer.metadata().len(), writer.tensors().len()), (1, 2));
}

#[test]
fn data_of_the_wrong_length_is_refused() {
    for (pieces, given) in
        [(vec![], 0), (vec![31], 31), (vec![16, 15], 31), (vec![33], 33), (vec![32, 1], 33)]
    {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m.gguf");
        let error = writer()
            .write_file(&path, |_, out| {
                pieces.iter().try_for_each(|&len| out.write_all(&vec![0; len]))
            })
            .expect_err("a wrong length");
        assert_says(&error_text(&error), &["m.gguf", "\"t\"", &given.to_string(), "need 32"]);
        assert!(entries(folder.path()).is_empty(), "{:?}", entries(folder.path()));
    }
    // Ignoring the refusal doesn't help.
    let error = writer().to_bytes(|_, out| {
        let _ = out.write_all(&[0; 33]);
        out.write_all(&[0; 32])
    });
    assert!(matches!(error.expect_err("33 bytes").kind(), GgufErrorKind::DataLength { .. }));
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, b"old").expect("written");
    let error = writer()
        .write_file(&path, |_, out| {
            out.write_all(&[1; 8])?;
            Err(io::Error::other("the source broke"))
        })
        .expect_err("the callback failed");
    assert_says(&error_text(&error), &["m.gguf", "\"t\"", "the source broke"]);
    assert_eq!(std::fs::read(&path).expect("read"), b"old");
    assert_eq!(entries(folder.path()), ["m.gguf"]);

    let panicked = std::panic::catch_unwind(|| {
        writer().write_file(&path, |_, _| panic!("in the callback")).map(drop)
    });
    assert!(panicked.is_err());
    assert_eq!(std::fs::read(&path).expect("read"), b"old");
    assert_eq!(entries(folder.path()), ["m.gguf"]);
}

#[test]
fn an_open_file_survives_being_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.gguf");
    writer().write_file(&path, |_, out| out.write_all(&[1; 32])).expect("written");
    let old = GgufFile::open(&path).expect("valid");
    let len = writer().write_file(&path, |_, out| out.write_all(&[2; 32])).expect("written");
    assert_eq!(old.require("t").expect("there").data().expect("f32")[..], [1; 32]);
    let new = GgufFile::open(&path).expect("valid");
    assert_eq!(new.require("t").expect("there").data().expect("f32")[..], [2; 32]);
    assert_eq!((len, new.file_bytes()), (len, len));
    assert_eq!(entries(folder.path()), ["m.gguf"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let plain = folder.path().join("plain");
        std::fs::write(&plain, b"").expect("written");
        let mode = |path| std::fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode(&path), mode(&plain), "rights like any new file's");
    }
}

#[test]
fn unwritable_places_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("no/such/folder/m.gguf");
    let text = error_text(&writer().write_file(&path, |_, _| Ok(())).expect_err("no folder"));
    assert_says(&text, &["m.gguf", "there is no folder"]);
    let fill = |_: &_, out: &mut dyn Write| out.write_all(&[0; 32]);
    let text = error_text(&writer().write_file(folder.path(), fill).expect_err("a folder"));
    assert_says(&text, &["is no file"]);
    assert!(entries(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn links_stay_and_what_is_no_file_is_refused() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("sub")).expect("a folder");
    std::fs::write(at("sub/old.gguf"), b"old").expect("written");
    // A link to a link to a file; one to nothing; one to itself; one to a folder.
    symlink("sub/second", at("link")).expect("linked");
    symlink("old.gguf", at("sub/second")).expect("linked");
    symlink(at("sub/new.gguf"), at("dangling")).expect("linked");
    symlink("loop", at("loop")).expect("linked");
    symlink("sub", at("folder")).expect("linked");
    let write = |name: &str| writer().write_file(at(name), |_, out| out.write_all(&[1; 32]));
    for (link, target) in [("link", "sub/old.gguf"), ("dangling", "sub/new.gguf")] {
        write(link).expect("written");
        assert!(at(link).is_symlink() && !at(target).is_symlink());
        assert_eq!(std::fs::read(at(target)).expect("read")[..4], *b"GGUF");
    }
    assert!(at("sub/second").is_symlink());
    let text = error_text(&write("loop").expect_err("a loop"));
    assert_says(&text, &["loop", "link"]);
    let made = std::process::Command::new("mkfifo").arg(at("pipe")).status();
    assert!(made.expect("mkfifo runs").success());
    symlink("pipe", at("to-pipe")).expect("linked");
    for name in ["pipe", "to-pipe", "folder", "sub"] {
        let text = error_text(&write(name).expect_err("no file"));
        assert_says(&text, &[name, "is there and is no file"]);
    }
    assert!(std::fs::symlink_metadata(at("pipe")).expect("there").file_type().is_fifo());
    let mut left = entries(&at("sub"));
    left.sort();
    assert_eq!(left, ["new.gguf", "old.gguf", "second"]);
}

/// A sink that takes one byte at a time and fails after some.
struct Trickle(usize);

impl Write for Trickle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("disk full"))?;
        Ok(bytes.len().min(1))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let fill = |_: &_, out: &mut dyn Write| out.write_all(&[0; 32]);
    let len = writer().write_to(Trickle(1 << 20), fill).expect("enough room");
    for room in 0..len as usize {
        let error = writer().write_to(Trickle(room), fill).expect_err("no room");
        assert_says(&error_text(&error), &["disk full"]);
    }
    assert!(writer().write_to(Trickle(len as usize), fill).is_ok());
}

/// The bytes of a small file, counted out by hand after the format's description.
#[test]
fn layout_is_the_formats() {
    let bytes = writer().to_bytes(|_, out| out.write_all(&[9; 32])).expect("written");
    let mut wanted = b"GGUF\x03\0\0\0".to_vec();
    wanted.extend([1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    wanted.extend(b"\x03\0\0\0\0\0\0\0key\x04\0\0\0\x01\0\0\0");
    wanted.extend(b"\x01\0\0\0\0\0\0\0t\x01\0\0\0\x08\0\0\0\0\0\0\0");
    wanted.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    wanted.resize(96, 0);
    wanted.extend([9; 32]);
    assert_eq!(bytes, wanted);
}
