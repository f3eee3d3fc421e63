//! Every format, instruction set and compute type against a product in double precision.

use std::time::{SystemTime, UNIX_EPOCH};

use realm_core::{
    DType,
    backend::Precision,
    graph::{WeightInfo, ops::Activation},
};

use super::{Half, Matrix, Projection, Scratch, gated, linear};
use crate::{
    elementwise::Cpu,
    isa::{Isa, IsaLimit},
    math,
    pool::Pool,
};

const PRECISIONS: [Precision; 4] =
    [Precision::F32, Precision::F16, Precision::BF16, Precision::Int8];

/// SplitMix64 (Steele et al. 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn from_clock() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos());
        println!("seed {now}");
        Self(now as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in −1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// Where a block's half-precision scales are.
fn scales(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F16 | DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::IQ4_NL | DType::IQ4_XS => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::F32 | DType::BF16 | DType::Q8_K => &[],
    }
}

/// Any bits but in the scales, which are of one size.
fn random_blocks(random: &mut Random, dtype: DType, blocks: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..blocks * dtype.block_bytes()).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for &at in scales(dtype) {
            let value = half::f16::from_f32(random.float() * 0.01);
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let value = random.float() * 0.01;
        match dtype {
            DType::F32 | DType::Q8_K => block[..4].copy_from_slice(&value.to_le_bytes()),
            DType::BF16 => block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            _ => {}
        }
    }
    bytes
}

/// A weight, as it is stored and as numbers.
pub(super) struct Weight {
    info: WeightInfo,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Weight {
    fn new(dtype: DType, rows: usize, cols: usize, bytes: Vec<u8>) -> Self {
        let info = WeightInfo { name: dtype.to_string(), rows, cols, dtype };
        let mut values = vec![0.0; rows * cols];
        dtype.decode(&bytes, &mut values);
        Self { info, bytes, values }
    }

    pub(super) fn random(random: &mut Random, dtype: DType, rows: usize, cols: usize) -> Self {
        let bytes = random_blocks(random, dtype, rows * cols / dtype.block_len());
        Self::new(dtype, rows, cols, bytes)
    }

    fn encoded(random: &mut Random, dtype: DType, rows: usize, cols: usize) -> Self {
        let mut bytes = vec![0; dtype.row_bytes(cols).expect("whole blocks") * rows];
        dtype.encode(&random.floats(rows * cols), &mut bytes);
        Self::new(dtype, rows, cols, bytes)
    }

    pub(super) fn matrix(&self) -> Matrix<'_> {
        Matrix::new(&self.info, &self.bytes).expect("as many bytes as the shape needs")
    }

    /// The product in double precision.
    fn product(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
        let mut out = Vec::new();
        for x in x.chunks_exact(self.info.cols) {
            for (n, w) in self.values.chunks_exact(self.info.cols).enumerate() {
                let sum: f64 = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                out.push(sum + bias.map_or(0.0, |bias| f64::from(bias[n])));
            }
        }
        out
    }

    /// How large the products' sums are if signs are left to chance: √Σ(w x)².
    fn spread(&self, x: &[f32]) -> Vec<f64> {
        let squares: Vec<f32> = x.iter().map(|x| x * x).collect();
        let values = self.values.iter().map(|w| w * w).collect();
        let weight = Self { info: self.info.clone(), bytes: Vec::new(), values };
        weight.product(&squares, None).into_iter().map(f64::sqrt).collect()
    }

    /// The kernels' product, alone in its job.
    fn computed(&self, cpu: Cpu<'_>, x: &[f32], precision: Precision) -> Vec<f32> {
        let mut output = vec![f32::NAN; x.len() / self.info.cols * self.info.rows];
        let mut scratch = Scratch::default();
        let input = scratch.prepare(cpu, x, self.info.cols, precision);
        let projection = Projection { weight: self.matrix(), bias: None, output: &mut output };
        linear(cpu, &input, &mut [projection]);
        output
    }
}

/// The instruction sets that this machine has.
pub(super) fn sets() -> Vec<Isa> {
    let mut sets = vec![Isa::Scalar];
    for limit in [IsaLimit::Avx2, IsaLimit::Avx512] {
        let isa = Isa::detect(limit);
        if isa.to_string() != sets[sets.len() - 1].to_string() {
            sets.push(isa);
        }
    }
    sets
}

/// `‖found − exact‖ / ‖exact‖`.
fn distance(found: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(found.len(), exact.len());
    let errors: Vec<f64> = found.iter().zip(exact).map(|(&f, &e)| f64::from(f) - e).collect();
    norm(&errors) / norm(exact).max(1e-30)
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-5,
        Precision::F16 => 2e-3,
        Precision::BF16 | Precision::Int8 | Precision::Auto => 1e-2,
    }
}

/// Columns worth testing: a block, three blocks, more than a tile and no multiple of one, and tails
/// of plain floats.
fn columns(dtype: DType) -> &'static [usize] {
    match dtype.block_len() {
        1 => &[1, 7, 32, 250, 544],
        32 => &[32, 96, 544],
        _ => &[256, 768],
    }
}

#[test]
fn every_format_is_multiplied_right_by_every_instruction_set() {
    let mut random = Random::from_clock();
    let pool = Pool::new(2);
    for &dtype in DType::ALL {
        for (case, &n) in [1, 5, 16, 33, 67].iter().enumerate() {
            for &k in columns(dtype) {
                let weight = if case % 2 == 0 {
                    Weight::random(&mut random, dtype, n, k)
                } else {
                    Weight::encoded(&mut random, dtype, n, k)
                };
                let x = random.floats(64 * k);
                let exact = weight.product(&x, None);
                let spread = weight.spread(&x);
                for m in [1, 2, 3, 7, 17, 64] {
                    for isa in sets() {
                        for precision in PRECISIONS {
                            let cpu = Cpu { pool: &pool, isa };
                            let found = weight.computed(cpu, &x[..m * k], precision);
                            let exact = &exact[..m * n];
                            // Where there are few sums, all may happen to be small.
                            let few = norm(&spread[..m * n]) / norm(exact).max(1e-30);
                            let error = distance(&found, exact) / few.max(1.0);
                            // And a few errors' mean scatters.
                            let scatter = 1.0 + 2.0 / ((m * n) as f64).sqrt();
                            assert!(
                                error <= scatter * tolerance(precision),
                                "{dtype} {isa} {precision} m {m} n {n} k {k}: {error:e}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let mut random = Random::from_clock();
    for &dtype in DType::ALL {
        let (n, k) = (67, 768);
        let weight = Weight::random(&mut random, dtype, n, k);
        let x = random.floats(401 * k);
        for isa in sets() {
            for precision in PRECISIONS {
                let (one, three) = (Pool::new(1), Pool::new(3));
                let all = weight.computed(Cpu { pool: &three, isa }, &x, precision);
                for row in [0, 5, 36, 200, 400] {
                    let rows = row..(row + 38).min(401);
                    let x = &x[rows.start * k..rows.end * k];
                    let some = weight.computed(Cpu { pool: &one, isa }, x, precision);
                    let alone = weight.computed(Cpu { pool: &one, isa }, &x[..k], precision);
                    let name = format!("{dtype} {isa} {precision} row {row}");
                    assert_eq!(bits(&some), bits(&all[rows.start * n..rows.end * n]), "{name}");
                    assert_eq!(bits(&alone), bits(&some[..n]), "{name}");
                }
            }
        }
        // Where an output lies among the weight's rows does not matter either.
        let tail =
            Weight::new(dtype, n - 3, k, weight.bytes[weight.bytes.len() / n * 3..].to_vec());
        let cpu = Cpu { pool: &Pool::new(1), isa: Isa::detect(IsaLimit::Avx512) };
        let all = weight.computed(cpu, &x[..k], Precision::Int8);
        assert_eq!(bits(&tail.computed(cpu, &x[..k], Precision::Int8)), bits(&all[3..]), "{dtype}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_largest_quants_do_not_overflow() {
    let pool = Pool::new(1);
    for &dtype in DType::ALL {
        if dtype.is_float() {
            continue;
        }
        for bits in [0x00, 0x7f, 0x80, 0xff] {
            // Scales of 1, of whatever sign and size the format's own scales add.
            let mut block = vec![bits; dtype.block_bytes()];
            for &at in scales(dtype) {
                block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes());
            }
            if dtype == DType::Q8_K {
                block[..4].copy_from_slice(&1.0f32.to_le_bytes());
            }
            let (n, k) = (3, 768);
            let weight = Weight::new(dtype, n, k, block.repeat(n * k / dtype.block_len()));
            for x in [1.0, -1.0] {
                let x = vec![x; 2 * k];
                let exact = weight.product(&x, None);
                for isa in sets() {
                    let found = weight.computed(Cpu { pool: &pool, isa }, &x, Precision::Int8);
                    let error = distance(&found, &exact);
                    assert!(error < 1e-4, "{dtype} {isa} {bits:#x}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn several_products_share_a_job() {
    let mut random = Random::from_clock();
    let pool = Pool::new(3);
    let (m, k) = (13, 512);
    let weights = [(DType::Q4_K, 70), (DType::F16, 1), (DType::Q6_K, 33), (DType::Q8_0, 64)]
        .map(|(dtype, n)| Weight::random(&mut random, dtype, n, k));
    let bias = random.floats(70);
    let x = random.floats(m * k);
    for isa in sets() {
        let cpu = Cpu { pool: &pool, isa };
        let mut scratch = Scratch::new(m * k, Precision::Int8).unwrap();
        let bytes = scratch.held();
        assert_eq!(bytes, Scratch::bytes(m * k, Precision::Int8), "the plan says what is taken");
        let input = scratch.prepare(cpu, &x, k, Precision::Int8);
        let mut outputs = weights.each_ref().map(|w| vec![f32::NAN; m * w.info.rows]);
        let mut projections: Vec<_> = weights
            .iter()
            .zip(&mut outputs)
            .enumerate()
            .map(|(at, (w, output))| Projection {
                weight: w.matrix(),
                bias: (at == 0).then_some(&bias[..]),
                output,
            })
            .collect();
        linear(cpu, &input, &mut projections);
        for (at, (weight, output)) in weights.iter().zip(&outputs).enumerate() {
            let exact = weight.product(&x, (at == 0).then_some(&bias[..]));
            assert!(distance(output, &exact) < 1e-2, "{isa} {}", weight.info.name);
        }
        assert_eq!(scratch.held(), bytes, "the memory asked for was enough");
    }
}

#[test]
fn gated_products_are_activated() {
    let mut random = Random::from_clock();
    let pool = Pool::new(2);
    let (n, k) = (45, 256);
    let gate = Weight::random(&mut random, DType::Q4_K, n, k);
    let up = Weight::random(&mut random, DType::Q6_K, n, k);
    let (gate_bias, up_bias) = (random.floats(n), random.floats(n));
    for m in [1, 9, 250] {
        let x = random.floats(m * k);
        let gates = gate.product(&x, Some(&gate_bias));
        let ups = up.product(&x, Some(&up_bias));
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let exact: Vec<f64> = (gates.iter().zip(&ups))
                .map(|(&gate, &up)| f64::from(math::activate(activation, gate as f32)) * up)
                .collect();
            for isa in sets() {
                for precision in PRECISIONS {
                    let cpu = Cpu { pool: &pool, isa };
                    let mut output = vec![f32::NAN; m * n];
                    let mut scratch = Scratch::default();
                    let input = scratch.prepare(cpu, &x, k, precision);
                    let gate = Half { weight: gate.matrix(), bias: Some(&gate_bias) };
                    let up = Half { weight: up.matrix(), bias: Some(&up_bias) };
                    gated(cpu, &input, gate, up, activation, &mut output);
                    let error = distance(&output, &exact);
                    assert!(error < 2.0 * tolerance(precision), "{isa} {precision} {error:e}");
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_shows() {
    let mut random = Random::from_clock();
    let weight = Weight::random(&mut random, DType::Q4_K, 40, 512);
    let mut x = random.floats(3 * 512);
    x[600] = f32::NAN;
    let pool = Pool::new(1);
    for isa in sets() {
        for precision in PRECISIONS {
            let found = weight.computed(Cpu { pool: &pool, isa }, &x, precision);
            let nan = found.iter().map(|x| x.is_nan());
            assert!(nan.enumerate().all(|(at, nan)| nan == (at / 40 == 1)), "{isa} {precision}");
        }
    }
}

#[test]
fn products_match_the_recorded_ones() {
    let Some(folder) = std::env::var_os("REALM_REFERENCE") else {
        println!("skipped: REALM_REFERENCE is not set");
        return;
    };
    let folder = std::path::Path::new(&folder).join("quants/dot");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a file of the reference data");
    let (rows, cols) = (16, 2048);
    let x: Vec<f32> =
        read("x.f32.bin").as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let pool = Pool::new(2);
    let mut compared = 0;
    for &dtype in DType::ALL {
        if !folder.join(format!("{dtype}.w.bin")).exists() {
            continue;
        }
        let weight = Weight::new(dtype, rows, cols, read(&format!("{dtype}.w.bin")));
        let dots = read(&format!("{dtype}.dot.f64.bin"));
        let dots: Vec<f64> =
            dots.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        // Three kinds; the last is with the activations as they are.
        let exact = &dots[2 * 3 * rows..];
        for isa in sets() {
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Int8, 2e-3)] {
                let found = weight.computed(Cpu { pool: &pool, isa }, &x, precision);
                for (at, (&found, &exact)) in found.iter().zip(exact).enumerate() {
                    let w = &weight.values[at % rows * cols..][..cols];
                    let x = &x[at / rows * cols..][..cols];
                    let sum: f64 = w.iter().zip(x).map(|(w, x)| f64::from((w * x).abs())).sum();
                    let error = (f64::from(found) - exact).abs();
                    assert!(error <= tolerance * sum, "{dtype} {isa} {precision} {at}: {error:e}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 1000, "{compared} products compared");
}
