//! Loading on a device.

use std::time::Instant;

use realm_conformance::random::Random;
use realm_core::DType;

use super::*;
use crate::cuda::testing;

fn info(name: &str, rows: usize, cols: usize, dtype: DType) -> WeightInfo {
    WeightInfo { name: name.into(), rows, cols, dtype }
}

#[test]
fn weights_arrive_in_slices() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let gpu = testing::gpu(seed);
    let loader = Loader::new(gpu);
    let mut random = Random::new(seed);
    // More than two staging buffers; then small ones, whose upload overlaps with it.
    let shapes = [(1500, 8192, DType::F32), (33, 512, DType::Q4_K), (1, 77, DType::F16)];
    let weights: Vec<_> = shapes
        .into_iter()
        .map(|(rows, cols, dtype)| {
            let info = info("w", rows, cols, dtype);
            let bytes = info.bytes().unwrap();
            let few: Vec<u8> = (0..4096).map(|_| random.word() as u8).collect();
            // No NaN, whose bits a copy through f32 might not keep.
            let data: Vec<u8> = few.into_iter().map(|b| b & 0x7b).cycle().take(bytes).collect();
            let loaded = loader.load(&info, Bytes::from(data.clone())).unwrap();
            (info, data, loaded)
        })
        .collect();
    for (info, data, loaded) in &weights {
        let layout = Layout::of(info);
        let mut planes = vec![0; layout.bytes()];
        planes::pack(info, data, 0..layout.tiles(), &mut planes, 1);
        let found = loaded.planes.read(0..loaded.planes.bytes()).unwrap();
        assert!(found == planes, "{info:?}");
        assert_eq!(loaded.device_bytes(), planes_bytes(info));
        assert_eq!((loaded.info(), loaded.planes()), (info, loaded.planes.address()));
    }
    let (info, data, vector) = &weights[2];
    let mut values = vec![0.0; info.cols];
    info.dtype.decode(data, &mut values);
    let buffer = vector.vector.as_ref().unwrap();
    assert_eq!(buffer.read(0..buffer.bytes()).unwrap(), values.as_bytes());
    assert_eq!((vector.vector(), weights[0].2.vector()), (buffer.address(), 0));
}

#[test]
fn bytes_that_do_not_fit_are_refused() {
    let loader = Loader::new(testing::gpu(1));
    for (rows, cols, bytes) in [(4, 256, 143), (4, 255, 0), (usize::MAX, 512, 288)] {
        let info = info("blk.0.w", rows, cols, DType::Q4_K);
        match loader.load(&info, Bytes::from(vec![0; bytes])) {
            Err(BackendError::WeightLength { name, .. }) => assert_eq!(name, "blk.0.w"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(planes_bytes(&info("w", usize::MAX, 512, DType::Q4_K)), usize::MAX);
    let empty = info("w", 0, 256, DType::Q4_K);
    assert_eq!(loader.load(&empty, Bytes::from(vec![])).unwrap().device_bytes(), 0);
}

/// `cargo test --release weights::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    for &dtype in DType::ALL {
        let info = info("w", 4096, 4096, dtype);
        let data = vec![0x55; info.bytes().unwrap()];
        let layout = Layout::of(&info);
        let mut planes = vec![0; layout.bytes()];
        let mut seconds = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            planes::pack(&info, &data, 0..layout.tiles(), &mut planes, 1);
            seconds = seconds.min(start.elapsed().as_secs_f64());
        }
        println!("{dtype}: {:.2} GB/s on one core", data.len() as f64 / seconds / 1e9);
    }
}
