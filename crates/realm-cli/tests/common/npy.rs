//! `.npy` files as the tests need them, read and written apart from the binary's own code.

use std::{fs, path::Path};

/// Writes a one-dimensional array of `count` elements of type `descr`.
pub(crate) fn write(path: &Path, descr: &str, count: usize, data: &[u8]) {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({count},), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

fn data(path: &Path, descr: &str) -> Vec<[u8; 4]> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8_lossy(&bytes[10..start]);
    assert!(header.contains(descr), "{}: {header}", path.display());
    bytes[start..].chunks(4).map(|chunk| chunk.try_into().unwrap()).collect()
}

/// All elements of an f32 array.
pub(crate) fn read_f32(path: &Path) -> Vec<f32> {
    data(path, "'<f4'").into_iter().map(f32::from_le_bytes).collect()
}

/// All elements of an i32 array.
pub(crate) fn read_i32(path: &Path) -> Vec<i32> {
    data(path, "'<i4'").into_iter().map(i32::from_le_bytes).collect()
}
