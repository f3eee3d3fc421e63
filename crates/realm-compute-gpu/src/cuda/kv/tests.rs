use realm_core::{
    backend::{BackendError, BlockId, KvPool, KvSpec, KvType},
    graph::KvLayer,
};

use super::{
    CudaKvPool, KV_BLOCK_TOKENS,
    testing::{self, KV_TYPES},
};

const LAYERS: [KvLayer; 3] = [
    KvLayer { heads: 2, head_dim: 64 },
    KvLayer { heads: 1, head_dim: 256 },
    KvLayer { heads: 3, head_dim: 32 },
];

#[test]
fn what_kernels_cannot_read_is_refused_by_name() {
    let (gpu, _) = testing::device();
    let spec = |head_dim, kv_type, block_tokens| KvSpec {
        layers: vec![KvLayer { heads: 2, head_dim }],
        kv_type,
        blocks: 3,
        block_tokens,
    };
    let error = |spec: &KvSpec| CudaKvPool::new(&gpu, spec).err().unwrap();
    for head_dim in [0, 4, 20, 264, 4096] {
        let error = error(&spec(head_dim, KvType::F16, KV_BLOCK_TOKENS));
        assert!(matches!(error, BackendError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(&format!("{head_dim} elements")), "{error}");
    }
    let q8_0 = error(&spec(40, KvType::Q8_0, KV_BLOCK_TOKENS));
    assert!(matches!(q8_0, BackendError::KvType { .. }), "{q8_0}");
    let blocks = error(&spec(64, KvType::F16, 16));
    assert!(matches!(blocks, BackendError::Inputs { .. }), "{blocks}");
    let mut huge = spec(64, KvType::F16, KV_BLOCK_TOKENS);
    huge.blocks = usize::MAX / 3;
    assert!(matches!(error(&huge), BackendError::OutOfMemory { .. }));
}

#[test]
fn the_pool_takes_what_its_spec_says() {
    let (gpu, _) = testing::device();
    for kv_type in KV_TYPES {
        let pool = testing::pool(&gpu, &LAYERS, kv_type, 5);
        assert_eq!(pool.buffer.bytes(), pool.spec().bytes().unwrap(), "{kv_type}");
    }
}

/// Contents of the pool as `[block]` of all its parts, in the order in which they are swapped out.
fn blocks(pool: &CudaKvPool) -> Vec<Vec<u8>> {
    let all = pool.buffer.read(0..pool.buffer.bytes()).unwrap();
    let ids = (0..pool.spec.blocks as u32).map(BlockId);
    ids.map(|id| pool.ranges(id).flat_map(|range| all[range].to_vec()).collect()).collect()
}

#[test]
fn blocks_are_copied_taken_out_and_put_back() {
    let (gpu, mut random) = testing::device();
    for kv_type in KV_TYPES {
        let pool = testing::pool(&gpu, &LAYERS, kv_type, 7);
        let bytes: Vec<u8> = (0..pool.buffer.bytes()).map(|_| random.word() as u8).collect();
        pool.buffer.write(0, &bytes).unwrap();
        let mut expected = blocks(&pool);
        assert_eq!(expected.iter().map(Vec::len).sum::<usize>(), bytes.len());

        pool.copy(BlockId(6), BlockId(0)).unwrap();
        pool.copy(BlockId(3), BlockId(3)).unwrap();
        expected[0] = expected[6].clone();
        assert!(blocks(&pool) == expected, "{kv_type}: copy");

        let contents = pool.swap_out(&[BlockId(4), BlockId(1), BlockId(4)]).unwrap();
        let parts = [&expected[4][..], &expected[1], &expected[4]];
        assert!(contents == parts.concat(), "{kv_type}: swap_out");
        pool.swap_in(&contents, &[BlockId(2), BlockId(5), BlockId(1)]).unwrap();
        expected[2] = expected[4].clone();
        expected[5] = expected[1].clone();
        expected[1] = expected[4].clone();
        assert!(blocks(&pool) == expected, "{kv_type}: swap_in");
        assert!(pool.swap_out(&[]).unwrap().is_empty());
        pool.swap_in(&[], &[]).unwrap();
    }
}

#[test]
fn many_blocks_pass_through_the_staging_memory() {
    let (gpu, mut random) = testing::device();
    // More than STAGING_BYTES together.
    let layers = [KvLayer { heads: 8, head_dim: 256 }];
    let pool = testing::pool(&gpu, &layers, KvType::F32, 20);
    let ids: Vec<BlockId> = random.permutation(20).into_iter().map(BlockId).collect();
    for (at, block) in ids.iter().enumerate() {
        for range in pool.ranges(*block) {
            let bytes: Vec<u8> = (0..range.len()).map(|i| (i * 31 + at) as u8).collect();
            pool.buffer.write(range.start, &bytes).unwrap();
        }
    }
    let before = blocks(&pool);
    let contents = pool.swap_out(&ids).unwrap();
    assert!(contents.len() > super::STAGING_BYTES);
    let expected: Vec<u8> = ids.iter().flat_map(|id| before[id.0 as usize].clone()).collect();
    assert!(contents == expected, "swap_out");
    pool.buffer.fill(0).unwrap();
    pool.swap_in(&contents, &ids).unwrap();
    assert!(blocks(&pool) == before, "swap_in");
}

#[test]
fn blocks_that_are_not_there_and_lengths_that_do_not_fit_are_refused() {
    let (gpu, _) = testing::device();
    let pool = testing::pool(&gpu, &LAYERS, KvType::F16, 4);
    let refused = |result: Result<(), BackendError>| {
        assert!(matches!(result, Err(BackendError::Inputs { .. })), "{result:?}");
    };
    refused(pool.copy(BlockId(0), BlockId(4)));
    refused(pool.copy(BlockId(4), BlockId(0)));
    refused(pool.swap_out(&[BlockId(1), BlockId(u32::MAX)]).map(|_| ()));
    let contents = pool.swap_out(&[BlockId(1)]).unwrap();
    refused(pool.swap_in(&contents, &[BlockId(4)]));
    refused(pool.swap_in(&contents, &[BlockId(1), BlockId(2)]));
    refused(pool.swap_in(&contents[1..], &[BlockId(1)]));
}
