//! `.npy` files of format 1 with 32 bits an element.

use std::{fs, path::Path};

fn words(path: &Path) -> Vec<[u8; 4]> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..].as_chunks::<4>().0.to_vec()
}

/// Token ids.
pub(crate) fn ids(path: &Path) -> Vec<u32> {
    words(path).into_iter().map(u32::from_le_bytes).collect()
}

/// Logits.
pub(crate) fn floats(path: &Path) -> Vec<f32> {
    words(path).into_iter().map(f32::from_le_bytes).collect()
}
