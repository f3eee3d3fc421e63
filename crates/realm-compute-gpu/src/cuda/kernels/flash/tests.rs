mod definition;
mod rings;

use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::{
    backend::{KvType, Precision},
    formats::{Bf16, BlockFormat, F16},
    graph::{
        KvLayer,
        ops::{AttentionSpec, Mask},
    },
};
use zerocopy::IntoBytes;

use self::definition::{
    Case, Mixed, Setup, as_floats, check, definition, error, queries, run, spec,
};
use super::{super::attention::supports, Tiling, Variant};
use crate::cuda::{
    emulated,
    gpu::Gpu,
    kv::testing::{self, KV_TYPES, Part},
    step::Form,
};

const HEAD_DIMS: [usize; 8] = [8, 40, 64, 80, 96, 128, 200, 256];

/// Types of the cache, each with the precisions that make a difference.
const KINDS: [(KvType, Precision); 5] = [
    (KvType::F32, Precision::F16),
    (KvType::F32, Precision::BF16),
    (KvType::F16, Precision::BF16),
    (KvType::BF16, Precision::F16),
    (KvType::Q8_0, Precision::BF16),
];

const MASKS: [Mask; 7] = [
    Mask::CAUSAL,
    Mask { causal: true, window: Some(1) },
    Mask { causal: false, window: None },
    Mask { causal: true, window: Some(40) },
    Mask { causal: true, window: Some(64) },
    Mask { causal: false, window: Some(40) },
    Mask { causal: true, window: Some(usize::MAX) },
];

/// The device that tests run on, and, where that one has wgmma, the emulated device that has not.
fn devices() -> (Vec<Arc<dyn Gpu>>, Random) {
    let (gpu, mut random) = testing::device();
    let mut devices = vec![gpu];
    if devices[0].facts().wgmma {
        devices.push(emulated::open_sm80(u64::from(random.word())).unwrap());
    }
    (devices, random)
}

fn fits(kv_type: KvType, head_dim: usize) -> bool {
    kv_type != KvType::Q8_0 || head_dim.is_multiple_of(32)
}

fn every_kind(head_dim: usize) {
    let (gpus, mut random) = devices();
    let mut masks = MASKS.into_iter().cycle().skip(random.below(MASKS.len()));
    for gpu in gpus {
        let mut most = 0f64;
        for (kv_type, precision) in KINDS {
            if !fits(kv_type, head_dim) {
                continue;
            }
            for group in [1, 3, 4, 7, 8, 16] {
                let heads = if group > 4 { 1 } else { random.pick(&[1, 2]) };
                let layer = KvLayer { heads, head_dim };
                let past = random.pick(&[1, 63, 64, 100]);
                let rows = [
                    (0..random.pick(&[1, 19, 40]), 41),
                    (past..past + random.pick(&[2, 17, 33]), past + 33),
                    (65..66, 66),
                ];
                let setup = Setup::new(&gpu, &mut random, layer, kv_type, &rows);
                let mut spec = spec(heads * group, head_dim, masks.next().unwrap());
                spec.soft_cap = random.pick(&[None, None, Some(3.0)]);
                let with_sinks = random.below(3) == 0;
                let off = check(&setup, &mut random, &spec, precision, with_sinks);
                most = most.max(off);
            }
        }
        println!("{}: {most:.2} of the room", gpu.facts().name);
    }
}

macro_rules! every_kind {
    ($($name:ident: $head_dim:literal;)*) => {$(
        #[test]
        fn $name() {
            assert!(HEAD_DIMS.contains(&$head_dim));
            every_kind($head_dim);
        }
    )*};
}

every_kind! {
    heads_of_8_give_the_definition: 8;
    heads_of_40_give_the_definition: 40;
    heads_of_64_give_the_definition: 64;
    heads_of_80_give_the_definition: 80;
    heads_of_96_give_the_definition: 96;
    heads_of_128_give_the_definition: 128;
    heads_of_200_give_the_definition: 200;
    heads_of_256_give_the_definition: 256;
}

#[test]
fn masks_caps_and_sinks_are_applied() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        for mask in MASKS {
            for (soft_cap, with_sinks) in [(None, false), (Some(3.0), true), (None, true)] {
                let (kv_type, precision) = random.pick(&KINDS);
                let head_dim = random.pick(&[32, 64, 96, 160]);
                let (heads, group) = random.pick(&[(1, 4), (2, 1), (1, 5), (2, 3), (1, 12)]);
                let layer = KvLayer { heads, head_dim };
                let past = 60 + random.below(140);
                let rows = [(past..past + 70, past + 70), (0..3, 3), (0..66, 100), (127..128, 128)];
                let setup = Setup::new(&gpu, &mut random, layer, kv_type, &rows);
                let mut spec = spec(heads * group, head_dim, mask);
                spec.soft_cap = soft_cap;
                check(&setup, &mut random, &spec, precision, with_sinks);
            }
        }
    }
}

/// Rows that see nothing, with and without a sink.
#[test]
fn a_window_of_nothing_gives_zeros() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        for with_sinks in [false, true] {
            let layer = KvLayer { heads: 2, head_dim: 40 };
            let rows = [(3..9, 9)];
            let setup = Setup::new(&gpu, &mut random, layer, KvType::F16, &rows);
            let spec = spec(4, 40, Mask { causal: true, window: Some(0) });
            let (query, sinks) = (queries(&mut random, &spec, 6), testing::normals(&mut random, 4));
            let sinks = with_sinks.then_some(sinks.as_slice());
            let case = Case { spec: &spec, precision: Precision::F16, query: &query, sinks };
            let step = Mixed::new(&gpu, &setup.parts, 0);
            let found = as_floats(&run(&setup, &step, &case, Form::F32));
            assert!(found.iter().all(|&x| x == 0.0), "{found:?}");
        }
    }
}

/// More sequences than a warp has lanes, of one row and of many, decoded ones before them.
#[test]
fn blocks_find_their_tiles_among_many_sequences() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        let layer = KvLayer { heads: 1, head_dim: 16 };
        let mut rows: Vec<_> = (0..70)
            .map(|_| {
                let past = random.below(30);
                (past..past + 1 + random.below(4), past + 5)
            })
            .collect();
        rows.insert(40, (0..140, 140));
        rows.insert(random.below(30), (0..90, 90));
        let setup = Setup::new(&gpu, &mut random, layer, KvType::F16, &rows);
        for mask in [Mask::CAUSAL, Mask { causal: false, window: None }] {
            let spec = spec(3, 16, mask);
            check(&setup, &mut random, &spec, Precision::F16, false);
            decoded_rows_are_left_alone(&setup, &spec, &mut random, 37);
        }
    }
}

/// A chunk far down a long prompt, and a prompt of one token.
#[test]
fn a_long_sequence_may_stand_beside_a_short_one() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        let layer = KvLayer { heads: 1, head_dim: 8 };
        let length = 16_000 + random.below(500);
        let rows = [(length - 3..length, length), (0..1, 1)];
        let setup = Setup::new(&gpu, &mut random, layer, KvType::F16, &rows);
        for mask in [Mask::CAUSAL, Mask { causal: true, window: Some(4096) }] {
            check(&setup, &mut random, &spec(2, 8, mask), Precision::F16, false);
        }
    }
}

/// The first `decoded` sequences are no prompts: their rows stay poison, the others get the same bits.
fn decoded_rows_are_left_alone(
    setup: &Setup,
    spec: &AttentionSpec,
    random: &mut Random,
    decoded: usize,
) {
    let query = queries(random, spec, setup.rows());
    let case = Case { spec, precision: Precision::F16, query: &query, sinks: None };
    let all = run(setup, &Mixed::new(&setup.gpu, &setup.parts, 0), &case, Form::F32);
    let some = run(setup, &Mixed::new(&setup.gpu, &setup.parts, decoded), &case, Form::F32);
    let rows: usize = setup.parts[..decoded].iter().map(|part| part.rows.len()).sum();
    let (decode, prefill) = some.split_at(rows * spec.heads * spec.head_dim * 4);
    assert!(decode.iter().all(|&byte| byte == 0xff), "a decoded row was written");
    assert!(prefill == &all[decode.len()..], "a prompt's row changed beside decoded ones");
}

#[test]
fn heads_beyond_a_matrix_are_cut_into_subsets() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        for (head_dim, group) in [(32, 130), (256, 65), (64, 64)] {
            let layer = KvLayer { heads: 1, head_dim };
            let rows = [(62..65, 65), (0..2, 2)];
            let setup = Setup::new(&gpu, &mut random, layer, KvType::F16, &rows);
            check(&setup, &mut random, &spec(group, head_dim, Mask::CAUSAL), Precision::F16, true);
        }
    }
}

/// f16 has too small a range for these.
#[test]
fn queries_and_scales_may_be_large_or_small() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        for (kv_type, precision) in KINDS {
            let layer = KvLayer { heads: 1, head_dim: 96 };
            let setup = Setup::new(&gpu, &mut random, layer, kv_type, &[(80..97, 97), (0..1, 1)]);
            for scale in [1e-30, 1e-9, 1e6, 1e25, -0.1] {
                let mut spec = spec(4, 96, Mask::CAUSAL);
                spec.scale = scale;
                check(&setup, &mut random, &spec, precision, false);
            }
            // All weights are the same.
            let mut spec = spec(4, 96, Mask::CAUSAL);
            spec.scale = 0.0;
            let query = testing::normals(&mut random, 18 * 4 * 96);
            let case = Case { spec: &spec, precision, query: &query, sinks: None };
            let step = Mixed::new(&gpu, &setup.parts, 0);
            let found = as_floats(&run(&setup, &step, &case, Form::F32));
            let error = error(&found, &definition(&setup, &case, true));
            assert!(error < 1e-5, "{kv_type} {precision:?}: {error:e}");
        }
    }
}

/// What rounding to 16 bits does on the whole: scores have a deviation of 4, so a unit of rounding in
/// queries and keys comes out a few times larger.
#[test]
fn results_are_close_to_what_nothing_rounded_would_give() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        for (kv_type, precision) in KINDS {
            let layer = KvLayer { heads: 2, head_dim: 128 };
            let setup =
                Setup::new(&gpu, &mut random, layer, kv_type, &[(100..150, 150), (0..70, 70)]);
            let spec = spec(4, 128, Mask::CAUSAL);
            let query = queries(&mut random, &spec, setup.rows());
            let case = Case { spec: &spec, precision, query: &query, sinks: None };
            let step = Mixed::new(&gpu, &setup.parts, 0);
            let found = as_floats(&run(&setup, &step, &case, Form::F32));
            let error = error(&found, &definition(&setup, &case, false));
            let unit = match super::Input::new(kv_type, precision) {
                super::Input::F16 => 2f64.powi(-11),
                super::Input::BF16 => 2f64.powi(-8),
            };
            println!("{kv_type} {precision:?}: {error:e}, {:.2} units", error / unit);
            assert!(error < 2.0 * unit, "{kv_type} {precision:?}: {error:e}");
        }
    }
}

#[test]
fn a_rows_bits_depend_on_its_own_sequence_alone() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        for (kv_type, precision) in KINDS {
            for window in [None, Some(70)] {
                let head_dim = random.pick(&[32, 96, 128, 256]);
                let (heads, group) = random.pick(&[(1, 4), (2, 3), (1, 8), (2, 1)]);
                let layer = KvLayer { heads, head_dim };
                let length = 100 + random.below(150);
                let rows = [(0..5, 5), (0..length, length), (70..75, 75)];
                let setup = Setup::new(&gpu, &mut random, layer, kv_type, &rows);
                let mut spec = spec(heads * group, head_dim, Mask { causal: true, window });
                spec.soft_cap = random.pick(&[None, Some(5.0)]);
                let cols = spec.heads * head_dim;
                let sinks = testing::normals(&mut random, spec.heads);
                let sinks = Some(sinks.as_slice());
                let query = queries(&mut random, &spec, setup.rows());
                let whole = Case { spec: &spec, precision, query: &query, sinks };
                let together = run(&setup, &Mixed::new(&gpu, &setup.parts, 0), &whole, Form::F32);
                // In chunks, the first and the last a row, each in a step of its own: what is behind a
                // chunk is not there.
                let mut ends = vec![0, 1, 2 + random.below(80), length - 1, length];
                ends.insert(3, ends[2] + 1 + random.below(10));
                for chunk in ends.windows(2) {
                    let part = Part {
                        rows: chunk[0]..chunk[1],
                        length: chunk[1],
                        ..setup.parts[1].clone()
                    };
                    let at = |position: usize| (5 + position) * cols;
                    let query = &query[at(chunk[0])..at(chunk[1])];
                    let step = Mixed::new(&gpu, &[part], 0);
                    let found = run(&setup, &step, &Case { query, ..whole }, Form::F32);
                    let expected = &together[at(chunk[0]) * 4..at(chunk[1]) * 4];
                    assert!(found == expected, "{kv_type}, {spec:?}: {chunk:?} of {length}");
                }
            }
        }
    }
}

#[test]
fn results_are_stored_in_every_form() {
    let (gpus, mut random) = devices();
    for gpu in gpus {
        let layer = KvLayer { heads: random.pick(&[1, 2]), head_dim: 40 };
        let setup = Setup::new(&gpu, &mut random, layer, KvType::F16, &[(64..70, 70), (0..30, 30)]);
        let spec = spec(6, 40, Mask::CAUSAL);
        let query = queries(&mut random, &spec, setup.rows());
        let case = Case { spec: &spec, precision: Precision::F16, query: &query, sinks: None };
        let step = Mixed::new(&gpu, &setup.parts, 0);
        let plain = as_floats(&run(&setup, &step, &case, Form::F32));
        let bf16 = |value: f32| u16::from_le_bytes(Bf16::encode(&[value]).0);
        let value = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        let rows = |column: &dyn Fn(f32) -> u16| -> Vec<u16> {
            let row =
                |row: &[f32]| row.iter().map(|&x| column(x)).chain([0; 16]).collect::<Vec<_>>();
            plain.chunks_exact(240).flat_map(row).collect()
        };
        let expect = |form, expected: &[u16]| {
            let found = run(&setup, &step, &case, form);
            assert!(found == expected.as_bytes(), "{form:?}");
        };
        expect(Form::BF16, &rows(&bf16));
        expect(Form::F16, &rows(&|x| F16::encode(&[x]).0.to_bits()));
        let first = |x: f32| value(bf16(x));
        let second = |x: f32| value(bf16(x - first(x)));
        let parts =
            [rows(&bf16), rows(&|x| bf16(x - first(x))), rows(&|x| bf16(x - first(x) - second(x)))];
        let columns = (0..setup.rows())
            .flat_map(|row| parts.iter().map(move |part| &part[row * 256..][..256]));
        expect(Form::BF16x3, &columns.collect::<Vec<_>>().concat());
    }
}

#[test]
fn heads_that_the_kernels_cannot_take_are_named() {
    let (gpu, _) = testing::device();
    let layer = KvLayer { heads: 1, head_dim: 64 };
    let pool = |kv_type| testing::pool(&gpu, &[layer], kv_type, 1);
    for head_dim in [0, 12, 264, 512] {
        let why = supports(&spec(1, head_dim, Mask::CAUSAL), &pool(KvType::F16)).unwrap_err();
        assert!(why.contains(&format!("{head_dim} elements")), "{why}");
    }
    assert!(supports(&spec(1, 40, Mask::CAUSAL), &pool(KvType::Q8_0)).is_err());
    for kv_type in KV_TYPES {
        assert!(supports(&spec(1, 256, Mask::CAUSAL), &pool(kv_type)).is_ok());
    }
}

#[test]
fn variants_fit_the_smallest_devices_shared_memory() {
    for head_dim in HEAD_DIMS {
        let variant = Variant::new(head_dim, KvType::F16, false);
        assert!(variant.dim >= head_dim, "{variant:?}");
        // A block of sm_86 and sm_89 has 99 KiB, of which the kernel's own variables take some.
        assert!(variant.shared <= (99 << 10) - 256, "{variant:?}");
        for kv_type in KV_TYPES {
            let variant = Variant::new(head_dim, kv_type, true);
            assert!(variant.dim >= head_dim, "{variant:?}");
            assert!(variant.shared <= 227 << 10, "{variant:?}");
        }
    }
}

#[test]
fn tilings_have_room_for_every_row() {
    for group in [1, 3, 7, 64, 65, 128, 129, 300] {
        for matrix_rows in [64, 128] {
            let tiling = Tiling::new(matrix_rows, group, 100, 7);
            assert!(tiling.subsets * tiling.block_heads >= group, "{tiling:?}");
            assert!((tiling.subsets - 1) * tiling.block_heads < group, "{tiling:?}");
            assert!(tiling.tile_rows * tiling.block_heads <= matrix_rows, "{tiling:?}");
            // Seven sequences of a hundred rows: six have one.
            let tiles = 6 + 94usize.div_ceil(tiling.tile_rows);
            assert!(tiling.tile_rows > 0 && tiling.tiles >= tiles, "{tiling:?}");
        }
    }
}
