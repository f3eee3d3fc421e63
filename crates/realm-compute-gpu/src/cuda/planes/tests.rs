//! Planes read back by the kernels' rules, against the decoders of the core, bit by bit.

use realm_conformance::random::Random;
use realm_core::{formats::IQ4_LEVELS, graph::WeightInfo};

use super::*;

/// Weights of all formats with odd numbers of rows, blocks and tiles.
fn weights(random: &mut Random) -> Vec<(WeightInfo, Vec<u8>)> {
    let mut weights = Vec::new();
    for &dtype in DType::ALL {
        for (rows, blocks) in [(1, 1), (7, 3), (16, 2), (33, 5)] {
            let name = format!("{dtype}, {rows} rows of {blocks} blocks");
            // Floats have rows of any length.
            let cols = if dtype.is_float() { 37 * blocks } else { blocks * dtype.block_len() };
            let info = WeightInfo { name, rows, cols, dtype };
            let words = info.bytes().unwrap().div_ceil(4);
            let data: Vec<u8> = (0..words).flat_map(|_| random.word().to_le_bytes()).collect();
            weights.push((info.clone(), data[..info.bytes().unwrap()].to_vec()));
        }
    }
    weights
}

/// A tile's field of weight `row`, `k`, by the rules of the module's documentation.
fn field(tile: &[u8], row: usize, k: usize, low: usize, high: usize, place: usize) -> u8 {
    let (chunk, k) = (k / 64, k % 64);
    let chunk = &tile[chunk * 128 * (low + high)..][..128 * (low + high)];
    let (step, k) = (k / 16, k % 16);
    let lane = row % 8 * 4 + k % 8 / 2;
    let byte = [0, 2, 1, 3][k / 8 * 2 + k % 2];
    let form = 2 * step + row / 8;
    let word = |plane: &[u8], width: usize| {
        let at = match width {
            8 => 512 * (form / 4) + 16 * lane + 4 * (form % 4),
            _ => 4 * width * lane + 4 * (form * width / 8),
        };
        u32::from_le_bytes(plane[at..at + 4].try_into().unwrap())
            .rotate_right((form * width % 8) as u32)
    };
    let field = |word: u32, place: usize, width: usize| {
        (word >> (8 * byte + place) & ((1u32 << width) - 1)) as u8
    };
    let lower = field(word(chunk, low), place, low);
    let upper =
        if high == 0 { 0 } else { field(word(&chunk[128 * low..], high), place + low, high) };
    lower | (u32::from(upper) << low) as u8
}

fn half(bytes: &[u8], at: usize) -> f32 {
    realm_core::formats::F16Le(bytes[at..at + 2].try_into().unwrap()).to_f32()
}

/// A weight of a tile, with the arithmetic of the core's decoders.
fn decode(dtype: DType, tile: &[u8], row: usize, k: usize) -> f32 {
    let headers = |bits: usize, tile_k: usize| &tile[2 * tile_k * bits..];
    let block = k / 32;
    let small = |bits: usize, zero: i32, high: usize| {
        let q =
            i32::from(field(tile, row, k, bits - high, high, if bits == 8 { 0 } else { 7 - bits }));
        (q - zero) as f32 * half(headers(bits, 64), 4 * row + 2 * block)
    };
    let with_offset = |bits: usize, high: usize| {
        let q = field(tile, row, k, 4, high, 7 - bits);
        let at = 8 * row + 4 * block;
        f32::from(q) * half(headers(bits, 64), at) + half(headers(bits, 64), at + 2)
    };
    let six_bit = |bits: usize, high: usize| {
        let header = &headers(bits, 256)[16 * row..][..16];
        let (first, last) = (header[4 + block], header[12 + block % 4]);
        let scale = half(header, 0) * f32::from(first & 63);
        let min = half(header, 2) * f32::from(first >> 6 << 4 | last >> (block / 4 * 4) & 15);
        scale * f32::from(field(tile, row, k, 4, high, 7 - bits)) - min
    };
    let level = || f32::from(IQ4_LEVELS[usize::from(field(tile, row, k, 4, 0, 0))]);
    match dtype {
        DType::Q4_0 => small(4, 8, 0),
        DType::Q5_0 => small(5, 16, 1),
        DType::Q8_0 => small(8, 128, 0),
        DType::Q4_1 => with_offset(4, 0),
        DType::Q5_1 => with_offset(5, 1),
        DType::Q4_K => six_bit(4, 0),
        DType::Q5_K => six_bit(5, 1),
        DType::Q2_K => {
            let header = headers(2, 256);
            let (scale, more) = (header[16 * row + k / 16], 256 + 4 * row);
            let q = f32::from(field(tile, row, k, 2, 0, 5));
            let min = half(header, more + 2) * f32::from(scale >> 4);
            half(header, more) * f32::from(scale & 15) * q - min
        }
        DType::Q3_K => {
            let header = headers(3, 256);
            let packed: [u8; 12] = header[12 * row..][..12].try_into().unwrap();
            let block = realm_core::formats::Q3K {
                hmask: [0; 32],
                qs: [0; 64],
                scales: packed,
                d: realm_core::formats::F16Le([0; 2]),
            };
            let scale = half(header, 192 + 2 * row) * f32::from(block.unpack_scales()[k / 16]);
            scale * (i32::from(field(tile, row, k, 2, 1, 4)) - 4) as f32
        }
        DType::Q6_K => {
            let header = headers(6, 256);
            let scale = f32::from(header[16 * row + k / 16].cast_signed());
            let q = i32::from(field(tile, row, k, 4, 2, 1)) - 32;
            half(header, 256 + 2 * row) * scale * q as f32
        }
        DType::Q8_K => {
            let d = f32::from_le_bytes(headers(8, 256)[4 * row..][..4].try_into().unwrap());
            d * (i32::from(field(tile, row, k, 8, 0, 0)) - 128) as f32
        }
        DType::IQ4_NL => half(headers(4, 64), 4 * row + 2 * block) * level(),
        DType::IQ4_XS => {
            let header = &headers(4, 256)[8 * row..][..8];
            let upper = u16::from_le_bytes([header[2], header[3]]) >> (2 * block) & 3;
            let lower = header[4 + block / 2] >> (block % 2 * 4) & 15;
            half(header, 0) * (i32::from(lower) + 16 * i32::from(upper) - 32) as f32 * level()
        }
        DType::F32 | DType::F16 | DType::BF16 => {
            let (step, c, upper) = (k / 16, k % 8 / 2, k % 16 / 8);
            let lane = row % 8 * 4 + c;
            if dtype == DType::F32 {
                let at = 1024 * step + 512 * upper + 16 * lane + 8 * (row / 8) + 4 * (k % 2);
                f32::from_le_bytes(tile[at..at + 4].try_into().unwrap())
            } else {
                let at = 512 * step + 16 * lane + 8 * upper + 4 * (row / 8) + 2 * (k % 2);
                let mut value = [0.0];
                dtype.decode(&tile[at..at + 2], &mut value);
                value[0]
            }
        }
    }
}

#[test]
fn planes_hold_every_bit() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    for (info, data) in weights(&mut Random::new(seed)) {
        let layout = Layout::of(&info);
        let mut planes = vec![0xaa; layout.bytes()];
        // In two parts, as a loader does it; a pad's bytes must be written, too.
        let middle = layout.tiles() / 2;
        let (first, second) = planes.split_at_mut(middle * layout.tile_bytes);
        pack(&info, &data, 0..middle, first, 2);
        pack(&info, &data, middle..layout.tiles(), second, 1);

        let mut expected = vec![0.0; info.rows * info.cols];
        info.dtype.decode(&data, &mut expected);
        for row in 0..layout.row_tiles * TILE_ROWS {
            for k in 0..layout.k_tiles * layout.tile_k {
                let tile = row / TILE_ROWS * layout.k_tiles + k / layout.tile_k;
                let tile = &planes[tile * layout.tile_bytes..][..layout.tile_bytes];
                let found = decode(info.dtype, tile, row % TILE_ROWS, k % layout.tile_k);
                let expected = if row < info.rows && k < info.cols {
                    expected[row * info.cols + k]
                } else {
                    0.0
                };
                let same = found.to_bits() == expected.to_bits()
                    || found == 0.0 && expected == 0.0
                    || found.is_nan() && expected.is_nan();
                assert!(same, "{}: row {row}, k {k}: {found} is not {expected}", info.name);
            }
        }
    }
}

#[test]
fn planes_take_what_the_blocks_take() {
    for &dtype in DType::ALL {
        let info = WeightInfo { name: "w".into(), rows: 32, cols: 512, dtype };
        let sums = if dtype == DType::Q8_K { 32 * 2 * 32 } else { 0 };
        assert_eq!(Layout::of(&info).bytes() + sums, info.bytes().unwrap(), "{dtype}");
    }
}

#[test]
fn empty_and_impossible_sizes_do_no_harm() {
    for &dtype in DType::ALL {
        let size =
            |rows, cols| Layout::of(&WeightInfo { name: "w".into(), rows, cols, dtype }).bytes();
        assert_eq!((size(0, 256), size(16, 0)), (0, 0));
        assert_eq!(size(usize::MAX, usize::MAX / 256 * 256), usize::MAX);
    }
}
