//! Models in several files.

use std::path::{Path, PathBuf};

use realm_core::DType;
use realm_gguf::{GgufFile, GgufWriter};

use crate::build::{assert_says, error_text, touch};

/// What one part of a split model holds.
struct Part {
    number: u16,
    count: u16,
    total: i32,
    tensors: &'static [&'static str],
}

fn write(path: &Path, part: &Part) {
    let mut writer = GgufWriter::new();
    let fill = |writer: &mut GgufWriter| {
        if part.number == 0 {
            writer.set("general.architecture", "llama")?;
        }
        writer.set("split.no", part.number)?.set("split.count", part.count)?;
        writer.set("split.tensors.count", part.total)?;
        for &name in part.tensors {
            writer.tensor(name, &[4], DType::F32)?;
        }
        writer.write_file(path, |plan, out| out.write_all(&vec![part.number as u8; plan.bytes()]))
    };
    fill(&mut writer).expect("written");
}

fn name(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("my-model-{number:05}-of-00003.gguf"))
}

/// A model of three files, four tensors.
fn write_all(folder: &Path) {
    let tensors: [&[&str]; 3] = [&["a", "b"], &["c"], &["d"]];
    for (number, tensors) in (0..).zip(tensors) {
        let part = Part { number, count: 3, total: 4, tensors };
        write(&name(folder, usize::from(number) + 1), &part);
    }
}

/// The text of the error of opening `path`.
#[track_caller]
fn error(path: &Path) -> String {
    error_text(&GgufFile::open(path).expect_err("should be refused"))
}

#[test]
fn the_first_part_opens_all() {
    let folder = tempfile::tempdir().expect("a folder");
    write_all(folder.path());
    let file = GgufFile::open(name(folder.path(), 1)).expect("all parts are there");
    touch(&file);
    assert_eq!(file.parts().len(), 3);
    assert_eq!(file.metadata().get::<&str>("general.architecture").expect("text"), "llama");
    let places: Vec<_> = file.tensors().iter().map(|t| (t.name(), t.part())).collect();
    assert_eq!(places, [("a", 0), ("b", 0), ("c", 1), ("d", 2)]);
    for tensor in file.tensors() {
        let data = tensor.data().expect("f32");
        assert_eq!(data[..], [tensor.part() as u8; 16], "{}", tensor.name());
        assert_eq!(tensor.path(), name(folder.path(), tensor.part() + 1));
    }
    // The data outlive the file that they were taken from.
    let data = file.require("d").expect("there").data().expect("f32");
    drop(file);
    assert_eq!(data[..], [2; 16]);
}

#[test]
fn another_part_names_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    write_all(folder.path());
    let text = error(&name(folder.path(), 2));
    assert_says(&text, &["part 2 of 3", "my-model-00001-of-00003.gguf"]);
    let renamed = folder.path().join("renamed.gguf");
    std::fs::rename(name(folder.path(), 2), &renamed).expect("renamed");
    assert_says(&error(&renamed), &["part 2 of 3", "-00001-of-00003.gguf"]);
    std::fs::rename(name(folder.path(), 1), &renamed).expect("renamed");
    assert_says(&error(&renamed), &["part 1 of 3", "-00001-of-00003.gguf", "rename"]);
}

#[test]
fn a_missing_part_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    write_all(folder.path());
    std::fs::remove_file(name(folder.path(), 3)).expect("removed");
    let text = error(&name(folder.path(), 1));
    assert_says(&text, &["part 3 of 3 is missing", "my-model-00003-of-00003.gguf"]);
}

#[test]
fn parts_must_belong_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (name(folder.path(), 1), name(folder.path(), 2));
    write_all(folder.path());
    write(&second, &Part { number: 2, count: 3, total: 4, tensors: &["c"] });
    assert_says(&error(&first), &["00002-of-00003", "says part 3 of 3", "part 2 of 3"]);
    write(&second, &Part { number: 1, count: 5, total: 4, tensors: &["c"] });
    assert_says(&error(&first), &["says part 2 of 5"]);
    write(&second, &Part { number: 1, count: 0, total: 4, tensors: &["c"] });
    assert_says(&error(&first), &["not split"]);
    write(&second, &Part { number: 1, count: 3, total: 4, tensors: &["b"] });
    assert_says(&error(&first), &["\"b\"", "stands twice", "00001-of-00003"]);
    write(&second, &Part { number: 1, count: 3, total: 4, tensors: &["c", "e"] });
    assert_says(&error(&first), &["hold 5 tensors", "4 are announced"]);
    std::fs::write(&second, b"GGUF").expect("written");
    assert_says(&error(&first), &["00002-of-00003", "truncated"]);
}

#[test]
fn hostile_split_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m-00001-of-00002.gguf");
    for (number, count) in [(0, u64::MAX), (u64::MAX, 2), (u64::MAX, u64::MAX), (0, 99_999)] {
        let mut writer = GgufWriter::new();
        writer.set("split.no", number).expect("set").set("split.count", count).expect("set");
        writer.write_file(&path, |_, _| Ok(())).expect("written");
        error(&path);
    }
    let mut writer = GgufWriter::new();
    writer.set("split.count", 2u16).expect("set");
    writer.write_file(&path, |_, _| Ok(())).expect("written");
    assert_says(&error(&path), &["split.no", "missing"]);
    // A count of one is a whole file, whatever its name.
    let mut writer = GgufWriter::new();
    writer.set("split.count", 1u16).expect("set");
    writer.write_file(&path, |_, _| Ok(())).expect("written");
    assert!(GgufFile::open(&path).is_ok());
    let bytes = std::fs::read(&path).expect("read");
    assert!(GgufFile::parse(bytes).is_ok());
}

#[test]
fn parts_in_memory_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    write_all(folder.path());
    let bytes = std::fs::read(name(folder.path(), 1)).expect("read");
    let text = error_text(&GgufFile::parse(bytes).expect_err("a part"));
    assert_says(&text, &["3 parts", "by path"]);
}
