//! On the emulated device, against products in f64 of the decoded weights with the inputs as the form
//! rounds them: weights of quantized formats are never rounded.

use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::{Bytes, graph::WeightInfo};

use super::*;
use crate::cuda::{
    emulated,
    gpu::{Buffer, Gpu},
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
        let gpu = emulated::open(seed).unwrap();
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

/// `input · weightᵀ + bias`, the weights of floats rounded as the form is.
fn product(input: &Input, weight: &Loaded, bias: &[f32]) -> Vec<f64> {
    let (k, form) = (input.k, input.columns.form());
    let dtype = weight.weight.info().dtype;
    let rounds = dtype.is_float() && form != Form::F32;
    let value = |&w: &f32| f64::from(if rounds { round(form, w).1 } else { w });
    let weights: Vec<f64> = weight.values.iter().map(value).collect();
    let rows = input.values.chunks_exact(k);
    rows.flat_map(|x| {
        weights.chunks_exact(k).enumerate().map(move |(n, w)| {
            let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            sum + bias.get(n).copied().map_or(0.0, f64::from)
        })
    })
    .collect()
}

/// Whether the distance from the expected numbers is small beside them.
fn close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    let error = pairs.map(|(&f, e)| (f64::from(f) - e).powi(2)).sum::<f64>().sqrt();
    let size = expected.iter().map(|e| e * e).sum::<f64>().sqrt();
    println!("{what}: {:.1e}", error / size);
    assert!(error <= 1e-5 * size, "{what}: off by {error:e} of {size:e}");
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
    close(&plain, &product(&input, &weight, &bias), &what);

    let other = rig.target(TARGETS[rig.random.clone().below(4)], rows, bucket, n);
    run(&other, Some(bias_memory.address()));
    other.check(&plain);

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

macro_rules! formats {
    ({} $($variant:ident: $block:ident,)*) => {
        $(
            #[test]
            #[expect(non_snake_case, reason = "the formats' established names")]
            fn $variant() {
                check_format(DType::$variant);
            }
        )*
    };
}
realm_core::formats! { formats! {} }
