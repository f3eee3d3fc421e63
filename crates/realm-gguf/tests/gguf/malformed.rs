//! Files that are wrong in one way each: the error names the place and the fault.

use std::fs::File;

use realm_gguf::{GgufErrorKind, GgufFile};

use crate::build::{F32, NO_TYPE, Q4_0, Raw, assert_says, error_text, id, touch};

/// The error of a file that holds only these bytes.
fn error(bytes: &[u8]) -> String {
    Raw(bytes.to_vec()).error()
}

#[test]
fn other_files_are_recognised() {
    assert_says(&error(b""), &["truncated", "4 bytes needed, 0 present"]);
    assert_says(&error(b"GGU"), &["truncated", "3 present"]);
    assert_says(&error(b"version https://git-lfs"), &["not a GGUF file", "git lfs pull"]);
    assert_says(&error(b"lmgg0000"), &["not a GGUF file", "older than GGUF"]);
    assert_says(&error(b"\x40\0\0\0\0\0\0\0{\"a\""), &["\\x00", "safetensors"]);
    assert_says(&error(b"PK\x03\x04...."), &["PyTorch"]);
    assert_says(&error(b"<!DOCTYPE html>"), &["web page"]);
    assert_says(&error(b"\n\n\n\n\n"), &["not a GGUF file", "give the path"]);
}

#[test]
fn versions() {
    for version in [2, 3] {
        assert!(Raw::new(version, 0, 0).parse().is_ok());
    }
    for version in [0, 1, 4, u32::MAX] {
        let text = Raw::new(version, 0, 0).error();
        assert_says(&text, &["byte 4", &format!("version {version} is not supported")]);
    }
    let big = b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert_says(&error(big), &["big-endian", "convert"]);
}

#[test]
fn counts_are_bounded_by_the_file() {
    for count in [1, 1000, u64::MAX] {
        let text = Raw::new(3, count, 0).error();
        assert_says(&text, &["byte 8", "tensor count", &count.to_string(), "room for 0"]);
        assert_says(&Raw::new(3, 0, count).error(), &["byte 16", "metadata keys", "room for 0"]);
    }
    for element in 0..=12 {
        let raw = Raw::new(3, 0, 1).key("key", id::ARRAY).u32(element).u64(u64::MAX / 2);
        let text = raw.bytes(&[0; 40]).error();
        assert_says(&text, &["an array's length", "9223372036854775807", "room for"]);
    }
    let text = Raw::new(3, 0, 1).key("key", id::STRING).u64(u64::MAX).bytes(&[0; 9]).error();
    assert_says(&text, &["a string", "18446744073709551615 bytes needed, 9 present"]);
    // A tensor count that fits before the metadata is read, but not after.
    let text = Raw::new(3, 2, 1).key("k", id::STRING).string([b'x'; 60]).error();
    assert_says(&text, &["tensor count", "2"]);
}

#[test]
fn keys() {
    let one = |key: &[u8]| Raw::new(3, 0, 1).key(key, id::U8).bytes(&[1; 20]);
    assert!(one(b"k").parse().is_ok());
    assert!(one(&[b'k'; 65_535]).parse().is_ok());
    assert_says(&one(&[b'k'; 65_536]).error(), &["byte 24", "a key has 65536 bytes", "65535"]);
    assert_says(&one(b"").error(), &["a key has 0 bytes"]);
    assert_says(&one(b"k\xff").error(), &["byte 24", "a key is not UTF-8"]);

    let text = Raw::new(3, 0, 2)
        .key("same\nkey", id::U8)
        .bytes(&[1])
        .key("same\nkey", id::U32)
        .u32(1)
        .error();
    assert_says(&text, &["\"same\\nkey\"", "stands twice"]);
}

#[test]
fn values() {
    let value = |type_id: u32, bytes: &[u8]| {
        Raw::new(3, 0, 1).key("key", type_id).bytes(bytes).bytes(&[0; 8])
    };
    for type_id in [13, 255, u32::MAX] {
        assert_says(&value(type_id, &[]).error(), &["byte 35", &format!("type {type_id}")]);
    }
    assert_says(&value(id::BOOL, &[2]).error(), &["byte 39", "a bool holds 2"]);
    let array = Raw(vec![]).u32(id::BOOL).u64(3).bytes(&[0, 1, 9]).0;
    assert_says(&value(id::ARRAY, &array).error(), &["a bool holds 9"]);

    let nested = |depth: usize| {
        let open = Raw::new(3, 0, 1).key("key", id::ARRAY);
        let inner = (1..depth).fold(open, |raw, _| raw.u32(id::ARRAY).u64(1));
        inner.u32(id::U8).u64(0).bytes(&[0; 8])
    };
    assert!(nested(4).parse().is_ok());
    assert_says(&nested(5).error(), &["nested deeper than 4"]);
    assert_says(&nested(100_000).error(), &["nested deeper than 4"]);
}

#[test]
fn alignments() {
    let with = |alignment: u32| Raw::new(3, 0, 1).key("general.alignment", id::U32).u32(alignment);
    for alignment in [8, 16, 32, 4096, 1 << 30] {
        let file = with(alignment).parse().expect("a valid alignment");
        assert_eq!(file.alignment(), alignment.into());
    }
    for alignment in [0, 1, 4, 24, 33, u32::MAX, 1 << 31] {
        let text = with(alignment).error();
        assert_says(&text, &["general.alignment", &alignment.to_string(), "power of two"]);
    }
    let text = Raw::new(3, 0, 1).key("general.alignment", id::STRING).string("32 bytes").error();
    assert_says(&text, &["general.alignment", "holds string"]);
    let odd = Raw::new(3, 1, 0).tensor("t", &[4], F32, 16).data(32, 64).error();
    assert_says(&odd, &["tensor \"t\"", "offset 16", "alignment 32"]);
    let wide = Raw::new(3, 1, 1).key("general.alignment", id::U32).u32(256);
    let file = wide.tensor("t", &[64], F32, 256).data(256, 512).parse().expect("valid");
    assert_eq!(file.tensors()[0].byte_range(), 512..768);
}

#[test]
fn shapes() {
    let one =
        |dims: &[u64], type_id: u32| Raw::new(3, 1, 0).tensor("t", dims, type_id, 0).data(32, 4096);
    let file = one(&[8, 3, 2, 5], F32).parse().expect("valid");
    let tensor = &file.tensors()[0];
    assert_eq!((tensor.cols(), tensor.rows(), tensor.elements()), (8, 30, 240));
    assert_eq!(tensor.shape(), [8, 3, 2, 5]);
    assert_eq!(tensor.data().expect("known type").len(), 960);
    let file = one(&[], F32).parse().expect("a single value");
    assert_eq!((file.tensors()[0].shape().len(), file.tensors()[0].elements()), (0, 1));

    assert_says(&one(&[1; 5], F32).error(), &["tensor \"t\"", "5 dimensions", "at most 4"]);
    assert_says(&one(&[4, 0], F32).error(), &["[4, 0]", "a dimension is 0"]);
    let huge: [&[u64]; 5] = [
        &[u64::MAX],
        &[1 << 32, 1 << 32],
        &[1 << 63, 1],
        &[3, u64::MAX / 2],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
    ];
    for dims in huge {
        for type_id in [F32, NO_TYPE] {
            assert_says(&one(dims, type_id).error(), &["tensor \"t\"", "too large"]);
        }
    }
    assert_says(&one(&[1 << 60], F32).error(), &["truncated"]);
    assert_says(&one(&[48, 2], Q4_0).error(), &["48", "Q4_0", "32"]);
    assert_says(&one(&[16, 2], Q4_0).error(), &["16", "Q4_0", "32"]);
    let hostile = Raw::new(3, 1, 0).string("t").u32(u32::MAX).bytes(&[1; 64]).error();
    assert_says(&hostile, &["4294967295 dimensions"]);
}

#[test]
fn tensor_names() {
    let one = |name: &str| Raw::new(3, 1, 0).tensor(name, &[4], F32, 0).data(32, 32);
    assert!(one(&"n".repeat(1024)).parse().is_ok());
    assert_says(&one(&"n".repeat(1025)).error(), &["a tensor name has 1025 bytes"]);
    assert_says(&one("").error(), &["a tensor name has 0 bytes"]);
    let bad = Raw::new(3, 1, 0).string(b"\xc3\x28").bytes(&[0; 64]).error();
    assert_says(&bad, &["a tensor name is not UTF-8"]);
    let twice = Raw::new(3, 2, 0)
        .tensor("t\n", &[4], F32, 0)
        .tensor("t\n", &[4], F32, 32)
        .data(32, 64)
        .error();
    assert_says(&twice, &["tensor \"t\\n\"", "stands twice"]);
}

#[test]
fn data_must_be_present() {
    // The header takes 24 + 37 bytes, so data starts at 64.
    let one =
        |offset: u64, data: usize| Raw::new(3, 1, 0).tensor("t", &[8], F32, offset).data(32, data);
    assert_eq!(one(32, 64).parse().expect("valid").tensors()[0].byte_range(), 96..128);
    let text = one(32, 63).error();
    assert_says(&text, &["tensor \"t\"", "bytes 96 to 128", "has 127", "truncated"]);
    assert_says(&one(u64::MAX - 31, 64).error(), &["tensor \"t\"", "truncated"]);
    let unknown = |offset| Raw::new(3, 1, 0).tensor("t", &[8], NO_TYPE, offset).data(32, 64);
    assert!(unknown(32).parse().is_ok());
    assert_says(&unknown(64).error(), &["tensor \"t\"", "bytes 128 to 129", "has 128"]);
}

#[test]
fn overlaps_name_both_tensors() {
    let two = |first: u64, second: u64, types: [u32; 2]| {
        Raw::new(3, 2, 0)
            .tensor("one", &[32], types[0], first)
            .tensor("two", &[32], types[1], second)
            .data(32, 512)
    };
    assert!(two(0, 128, [F32, F32]).parse().is_ok());
    assert!(two(128, 0, [F32, F32]).parse().is_ok());
    assert!(two(256, 0, [F32, F32]).parse().is_ok());
    for (first, second) in [(0, 96), (96, 0), (0, 0), (128, 32)] {
        let text = two(first, second, [F32, F32]).error();
        assert_says(&text, &["\"one\"", "\"two\"", "overlaps"]);
    }
    for types in [[NO_TYPE, F32], [F32, NO_TYPE], [NO_TYPE, NO_TYPE]] {
        assert_says(&two(0, 0, types).error(), &["\"one\"", "\"two\"", "overlaps"]);
    }
    assert_says(&two(0, 96, [F32, NO_TYPE]).error(), &["overlaps"]);
}

#[test]
fn unknown_types_are_listed_but_give_no_weight() {
    let file = Raw::new(3, 3, 0)
        .tensor("a", &[32], NO_TYPE, 0)
        .tensor("b", &[8], F32, 96)
        .tensor("c", &[256], 16, 128)
        .data(32, 200)
        .parse()
        .expect("unknown types are no error");
    touch(&file);
    let start = file.file_bytes() as usize - 200;
    let a = file.require("a").expect("listed");
    assert_eq!((a.type_id(), a.dtype(), a.type_name()), (NO_TYPE, None, "unknown"));
    assert_eq!(a.byte_range(), start..start + 96);
    assert_eq!(a.raw_data().expect("in the file").len(), 96);
    assert_eq!(file.require("c").expect("listed").byte_range(), start + 128..start + 200);
    let error = a.data().expect_err("no weight");
    assert!(matches!(error.kind(), GgufErrorKind::TensorType { id: NO_TYPE, .. }));
    assert_says(&error_text(&error), &["tensor \"a\"", "12345", "not supported"]);
    let error = file.require("c").expect("listed").data().expect_err("no weight");
    assert_says(&error_text(&error), &["tensor \"c\"", "IQ2_XXS", "id 16"]);
}

#[test]
fn paths_that_are_no_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = GgufFile::open(folder.path()).expect_err("a folder");
    assert_says(&error_text(&error), &["not a regular file"]);
    let missing = folder.path().join("no\nsuch.gguf");
    let error = GgufFile::open(&missing).expect_err("missing");
    assert_says(&error_text(&error), &["no\\nsuch.gguf", "cannot open the file"]);
    let empty = folder.path().join("empty.gguf");
    File::create(&empty).expect("created");
    let error = GgufFile::open(&empty).expect_err("empty");
    assert_says(&error_text(&error), &["empty.gguf", "truncated"]);
}

/// A file larger than a header may be, almost all of it a hole, claims a header as large.
#[test]
fn headers_are_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large.gguf");
    let cases = [
        Raw::new(3, 0, 1).key("key", id::STRING).u64(1 << 29),
        Raw::new(3, 0, 1).key("key", id::ARRAY).u32(id::U64).u64(1 << 26),
        Raw::new(3, 1 << 25, 0),
    ];
    for raw in cases {
        std::fs::write(&path, raw.0).expect("written");
        File::options().write(true).open(&path).and_then(|f| f.set_len(1 << 30)).expect("grown");
        let error = GgufFile::open(&path).expect_err("too large");
        assert!(matches!(error.kind(), GgufErrorKind::HeaderTooLarge(_)), "{error}");
        error_text(&error);
    }
}
