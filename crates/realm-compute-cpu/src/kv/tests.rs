//! What is stored can be found again, and blocks can be moved.

use super::*;
use crate::isa::IsaLimit;
use realm_core::{backend::Role, graph::KvLayer};

const TYPES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];

fn pool(kv_type: KvType, head_dim: usize, blocks: usize) -> CpuKvPool {
    let layers = vec![
        KvLayer { heads: 1, head_dim },
        KvLayer { heads: 3, head_dim },
        KvLayer { heads: 2, head_dim },
    ];
    CpuKvPool::new(&KvSpec { layers, kv_type, blocks, block_tokens: KV_BLOCK_TOKENS }).unwrap()
}

/// An element, decoded from where the layout says it lies.
fn element(kv_type: KvType, part: Part, tile: &[u8], dim: usize, token: usize, at: usize) -> f32 {
    let (place, scale) = match part {
        Part::Key => (at * KV_BLOCK_TOKENS + token, at / CHUNK * KV_BLOCK_TOKENS + token),
        Part::Value => (token * dim + at, token * (dim / CHUNK) + at / CHUNK),
    };
    let f16 = |at: usize| half::f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32();
    match kv_type {
        KvType::F32 => f32::from_le_bytes(tile[4 * place..][..4].try_into().unwrap()),
        KvType::F16 => f16(2 * place),
        KvType::BF16 => half::bf16::from_le_bytes([tile[2 * place], tile[2 * place + 1]]).to_f32(),
        KvType::Q8_0 => f32::from(tile[place] as i8) * f16(KV_BLOCK_TOKENS * dim + 2 * scale),
    }
}

#[test]
fn rows_are_stored_where_the_layout_says() {
    let workers = Pool::new(2);
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    for (round, kv_type) in TYPES.into_iter().cycle().take(12).enumerate() {
        let dim = if kv_type == KvType::Q8_0 { 64 } else { [64, 40, 7][round % 3] };
        let limit = [IsaLimit::Scalar, IsaLimit::Avx2, IsaLimit::Avx512][round % 3];
        let kv = pool(kv_type, dim, 9);
        kv.fill(0xff);
        // Few rows are stored by the caller, many by all.
        let (first, second) = ([BlockId(7), BlockId(2), BlockId(5)], [BlockId(1)]);
        let rows = if round % 2 == 0 { 3 } else { 130 };
        let sequences = [
            SequenceRows { rows: 0..rows, cached: 61, role: Role::Prefill, blocks: &first },
            SequenceRows { rows: rows..rows + 1, cached: 0, role: Role::Decode, blocks: &second },
        ];
        let width = 3 * dim;
        let key: Vec<f32> = (0..(rows + 1) * width).map(|_| random()).collect();
        let value: Vec<f32> = (0..(rows + 1) * width).map(|_| random()).collect();
        kv.write_rows((&workers, Isa::detect(limit)), 1, &sequences, &key, &value);
        let read = kv.read();
        for (part, rows) in [(Part::Key, &key), (Part::Value, &value)] {
            let dtype = kv_type.dtype();
            let mut bytes = vec![0; dtype.row_bytes(rows.len()).unwrap()];
            dtype.encode(rows, &mut bytes);
            let mut stored = vec![0.0; rows.len()];
            dtype.decode(&bytes, &mut stored);
            for sequence in &sequences {
                for (row, position) in sequence.rows.clone().zip(sequence.cached..) {
                    let block = sequence.blocks[position / KV_BLOCK_TOKENS];
                    for at in 0..width {
                        let tile = read.tile(1, part, block, at / dim);
                        let token = position % KV_BLOCK_TOKENS;
                        let found = element(kv_type, part, tile, dim, token, at % dim);
                        assert_eq!(
                            found,
                            stored[row * width + at],
                            "{kv_type} {part:?} {row} {at}"
                        );
                    }
                }
            }
        }
        // All else is as it was.
        let stored = 2 * (rows + 1) * width * kv_type.dtype().row_bytes(dim).unwrap() / dim;
        let untouched = read.memory.bytes().iter().filter(|&&byte| byte == 0xff).count();
        assert!(untouched >= read.memory.bytes().len() - stored);
        for layer in [0, 2] {
            let tile = read.tile(layer, Part::Value, BlockId(7), 0);
            assert!(tile.iter().all(|&byte| byte == 0xff));
        }
    }
}

#[test]
fn blocks_are_copied_and_swapped_whole() {
    for kv_type in TYPES {
        let kv = pool(kv_type, 32, 5);
        for (at, byte) in kv.write().bytes_mut().iter_mut().enumerate() {
            *byte = (at * 31 / 7) as u8;
        }
        let blocks = [BlockId(3), BlockId(0), BlockId(4)];
        let before = kv.swap_out(&blocks).unwrap();
        assert_eq!(before.len(), 3 * kv.spec().block_bytes().unwrap());
        let one = |block| kv.swap_out(&[BlockId(block)]).unwrap();
        let (second, third) = (one(1), one(2));
        assert_ne!(second, third);
        kv.copy(BlockId(1), BlockId(3)).unwrap();
        assert_eq!(one(3), second);
        kv.copy(BlockId(2), BlockId(2)).unwrap();
        kv.swap_in(&before, &[BlockId(1), BlockId(4), BlockId(0)]).unwrap();
        let part = before.len() / 3;
        assert_eq!((one(1), one(4)), (before[..part].to_vec(), before[part..2 * part].to_vec()));
        assert_eq!(one(0), before[2 * part..]);
        assert_eq!(one(2), third);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let kv = pool(KvType::F16, 40, 2);
    let absent = Err(BackendError::Inputs { problem: "KV block 2 of 2".into() });
    assert_eq!(kv.copy(BlockId(0), BlockId(2)), absent);
    assert_eq!(kv.swap_out(&[BlockId(1), BlockId(2)]).map(drop), absent);
    assert_eq!(kv.swap_in(&[], &[BlockId(2)]), absent);
    let short = kv.swap_in(&[0; 9], &[BlockId(1)]).unwrap_err().to_string();
    assert_eq!(short, "step: 9 swapped bytes do not fill 1 KV blocks");

    let layers = vec![KvLayer { heads: 2, head_dim: 40 }];
    let fits = KvSpec { layers, kv_type: KvType::F16, blocks: 2, block_tokens: KV_BLOCK_TOKENS };
    let refused = |spec: KvSpec| CpuKvPool::new(&spec).err().unwrap().to_string();
    let tokens = refused(KvSpec { block_tokens: 16, ..fits.clone() });
    assert!(tokens.contains("KV blocks of 16 tokens"), "{tokens}");
    let kv_type = refused(KvSpec { kv_type: KvType::Q8_0, ..fits.clone() });
    assert!(kv_type.contains("cannot hold heads of 40"), "{kv_type}");
    for blocks in [usize::MAX, 1 << 46] {
        let memory = refused(KvSpec { blocks, ..fits.clone() });
        assert!(memory.contains("cpu is out of memory: the KV cache needs"), "{memory}");
    }
}

#[test]
fn an_unused_cache_takes_no_memory() {
    // 64 GiB: more than most machines have; the system promises it all the same, or refuses.
    let layers = vec![KvLayer { heads: 8, head_dim: 128 }; 32];
    let (kv_type, block_tokens) = (KvType::F16, KV_BLOCK_TOKENS);
    let blocks = (64 << 30) / (32 * 2 * 8 * 64 * 128 * 2);
    if let Ok(kv) = CpuKvPool::new(&KvSpec { layers, kv_type, blocks, block_tokens }) {
        let last = BlockId(blocks as u32 - 1);
        let tile = kv.read();
        let tile = tile.tile(31, Part::Value, last, 7);
        assert!(tile.iter().all(|&byte| byte == 0));
        assert_eq!(tile.as_ptr().align_offset(64), 0);
    }
}
