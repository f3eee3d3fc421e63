//! Against products in f64 of the decoded weights with the inputs as the form
//! rounds them: weights of quantized formats are never rounded.

mod mixtures;
mod plans;

use realm_core::{Bytes, graph::WeightInfo};

use super::*;
use crate::cuda::{
    gpu::Facts,
    kernels::testing::{Expected, Rig, TARGETS, Target, bits},
};

const PRECISIONS: [Precision; 4] =
    [Precision::F32, Precision::F16, Precision::BF16, Precision::Int8];

/// One product, to f32 and to another form, alone and among other rows.
fn check(rig: &mut Rig, dtype: DType, precision: Precision, n: usize, k: usize, rows: usize) {
    let what = format!("{dtype} at {precision}, n {n}, k {k}, {rows} rows");
    let bucket = rows + rig.random.below(3);
    let form = input_form(dtype, precision);
    let weight = rig.weight(dtype, n, k);
    let input = rig.input(form, rows, bucket, k);
    let (bias, bias_memory) = rig.bias(n);
    let count = rig.count(rows);
    let run = |target: &Target, bias: Option<u64>| {
        let segment = Segment { weight: &weight.weight, bias, target: target.columns() };
        let launch = product(&input.columns, k, bucket, count.address(), &[segment], None);
        rig.gpu.launch(&launch).unwrap_or_else(|error| panic!("{what}: {error}"));
    };
    let target = rig.target(Form::F32, rows, bucket, n);
    run(&target, Some(bias_memory.address()));
    let plain = target.plain();
    Expected::new(&input, &weight, &bias).check(&plain, &what);

    let other = rig.target(rig.random.clone().pick(&TARGETS), rows, bucket, n);
    run(&other, Some(bias_memory.address()));
    other.check(&plain);

    // With so little memory that warps take several slices each.
    let small = rig.target(Form::F32, rows, bucket, n);
    let bias = Some(bias_memory.address());
    let segments = [Segment { weight: &weight.weight, bias, target: small.columns() }];
    let (input_columns, count_address) = (&input.columns, count.address());
    let facts = Facts { shared_memory: 20_000, ..rig.gpu.facts().clone() };
    let little = Product {
        input: input_columns,
        k,
        rows: bucket,
        count: count_address,
        segments: &segments,
        activation: None,
        facts: &facts,
        slots: None,
    };
    rig.gpu.launch(&launch(&little)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(bits(&small.plain()), bits(&plain), "{what}: with little memory");

    // The last row alone: in another group, with another number of columns, with another kernel.
    let last = rig.target(Form::F32, 1, 1, n);
    let mut alone = input.columns;
    alone.data += form.data_bytes(rows - 1, k) as u64;
    alone.scales += form.scale_bytes(rows - 1, k) as u64;
    let (one, bias) = (rig.count(1), Some(bias_memory.address()));
    let segment = Segment { weight: &weight.weight, bias, target: last.columns() };
    rig.gpu.launch(&product(&alone, k, 1, one.address(), &[segment], None)).unwrap();
    assert_eq!(bits(&last.plain()), bits(&plain[(rows - 1) * n..]), "{what}: the last row alone");
}

fn check_format(dtype: DType) {
    let mut rig = Rig::new(dtype.name());
    let block = dtype.block_len();
    // A block; several tiles, of which the last has a part; many slices.
    let lengths = match block {
        1 => [1, 77, 640],
        32 => [32, 96, 640],
        _ => [256, 768, 1280],
    };
    for precision in PRECISIONS {
        for (n, k) in [(1, lengths[0]), (7, lengths[1]), (61, lengths[2]), (16, lengths[1])] {
            let rows = 1 + rig.random.below(if k == lengths[1] { 17 } else { 9 });
            check(&mut rig, dtype, precision, n, k, rows);
        }
    }
}

/// Several weights of one input, and gated ones: each as it is alone.
fn check_together(dtype: DType, precision: Precision) {
    let mut rig = Rig::new(&format!("{dtype} together at {precision}"));
    let k = if dtype.is_float() { 333 } else { 3 * dtype.block_len() };
    let (rows, bucket) = (1 + rig.random.below(11), 12);
    let form = input_form(dtype, precision);
    let input = rig.input(form, rows, bucket, k);
    let count = rig.count(rows);
    let sizes = [17, 61, 16, 1];
    let weights = sizes.map(|n| rig.weight(dtype, n, k));
    let biases = sizes.map(|n| rig.bias(n));
    let targets = sizes.map(|n| rig.target(Form::F32, rows, bucket, n));
    let segments: Vec<_> = (0..SEGMENTS)
        .map(|i| Segment {
            weight: &weights[i].weight,
            bias: (i != 2).then(|| biases[i].1.address()),
            target: targets[i].columns(),
        })
        .collect();
    rig.gpu.launch(&product(&input.columns, k, bucket, count.address(), &segments, None)).unwrap();
    for i in 0..SEGMENTS {
        let bias = if i == 2 { vec![0.0; sizes[i]] } else { biases[i].0.clone() };
        let what = format!("{dtype} at {precision}, segment {i}");
        Expected::new(&input, &weights[i], &bias).check(&targets[i].plain(), &what);
    }

    let (gate, up) = (rig.weight(dtype, 61, k), rig.weight(dtype, 61, k));
    let bias = rig.bias(61);
    let gates = Expected::new(&input, &gate, &bias.0);
    let ups = Expected::new(&input, &up, &[0.0; 61]);
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let target = rig.target(rig.random.clone().pick(&TARGETS), rows, bucket, 61);
        let run = |target: &Target| {
            let columns = target.columns();
            let halves = [(&gate, Some(bias.1.address())), (&up, None)]
                .map(|(half, bias)| Segment { weight: &half.weight, bias, target: columns });
            let count = count.address();
            let launch = product(&input.columns, k, bucket, count, &halves, Some(activation));
            rig.gpu.launch(&launch).unwrap();
        };
        let plain = rig.target(Form::F32, rows, bucket, 61);
        run(&plain);
        run(&target);
        target.check(&plain.plain());
        let expected = Expected::gated(&gates, &ups, activation);
        expected.check(&plain.plain(), &format!("{dtype} at {precision}, {activation:?}"));
    }
}

#[test]
fn weights_together() {
    for precision in PRECISIONS {
        for dtype in [DType::Q4_K, DType::Q8_0, DType::Q6_K, DType::F16] {
            check_together(dtype, precision);
        }
    }
}

/// A step of no rows writes nothing, and ends.
#[test]
fn no_rows() {
    let mut rig = Rig::new("no rows");
    for dtype in [DType::Q4_K, DType::Q4_0, DType::F32] {
        for precision in PRECISIONS {
            let weight = rig.weight(dtype, 40, 256);
            let form = input_form(dtype, precision);
            let (input, count) = (rig.input(form, 0, 9, 256), rig.count(0));
            let target = rig.target(Form::BF16, 0, 9, 40);
            let segment = Segment { weight: &weight.weight, bias: None, target: target.columns() };
            let launch = product(&input.columns, 256, 9, count.address(), &[segment], None);
            rig.gpu.launch(&launch).unwrap();
            assert!(target.bytes().is_empty());
        }
    }
}

/// What a weight of infinities and NaN gives is no number, in the rows that it concerns.
#[test]
fn weights_that_are_no_numbers() {
    let mut rig = Rig::new("no numbers");
    let (n, k) = (20, 512);
    for dtype in [DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::F16, DType::F32] {
        let mut data = rig.random.matrix(n, k, dtype, 0.5);
        let row = dtype.row_bytes(k).unwrap();
        // NaN as any float, in half a row and in a whole one.
        data[3 * row..3 * row + row / 2].fill(0xff);
        data[17 * row..18 * row].fill(0xff);
        let mut values = vec![0.0; n * k];
        dtype.decode(&data, &mut values);
        let bad = |row: usize| values[row * k..][..k].iter().any(|value| !value.is_finite());
        let info = WeightInfo { name: "bad".into(), rows: n, cols: k, dtype };
        let weight = rig.loader.load(&info, Bytes::from(data)).unwrap();
        for precision in PRECISIONS {
            let (input, count) = (rig.input(input_form(dtype, precision), 1, 1, k), rig.count(1));
            let target = rig.target(Form::F32, 1, 1, n);
            let segment = Segment { weight: &weight, bias: None, target: target.columns() };
            let launch = product(&input.columns, k, 1, count.address(), &[segment], None);
            rig.gpu.launch(&launch).unwrap();
            for (row, value) in target.plain().iter().enumerate() {
                assert_eq!(value.is_finite(), !bad(row), "{dtype} at {precision}, row {row}");
            }
        }
    }
}

macro_rules! formats {
    ({} $($variant:ident: $block:ident,)*) => {
        $(
            #[test]
            #[allow(non_snake_case, reason = "the formats' established names")]
            fn $variant() {
                check_format(DType::$variant);
            }
        )*
    };
}
realm_core::formats! { formats! {} }
