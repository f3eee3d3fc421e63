//! The benchmark on the emulated device: every row comes out.

use super::*;

fn options(only: &str) -> Options {
    Options { only: only.into(), sizes: Sizes::Toy }
}

fn measured(only: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let report = &mut |name: &str, row: Result<Row, BackendError>| match row {
        Ok(row) => {
            assert_eq!(row.bench, name);
            rows.push(row);
        }
        Err(error) => panic!("{name}: {error}"),
    };
    bench_cuda_emulated(1, &options(only), report).unwrap();
    assert_eq!(rows.len(), bench_names(&options(only)).len(), "{only}");
    rows
}

fn check(rows: &[Row]) {
    for Row { bench, median, ratio, unit } in rows {
        assert!(median.is_finite() && *median > 0.0, "{bench}: {median}");
        let kinds = ["matvec/", "gated/", "gemm/", "attention/decode/"];
        let by_bytes = kinds.iter().any(|it| bench.starts_with(it)) && *unit != "TFLOP/s";
        assert_eq!(ratio.is_some(), by_bytes, "{bench}");
        assert!(ratio.is_none_or(|(part, of)| part > 0.0 && of == "copy"), "{bench}");
        assert_eq!(*unit == "GB/s", by_bytes || bench == "copy", "{bench}");
    }
}

#[test]
fn launches_and_small_kernels_have_rows() {
    for only in ["copy", "launch/", "norm/", "rope-kv/", "embed/", "sample/"] {
        let rows = measured(only);
        assert!(!rows.is_empty(), "{only}");
        check(&rows);
    }
}

#[test]
fn products_have_rows() {
    for only in ["matvec/Q4_K/", "matvec/F16/512x", "matvec/Q8_K/256x512/m8", "gated/"] {
        check(&measured(only));
    }
}

#[test]
fn attention_has_rows() {
    check(&measured("attention/decode/d64/1k/b1"));
    check(&measured("attention/decode/d64/64/b8/q8_0"));
}

#[test]
fn products_and_attention_of_many_rows_have_rows() {
    for only in ["gemm/Q4_K/bf16/", "gemm/Q6_K/bf16/512x256/m16", "attention/prefill/"] {
        let rows = measured(only);
        assert!(!rows.is_empty(), "{only}");
        check(&rows);
    }
}

/// The names that the ledger and the documents give.
#[test]
fn full_sizes_have_the_ledgers_rows() {
    let names = bench_names(&Options::default());
    for format in ["Q4_K", "Q5_K", "Q6_K", "Q8_K", "Q8_0", "Q4_0", "F16"] {
        for shape in ["14336x4096", "4096x14336"] {
            for columns in ["m1", "m8"] {
                let name = format!("matvec/{format}/{shape}/{columns}");
                assert!(names.contains(&name), "{name}");
            }
        }
    }
    let others = [
        "copy",
        "attention/decode/d128/32k/b8",
        "sample/greedy/128256/m1",
        "gemm/Q4_K/bf16/14336x4096/m16",
        "gemm/Q4_K/bf16/14336x4096/m4096",
        "attention/prefill/causal/16k/d64",
        "attention/prefill/causal/16k/d256",
    ];
    for name in others {
        assert!(names.contains(&name.to_owned()), "{name}");
    }
    assert_eq!(names[0], "copy");
    let mut unique = names.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), names.len());
}

/// What rotates must not fit a cache, however large it is today.
#[test]
fn full_sizes_exceed_caches() {
    let scale = Scale::of(Sizes::Full);
    assert!(scale.rotated >= 6 * 126_000_000 && scale.copied >= 1 << 30);
    assert!(scale.launches >= 50 && scale.replays >= 20);
}

#[test]
fn rows_are_json() {
    let row = Row { bench: "copy".into(), median: 4300.5, unit: "GB/s", ratio: None };
    assert_eq!(
        row.json(),
        r#"{"bench": "copy", "median": 4300.500000, "unit": "GB/s", "ratio": null, "ratio_to": null}"#
    );
    let row = Row { bench: "a/b".into(), ratio: Some((0.5, "copy")), ..row };
    assert!(row.json().ends_with(r#""ratio": 0.500000, "ratio_to": "copy"}"#));
}
