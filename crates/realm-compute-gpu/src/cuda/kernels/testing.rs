//! What the products' tests share: random operands, and the products in f64.

use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::{
    Bytes, DType,
    backend::LoadedWeight as _,
    graph::{WeightInfo, ops::Activation},
};
use zerocopy::IntoBytes as _;

use crate::cuda::{
    gpu::{Buffer, Gpu},
    step::{Columns, Form},
    testing,
    weights::{CudaWeight, Loader},
};

/// Forms of targets.
pub(crate) const TARGETS: [Form; 4] = [Form::F32, Form::BF16, Form::F16, Form::BF16x3];

/// A device, and where a test draws its operands.
pub(crate) struct Rig {
    pub(crate) gpu: Arc<dyn Gpu>,
    pub(crate) loader: Loader,
    pub(crate) random: Random,
}

/// A weight, on the device and decoded.
pub(crate) struct Loaded {
    pub(crate) weight: Arc<CudaWeight>,
    pub(crate) values: Vec<f32>,
}

/// Input rows, on the device and as the device reads them.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) columns: Columns,
    pub(crate) values: Vec<f64>,
    pub(crate) k: usize,
    memory: [Buffer; 2],
}

impl Input {
    /// All that is in its memory, scales apart.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let [data, _] = &self.memory;
        data.read(0..data.bytes()).unwrap()
    }

    /// Makes a row what some bytes are.
    pub(crate) fn put(&self, row: usize, bytes: &[u8]) {
        self.memory[0].write(row * bytes.len(), bytes).unwrap();
    }
}

impl Rig {
    pub(crate) fn new(name: &str) -> Self {
        let seed = Random::fresh_seed();
        println!("REALM_SEED={seed} {name}");
        Self::on(testing::gpu(seed), seed, name)
    }

    /// The same on some device.
    pub(crate) fn on(gpu: Arc<dyn Gpu>, seed: u64, name: &str) -> Self {
        Self { loader: Loader::new(gpu.clone()), gpu, random: Random::new(seed).named(name) }
    }

    /// A random weight.
    pub(crate) fn weight(&mut self, dtype: DType, n: usize, k: usize) -> Loaded {
        let data = self.random.matrix(n, k, dtype, 0.5);
        let mut values = vec![0.0; n * k];
        dtype.decode(&data, &mut values);
        let info = WeightInfo { name: format!("{dtype} {n}x{k}"), rows: n, cols: k, dtype };
        Loaded { weight: self.loader.load(&info, Bytes::from(data)).unwrap(), values }
    }

    pub(crate) fn upload(&self, data: &[u8]) -> Buffer {
        let buffer = Buffer::new(&self.gpu, data.len(), "test data").unwrap();
        buffer.write(0, data).unwrap();
        buffer
    }

    /// Random rows in a form; `bucket − rows` more are NaN.
    pub(crate) fn input(&mut self, form: Form, rows: usize, bucket: usize, k: usize) -> Input {
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
        Input { columns, values, k, memory }
    }

    pub(crate) fn bias(&mut self, n: usize) -> (Vec<f32>, Buffer) {
        let bias: Vec<f32> = (0..n).map(|_| self.random.normal()).collect();
        let buffer = self.upload(bias.as_bytes());
        (bias, buffer)
    }

    pub(crate) fn count(&self, rows: usize) -> Buffer {
        self.upload(&(rows as u32).to_le_bytes())
    }

    pub(crate) fn target(&self, form: Form, rows: usize, bucket: usize, cols: usize) -> Target {
        let data = Buffer::new(&self.gpu, form.data_bytes(bucket, cols), "target").unwrap();
        data.fill(0xFF).unwrap();
        Target { form, first: 0, rows, cols, data }
    }
}

/// Memory that a launch writes: rows from `first` to `rows`.
pub(crate) struct Target {
    pub(crate) form: Form,
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: Buffer,
}

impl Target {
    pub(crate) fn columns(&self) -> Columns {
        Columns::new(self.form, self.cols, self.data.address(), 0)
    }

    /// Its rows' bytes; those before and beyond are as they were.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.data.read(0..self.data.bytes()).unwrap();
        let rest = bytes.split_off(self.form.data_bytes(self.rows, self.cols));
        assert!(rest.iter().all(|&byte| byte == 0xFF), "a row beyond the count was written");
        let rows = bytes.split_off(self.form.data_bytes(self.first, self.cols));
        assert!(bytes.iter().all(|&byte| byte == 0xFF), "a row before the first was written");
        rows
    }

    pub(crate) fn plain(&self) -> Vec<f32> {
        self.bytes().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    /// Whether it holds `plain`, rounded, and zeros up to the stride.
    pub(crate) fn check(&self, plain: &[f32]) {
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

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The 16 bits that a form stores for a number, and the number that they are.
pub(crate) fn round(form: Form, value: f32) -> (u16, f32) {
    let dtype = if form == Form::F16 { DType::F16 } else { DType::BF16 };
    let (mut bytes, mut back) = ([0; 2], [0.0]);
    dtype.encode(&[value], &mut bytes);
    dtype.decode(&bytes, &mut back);
    (u16::from_le_bytes(bytes), back[0])
}

/// A product in f64.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) values: Vec<f64>,
    /// How large its elements are where products do not cancel each other, squared and summed.
    pub(crate) power: f64,
}

impl Expected {
    /// `input · weightᵀ + bias`, the weights of floats rounded as the form is.
    pub(crate) fn new(input: &Input, weight: &Loaded, bias: &[f32]) -> Self {
        let form = input.columns.form();
        let rounds = weight.weight.info().dtype.is_float() && form != Form::F32;
        Self::with(&input.values, input.k, weight, rounds.then_some(form), bias)
    }

    /// Rows of `k` elements times `weightᵀ`, whose elements are rounded to a form, plus `bias`.
    pub(crate) fn with(
        rows: &[f64],
        k: usize,
        weight: &Loaded,
        rounds: Option<Form>,
        bias: &[f32],
    ) -> Self {
        let value = |&w: &f32| f64::from(rounds.map_or(w, |form| round(form, w).1));
        let weights: Vec<f64> = weight.values.iter().map(value).collect();
        let (mut values, mut power) = (Vec::new(), 0.0);
        for x in rows.chunks_exact(k) {
            for (w, bias) in weights.chunks_exact(k).zip(bias) {
                let products = x.iter().zip(w).map(|(x, w)| x * w);
                values.push(products.clone().sum::<f64>() + f64::from(*bias));
                power += products.map(|product| product * product).sum::<f64>();
            }
        }
        Self { values, power }
    }

    /// `activation(gates) · ups`.
    pub(crate) fn gated(gates: &Self, ups: &Self, activation: Activation) -> Self {
        let act = |x: f64| match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        };
        let values = gates.values.iter().zip(&ups.values).map(|(&gate, up)| act(gate) * up);
        Self { values: values.collect(), power: 0.0 }
    }

    /// Checks that the distance of the found numbers is small beside them.
    pub(crate) fn check(&self, found: &[f32], what: &str) {
        self.check_to(1e-5, found, what);
    }

    /// The same, as small as `most` times their size.
    pub(crate) fn check_to(&self, most: f64, found: &[f32], what: &str) {
        let distance = self.distance(found);
        assert!(distance <= most, "{what}: off by {distance:e} of its size");
    }

    /// How far the found numbers are from these, beside their size.
    pub(crate) fn distance(&self, found: &[f32]) -> f64 {
        assert_eq!(found.len(), self.values.len());
        let pairs = found.iter().zip(&self.values);
        let error = pairs.map(|(&f, e)| (f64::from(f) - e).powi(2)).sum::<f64>().sqrt();
        let size = self.values.iter().map(|e| e * e).sum::<f64>().max(self.power).sqrt();
        if error == 0.0 { 0.0 } else { error / size }
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
