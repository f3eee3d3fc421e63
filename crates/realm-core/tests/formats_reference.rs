//! The block formats against recorded figures of the established implementation.
//!
//! The folder is read from `REALM_REFERENCE`; without it the tests say that they were skipped.

use realm_core::{BlockFormat, DType};
use serde_json::Value;
use std::path::PathBuf;

/// The folder `quants` of the reference data.
fn folder() -> Option<PathBuf> {
    match std::env::var_os("REALM_REFERENCE") {
        Some(root) => Some(PathBuf::from(root).join("quants")),
        None => {
            println!("skipped: REALM_REFERENCE is not set");
            None
        }
    }
}

fn bytes(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(path: PathBuf) -> Vec<f32> {
    bytes(path).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn manifest(folder: &std::path::Path) -> Value {
    serde_json::from_slice(&bytes(folder.join("manifest.json"))).expect("the manifest is JSON")
}

fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dtype.decode(bytes, &mut out);
    out
}

fn encoded(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0xa5; dtype.row_bytes(values.len()).expect("whole blocks")];
    dtype.encode(values, &mut out);
    out
}

/// All formats that the reference data covers: all but F32.
fn covered() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|&dtype| dtype != DType::F32)
}

#[test]
fn layout_constants_match() {
    let Some(folder) = folder() else { return };
    let manifest = manifest(&folder);
    for dtype in covered() {
        let entry = &manifest["types"][dtype.name()];
        assert_eq!(entry["ggml_type"], dtype.gguf_id(), "{dtype}");
        assert_eq!(entry["block_size"], dtype.block_len(), "{dtype}");
        assert_eq!(entry["type_size"], dtype.block_bytes(), "{dtype}");
    }
}

#[test]
fn decode_is_bit_exact() {
    let Some(folder) = folder() else { return };
    let manifest = manifest(&folder);
    for dtype in covered() {
        let blocks = bytes(folder.join(format!("dequant/{dtype}.blocks.bin")));
        let expected = floats(folder.join(format!("dequant/{dtype}.f32.bin")));
        let actual = decoded(dtype, &blocks);
        assert_eq!(actual.len(), expected.len(), "{dtype}");
        for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
            let block = i / dtype.block_len();
            assert!(
                a.to_bits() == e.to_bits(),
                "{dtype}: block {block} ({}), weight {}: {a:e} instead of {e:e}",
                manifest["types"][dtype.name()]["labels"][block],
                i % dtype.block_len(),
            );
        }
    }
}

#[test]
fn encode_is_byte_exact_where_the_format_leaves_no_choice() {
    let Some(folder) = folder() else { return };
    let input = floats(folder.join("quant/input.f32.bin"));
    use DType::{BF16, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_K};
    for dtype in [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_K] {
        let expected = bytes(folder.join(format!("quant/{dtype}.bin")));
        let actual = encoded(dtype, &input);
        assert_eq!(actual.len(), expected.len(), "{dtype}");
        let wrong = actual.iter().zip(&expected).filter(|(a, e)| a != e).count();
        let first = actual.iter().zip(&expected).position(|(a, e)| a != e);
        let place = first.map(|i| (i / dtype.block_bytes(), i % dtype.block_bytes()));
        assert_eq!(wrong, 0, "{dtype}: bytes differ, first at (block, byte) {place:?}");
    }
}

/// Root mean square of the reconstruction's error, for each row.
fn rmse(dtype: DType, input: &[f32], cols: usize) -> Vec<f64> {
    let decoded = decoded(dtype, &encoded(dtype, input));
    let rows = input.chunks_exact(cols).zip(decoded.chunks_exact(cols));
    rows.map(|(x, y)| {
        let squares = x.iter().zip(y).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2));
        (squares.sum::<f64>() / cols as f64).sqrt()
    })
    .collect()
}

#[test]
fn encode_loses_no_more_than_the_reference() {
    let Some(folder) = folder() else { return };
    let manifest = &manifest(&folder)["quant"];
    let cols = manifest["cols"].as_u64().expect("cols") as usize;
    let input = floats(folder.join("quant/input.f32.bin"));
    let mut failures = Vec::new();
    for dtype in covered() {
        let errors = rmse(dtype, &input, cols);
        let expected = manifest["types"][dtype.name()]["rmse_per_row"].as_array().expect("rows");
        assert_eq!(errors.len(), expected.len());
        for (row, (error, expected)) in errors.iter().zip(expected).enumerate() {
            let expected = expected.as_f64().expect("a number");
            // A perfect row may cost the rounding of a half-precision scale.
            let largest = input[row * cols..][..cols].iter().fold(0f32, |m, v| m.max(v.abs()));
            let bound = (expected * 1.02).max(f64::from(largest) * 1e-6);
            println!("{dtype} {row}: {error:.4e} / {expected:.4e} = {:.4}", error / expected);
            if *error > bound {
                let label = &manifest["row_labels"][row];
                failures.push(format!("{dtype} row {row} {label}: RMSE {error:e} > {bound:e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn dot_products_match() {
    let Some(folder) = folder() else { return };
    let manifest = &manifest(&folder)["dot"];
    let [rows, cols, n_x] =
        ["rows", "cols", "n_x"].map(|key| manifest[key].as_u64().expect("a count") as usize);
    let x = floats(folder.join("dot/x.f32.bin"));
    let mut tested = 0;
    for dtype in covered() {
        if manifest["types"].get(dtype.name()).is_none() {
            continue;
        }
        tested += 1;
        let weights = decoded(dtype, &bytes(folder.join(format!("dot/{dtype}.w.bin"))));
        let file = bytes(folder.join(format!("dot/{dtype}.dot.f64.bin")));
        let expected: Vec<f64> =
            file.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
        // [3 kinds, n_x, rows]; kind 2 is weights times unquantized activations.
        assert_eq!(expected.len(), 3 * n_x * rows, "{dtype}");
        for (i, x) in x.chunks_exact(cols).enumerate() {
            for (row, w) in weights.chunks_exact(cols).enumerate() {
                let products = || w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                let dot: f64 = products().sum();
                let scale: f64 = products().map(f64::abs).sum();
                let error = (dot - expected[(2 * n_x + i) * rows + row]).abs();
                assert!(error <= 1e-5 * scale, "{dtype}: x {i}, row {row}: off by {error:e}");
            }
        }
    }
    assert_eq!(tested, 12, "formats with recorded products");
}

/// A trait of this crate's own, as a kernel crate would have.
trait Bits {
    const BITS: f64;
}

macro_rules! impl_bits {
    ({} $($variant:ident: $block:ident,)*) => {
        $(impl Bits for realm_core::formats::$block {
            const BITS: f64 = Self::BYTES as f64 * 8.0 / Self::LEN as f64;
        })*
    };
}
realm_core::formats! { impl_bits! {} }

#[test]
fn the_list_serves_other_crates() {
    let bits = |dtype| realm_core::with_format!(dtype, F => <F as Bits>::BITS);
    assert_eq!([bits(DType::Q4_K), bits(DType::Q6_K), bits(DType::F16)], [4.5, 6.5625, 16.0]);
}
