//! Against the core's decoders, bit by bit.

use realm_conformance::random::Random;
use realm_core::{Bytes, DType, graph::WeightInfo};
use zerocopy::IntoBytes as _;

use super::*;
use crate::cuda::{
    gpu::Buffer,
    step::{Counts, PREVIOUS, Row},
    testing,
    weights::Loader,
};

#[test]
fn rows_are_the_tables_rows() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let gpu = testing::gpu(seed);
    let (loader, mut random) = (Loader::new(gpu.clone()), Random::new(seed).named("embed"));
    let buffer = |bytes: &[u8]| {
        let buffer = Buffer::new(&gpu, bytes.len(), "test data").unwrap();
        buffer.write(0, bytes).unwrap();
        buffer
    };
    for &dtype in DType::ALL {
        let vocabulary = 37;
        let cols = match dtype.block_len() {
            1 => 77,
            32 => 32 * (1 + random.below(5)),
            _ => 256 * (1 + random.below(9)),
        };
        let data = random.matrix(vocabulary, cols, dtype, 0.7);
        let mut table = vec![0.0; vocabulary * cols];
        dtype.decode(&data, &mut table);
        let info = WeightInfo { name: "table".into(), rows: vocabulary, cols, dtype };
        let weight = loader.load(&info, Bytes::from(data)).unwrap();

        // Ids, one from the step before, and two that the table does not have.
        let previous = [5, random.below(vocabulary) as u32, u32::MAX];
        let ids = [0, 36, random.below(vocabulary) as u32, previous[1], 37, u32::MAX];
        let mut rows = ids.map(|token| Row { token, ..Row::default() }).to_vec();
        rows[3].token = PREVIOUS | 1;
        rows[5].token = PREVIOUS | 2;
        // Beyond the count.
        rows.push(Row::default());
        let counts = Counts { rows: 6, ..Counts::default() };
        let memory = [counts.as_bytes(), rows.as_bytes(), previous.as_bytes()].map(buffer);
        let [counts, rows, previous] = [0, 1, 2].map(|i: usize| memory[i].address());
        let view = StepView { counts, rows, previous, ..StepView::default() };

        for form in [Form::F32, Form::BF16x3] {
            let stride = form.stride(cols);
            let out = Buffer::new(&gpu, form.data_bytes(7, cols), "target").unwrap();
            out.fill(0xEE).unwrap();
            let target = Columns::new(form, cols, out.address(), 0);
            gpu.launch(&embed(&weight, &view, 7, target)).unwrap();
            let bytes = out.read(0..out.bytes()).unwrap();
            let (written, rest) = bytes.split_at(form.data_bytes(6, cols));
            assert!(rest.iter().all(|&byte| byte == 0xEE), "{dtype}: beyond the count");
            for (row, &id) in ids.iter().enumerate() {
                for col in 0..stride {
                    let found = if form == Form::F32 {
                        let at = 4 * (row * stride + col);
                        f32::from_le_bytes(written[at..at + 4].try_into().unwrap())
                    } else {
                        let part = |part: usize| {
                            let at = 2 * ((3 * row + part) * stride + col);
                            let bits = u16::from_le_bytes([written[at], written[at + 1]]);
                            f32::from_bits(u32::from(bits) << 16)
                        };
                        part(0) + (part(1) + part(2))
                    };
                    let expected = match table.get(id as usize * cols + col) {
                        _ if col >= cols => 0.0,
                        Some(&value) if (id as usize) < vocabulary => value,
                        _ => f32::NAN,
                    };
                    let same = if expected.is_nan() { found.is_nan() } else { found == expected };
                    assert!(same, "{dtype}, row {row}, column {col}: {found} is not {expected}");
                }
            }
        }
    }
}
