//! Against products in f64 of the decoded weights, rounded to what the input is stored in.

mod cases;

use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::DType;

use super::*;
use crate::cuda::{
    emulated,
    gpu::{Buffer, Gpu},
    kernels::testing::{Expected, Input, Loaded, Rig, TARGETS, Target, bits},
    testing,
};

const FORMS: [Form; 2] = [Form::BF16, Form::F16];

/// The tests' device, and an emulated one without wgmma where that has it.
fn rigs(name: &str) -> Vec<Rig> {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed} {name}");
    let gpu = testing::gpu(seed);
    let mut gpus: Vec<Arc<dyn Gpu>> = vec![gpu.clone()];
    if gpu.facts().wgmma {
        gpus.push(emulated::open_sm80(seed).unwrap());
    }
    gpus.into_iter().rev().map(|gpu| Rig::on(gpu, seed, name)).collect()
}

/// Sizes of groups of rows that a device has kernels for.
fn sizes(rig: &Rig) -> &'static [usize] {
    if rig.gpu.facts().wgmma { &[32, 64, 128, 256] } else { &[32, 128] }
}

/// How far sums of rounded weights may be off: weights of formats with a minimum are rounded twice, so
/// that one in thousands is rounded to the neighbor.
fn tolerance(dtype: DType) -> f64 {
    use DType::{Q2_K, Q4_1, Q4_K, Q5_1, Q5_K, Q8_K};
    if matches!(dtype, Q2_K | Q4_1 | Q4_K | Q5_1 | Q5_K | Q8_K) { 1e-4 } else { 2e-6 }
}

#[derive(Debug)]
/// Where a launch has its rows: from `first` on where it is not 0, to `end`; partial sums.
struct Memory {
    first: Buffer,
    end: Buffer,
    partials: Buffer,
    counters: Buffer,
}

impl Memory {
    fn new(rig: &Rig, first: usize, end: usize) -> Self {
        let partials = Buffer::new(&rig.gpu, SCRATCH_BYTES, "partial sums").unwrap();
        partials.fill(0xFF).unwrap();
        let counters = rig.upload(&vec![0; 4 * COUNTERS]);
        Self { first: rig.count(first), end: rig.count(end), partials, counters }
    }

    fn scratch(&self) -> Scratch {
        let (partials, counters) = (self.partials.address(), self.counters.address());
        Scratch { partials, bytes: self.partials.bytes(), counters }
    }
}

/// A product, rows `first` to `end` of an input with memory for more.
#[derive(Debug)]
struct Case<'a> {
    input: &'a Input,
    input_rows: usize,
    first: usize,
    memory: &'a Memory,
    activation: Option<Activation>,
    invariant: bool,
}

impl<'c> Case<'c> {
    fn new(input: &'c Input, input_rows: usize, first: usize, memory: &'c Memory) -> Self {
        Self { input, input_rows, first, memory, activation: None, invariant: true }
    }

    fn product<'a>(&'a self, segments: &'a [Segment<'a>]) -> Matmul<'a> {
        Matmul {
            input: &self.input.columns,
            input_rows: self.input_rows,
            k: self.input.k,
            rows: self.input_rows - self.first,
            first: if self.first == 0 { 0 } else { self.memory.first.address() },
            end: self.memory.end.address(),
            segments,
            activation: self.activation,
            invariant: self.invariant,
            scratch: self.memory.scratch(),
        }
    }

    /// Runs it as it is planned, or with groups of so many rows.
    fn run(&self, rig: &Rig, segments: &[Segment<'_>], n: Option<usize>) {
        let product = self.product(segments);
        let choose = |problem: &Problem<'_>| {
            let plan = plan::choose(problem);
            n.map_or(plan, |n| Plan { n, ..plan })
        };
        let launch = build(&product, None, choose).unwrap();
        rig.gpu.launch(&launch).unwrap_or_else(|error| panic!("{}: {error}", launch.kernel));
    }
}

fn segment<'a>(weight: &'a Loaded, bias: Option<&Buffer>, target: &Target) -> Segment<'a> {
    let bias = bias.map(Buffer::address);
    Segment { weight: &weight.weight, bias, target: target.columns() }
}

/// A target of rows `first` to `end`.
fn target(rig: &Rig, form: Form, [first, end, bucket]: [usize; 3], cols: usize) -> Target {
    Target { first, ..rig.target(form, end, bucket, cols) }
}

/// One product with each size of groups, to f32 and to another form.
fn check(rig: &mut Rig, dtype: DType, form: Form, [n, k]: [usize; 2], [first, end]: [usize; 2]) {
    let bucket = end + rig.random.below(70);
    let weight = rig.weight(dtype, n, k);
    let input = rig.input(form, end, bucket, k);
    let (bias, bias_memory) = rig.bias(n);
    let memory = Memory::new(rig, first, end);
    let case = Case::new(&input, bucket, first, &memory);
    let rows = &input.values[first * k..];
    let expected = Expected::with(rows, k, &weight, Some(form), &bias);
    let mut before: Option<Vec<f32>> = None;
    for &size in sizes(rig) {
        let what = format!("{dtype} in {form:?}, n {n}, k {k}, rows {first} to {end} by {size}");
        let to = target(rig, Form::F32, [first, end, bucket], n);
        case.run(rig, &[segment(&weight, Some(&bias_memory), &to)], Some(size));
        let plain = to.plain();
        expected.check_to(tolerance(dtype), &plain, &what);
        let first = before.get_or_insert_with(|| plain.clone());
        assert_eq!(bits(first), bits(&plain), "{what}");
    }
    let plain = before.unwrap();
    if !dtype.is_float() && n * k > 1000 {
        // Scales that are off by a thousandth would show.
        let values = weight.values.iter().map(|value| value * 1.001).collect();
        let off = Loaded { weight: weight.weight.clone(), values };
        let off = Expected::with(rows, k, &off, Some(form), &bias);
        assert!(off.distance(&plain) > 2.0 * tolerance(dtype));
    }
    let other = target(rig, rig.random.clone().pick(&TARGETS), [first, end, bucket], n);
    case.run(rig, &[segment(&weight, Some(&bias_memory), &other)], None);
    other.check(&plain);
}

fn check_format(dtype: DType) {
    for mut rig in rigs(dtype.name()) {
        let block = dtype.block_len();
        let lengths = match block {
            1 => [1, 77, 200],
            32 => [32, 96, 352],
            _ => [256, 512, 768],
        };
        for form in FORMS {
            check(&mut rig, dtype, form, [17, lengths[0]], [0, 7]);
            check(&mut rig, dtype, form, [130, lengths[1]], [3, 36]);
            let n = rig.random.pick(&[1, 61, 127, 149]);
            let rows = rig.random.pick(&[1, 64, 65, 129]);
            check(&mut rig, dtype, form, [n, lengths[2]], [0, rows]);
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
