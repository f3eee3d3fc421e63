//! Layouts weight by weight, encoders under ordinary and hostile input, the list's lookups.

use super::*;
use proptest::prelude::*;

/// A block's bytes: a pattern in which neighbours differ in every bit pair, then `fixed` bytes
/// (scales, mostly) at their offsets.
fn raw<F: BlockFormat>(fixed: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..F::BYTES).map(|i| (i * 89 + i / 7 * 31 + 13) as u8).collect();
    for &(offset, value) in fixed {
        bytes[offset..][..value.len()].copy_from_slice(value);
    }
    bytes
}

/// Decodes `bytes` and compares every weight with `expected(index)`, exactly.
fn check<F: BlockFormat>(bytes: &[u8], expected: impl Fn(usize) -> f32) {
    let mut out = vec![f32::NAN; F::LEN];
    F::ref_from_bytes(bytes).expect("one block").decode(&mut out);
    for (i, &w) in out.iter().enumerate() {
        assert_eq!(w, expected(i), "{}, weight {i}", F::NAME);
    }
}

/// 0.5, −0.25 and 2 as halves: products with them are exact.
const HALF: &[u8] = &[0x00, 0x38];
const MINUS_QUARTER: &[u8] = &[0x00, 0xb4];
const TWO: &[u8] = &[0x00, 0x40];

/// Bits `shift..shift + width` of `byte` as a number.
fn field(byte: u8, shift: usize, width: usize) -> f32 {
    f32::from((byte >> shift) & ((1u16 << width) - 1) as u8)
}

/// Weight i of 32 in the nibbles of 16 bytes.
fn nibble(qs: &[u8], i: usize) -> f32 {
    field(qs[i % 16], i / 16 * 4, 4)
}

#[test]
fn float_layouts() {
    check::<F32>(&[0x00, 0x00, 0x20, 0xc1], |_| -10.0);
    check::<F16>(&[0x00, 0xc9], |_| -10.0);
    check::<Bf16>(&[0x20, 0xc1], |_| -10.0);
}

#[test]
fn layouts_of_32() {
    let b = raw::<Q4_0>(&[(0, HALF)]);
    check::<Q4_0>(&b, |i| 0.5 * (nibble(&b[2..], i) - 8.0));

    let b = raw::<Q4_1>(&[(0, HALF), (2, MINUS_QUARTER)]);
    check::<Q4_1>(&b, |i| 0.5 * nibble(&b[4..], i) - 0.25);

    let b = raw::<Q5_0>(&[(0, HALF)]);
    let fifth = |high: &[u8], i: usize| 16.0 * field(high[i / 8], i % 8, 1);
    check::<Q5_0>(&b, |i| 0.5 * (nibble(&b[6..], i) + fifth(&b[2..6], i) - 16.0));

    let b = raw::<Q5_1>(&[(0, HALF), (2, MINUS_QUARTER)]);
    check::<Q5_1>(&b, |i| 0.5 * (nibble(&b[8..], i) + fifth(&b[4..8], i)) - 0.25);

    let b = raw::<Q8_0>(&[(0, MINUS_QUARTER)]);
    check::<Q8_0>(&b, |i| -0.25 * f32::from(b[2 + i] as i8));

    let b = raw::<Iq4Nl>(&[(0, HALF)]);
    check::<Iq4Nl>(&b, |i| 0.5 * f32::from(IQ4_LEVELS[nibble(&b[2..], i) as usize]));
}

/// Hand-computed values, so that the index formulas of the tests above and below are pinned too.
#[test]
fn values_by_hand() {
    let mut qs = [0x88; 16];
    (qs[0], qs[15]) = (0x1f, 0xe0);
    let mut out = [f32::NAN; 32];
    Q4_0 { d: F16Le(HALF.try_into().unwrap()), qs }.decode(&mut out);
    assert_eq!([out[0], out[1], out[15], out[16], out[31]], [3.5, 0.0, -4.0, -3.5, 3.0]);

    // The layout tests take the levels as given.
    let moments = IQ4_LEVELS.iter().zip(1..).fold((0, 0), |(first, second), (&l, i)| {
        (first + i * i32::from(l), second + i32::from(l) * i32::from(l))
    });
    assert_eq!(moments, (4135, 72768));

    // Group 3 of Q4_K: scale 0b10_0101 in byte 3, minimum 0b01_0001 in byte 7, whose top bits
    // belong to group 7 (0b11_1100 and 0b01_0010, lower nibbles in byte 11).
    let scales = [0, 0, 0, 0b11_100101, 0, 0, 0, 0b01_010001, 0, 0, 0, 0b0010_1100];
    let (scale, min) = unpack_scales_mins(&scales);
    assert_eq!((scale, min), ([0, 0, 0, 37, 0, 0, 0, 60], [0, 0, 0, 17, 0, 0, 0, 18]));
    assert_eq!(pack_scales_mins(&scale, &min), scales);
    let mut block =
        Q4K { d: F16Le::from_f32(0.5), dmin: F16Le::from_f32(2.0), scales, qs: [0; 128] };
    block.qs[32] = 0x7b; // weights 64 (group 2) and 96 (group 3)
    block.qs[127] = 0x9e; // weights 223 (group 6) and 255 (group 7)
    let mut out = [f32::NAN; 256];
    block.decode(&mut out);
    assert_eq!([out[64], out[96], out[97]], [0.0, 0.5 * 37.0 * 7.0 - 34.0, -34.0]);
    assert_eq!([out[223], out[255], out[254]], [0.0, 0.5 * 60.0 * 9.0 - 36.0, -36.0]);
}

#[test]
fn layouts_of_256_with_minima() {
    let b = raw::<Q2K>(&[(80, HALF), (82, TWO)]);
    check::<Q2K>(&b, |i| {
        let q = field(b[16 + i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2);
        0.5 * field(b[i / 16], 0, 4) * q - 2.0 * field(b[i / 16], 4, 4)
    });

    // Scales 1 2 3 4 | 21 38 55 8 and minima 61 62 63 60 | 9 26 43 60.
    let scales: &[u8] = &[0x41, 0x82, 0xc3, 0x04, 0x3d, 0x7e, 0xbf, 0xfc, 0x95, 0xa6, 0xb7, 0xc8];
    let scale = [1.0, 2.0, 3.0, 4.0, 21.0, 38.0, 55.0, 8.0];
    let min = [61.0, 62.0, 63.0, 60.0, 9.0, 26.0, 43.0, 60.0];
    let low = |qs: &[u8], i: usize| field(qs[i / 64 * 32 + i % 32], i / 32 % 2 * 4, 4);

    let b = raw::<Q4K>(&[(0, HALF), (2, TWO), (4, scales)]);
    check::<Q4K>(&b, |i| 0.5 * scale[i / 32] * low(&b[16..], i) - 2.0 * min[i / 32]);

    let b = raw::<Q5K>(&[(0, HALF), (2, TWO), (4, scales)]);
    check::<Q5K>(&b, |i| {
        let q = low(&b[48..], i) + 16.0 * field(b[16 + i % 32], i / 32, 1);
        0.5 * scale[i / 32] * q - 2.0 * min[i / 32]
    });
}

#[test]
fn layouts_of_256_around_zero() {
    // Lower nibbles 1..=8 and 8..=15, upper pairs in all orders.
    let scales: &[u8] = &[0x81, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0xe7, 0xf8, 0xe4, 0x93, 0x4e, 0x39];
    let b = raw::<Q3K>(&[(96, scales), (108, HALF)]);
    let scale = |g: usize| {
        let low = field(scales[g % 8], g / 8 * 4, 4);
        low + 16.0 * field(scales[8 + g % 4], g / 4 * 2, 2) - 32.0
    };
    assert_eq!([scale(3), scale(6), scale(9), scale(12)], [-12.0, 23.0, -7.0, 28.0]);
    check::<Q3K>(&b, |i| {
        let low = field(b[32 + i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2);
        let high = field(b[i % 32], i / 32, 1);
        0.5 * scale(i / 16) * (low + 4.0 * high - 4.0)
    });

    let b = raw::<Q6K>(&[(208, MINUS_QUARTER)]);
    check::<Q6K>(&b, |i| {
        let low = field(b[i / 128 * 64 + i % 64], i / 64 % 2 * 4, 4);
        let high = field(b[128 + i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2);
        -0.25 * f32::from(b[192 + i / 16] as i8) * (low + 16.0 * high - 32.0)
    });

    let b = raw::<Q8K>(&[(0, &(-0.25f32).to_le_bytes())]);
    check::<Q8K>(&b, |i| -0.25 * f32::from(b[4 + i] as i8));

    // Lower nibbles 1..=8, upper pairs 0 1 2 3 2 3 1 0.
    let b = raw::<Iq4Xs>(&[(0, HALF), (2, &[0xe4, 0x1e]), (4, &[0x21, 0x43, 0x65, 0x87])]);
    let scale = [-31.0, -14.0, 3.0, 20.0, 5.0, 22.0, -9.0, -24.0];
    check::<Iq4Xs>(&b, |i| {
        let q = field(b[8 + i / 32 * 16 + i % 16], i / 16 % 2 * 4, 4);
        0.5 * scale[i / 32] * f32::from(IQ4_LEVELS[q as usize])
    });
}

#[test]
fn q8_k_sums_its_quants() {
    let values: Vec<f32> = (0..256).map(|i| (i as f32 * 0.7).sin()).collect();
    let block = Q8K::encode(&values);
    for (sum, qs) in block.bsums.iter().zip(block.qs.chunks(16)) {
        assert_eq!(i32::from(sum.get()), qs.iter().map(|&q| i32::from(q)).sum::<i32>());
    }
}

/// Root mean square error over root mean square that 1024 uniform weights may cost: 1.06 times
/// the worst of 3000 draws.
fn relative_error(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 0.0,
        DType::F16 => 2.1e-4,
        DType::BF16 => 1.66e-3,
        DType::Q8_0 | DType::Q8_K => 4.5e-3,
        DType::Q6_K => 0.0147,
        DType::Q5_K => 0.0304,
        DType::Q5_1 => 0.0333,
        DType::Q5_0 => 0.0353,
        DType::Q4_K => 0.0618,
        DType::Q4_1 => 0.0686,
        DType::IQ4_NL | DType::IQ4_XS => 0.0718,
        DType::Q4_0 => 0.0732,
        DType::Q3_K => 0.133,
        DType::Q2_K => 0.263,
    }
}

fn round_trip(dtype: DType, values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0xa5; dtype.row_bytes(values.len()).unwrap()];
    dtype.encode(values, &mut bytes);
    let mut out = vec![f32::NAN; values.len()];
    dtype.decode(&bytes, &mut out);
    out
}

/// Any bit pattern at all, mixed with zeros, extremes and ordinary numbers of all magnitudes.
fn hostile() -> impl Strategy<Value = f32> {
    prop_oneof![
        any::<u32>().prop_map(f32::from_bits),
        prop::sample::select(vec![
            0.0,
            -0.0,
            1.0,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-45,
            65504.0,
            65520.0,
            -7e4,
            6e-8,
            -3e-8,
        ]),
        (-1.0f32..1.0, -140i32..128).prop_map(|(m, e)| m * 2f32.powi(e)),
    ]
}

proptest! {
    #[test]
    fn uniform_weights_come_back(
        values in prop::collection::vec(-1.0f32..1.0, 1024),
        exponent in -4i32..12,
    ) {
        let values: Vec<f32> = values.iter().map(|v| v * 2f32.powi(exponent)).collect();
        let power = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let signal = power(&mut values.iter().map(|&v| f64::from(v)));
        for &dtype in DType::ALL {
            let out = round_trip(dtype, &values);
            let noise =
                power(&mut values.iter().zip(&out).map(|(&x, &y)| f64::from(x) - f64::from(y)));
            let bound = relative_error(dtype);
            prop_assert!(noise <= bound * signal, "{dtype}: {} > {bound}", noise / signal);
        }
    }

    #[test]
    fn hostile_weights_never_become_nan(values in prop::collection::vec(hostile(), 256)) {
        for &dtype in DType::ALL.iter().filter(|dtype| !dtype.is_float()) {
            let out = round_trip(dtype, &values);
            let bad = out.iter().position(|v| !v.is_finite());
            prop_assert!(bad.is_none(), "{dtype}: {out:?}");
        }
    }

    #[test]
    fn one_value_fills_a_block(value in hostile()) {
        for &dtype in DType::ALL.iter().filter(|dtype| !dtype.is_float()) {
            let out = round_trip(dtype, &[value; 256]);
            prop_assert!(out.iter().all(|v| v.is_finite() && *v == out[0]), "{dtype}: {out:?}");
            // Where the scales are normal halves, a constant is easy for every format.
            if (0.5..=6e4).contains(&value.abs()) {
                prop_assert!((out[0] - value).abs() <= 2e-3 * value.abs(), "{dtype}: {}", out[0]);
            }
        }
    }
}

#[test]
fn zeros_stay_zero() {
    for &dtype in DType::ALL {
        assert_eq!(round_trip(dtype, &[0.0; 512]), [0.0; 512], "{dtype}");
    }
    // Too small for an inverse scale.
    assert_eq!(Q8K::encode(&[1e-40; 256]).as_bytes(), [0; 292]);
}

#[test]
fn floats_keep_special_values() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let out = round_trip(dtype, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]);
        assert!(out[0].is_nan(), "{dtype}");
        assert_eq!(out[1..3], [f32::INFINITY, f32::NEG_INFINITY], "{dtype}");
        assert!(out[3] == 0.0 && out[3].is_sign_negative(), "{dtype}");
    }
    assert_eq!(round_trip(DType::F16, &[65519.0, 65520.0]), [65504.0, f32::INFINITY]);
}

#[test]
fn lookups_agree_with_the_list() {
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        assert_eq!(dtype as usize, i);
        assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        assert_eq!(DType::from_name(&dtype.name().to_lowercase()), Some(dtype));
        assert_eq!(DType::from_gguf_id(dtype.gguf_id()), Some(dtype));
        assert_eq!(format!("{dtype:?}"), dtype.name(), "a variant is called as its format");
        assert_eq!(format!("{dtype:>8}"), format!("{:>8}", dtype.name()));
        let (len, bytes) = (dtype.block_len(), dtype.block_bytes());
        assert_eq!(dtype.row_bytes(0), Some(0));
        assert_eq!(dtype.row_bytes(7 * len), Some(7 * bytes));
        assert_eq!(dtype.row_bytes(len + 1), (len == 1).then_some(2 * bytes));
        if bytes > len {
            assert_eq!(dtype.row_bytes(usize::MAX / len * len), None, "{dtype}");
        }
    }
    assert_eq!(DType::ALL.len(), 16);
    assert_eq!(DType::from_name("Q4_K_M"), None);
    assert_eq!(DType::from_gguf_id(4), None);
    assert_eq!(DType::from_gguf_id(u32::MAX), None);
}

#[test]
fn rows_need_no_alignment() {
    let values: Vec<f32> = (0..512).map(|i| (i as f32 * 0.3).cos()).collect();
    for &dtype in DType::ALL {
        let mut bytes = vec![0; dtype.row_bytes(512).unwrap() + 1];
        dtype.encode(&values, &mut bytes[1..]);
        let mut out = vec![f32::NAN; 512];
        dtype.decode(&bytes[1..], &mut out);
        assert_eq!(out, round_trip(dtype, &values), "{dtype}");
    }
}

#[test]
#[should_panic(expected = "Q4_K: 143 bytes do not decode to 256 values")]
fn decoding_part_of_a_block_panics() {
    DType::Q4_K.decode(&[0; 143], &mut [0.0; 256]);
}

#[test]
#[should_panic(expected = "Q8_0: 34 bytes do not decode to 31 values")]
fn decoding_to_the_wrong_length_panics() {
    DType::Q8_0.decode(&[0; 34], &mut [0.0; 31]);
}

#[test]
#[should_panic(expected = "Q8_0: 33 values do not encode to 34 bytes")]
fn encoding_part_of_a_block_panics() {
    DType::Q8_0.encode(&[0.0; 33], &mut [0; 34]);
}
