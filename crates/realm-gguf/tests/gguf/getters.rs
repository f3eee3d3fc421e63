//! Metadata getters and what they say.

use realm_gguf::{Array, GgufErrorKind, GgufFile, Strings, Value, ValueType};

use crate::build::{Raw, assert_says, error_text, id, small_file};

#[test]
fn integers_widen_within_range() {
    let file = GgufFile::parse(small_file()).expect("valid");
    let meta = file.metadata();
    assert_eq!(meta.get::<u32>("u8").expect("fits"), 1);
    assert_eq!(meta.get::<usize>("u16").expect("fits"), 2);
    assert_eq!(meta.get::<i64>("i8").expect("fits"), -1);
    assert_eq!(meta.get::<u8>("u32").expect("fits"), 3);
    assert_eq!(meta.get::<u64>("u64").expect("fits"), u64::MAX);
    assert_eq!(meta.get::<i64>("i64").expect("fits"), i64::MIN);
    assert_eq!(meta.get::<Vec<u64>>("numbers").expect("fits"), [1, 2, 3]);
    assert_eq!(meta.get::<Vec<i8>>("numbers").expect("fits"), [1, 2, 3]);

    let error = meta.get::<u32>("i32").expect_err("negative");
    assert!(matches!(error.kind(), GgufErrorKind::OutOfRange { value: -3, wanted: "u32" }));
    assert_says(&error_text(&error), &["<memory>", "\"i32\"", "-3", "u32"]);
    let error = meta.get::<u32>("u64").expect_err("too large");
    assert_says(&error_text(&error), &["18446744073709551615", "u32"]);
    assert!(meta.get::<i64>("u64").is_err());
}

#[test]
fn floats_text_and_arrays() {
    let file = GgufFile::parse(small_file()).expect("valid");
    let meta = file.metadata();
    assert_eq!(meta.get::<f32>("f32").expect("f32"), 0.5);
    assert_eq!(meta.get::<f64>("f32").expect("widens"), 0.5);
    assert_eq!(meta.get::<f32>("f64").expect("rounds"), -0.25);
    assert_eq!(meta.get::<&str>("general.architecture").expect("text"), "llama");
    assert!(meta.get::<bool>("bool").expect("bool"));
    assert_eq!(meta.get::<&[bool]>("flags").expect("bools"), [true, false]);
    let strings = meta.get::<&Strings>("strings").expect("strings");
    assert_eq!(strings.iter().collect::<Vec<_>>(), ["a", "", "ü", "tok\u{2581}"]);
    let nested = Value::Array(Array::Array(vec![Array::U8(vec![1, 2])]));
    assert_eq!(meta.value("nested"), Some(&nested));
    assert_eq!(meta.len(), 16);
    assert_eq!(meta.iter().next().map(|(key, _)| key), Some("general.architecture"));
}

#[test]
fn missing_keys_and_wrong_types_say_key_and_types() {
    let file = GgufFile::parse(small_file()).expect("valid");
    let meta = file.metadata();
    assert_eq!(meta.find::<u32>("llama.block_count").expect("missing is no error"), None);
    let error = meta.get::<u32>("llama.block_count").expect_err("missing");
    assert_says(&error_text(&error), &["\"llama.block_count\"", "missing", "u32"]);

    let error = meta.find::<u32>("strings").expect_err("another type");
    assert!(matches!(
        error.kind(),
        GgufErrorKind::WrongType { found: ValueType::Array(_), wanted: "u32" }
    ));
    assert_says(&error_text(&error), &["\"strings\"", "array of string", "u32"]);
    let error = meta.get::<&str>("u8").expect_err("another type");
    assert_says(&error_text(&error), &["\"u8\"", "holds u8", "wanted string"]);
    assert!(meta.get::<f32>("u8").is_err());
    assert!(meta.get::<u32>("bool").is_err());
    assert!(meta.get::<Vec<u32>>("flags").is_err());
    assert!(meta.get::<&[f32]>("numbers").is_err());

    let error = file.require("output.weight").expect_err("no such tensor");
    assert_says(&error_text(&error), &["\"output.weight\"", "missing"]);
}

#[test]
fn strings_that_are_not_utf8_are_kept() {
    let file = Raw::new(3, 0, 2)
        .key("name", id::STRING)
        .string(b"a\xffb")
        .key("tokens", id::ARRAY)
        .u32(id::STRING)
        .u64(2)
        .string(b"\xe2\x96")
        .string("b")
        .parse()
        .expect("stray bytes in values are no error");
    assert_eq!(file.metadata().get::<&str>("name").expect("text"), "a\u{fffd}b");
    let tokens = file.metadata().get::<&Strings>("tokens").expect("strings");
    assert_eq!(tokens.bytes(0), Some(&b"\xe2\x96"[..]));
    assert_eq!(tokens.get(0).as_deref(), Some("\u{fffd}"));
    assert_eq!(tokens.get(1).as_deref(), Some("b"));
    assert_eq!(tokens.get(2), None);
}

#[test]
fn values_show_on_one_line() {
    let long: Vec<u32> = (0..100).collect();
    assert_eq!(Value::from(long).to_string(), "100 × u32 [0, 1, 2, 3, 4, 5, …]");
    assert_eq!(Value::from("a\nb").to_string(), r#""a\nb""#);
    let strings: Strings = ["x", "y"].into_iter().collect();
    assert_eq!(Value::from(strings).to_string(), r#"2 × string ["x", "y"]"#);
    let text = Value::from("é".repeat(10_000)).to_string();
    assert!(text.chars().count() < 100 && text.ends_with("…\""));
}

#[test]
fn files_and_tensors_cross_threads() {
    let file = GgufFile::parse(small_file()).expect("valid");
    std::thread::scope(|scope| {
        for tensor in file.tensors() {
            scope.spawn(move || assert!(!tensor.data().expect("known").is_empty()));
        }
    });
}
