//! Writes the seeds of the targets to `seeds/TARGET/`.

use std::error::Error;
use std::path::Path;

use realm_core::DType;
use realm_gguf::{Array, GgufWriter, Strings};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/gguf");
    std::fs::create_dir_all(&folder)?;
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes);

    let metadata = file(&all_metadata()?)?;
    let tensors = file(&some_tensors()?)?;
    write("metadata", &metadata)?;
    write("tensors", &tensors)?;
    write("version-2", &with(&tensors, 4, &2u32.to_le_bytes()))?;
    write("big-endian", &with(&tensors, 4, &3u32.to_be_bytes()))?;
    write("unknown-type", &unknown_type(&tensors)?)?;
    write("empty", &file(&GgufWriter::new())?)?;
    let mut split = GgufWriter::new();
    split.set("split.no", 0u16)?.set("split.count", 2u16)?.set("split.tensors.count", 1i32)?;
    write("split", &file(&split)?)?;
    tokenizer_seeds()
}

/// The first byte says: a vocabulary that is ready (the next byte names it), or one out of what
/// follows.
fn tokenizer_seeds() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/tokenizer");
    std::fs::create_dir_all(&folder)?;
    let text = "It's  the 12345 <user>\r\n\tnaïve 中文 \u{301}😀</s>!";
    for ready in (0..27u8).step_by(3) {
        let seed = [&[0, ready], text.as_bytes()].concat();
        std::fs::write(folder.join(format!("ready-{ready}")), seed)?;
    }
    for kind in 0..3u8 {
        // Pre-tokenizer, tokens, additions, scores and types, name, merges, ids, flags, text.
        let head: &[&[u8]] =
            &[&[1, kind, 99, 2, 2, b'a', b'b', 3, b'a', b'b', b'c', 0, 1], &[9; 8], &[2; 8]];
        let tail: &[&[u8]] = &[&[0, 1, 3, b'a', b' ', b'b'], &[9; 8], &[1; 5], b"abcab <0x61>"];
        std::fs::write(folder.join(format!("made-{kind}")), [head, tail].concat().concat())?;
    }
    Ok(())
}

fn file(writer: &GgufWriter) -> Result<Vec<u8>, realm_gguf::GgufError> {
    writer.to_bytes(|plan, out| out.write_all(&vec![0x5a; plan.bytes()]))
}

/// A file with `new` in place of the bytes at `at`.
fn with(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed[at..at + new.len()].copy_from_slice(new);
    changed
}

/// The file with the type of its tensor `b` replaced by one that doesn't exist.
fn unknown_type(bytes: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    // Name length, name, dimension count, one dimension; then the type.
    let described = b"\x01\0\0\0\0\0\0\0b\x01\0\0\0";
    let at = (bytes.windows(described.len()).position(|w| w == described))
        .ok_or("tensor b is not in the file")?;
    Ok(with(bytes, at + described.len() + 8, &999u32.to_le_bytes()))
}

fn all_metadata() -> Result<GgufWriter, realm_gguf::GgufError> {
    let strings: Strings = ["a", "", "\u{2581}t"].into_iter().collect();
    let lists = vec![Array::U8(vec![1]), Array::String(strings.clone()), Array::Array(vec![])];
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama")?.set("u8", 1u8)?.set("i8", -1i8)?;
    writer.set("u16", 2u16)?.set("i16", -2i16)?.set("u32", 3u32)?.set("i32", -3i32)?;
    writer.set("u64", 4u64)?.set("i64", -4i64)?.set("f32", 0.5f32)?.set("f64", 0.25f64)?;
    writer.set("bool", true)?.set("strings", strings)?.set("lists", Array::Array(lists))?;
    writer.set("a8", vec![1i8, -1])?.set("a16", vec![1u16])?.set("a32", vec![1i32, 2])?;
    writer.set("a64", vec![1u64])?.set("af", vec![1f32])?.set("ad", vec![1f64])?;
    writer.set("ab", vec![true, false])?;
    Ok(writer)
}

fn some_tensors() -> Result<GgufWriter, realm_gguf::GgufError> {
    let mut writer = GgufWriter::new();
    writer.set("general.alignment", 8u32)?;
    writer.tensor("a", &[2, 2], DType::F32)?.tensor("b", &[32], DType::Q4_0)?;
    writer.tensor("c", &[1, 1, 1, 1], DType::F16)?.tensor("d", &[], DType::F32)?;
    Ok(writer)
}
