use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::{
    backend::{KvPool, KvType},
    graph::{KvLayer, ops::RopePairs},
    rope::RopeFrequencies,
};

use super::{Frequencies, Rotation, Write, kv_write, rope, rope_kv_write};
use crate::cuda::{
    gpu::{Buffer, Gpu},
    kv::{
        KV_BLOCK_TOKENS,
        testing::{self, Contents, KV_TYPES, Part, Step},
    },
};

/// A batch whose rows lie anywhere, two of them far out.
fn step(gpu: &Arc<dyn Gpu>, random: &mut Random, blocks: usize) -> (Step, Vec<Part>) {
    let ranges = [0..3, 62..67, 190..191, 127..129];
    let lengths: Vec<usize> = ranges.iter().map(|rows| rows.end).collect();
    let tables = testing::tables(random, &lengths, blocks);
    let parts: Vec<Part> = ranges
        .into_iter()
        .zip(tables)
        .map(|(rows, table)| Part { length: rows.end, rows, table })
        .collect();
    (Step::new(gpu, &parts), parts)
}

fn positions(parts: &[Part]) -> Vec<usize> {
    parts.iter().flat_map(|part| part.rows.clone()).collect()
}

/// The definition, in f64 on the host's sines and cosines.
fn expected(
    row: &[f32],
    position: usize,
    dim: usize,
    pairs: RopePairs,
    rope: &RopeFrequencies,
) -> Vec<f64> {
    let mut row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
    let count = rope.inverse.len();
    for head in row.chunks_exact_mut(dim) {
        for (pair, inverse) in rope.inverse.iter().enumerate() {
            let (a, b) = match pairs {
                RopePairs::Adjacent => (2 * pair, 2 * pair + 1),
                RopePairs::Halves => (pair, pair + count),
            };
            let (sin, cos) = (position as f64 * inverse).sin_cos();
            let (sin, cos) = (sin * rope.magnitude, cos * rope.magnitude);
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }
    row
}

#[test]
fn rows_are_rotated_by_their_positions() {
    let (gpu, mut random) = testing::device();
    for (heads, dim, rotary) in [(1, 8, 8), (3, 40, 16), (9, 64, 64), (32, 128, 128), (5, 256, 64)]
    {
        for pairs in [RopePairs::Adjacent, RopePairs::Halves] {
            let (step, parts) = step(&gpu, &mut random, 10);
            let mut table = RopeFrequencies::new(10_000.0, rotary);
            table.magnitude = 1.25;
            let frequencies = Frequencies::new(&gpu, &table).unwrap();
            let rows = step.rows + 2;
            let values = testing::normals(&mut random, rows * heads * dim);
            let input = testing::floats(&gpu, &values);
            let output = Buffer::new(&gpu, input.bytes(), "rotated").unwrap();
            output.fill(0xff).unwrap();
            // In place, too.
            for to in [&output, &input] {
                let (input, output) = (input.address(), to.address());
                let frequencies = &frequencies;
                let rotation = Rotation { input, output, heads, head_dim: dim, pairs, frequencies };
                gpu.launch(&rope(&rotation, &step.view, rows)).unwrap();
            }
            let (found, in_place) = (testing::read_floats(&output), testing::read_floats(&input));
            let cols = heads * dim;
            for (row, position) in positions(&parts).into_iter().enumerate() {
                let at = row * cols..(row + 1) * cols;
                let expected = expected(&values[at.clone()], position, dim, pairs, &table);
                for (&found, expected) in found[at.clone()].iter().zip(expected) {
                    let error = (f64::from(found) - expected).abs();
                    assert!(
                        error < 1e-6,
                        "{heads}x{dim}, {pairs:?}, position {position}: {error:e}"
                    );
                }
                assert!(found[at.clone()] == in_place[at], "in place");
            }
            // Rows that the step does not have are left alone.
            let beyond = step.rows * cols;
            assert!(found[beyond..].iter().all(|x| x.is_nan()), "beyond the step's rows");
            assert!(in_place[beyond..] == values[beyond..], "beyond the step's rows");
        }
    }
}

#[test]
fn far_positions_turn_as_on_the_host() {
    let (gpu, mut random) = testing::device();
    let table = RopeFrequencies::new(500_000.0, 128);
    let frequencies = Frequencies::new(&gpu, &table).unwrap();
    let at: Vec<usize> = (0..40).map(|_| random.below(1 << 24)).chain([0, 1 << 24]).collect();
    let parts: Vec<Part> =
        at.iter().map(|&at| Part { rows: at..at + 1, length: at + 1, table: vec![] }).collect();
    let step = Step::new(&gpu, &parts);
    // Pairs (1, 0) become cosine and sine.
    let values: Vec<f32> = (0..at.len() * 128).map(|i| ((i + 1) % 2) as f32).collect();
    let input = testing::floats(&gpu, &values);
    let (input_at, output) = (input.address(), Buffer::new(&gpu, input.bytes(), "turned").unwrap());
    let rotation = Rotation {
        input: input_at,
        output: output.address(),
        heads: 1,
        head_dim: 128,
        pairs: RopePairs::Adjacent,
        frequencies: &frequencies,
    };
    gpu.launch(&rope(&rotation, &step.view, at.len())).unwrap();
    let found = testing::read_floats(&output);
    let (mut cos, mut sin) = ([0.0; 64], [0.0; 64]);
    for (row, &position) in found.chunks_exact(128).zip(&at) {
        table.fill(position as u32, &mut cos, &mut sin);
        for (pair, turned) in row.chunks_exact(2).enumerate() {
            assert!(turned == [cos[pair], sin[pair]], "position {position}, pair {pair}");
        }
    }
}

/// Rows of every kind that a cache may be asked to hold.
fn difficult(random: &mut Random, count: usize, dim: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count * dim);
    for row in 0..count {
        let scale = [1.0, 1e-3, 3e4, 1e-40, 1e12, 0.0, 7e-8][row % 7];
        values.extend((0..dim).map(|_| random.normal() * scale));
        let last = values.len() - 1;
        match row % 11 {
            3 => values[last] = f32::NAN,
            4 => values[last] = f32::INFINITY,
            5 => values[last - 1] = f32::NEG_INFINITY,
            // The largest of its 32 is 127, so others lie halfway between two integers, or just below.
            6 => {
                for (i, value) in values[last - 7..].iter_mut().enumerate() {
                    *value = if i == 0 { 127.0 } else { i as f32 - 3.5 };
                }
                values[last] = 0.499_999_97;
            }
            7 => values[last] = 65_519.99,
            8 => values[last] = f32::MAX,
            _ => {}
        }
    }
    values
}

#[test]
fn the_cache_rounds_as_the_core_formats_do() {
    let (gpu, mut random) = testing::device();
    let layers = [KvLayer { heads: 3, head_dim: 64 }, KvLayer { heads: 5, head_dim: 96 }];
    for kv_type in KV_TYPES {
        let pool = testing::pool(&gpu, &layers, kv_type, 10);
        let (step, parts) = step(&gpu, &mut random, 10);
        let KvLayer { heads, head_dim } = layers[1];
        let keys = difficult(&mut random, step.rows * heads, head_dim);
        let values = difficult(&mut random, step.rows * heads, head_dim);
        let buffers = [&keys, &values].map(|values| testing::floats(&gpu, values));
        let (key, value) = (buffers[0].address(), buffers[1].address());
        let write = Write { kv: &pool, layer: 1, key, value };
        gpu.launch(&kv_write(&write, &step.view, step.rows + 1)).unwrap();
        let contents = Contents::new(&pool);
        let dtype = kv_type.dtype();
        let mut encoded = vec![0; dtype.row_bytes(head_dim).unwrap()];
        let mut written = std::collections::HashSet::new();
        let rows = parts.iter().flat_map(|part| part.rows.clone().map(move |at| (part, at)));
        for (row, (part, position)) in rows.enumerate() {
            let block = part.table[position / KV_BLOCK_TOKENS];
            written.insert((block, position % KV_BLOCK_TOKENS));
            for head in 0..heads {
                for (kind, from) in [&keys, &values].into_iter().enumerate() {
                    let from = &from[(row * heads + head) * head_dim..][..head_dim];
                    dtype.encode(from, &mut encoded);
                    let found = contents.row(1, kind, block, head, position % KV_BLOCK_TOKENS);
                    // A NaN may keep another of its bits.
                    let mut both = [vec![0.0; head_dim], vec![0.0; head_dim]];
                    dtype.decode(&encoded, &mut both[0]);
                    dtype.decode(&found, &mut both[1]);
                    let nan = both[0].iter().zip(&both[1]).any(|(a, b)| a.is_nan() && b.is_nan());
                    let alike = |(a, b): (&f32, &f32)| {
                        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
                    };
                    let equal = found == encoded || nan && both[0].iter().zip(&both[1]).all(alike);
                    assert!(equal, "{kv_type}: row {row}, head {head}: {from:?}");
                }
            }
        }
        // Nothing else was written.
        let slots = (0..10).flat_map(|block| (0..KV_BLOCK_TOKENS).map(move |slot| (block, slot)));
        for (block, slot) in slots {
            for (layer, KvLayer { heads, .. }) in layers.iter().enumerate() {
                let rows = (0..heads * 2).map(|i| contents.row(layer, i % 2, block, i / 2, slot));
                let clean = rows.flatten().all(|byte| byte == 0xff);
                let is_written = layer == 1 && written.contains(&(block, slot));
                assert_eq!(clean, !is_written, "{kv_type}: layer {layer} {block}:{slot}");
            }
        }
    }
}

#[test]
fn rotation_and_write_in_one_give_the_bits_of_each() {
    let (gpu, mut random) = testing::device();
    let shapes: [(usize, usize, usize, usize); 5] =
        [(1, 1, 32, 32), (6, 2, 64, 32), (8, 3, 128, 128), (7, 1, 256, 64), (2, 2, 80, 80)];
    for (heads, kv_heads, head_dim, rotary) in shapes {
        for kv_type in KV_TYPES {
            if kv_type == KvType::Q8_0 && !head_dim.is_multiple_of(32) {
                continue;
            }
            let pairs = random.pick(&[RopePairs::Adjacent, RopePairs::Halves]);
            let frequencies =
                Frequencies::new(&gpu, &RopeFrequencies::new(10_000.0, rotary)).unwrap();
            let pools = [(); 2].map(|()| {
                testing::pool(&gpu, &[KvLayer { heads: kv_heads, head_dim }], kv_type, 9)
            });
            let (step, _) = step(&gpu, &mut random, 9);
            let buffer = |random: &mut Random, heads: usize| {
                testing::floats(&gpu, &testing::normals(random, step.rows * heads * head_dim))
            };
            let query = buffer(&mut random, heads);
            let [key, value] = [(); 2].map(|()| buffer(&mut random, kv_heads));
            let [rotated, together, rotated_key] =
                [&query, &query, &key].map(|like| Buffer::new(&gpu, like.bytes(), "rows").unwrap());
            let rotation = |input: &Buffer, output: &Buffer, heads| Rotation {
                input: input.address(),
                output: output.address(),
                heads,
                head_dim,
                pairs,
                frequencies: &frequencies,
            };
            let write = |kv, key: &Buffer| Write {
                kv,
                layer: 0,
                key: key.address(),
                value: value.address(),
            };
            let (view, rows) = (&step.view, step.rows);
            for launch in [
                rope(&rotation(&query, &rotated, heads), view, rows),
                rope(&rotation(&key, &rotated_key, kv_heads), view, rows),
                kv_write(&write(&pools[0], &rotated_key), view, rows),
                rope_kv_write(
                    &rotation(&query, &together, heads),
                    &write(&pools[1], &key),
                    view,
                    rows,
                ),
            ] {
                gpu.launch(&launch).unwrap();
            }
            assert!(
                testing::read_floats(&rotated) == testing::read_floats(&together),
                "{heads} heads of {head_dim}: the queries differ"
            );
            let [one, other] = pools.map(|pool| {
                let ids: Vec<_> = (0..9).map(realm_core::backend::BlockId).collect();
                pool.swap_out(&ids).unwrap()
            });
            assert!(one == other, "{kv_heads} heads of {head_dim}, {kv_type}: the caches differ");
        }
    }
}
