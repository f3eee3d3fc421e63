//! Any bytes through the GGUF reader: what it refuses gives one line, what it accepts can be used
//! in every way and written again.
#![no_main]

mod common;

use std::fmt::Write as _;
use std::hint::black_box;
use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use realm_gguf::{FromValue, GgufError, GgufFile, GgufWriter, MAX_WRITTEN_NAME_BYTES, Strings};

fuzz_target!(|bytes: &[u8]| {
    match GgufFile::parse(bytes.to_vec()) {
        Ok(file) => {
            metadata(&file);
            tensors(&file);
            write_again(&file);
        }
        Err(error) => one_line(&error),
    }
});

fn one_line(error: &GgufError) {
    common::one_line(error, usize::MAX);
}

/// Every getter on every key.
fn metadata(file: &GgufFile) {
    fn get<'a, T: FromValue<'a>>(file: &'a GgufFile, key: &str) {
        if let Err(error) = file.metadata().get::<T>(key) {
            one_line(&error);
        }
    }
    let mut text = String::new();
    for (key, value) in file.metadata().iter() {
        text.clear();
        write!(text, "{value} {}", value.value_type()).expect("to a string");
        assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
        get::<u8>(file, key);
        get::<i8>(file, key);
        get::<u16>(file, key);
        get::<i16>(file, key);
        get::<u32>(file, key);
        get::<i32>(file, key);
        get::<u64>(file, key);
        get::<i64>(file, key);
        get::<usize>(file, key);
        get::<f32>(file, key);
        get::<f64>(file, key);
        get::<bool>(file, key);
        get::<&str>(file, key);
        get::<&realm_gguf::Array>(file, key);
        get::<&[f32]>(file, key);
        get::<&[f64]>(file, key);
        get::<&[bool]>(file, key);
        get::<Vec<u8>>(file, key);
        get::<Vec<i32>>(file, key);
        get::<Vec<u32>>(file, key);
        get::<Vec<usize>>(file, key);
        if let Ok(strings) = file.metadata().get::<&Strings>(key) {
            let lengths: usize = strings.iter().map(|s| s.len()).sum();
            black_box(lengths);
            for i in 0..=strings.len() {
                assert_eq!(strings.bytes(i).is_none(), i == strings.len());
            }
        }
    }
}

/// Every byte of every tensor, and that none lies in two tensors.
fn tensors(file: &GgufFile) {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for tensor in file.tensors() {
        let raw = tensor.raw_data().expect("ranges are checked when the file is opened");
        black_box(raw.iter().fold(0u8, |sum, &byte| sum ^ byte));
        match tensor.data() {
            Ok(data) => {
                let dtype = tensor.dtype().expect("only known types give data");
                let row = dtype.row_bytes(tensor.cols()).expect("rows are whole blocks");
                assert_eq!(data.len(), row * tensor.rows());
            }
            Err(error) => one_line(&error),
        }
        black_box((tensor.elements(), tensor.shape(), tensor.type_name(), tensor.part()));
        assert_eq!(file.require(tensor.name()).expect("listed").byte_range(), tensor.byte_range());
        ranges.push(tensor.byte_range());
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
}

/// The file, written again, reads the same.
fn write_again(file: &GgufFile) {
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata().iter() {
        if key == realm_gguf::ALIGNMENT_KEY {
            // May be another integer type than the one that is written, or larger than is quick.
            continue;
        }
        writer.set(key, value.clone()).expect("what is read can be written");
    }
    let known: Vec<_> = (file.tensors().iter())
        .filter(|t| t.dtype().is_some() && t.name().len() <= MAX_WRITTEN_NAME_BYTES)
        .collect();
    for tensor in &known {
        let dtype = tensor.dtype().expect("filtered");
        writer.tensor(tensor.name(), tensor.shape(), dtype).expect("what is read can be written");
    }
    let mut next = known.iter();
    let bytes = writer
        .to_bytes(|_, out| out.write_all(&next.next().expect("as many").data().expect("known")))
        .expect("memory takes all");
    let copy = GgufFile::parse(bytes).expect("what is written can be read");
    let wanted: Vec<_> =
        file.metadata().iter().filter(|(key, _)| *key != realm_gguf::ALIGNMENT_KEY).collect();
    assert_eq!(copy.metadata().len(), wanted.len());
    for ((key, value), (wanted_key, wanted)) in copy.metadata().iter().zip(wanted) {
        assert_eq!(key, wanted_key);
        // By their text: NaN is not equal to itself.
        assert!(value == wanted || format!("{value:?}") == format!("{wanted:?}"));
    }
    assert_eq!(copy.tensors().len(), known.len());
    for (tensor, wanted) in copy.tensors().iter().zip(known) {
        assert_eq!(tensor.name(), wanted.name());
        assert_eq!(tensor.data().expect("known")[..], wanted.data().expect("known")[..]);
    }
}
