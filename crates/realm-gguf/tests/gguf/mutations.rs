//! Valid files cut short and changed, and bytes at random: never a panic.

use proptest::prelude::*;
use realm_gguf::GgufFile;

use crate::build::{error_text, small_file, touch};

/// Parses, and uses what is accepted.
fn try_file(bytes: Vec<u8>) {
    match GgufFile::parse(bytes) {
        Ok(file) => touch(&file),
        Err(error) => {
            error_text(&error);
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    let whole = small_file();
    touch(&GgufFile::parse(whole.clone()).expect("valid"));
    for len in 0..whole.len() {
        let error = GgufFile::parse(whole[..len].to_vec()).expect_err("truncated");
        error_text(&error);
    }
}

#[test]
fn flips_of_every_byte_do_not_panic() {
    let whole = small_file();
    for position in 0..whole.len() {
        for change in [0x01, 0x80, 0xff, whole[position], !whole[position]] {
            let mut bytes = whole.clone();
            bytes[position] ^= change;
            try_file(bytes);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        try_file(bytes);
    }

    #[test]
    fn random_bytes_after_a_valid_start_do_not_panic(
        tensors in 0u64..4,
        keys in 0u64..4,
        rest in prop::collection::vec(prop_oneof![3 => Just(0u8), 2 => 0u8..16, 1 => any::<u8>()], 0..400),
    ) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes.extend(rest);
        try_file(bytes);
    }

    #[test]
    fn several_changes_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..2),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = small_file();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for (at, value) in words {
            let at = at.index(bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let half = bytes.len() / 2;
        bytes.truncate(half + cut.index(half + 1));
        try_file(bytes);
    }
}
