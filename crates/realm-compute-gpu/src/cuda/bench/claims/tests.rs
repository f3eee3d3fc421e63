use realm_core::backend::LoadedWeight;

use super::*;
use crate::{
    claims::Bench,
    cuda::{emulated, weights::planes_bytes},
};

fn lab() -> Lab {
    Lab::new(emulated::open(3).unwrap(), super::super::Sizes::Toy)
}

fn read(lab: &Lab, address: u64, bytes: usize) -> Vec<u8> {
    let copy = lab.room(bytes).unwrap();
    lab.gpu.copy(copy.address(), address, bytes).unwrap();
    copy.read(0..bytes).unwrap()
}

#[test]
fn what_is_unpacked_are_the_planes_of_the_bf16_weight() {
    let mut lab = lab();
    for shape in [[16, 256], [37, 512], [160, 768]] {
        let packed = info(DType::Q4_K, shape);
        let data = lab.blocks_of(DType::Q4_K, packed.bytes().unwrap());
        let plain = info(DType::BF16, shape);
        let expected = lab.loader.load(&plain, Bytes::from(unpack(&data, shape[1]))).unwrap();
        let weight = lab.loader.load(&packed, Bytes::from(data)).unwrap();
        let bytes = planes_bytes(&plain);
        assert_eq!(expected.info(), &plain);
        let target = lab.room(bytes).unwrap();
        lab.gpu.launch(&dequantize(weight.planes(), target.address(), shape)).unwrap();
        let found = target.read(0..bytes).unwrap();
        assert!(found == read(&lab, expected.planes(), bytes), "{shape:?}");
    }
}

#[test]
fn softmax_is_causal() {
    let mut lab = lab();
    let tokens = 70;
    let bf16 = |value: f32| (value.to_bits() >> 16) as u16;
    let value = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
    let scores: Vec<u16> = lab.numbers(tokens * tokens).into_iter().map(bf16).collect();
    let memory = lab.upload(scores.as_bytes()).unwrap();
    lab.gpu.launch(&softmax(memory.address(), tokens, 0.5)).unwrap();
    let found = memory.read(0..2 * tokens * tokens).unwrap();
    let found: Vec<u16> =
        found.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    for row in 0..tokens {
        let exp = |col: usize| (0.5 * value(scores[row * tokens + col])).exp();
        let total: f64 = (0..=row).map(exp).sum();
        for col in 0..tokens {
            let expected = if col <= row { exp(col) / total } else { 0.0 };
            let found = value(found[row * tokens + col]);
            assert!((found - expected).abs() <= 0.005 * expected, "{row}, {col}: {found}");
        }
    }
}

#[test]
fn all_comparisons_come_out() {
    let mut bench = Bench::open("cuda-emulated").unwrap();
    let limits = bench.limits().unwrap();
    assert!(limits.bytes_per_second > 0.0 && limits.ops_per_second > 0.0);
    for comparison in [
        Comparison::FusedRow,
        Comparison::CopiedRow,
        Comparison::FusedRows,
        Comparison::Attention,
        Comparison::Half,
    ] {
        let Pair { ours, plain, limit } = bench.compare(comparison).unwrap();
        for timed in [ours, plain] {
            assert!(timed.seconds > 0.0 && timed.fraction > 0.0, "{comparison:?}: {timed:?}");
        }
        assert!(!limit.is_empty() && bench.size(comparison).contains(' '));
    }
    assert!(Bench::open("cpu").is_err() && Bench::open("cuda:x").is_err());
}
