//! Against products in f64 of the decoded weights with the inputs as the form
//! rounds them: weights of quantized formats are never rounded.

mod plans;

use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::{Bytes, graph::WeightInfo};

use super::*;
use crate::cuda::{
    gpu::{Buffer, Facts, Gpu},
    testing,
    weights::Loader,
};

const PRECISIONS: [Precision; 4] =
    [Precision::F32, Precision::F16, Precision::BF16, Precision::Int8];
const TARGETS: [Form; 4] = [Form::F32, Form::BF16, Form::F16, Form::BF16x3];

struct Rig {
    gpu: Arc<dyn Gpu>,
    loader: Loader,
    random: Random,
}

/// A weight, on the device and decoded.
struct Loaded {
    weight: Arc<CudaWeight>,
    values: Vec<f32>,
}

/// Input rows, on the device and as the device reads them.
struct Input {
    columns: Columns,
    values: Vec<f64>,
    k: usize,
    _memory: [Buffer; 2],
}

impl Rig {
    fn new(name: &str) -> Self {
        let seed = Random::fresh_seed();
        println!("REALM_SEED={seed} {name}");
        let gpu = testing::gpu(seed);
        Self { loader: Loader::new(gpu.clone()), gpu, random: Random::new(seed).named(name) }
    }

    fn weight(&mut self, dtype: DType, n: usize, k: usize) -> Loaded {
        let data = self.random.matrix(n, k, dtype, 0.5);
        let mut values = vec![0.0; n * k];
        dtype.decode(&data, &mut values);
        let info = WeightInfo { name: format!("{dtype} {n}x{k}"), rows: n, cols: k, dtype };
        Loaded { weight: self.loader.load(&info, Bytes::from(data)).unwrap(), values }
    }

    fn upload(&self, data: &[u8]) -> Buffer {
        let buffer = Buffer::new(&self.gpu, data.len(), "test data").unwrap();
        buffer.write(0, data).unwrap();
        buffer
    }

    /// Random rows in a form; `bucket − rows` more are NaN.
    fn input(&mut self, form: Form, rows: usize, bucket: usize, k: usize) -> Input {
        let (stride, columns) = (form.stride(k), form.columns());
        let mut values = vec![0.0; rows * k];
        let mut scales = vec![f32::NAN; form.scale_bytes(bucket, k) / 4];
        let mut data = vec![0xFF; form.data_bytes(bucket, k)];
        for row in 0..rows {
            let mut x: Vec<f32> = (0..k).map(|_| self.random.normal()).collect();
            if form == Form::F32 {
                data[row * k * 4..][..k * 4].copy_from_slice(x.as_bytes());
                values[row * k..][..k].copy_from_slice(&wide(&x));
                continue;
            }
            if form == Form::Int8 {
                let scales = &mut scales[row * stride / 32..][..stride / 32];
                scales.fill(0.0);
                for (x, scale) in x.chunks_mut(32).zip(scales) {
                    *scale = x.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0;
                    x.iter_mut().for_each(|x| *x = (*x / *scale).round());
                }
            }
            for part in 0..columns {
                let column = &mut data[(row * columns + part) * stride * 2..][..stride * 2];
                column.fill(0);
                for (i, x) in x.iter_mut().enumerate() {
                    let (bits, rounded) = round(form, *x);
                    column[2 * i..][..2].copy_from_slice(&bits.to_le_bytes());
                    let scale =
                        if form == Form::Int8 { scales[row * stride / 32 + i / 32] } else { 1.0 };
                    values[row * k + i] += f64::from(rounded) * f64::from(scale);
                    *x -= rounded;
                }
            }
        }
        let memory = [self.upload(&data), self.upload(scales.as_bytes())];
        let columns = Columns::new(form, k, memory[0].address(), memory[1].address());
        Input { columns, values, k, _memory: memory }
    }

    fn bias(&mut self, n: usize) -> (Vec<f32>, Buffer) {
        let bias: Vec<f32> = (0..n).map(|_| self.random.normal()).collect();
        let buffer = self.upload(bias.as_bytes());
        (bias, buffer)
    }

    fn count(&self, rows: usize) -> Buffer {
        self.upload(&(rows as u32).to_le_bytes())
    }

    fn target(&self, form: Form, rows: usize, bucket: usize, cols: usize) -> Target {
        let data = Buffer::new(&self.gpu, form.data_bytes(bucket, cols), "target").unwrap();
        data.fill(0xFF).unwrap();
        Target { form, rows, cols, data }
    }
}

/// Memory that a launch writes.
struct Target {
    form: Form,
    rows: usize,
    cols: usize,
    data: Buffer,
}

impl Target {
    fn columns(&self) -> Columns {
        Columns::new(self.form, self.cols, self.data.address(), 0)
    }

    /// Its rows' bytes; those beyond the count are as they were.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.data.read(0..self.data.bytes()).unwrap();
        let rest = bytes.split_off(self.form.data_bytes(self.rows, self.cols));
        assert!(rest.iter().all(|&byte| byte == 0xFF), "a row beyond the count was written");
        bytes
    }

    fn plain(&self) -> Vec<f32> {
        self.bytes().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    /// Whether it holds `plain`, rounded, and zeros up to the stride.
    fn check(&self, plain: &[f32]) {
        if self.form == Form::F32 {
            return assert_eq!(bits(&self.plain()), bits(plain));
        }
        let (bytes, stride) = (self.bytes(), self.form.stride(self.cols));
        let words: Vec<u16> =
            bytes.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b)).collect();
        for (row, columns) in words.chunks_exact(stride * self.form.columns()).enumerate() {
            for at in 0..stride {
                let mut rest = if at < self.cols { plain[row * self.cols + at] } else { 0.0 };
                for column in columns.chunks_exact(stride) {
                    let (bits, rounded) = round(self.form, rest);
                    assert_eq!(column[at], bits, "{:?}, row {row}, column {at}", self.form);
                    rest -= rounded;
                }
            }
        }
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The 16 bits that a form stores for a number, and the number that they are.
fn round(form: Form, value: f32) -> (u16, f32) {
    let dtype = if form == Form::F16 { DType::F16 } else { DType::BF16 };
    let (mut bytes, mut back) = ([0; 2], [0.0]);
    dtype.encode(&[value], &mut bytes);
    dtype.decode(&bytes, &mut back);
    (u16::from_le_bytes(bytes), back[0])
}

/// A product in f64.
struct Expected {
    values: Vec<f64>,
    /// How large its elements are where products do not cancel each other, squared and summed.
    power: f64,
}

impl Expected {
    /// `input · weightᵀ + bias`, the weights of floats rounded as the form is.
    fn new(input: &Input, weight: &Loaded, bias: &[f32]) -> Self {
        let (k, form) = (input.k, input.columns.form());
        let rounds = weight.weight.info().dtype.is_float() && form != Form::F32;
        let value = |&w: &f32| f64::from(if rounds { round(form, w).1 } else { w });
        let weights: Vec<f64> = weight.values.iter().map(value).collect();
        let (mut values, mut power) = (Vec::new(), 0.0);
        for x in input.values.chunks_exact(k) {
            for (w, bias) in weights.chunks_exact(k).zip(bias) {
                let products = x.iter().zip(w).map(|(x, w)| x * w);
                values.push(products.clone().sum::<f64>() + f64::from(*bias));
                power += products.map(|product| product * product).sum::<f64>();
            }
        }
        Self { values, power }
    }

    /// Checks that the distance of the found numbers is small beside them.
    fn check(&self, found: &[f32], what: &str) {
        assert_eq!(found.len(), self.values.len());
        let pairs = found.iter().zip(&self.values);
        let error = pairs.map(|(&f, e)| (f64::from(f) - e).powi(2)).sum::<f64>().sqrt();
        let size = self.values.iter().map(|e| e * e).sum::<f64>().max(self.power).sqrt();
        assert!(error <= 1e-5 * size, "{what}: off by {error:e} of {size:e}");
    }
}

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
        let launch = linear(&input.columns, k, bucket, count.address(), &[segment]);
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
    let product = Product {
        input: input_columns,
        k,
        rows: bucket,
        count: count_address,
        segments: &segments,
        activation: None,
        facts: &facts,
    };
    rig.gpu.launch(&launch(&product)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(bits(&small.plain()), bits(&plain), "{what}: with little memory");

    // The last row alone: in another group, with another number of columns, with another kernel.
    let last = rig.target(Form::F32, 1, 1, n);
    let mut alone = input.columns;
    alone.data += form.data_bytes(rows - 1, k) as u64;
    alone.scales += form.scale_bytes(rows - 1, k) as u64;
    let (one, bias) = (rig.count(1), Some(bias_memory.address()));
    let segment = Segment { weight: &weight.weight, bias, target: last.columns() };
    rig.gpu.launch(&linear(&alone, k, 1, one.address(), &[segment])).unwrap();
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
    rig.gpu.launch(&linear(&input.columns, k, bucket, count.address(), &segments)).unwrap();
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
        let act = |x: f64| match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        };
        let target = rig.target(rig.random.clone().pick(&TARGETS), rows, bucket, 61);
        let run = |target: &Target| {
            let columns = target.columns();
            let gate = (&*gate.weight, Some(bias.1.address()));
            let up = (&*up.weight, None);
            let count = count.address();
            let launch = gated(&input.columns, k, bucket, count, gate, up, activation, columns);
            rig.gpu.launch(&launch).unwrap();
        };
        let plain = rig.target(Form::F32, rows, bucket, 61);
        run(&plain);
        run(&target);
        target.check(&plain.plain());
        let values = gates.values.iter().zip(&ups.values).map(|(&gate, up)| act(gate) * up);
        let expected = Expected { values: values.collect(), power: 0.0 };
        expected.check(&plain.plain(), &format!("{dtype} at {precision}, {activation:?}"));
    }
}

/// The error function, by its Taylor series.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
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
            let launch = linear(&input.columns, 256, 9, count.address(), &[segment]);
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
            let launch = linear(&input.columns, k, 1, count.address(), &[segment]);
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
