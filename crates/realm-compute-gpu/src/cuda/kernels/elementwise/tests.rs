//! Against the definitions in f64. Every op is run to every form: the bits must
//! be the rounded f32 results, pads zero, and rows beyond the step's count untouched.

use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::DType;

use super::*;
use crate::cuda::{
    gpu::{Buffer, Gpu},
    testing,
};

/// Odd and even, within and beyond what threads keep in registers, for loads of 4 and of 16 bytes.
const COLS: [usize; 9] = [1, 3, 31, 64, 257, 1024, 4096, 1601, 6404];
const FORMS: [Form; 4] = [Form::F32, Form::BF16, Form::F16, Form::BF16x3];

struct Rig {
    gpu: Arc<dyn Gpu>,
    random: Random,
    /// Rows of a step, and rows that a launch is made for.
    rows: usize,
    bucket: usize,
    cols: usize,
    count: Buffer,
}

impl Rig {
    fn new(name: &str, cols: usize) -> Self {
        let seed = Random::fresh_seed();
        println!("REALM_SEED={seed} {name} of {cols} columns");
        let gpu = testing::gpu(seed);
        let mut random = Random::new(seed).named(name);
        let rows = 1 + random.below(4);
        let bucket = rows + random.below(3);
        let count = Buffer::new(&gpu, 16, "counts").unwrap();
        count.write(0, [rows as u32, rows as u32].as_bytes()).unwrap();
        Self { gpu, random, rows, bucket, cols, count }
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.random.normal()).collect()
    }

    /// Rows of a bucket: those beyond the step's are NaN.
    fn input(&mut self) -> Vec<f32> {
        let mut values = self.numbers(self.rows * self.cols);
        values.resize(self.bucket * self.cols, f32::NAN);
        values
    }

    fn upload(&self, values: &[f32]) -> Buffer {
        let buffer = Buffer::new(&self.gpu, values.len() * 4, "values").unwrap();
        buffer.write(0, values.as_bytes()).unwrap();
        buffer
    }

    fn map(&self, input: &Buffer, target: Columns) -> Map {
        let (cols, rows) = (self.cols, self.bucket);
        Map { input: input.address(), cols, rows, count: self.count.address(), target }
    }

    fn target(&self, form: Form) -> Target {
        let poisoned = |bytes: usize| {
            let buffer = Buffer::new(&self.gpu, bytes, "target").unwrap();
            buffer.fill(0xFF).unwrap();
            buffer
        };
        Target {
            form,
            rows: self.rows,
            bucket: self.bucket,
            cols: self.cols,
            data: poisoned(form.data_bytes(self.bucket, self.cols)),
            scales: poisoned(form.scale_bytes(self.bucket, self.cols)),
        }
    }

    /// Runs a launch to every form, and returns the f32 results.
    fn run(&self, launch: impl Fn(Columns) -> Launch) -> Vec<f32> {
        let mut plain = Vec::new();
        for form in FORMS {
            let target = self.target(form);
            self.gpu.launch(&launch(target.columns())).unwrap();
            if form == Form::F32 {
                plain = target.plain();
            } else {
                target.check(&plain);
            }
        }
        plain
    }
}

/// Memory that a launch writes.
struct Target {
    form: Form,
    rows: usize,
    bucket: usize,
    cols: usize,
    data: Buffer,
    scales: Buffer,
}

fn rounded(dtype: DType, value: f32) -> (u16, f32) {
    let mut bytes = [0; 2];
    dtype.encode(&[value], &mut bytes);
    let mut back = [0.0];
    dtype.decode(&bytes, &mut back);
    (u16::from_le_bytes(bytes), back[0])
}

impl Target {
    fn columns(&self) -> Columns {
        Columns::new(self.form, self.cols, self.data.address(), self.scales.address())
    }

    /// Its rows, once those beyond the step's are seen to be poison still.
    fn bytes(&self, buffer: &Buffer) -> Vec<u8> {
        let mut bytes = buffer.read(0..buffer.bytes()).unwrap();
        let end = bytes.len() / self.bucket * self.rows;
        assert!(bytes[end..].iter().all(|&byte| byte == 0xFF), "a row beyond the count is written");
        bytes.truncate(end);
        bytes
    }

    fn plain(&self) -> Vec<f32> {
        self.bytes(&self.data)
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn words(&self) -> Vec<u16> {
        self.bytes(&self.data).chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
    }

    /// Whether it holds f32 results, rounded, and zeros up to the stride.
    fn check(&self, plain: &[f32]) {
        if self.form == Form::F32 {
            assert_eq!(bits(&self.plain()), bits(plain));
            return;
        }
        let stride = self.form.stride(self.cols);
        let dtype = if self.form == Form::F16 { DType::F16 } else { DType::BF16 };
        let words = self.words();
        let same = |found: u16, expected: (u16, f32)| {
            found == expected.0 || (expected.1.is_nan() && rounded_back(dtype, found).is_nan())
        };
        for (row, columns) in words.chunks_exact(stride * self.form.columns()).enumerate() {
            for at in 0..stride {
                let mut rest = if at < self.cols { plain[row * self.cols + at] } else { 0.0 };
                for column in columns.chunks_exact(stride) {
                    let expected = rounded(dtype, rest);
                    let found = column[at];
                    assert!(same(found, expected), "{:?}: {found:#x} for {rest:e}", self.form);
                    rest -= expected.1;
                }
            }
        }
    }
}

fn rounded_back(dtype: DType, bits: u16) -> f32 {
    let mut back = [0.0];
    dtype.decode(&bits.to_le_bytes(), &mut back);
    back[0]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Rows whose distance from the expected ones is small beside them.
fn close(found: &[f32], expected: &[f64], cols: usize) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.chunks_exact(cols).zip(expected.chunks_exact(cols)) {
        let pairs = found.iter().zip(expected);
        let error = pairs.map(|(&f, e)| (f64::from(f) - e).powi(2)).sum::<f64>().sqrt();
        let size = expected.iter().map(|e| e * e).sum::<f64>().sqrt();
        assert!(error <= 1e-6 * size, "off by {error:e} of {size:e}");
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn rms_normed(rows: &[f64], weight: &[f32], epsilon: f32) -> Vec<f64> {
    let groups = rows.chunks_exact(weight.len()).flat_map(|group| {
        let mean = group.iter().map(|x| x * x).sum::<f64>() / group.len() as f64;
        let factor = 1.0 / (mean + f64::from(epsilon)).sqrt();
        group.iter().zip(weight).map(move |(x, &w)| x * factor * f64::from(w))
    });
    groups.collect()
}

/// One norm with all it can do, against the definition.
fn check_rms_norm(rig: &mut Rig, group: usize, with_residual: bool) {
    let (cols, rows) = (rig.cols, rig.rows);
    let (input, addend) = (rig.input(), rig.input());
    let weight = rig.numbers(group);
    let buffers = [&input, &addend, &weight].map(|values| rig.upload(values));
    let sum = rig.target(Form::F32);
    let form = rig.random.pick(&FORMS);
    let second = rig.target(form);
    let residual = Residual { addend: buffers[1].address(), sum: sum.columns().data };
    let found = rig.run(|target| {
        rms_norm(&RmsNorm {
            map: rig.map(&buffers[0], target),
            second: Some(second.columns()),
            residual: with_residual.then_some(residual),
            weight: buffers[2].address(),
            epsilon: 1e-5,
            group,
        })
    });
    second.check(&found);
    let mut values = input[..rows * cols].to_vec();
    if with_residual {
        values.iter_mut().zip(&addend).for_each(|(value, addend)| *value += addend);
        assert_eq!(bits(&sum.plain()), bits(&values));
    }
    close(&found, &rms_normed(&wide(&values), &weight, 1e-5), cols);
}

#[test]
fn rms_norms_of_rows_are_as_defined() {
    for cols in COLS {
        for with_residual in [false, true] {
            check_rms_norm(&mut Rig::new("rms_norm", cols), cols, with_residual);
        }
    }
}

#[test]
fn rms_norms_of_groups_are_as_defined() {
    for (groups, group) in [(3, 7), (2, 80), (9, 128), (33, 64), (2, 600), (3, 130), (1, 64)] {
        check_rms_norm(&mut Rig::new("groups", groups * group), group, group == 128);
    }
}

#[test]
fn layer_norms_are_as_defined() {
    for cols in COLS {
        let mut rig = Rig::new("layer_norm", cols);
        // A mean far from zero, which would show sums that cancel.
        let input: Vec<f32> = rig.input().iter().map(|x| x + 30.0).collect();
        let (weight, bias) = (rig.numbers(cols), rig.numbers(cols));
        let with_bias = rig.random.below(2) == 0;
        let buffers = [&input, &weight, &bias].map(|values| rig.upload(values));
        let found = rig.run(|target| {
            let bias = with_bias.then_some(buffers[2].address());
            layer_norm(&rig.map(&buffers[0], target), buffers[1].address(), bias, 1e-3)
        });
        let rows = wide(&input[..rig.rows * cols]);
        let expected = rows.chunks_exact(cols).flat_map(|row| {
            let mean = row.iter().sum::<f64>() / cols as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cols as f64;
            let factor = 1.0 / (variance + 1e-3f32 as f64).sqrt();
            let bias = bias.iter().map(|&b| if with_bias { f64::from(b) } else { 0.0 });
            let factors = weight.iter().map(move |&w| factor * f64::from(w));
            row.iter().zip(factors).zip(bias).map(move |((x, w), b)| (x - mean) * w + b)
        });
        let expected: Vec<f64> = expected.collect();
        // The mean itself is rounded, to a part of 30 beside a deviation of 1.
        for (found, expected) in found.iter().zip(&expected) {
            let off = (f64::from(*found) - expected).abs();
            assert!(off < 4e-5 * (1.0 + expected.abs()), "{found} for {expected}");
        }
    }
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x / (1.0 + (-2.0 * inner).exp())
        }
        // The density's integral from far below, by Simpson's rule: nothing cancels.
        Activation::Gelu => {
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let (start, steps) = (-12.0f64, 4000);
            let step = (x - start) / f64::from(steps);
            let sum: f64 = (0..steps)
                .map(|i| {
                    let t = start + f64::from(i) * step;
                    density(t) + 4.0 * density(t + step / 2.0) + density(t + step)
                })
                .sum();
            x * sum * step / 6.0
        }
    }
}

#[test]
fn gated_activations_are_as_defined() {
    for (cols, activation) in [1, 31, 260, 1028].into_iter().flat_map(|cols| {
        [Activation::Silu, Activation::GeluTanh, Activation::Gelu].map(|a| (cols, a))
    }) {
        let mut rig = Rig::new("glu", cols);
        let gate: Vec<f32> = rig.input().iter().map(|x| x * 3.0).collect();
        let up = rig.input();
        let buffers = [&gate, &up].map(|values| rig.upload(values));
        let found =
            rig.run(|target| glu(&rig.map(&buffers[0], target), buffers[1].address(), activation));
        for ((&found, &gate), &up) in found.iter().zip(&gate).zip(&up) {
            let expected = activated(activation, f64::from(gate)) * f64::from(up);
            let off = (f64::from(found) - expected).abs();
            // Relative even where the activation is nearly 0, and its exponent rounded.
            assert!(
                off <= 4e-5 * expected.abs() + 1e-35,
                "{activation:?} of {gate}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn activations_far_out_are_zero_or_the_identity() {
    let mut rig = Rig::new("far", 6);
    (rig.rows, rig.bucket) = (1, 1);
    rig.count.write(0, 1u32.as_bytes()).unwrap();
    let gate = rig.upload(&[-100.0, -1e30, 100.0, 1e30, f32::NAN, 0.0]);
    let up = rig.upload(&[1.0; 6]);
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let found = rig.run(|target| glu(&rig.map(&gate, target), up.address(), activation));
        assert!(found[0].abs() < 1e-30 && found[1].abs() < 1e-30, "{activation:?} {found:?}");
        assert_eq!((found[2], found[3], found[5]), (100.0, 1e30, 0.0), "{activation:?}");
        assert!(found[4].is_nan());
    }
}

#[test]
fn sums_scalings_caps_and_gathers_are_as_defined() {
    for cols in COLS {
        let mut rig = Rig::new("simple", cols);
        let (left, right) = (rig.input(), rig.input());
        let buffers = [&left, &right].map(|values| rig.upload(values));
        let rows = rig.rows * cols;

        let found = rig.run(|to| add(&rig.map(&buffers[0], to), buffers[1].address()));
        let sums: Vec<f32> = left[..rows].iter().zip(&right).map(|(l, r)| l + r).collect();
        assert_eq!(bits(&found), bits(&sums));

        let found = rig.run(|to| scale(&rig.map(&buffers[0], to), -2.75));
        let products: Vec<f32> = left[..rows].iter().map(|l| l * -2.75).collect();
        assert_eq!(bits(&found), bits(&products));

        let found = rig.run(|to| soft_cap(&rig.map(&buffers[0], to), 1.5));
        let capped: Vec<f64> = wide(&left[..rows]).iter().map(|l| 1.5 * (l / 1.5).tanh()).collect();
        close(&found, &capped, cols);

        let found = rig.run(|to| prepare(&rig.map(&buffers[0], to)));
        assert_eq!(bits(&found), bits(&left[..rows]));

        let picked: Vec<u32> = (0..rig.rows).map(|_| rig.random.below(rig.rows) as u32).collect();
        let outputs = Buffer::new(&rig.gpu, rig.bucket * 4, "outputs").unwrap();
        outputs.write(0, picked.as_bytes()).unwrap();
        let view = StepView { outputs: outputs.address(), ..StepView::default() };
        let found = rig.run(|to| gather_rows(&rig.map(&buffers[0], to), &view));
        let rows = picked.iter().flat_map(|&row| &left[row as usize * cols..][..cols]);
        assert_eq!(bits(&found), bits(&rows.copied().collect::<Vec<_>>()));
    }
}

/// The integers and the scale of a block, as the CPU backend has them.
fn quantized(block: &[f32]) -> (f32, Vec<f32>) {
    let most = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    if block.iter().any(|x| !x.is_finite()) {
        return (f32::NAN, vec![0.0; block.len()]);
    }
    let inverse = if (127.0 / most).is_finite() { 127.0 / most } else { 0.0 };
    (most / 127.0, block.iter().map(|x| (x * inverse).round_ties_even() + 0.0).collect())
}

#[test]
fn int8_has_the_cpu_backends_integers_and_scales() {
    for cols in COLS {
        let mut rig = Rig::new("int8", cols);
        let mut input = rig.input();
        // What is hard: zeros, halves to be rounded, numbers too small to invert, none at all.
        let special = [0.0, -0.0, 1e-40, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 63.5, 127.0];
        for block in input.chunks_mut(32) {
            match rig.random.below(4) {
                0 => block.fill(special[rig.random.below(3)]),
                1 => block[rig.random.below(block.len())] = special[rig.random.below(8)],
                2 => block.iter_mut().enumerate().for_each(|(at, x)| *x = at as f32 * 0.5 - 7.0),
                _ => {}
            }
        }
        let buffer = rig.upload(&input);
        let target = rig.target(Form::Int8);
        rig.gpu.launch(&prepare(&rig.map(&buffer, target.columns()))).unwrap();
        let words = target.words();
        let scales = target.bytes(&target.scales);
        let stride = Form::Int8.stride(cols);
        for row in 0..rig.rows {
            let mut padded = input[row * cols..][..cols].to_vec();
            padded.resize(stride, 0.0);
            for (at, block) in padded.chunks_exact(32).enumerate() {
                let (scale, integers) = quantized(block);
                let place = row * stride / 32 + at;
                let found = f32::from_le_bytes(scales[place * 4..][..4].try_into().unwrap());
                let same = found.to_bits() == scale.to_bits() || found.is_nan() && scale.is_nan();
                assert!(same, "{found} for the scale {scale}");
                let found = words[place * 32..][..32].iter();
                let found: Vec<f32> = found.map(|&q| rounded_back(DType::BF16, q)).collect();
                assert_eq!(bits(&found), bits(&integers), "{block:?}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone() {
    for cols in [3, 257, 4096, 6404] {
        let mut rig = Rig::new("alone", cols);
        (rig.rows, rig.bucket) = (4, 5);
        rig.count.write(0, 4u32.as_bytes()).unwrap();
        let mut input = rig.input();
        // A row that broke down stays alone with it.
        input[cols..2 * cols][cols / 2] = f32::NAN;
        let weight = rig.numbers(cols);
        let weight = rig.upload(&weight);
        let norms = |rig: &Rig, input: &[f32]| {
            let buffer = rig.upload(input);
            let rms = rig.run(|to| {
                rms_norm(&RmsNorm {
                    map: rig.map(&buffer, to),
                    second: None,
                    residual: None,
                    weight: weight.address(),
                    epsilon: 1e-6,
                    group: cols,
                })
            });
            let layer =
                rig.run(|to| layer_norm(&rig.map(&buffer, to), weight.address(), None, 1e-6));
            [rms, layer]
        };
        let together = norms(&rig, &input);
        (rig.rows, rig.bucket) = (1, 1);
        rig.count.write(0, 1u32.as_bytes()).unwrap();
        for row in 0..4 {
            let range = row * cols..(row + 1) * cols;
            let alone = norms(&rig, &input[range.clone()]);
            for (alone, together) in alone.iter().zip(&together) {
                if row == 1 {
                    assert!(alone.iter().all(|x| x.is_nan()));
                    assert!(together[range.clone()].iter().all(|x| x.is_nan()));
                } else {
                    assert_eq!(bits(alone), bits(&together[range.clone()]));
                }
            }
        }
    }
}

#[test]
fn the_sum_may_replace_what_was_added() {
    for cols in [31, 6404] {
        let mut rig = Rig::new("in place", cols);
        let (input, addend, weight) = (rig.input(), rig.input(), rig.numbers(cols));
        let buffers = [&input, &addend, &weight].map(|values| rig.upload(values));
        let target = rig.target(Form::F32);
        let op = |sum: &Buffer| RmsNorm {
            map: rig.map(&buffers[0], target.columns()),
            second: None,
            residual: Some(Residual { addend: buffers[1].address(), sum: sum.address() }),
            weight: buffers[2].address(),
            epsilon: 1e-5,
            group: cols,
        };
        let apart = rig.upload(&input);
        rig.gpu.launch(&rms_norm(&op(&apart))).unwrap();
        let expected = (target.plain(), apart.read(0..apart.bytes()).unwrap());
        for sum in &buffers[..2] {
            rig.gpu.launch(&rms_norm(&op(sum))).unwrap();
            let found = sum.read(0..rig.rows * cols * 4).unwrap();
            assert_eq!(found, expected.1[..found.len()]);
            assert_eq!(bits(&target.plain()), bits(&expected.0));
            buffers[0].write(0, input.as_bytes()).unwrap();
        }
    }
}
