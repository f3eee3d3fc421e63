//! Products with chosen experts: the bits of each expert's alone.

use realm_conformance::random::Random;
use realm_core::Bytes;
use zerocopy::IntoBytes as _;

use super::*;
use crate::cuda::{gpu::Buffer, kernels::testing::Loaded};

/// An expert's matrices, and all of them one below the other.
struct Weights {
    alone: Vec<Loaded>,
    all: Loaded,
}

impl Weights {
    fn new(rig: &mut Rig, dtype: DType, experts: usize, [n, k]: [usize; 2]) -> Self {
        let data: Vec<Vec<u8>> =
            (0..experts).map(|_| rig.random.matrix(n, k, dtype, 0.5)).collect();
        let load = |rows: usize, data: Vec<u8>| {
            let info = WeightInfo { name: "experts".into(), rows, cols: k, dtype };
            let weight = rig.loader.load(&info, Bytes::from(data)).unwrap();
            Loaded { weight, values: Vec::new() }
        };
        let all = load(experts * n, data.concat());
        Self { alone: data.into_iter().map(|data| load(n, data)).collect(), all }
    }
}

struct Case {
    dtype: DType,
    precision: Precision,
    experts: usize,
    used: usize,
    size: [usize; 2],
    own_input: bool,
    activation: Option<Activation>,
}

impl Case {
    /// The bits of `rows` rows' slots, whose experts are `chosen`, in a bucket of one row more.
    fn check(&self, rig: &mut Rig, rows: usize) {
        let &Self { dtype, precision, experts, used, size: size @ [n, k], .. } = self;
        let what = format!("{dtype} at {precision}, {used} of {experts}, {size:?}, {rows} rows");
        let matrices = if self.activation.is_some() { 2 } else { 1 };
        let weights: Vec<_> =
            (0..matrices).map(|_| Weights::new(rig, dtype, experts, size)).collect();
        let (bucket, form) = (rows + rig.random.below(2), input_form(dtype, precision));
        let inputs = if self.own_input { used } else { 1 };
        let input = rig.input(form, rows * inputs, bucket * inputs, k);
        let mut chosen: Vec<u32> =
            (0..rows * used).map(|_| rig.random.below(experts) as u32).collect();
        chosen[0] = experts as u32 - 1;
        let mut padded = chosen.clone();
        padded.resize(bucket * used, u32::MAX);
        let (numbers, count) = (rig.upload(padded.as_bytes()), rig.count(rows));
        let slots =
            Slots { experts: numbers.address(), count: experts, used, own_input: self.own_input };
        let run = |target: &Target| {
            let columns = target.columns();
            let segments: Vec<_> = weights.iter().map(|it| segment(&it.all, columns)).collect();
            let (count, activation) = (count.address(), self.activation);
            let launch = mixture(&input.columns, k, bucket, count, &segments, activation, &slots);
            rig.gpu.launch(&launch).unwrap_or_else(|error| panic!("{what}: {error}"));
        };
        let target = rig.target(Form::F32, rows * used, bucket * used, n);
        run(&target);
        let found = target.plain();
        for (slot, &expert) in chosen.iter().enumerate() {
            let row = if self.own_input { slot } else { slot / used };
            let alone: Vec<_> = weights.iter().map(|it| &it.alone[expert as usize]).collect();
            let expected = self.alone(rig, &input.columns, row, &alone);
            assert_eq!(bits(&found[slot * n..][..n]), expected, "{what}: slot {slot}");
        }
        let other = rig.target(rig.random.clone().pick(&TARGETS), rows * used, bucket * used, n);
        run(&other);
        other.check(&found);
    }

    /// The product of one row with one expert.
    fn alone(&self, rig: &Rig, input: &Columns, row: usize, weights: &[&Loaded]) -> Vec<u32> {
        let [n, k] = self.size;
        let mut input = *input;
        input.data += input.form().data_bytes(row, k) as u64;
        input.scales += input.form().scale_bytes(row, k) as u64;
        let (target, one): (_, Buffer) = (rig.target(Form::F32, 1, 1, n), rig.count(1));
        let columns = target.columns();
        let segments: Vec<_> = weights.iter().map(|weight| segment(weight, columns)).collect();
        let launch = product(&input, k, 1, one.address(), &segments, self.activation);
        rig.gpu.launch(&launch).unwrap();
        bits(&target.plain())
    }
}

fn segment(weight: &Loaded, target: Columns) -> Segment<'_> {
    Segment { weight: &weight.weight, bias: None, target }
}

/// Experts that begin with a tile, and such as begin within one, or have a part of one.
#[test]
fn experts() {
    let mut random = Random::new(Random::fresh_seed());
    for &dtype in DType::ALL {
        let mut rig = Rig::new(&format!("experts of {dtype}"));
        let lengths =
            if dtype.is_float() { [77, 320] } else { [1, 3].map(|it| it * dtype.block_len()) };
        for precision in PRECISIONS {
            let case = Case {
                dtype,
                precision,
                experts: random.pick(&[1, 3, 5]),
                used: random.pick(&[1, 2]),
                size: [random.pick(&[1, 7, 16, 23, 32]), random.pick(&lengths)],
                own_input: random.below(2) == 0,
                activation: random.pick(&[None, Some(Activation::Silu)]),
            };
            let rows = random.pick(&[1, 2, 5]);
            case.check(&mut rig, rows);
        }
    }
}
