use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::{
    backend::{KvPool, KvType},
    formats::{Bf16, BlockFormat, F16},
    graph::{
        KvLayer,
        ops::{AttentionSpec, Mask},
    },
};
use zerocopy::IntoBytes;

use super::{AttentionArgs, SPLIT, Variant, attention, partial_bytes, supports};
use crate::cuda::{
    gpu::{Buffer, Gpu},
    kernels::rope::{Write, kv_write},
    kv::{
        CudaKvPool, KV_BLOCK_TOKENS,
        testing::{self, Contents, KV_TYPES, Part, Step},
    },
    step::{Columns, Form},
};

/// The layer under test is the second, so that a mix-up of layers shows.
const LAYER: usize = 1;

const HEAD_DIMS: [usize; 8] = [16, 40, 64, 80, 96, 128, 160, 256];

/// Sequences in a cache, all of whose tokens are written; the rest is NaN.
struct Setup {
    gpu: Arc<dyn Gpu>,
    pool: Arc<CudaKvPool>,
    lengths: Vec<usize>,
    tables: Vec<Vec<u32>>,
}

impl Setup {
    fn new(
        gpu: &Arc<dyn Gpu>,
        random: &mut Random,
        layer: KvLayer,
        kv_type: KvType,
        lengths: &[usize],
    ) -> Self {
        let blocks =
            lengths.iter().map(|length| length.div_ceil(KV_BLOCK_TOKENS)).sum::<usize>() + 3;
        let pool = testing::pool(gpu, &[layer, layer], kv_type, blocks);
        let tables = testing::tables(random, lengths, blocks);
        let setup = Self { gpu: gpu.clone(), pool, lengths: lengths.into(), tables };
        let step = setup.step(|length| 0..length);
        let count = step.rows * layer.heads * layer.head_dim;
        let [key, value] = [(); 2].map(|()| testing::floats(gpu, &testing::normals(random, count)));
        let (key, value) = (key.address(), value.address());
        let write = Write { kv: &setup.pool, layer: LAYER, key, value };
        gpu.launch(&kv_write(&write, &step.view, step.rows)).unwrap();
        // Its buffers live until here.
        setup.pool.swap_out(&[]).unwrap();
        setup
    }

    fn parts(&self, rows: impl Fn(usize) -> std::ops::Range<usize>) -> Vec<Part> {
        let parts = self.lengths.iter().zip(&self.tables);
        parts
            .map(|(&length, table)| Part { rows: rows(length), length, table: table.clone() })
            .collect()
    }

    fn step(&self, rows: impl Fn(usize) -> std::ops::Range<usize>) -> Step {
        Step::new(&self.gpu, &self.parts(rows))
    }

    fn splits(&self) -> usize {
        let longest = self.lengths.iter().max().unwrap();
        longest.div_ceil(SPLIT).next_power_of_two()
    }
}

/// How a run goes about it; but for the form, none of this may show in the result.
struct How {
    form: Form,
    splits: usize,
    total: usize,
    /// Rows that the work memory has room for.
    rows_per_pass: usize,
}

impl How {
    /// All rows in one pass, each with as many splits.
    fn plain(setup: &Setup, step: &Step) -> Self {
        let (splits, rows) = (setup.splits(), step.rows + 1);
        Self { form: Form::F32, splits, total: splits * rows, rows_per_pass: rows }
    }

    /// Without gaps between the rows' splits where that saves blocks.
    fn packed(setup: &Setup, step: &Step, parts: &[Part]) -> Self {
        let splits = |part: &Part| part.rows.len() * part.length.div_ceil(SPLIT);
        Self { total: parts.iter().map(splits).sum(), ..Self::plain(setup, step) }
    }
}

/// The stored elements of the step's rows; those of one more row, which the step does not have, stay
/// poison.
fn run(
    setup: &Setup,
    step: &Step,
    spec: &AttentionSpec,
    query: &[f32],
    sinks: Option<&[f32]>,
    how: &How,
) -> Vec<u8> {
    let gpu = &setup.gpu;
    let rows = step.rows + 1;
    let cols = spec.heads * spec.head_dim;
    let query = testing::floats(gpu, query);
    let sinks = sinks.map(|sinks| testing::floats(gpu, sinks));
    let row = how.form.data_bytes(1, cols);
    let target = Buffer::new(gpu, rows * row, "results").unwrap();
    target.fill(0xff).unwrap();
    let bytes = partial_bytes(spec, how.rows_per_pass, how.splits);
    let partials = Buffer::new(gpu, bytes, "partial sums").unwrap();
    let launches = attention(&AttentionArgs {
        kv: &setup.pool,
        layer: LAYER,
        spec,
        query: query.address(),
        sinks: sinks.as_ref().map(Buffer::address),
        view: &step.view,
        count: step.view.count(realm_core::graph::Rows::Tokens),
        rows,
        splits: how.splits,
        total: how.total,
        partials: partials.address(),
        partial_bytes: partials.bytes(),
        target: Columns::new(how.form, cols, target.address(), 0),
    });
    for launch in launches {
        gpu.launch(&launch).unwrap();
    }
    let mut found = target.read(0..target.bytes()).unwrap();
    assert!(found.split_off(step.rows * row).iter().all(|&byte| byte == 0xff), "beyond the rows");
    found
}

fn as_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The definition, in f64, on what the cache holds.
fn reference(
    setup: &Setup,
    parts: &[Part],
    spec: &AttentionSpec,
    query: &[f32],
    sinks: Option<&[f32]>,
) -> Vec<f64> {
    let contents = Contents::new(&setup.pool);
    let group = spec.heads / setup.pool.layer(LAYER).heads;
    let mut out = Vec::with_capacity(query.len());
    let mut queries = query.chunks_exact(spec.head_dim);
    let rows =
        parts.iter().flat_map(|part| part.rows.clone().map(move |position| (part, position)));
    for (part, position) in rows {
        let seen = spec.mask.visible(position, part.length);
        for head in 0..spec.heads {
            let query = queries.next().unwrap();
            let row = |kind, token| contents.values(LAYER, kind, &part.table, head / group, token);
            let score = |token| {
                let key = row(0, token);
                let dot: f64 =
                    query.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                let score = dot * f64::from(spec.scale);
                spec.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let scores: Vec<f64> = seen.clone().map(score).collect();
            let sink = sinks.map(|sinks| f64::from(sinks[head]));
            let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - most).exp());
            let mut sums = vec![0.0; spec.head_dim];
            for (weight, token) in weights.iter().zip(seen.clone()) {
                for (sum, value) in sums.iter_mut().zip(row(1, token)) {
                    *sum += weight / total * f64::from(value);
                }
            }
            out.extend(sums);
        }
    }
    out
}

fn error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference = found.iter().zip(expected).map(|(&x, y)| (f64::from(x) - y).powi(2));
    let size: f64 = expected.iter().map(|y| y * y).sum();
    (difference.sum::<f64>() / size.max(1e-30)).sqrt()
}

fn types_for(head_dim: usize) -> impl Iterator<Item = KvType> {
    let fits = move |kv_type: &KvType| *kv_type != KvType::Q8_0 || head_dim.is_multiple_of(32);
    KV_TYPES.into_iter().filter(fits)
}

fn spec(heads: usize, head_dim: usize, mask: Mask) -> AttentionSpec {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionSpec { heads, head_dim, scale, mask, soft_cap: None, sinks: None }
}

/// Runs a case in one pass and checks it against the definition.
fn check(setup: &Setup, random: &mut Random, spec: &AttentionSpec, with_sinks: bool, rows: usize) {
    let at = |length: usize| length.saturating_sub(rows)..length;
    let (parts, step) = (setup.parts(at), setup.step(at));
    let query = testing::normals(random, step.rows * spec.heads * spec.head_dim);
    // Sharper scores, whatever the scale: references change, and some weights all but vanish.
    let sharpen = 4.0 / (spec.scale * (spec.head_dim as f32).sqrt());
    let query: Vec<f32> = query.iter().map(|x| x * sharpen).collect();
    let sinks = with_sinks.then(|| testing::normals(random, spec.heads));
    supports(spec, &setup.pool).unwrap();
    let how = How::plain(setup, &step);
    let found = run(setup, &step, spec, &query, sinks.as_deref(), &how);
    let packed = How::packed(setup, &step, &parts);
    let again = run(setup, &step, spec, &query, sinks.as_deref(), &packed);
    assert!(found == again, "{spec:?}: packed");
    let found = as_floats(&found);
    let expected = reference(setup, &parts, spec, &query, sinks.as_deref());
    let error = error(&found, &expected);
    let (layer, kv_type) = (setup.pool.layer(LAYER), setup.pool.spec().kv_type);
    println!("{kv_type} {spec:?} on {layer:?}: {error:e}");
    assert!(error < 3e-6, "{kv_type} {spec:?} on {layer:?}: {error:e}");
}

#[test]
fn every_variant_of_the_kernel_gives_the_definition() {
    let (gpu, mut random) = testing::device();
    for head_dim in HEAD_DIMS {
        for kv_type in types_for(head_dim) {
            for group in [1, 3, 4, 8] {
                let heads = random.pick(&[1, 2]);
                let lengths = [random.pick(&[1, 63, 64, 65, 130]), 513 + random.below(100), 7];
                let layer = KvLayer { heads, head_dim };
                let setup = Setup::new(&gpu, &mut random, layer, kv_type, &lengths);
                check(&setup, &mut random, &spec(heads * group, head_dim, Mask::CAUSAL), false, 1);
            }
        }
    }
}

#[test]
fn masks_caps_and_sinks_are_applied() {
    let (gpu, mut random) = testing::device();
    for (causal, window) in [
        (true, Some(1)),
        (true, Some(40)),
        (true, Some(512)),
        (true, Some(513)),
        (true, Some(0)),
        (true, Some(usize::MAX)),
        (false, None),
        (false, Some(40)),
    ] {
        let head_dim = random.pick(&HEAD_DIMS);
        for kv_type in types_for(head_dim) {
            let (heads, group) = random.pick(&[(1, 4), (2, 1), (1, 8), (1, 5), (2, 3), (1, 12)]);
            let layer = KvLayer { heads, head_dim };
            let lengths = [1, 64, 65, 600 + random.below(500)];
            let setup = Setup::new(&gpu, &mut random, layer, kv_type, &lengths);
            let mut spec = spec(heads * group, head_dim, Mask { causal, window });
            spec.soft_cap = random.pick(&[None, Some(3.0)]);
            let with_sinks = random.below(2) == 0;
            check(&setup, &mut random, &spec, with_sinks, 3);
        }
    }
}

/// Rows of prompts see only what comes before them, though the cache holds more.
#[test]
fn prompts_are_attended_row_by_row() {
    let (gpu, mut random) = testing::device();
    for kv_type in KV_TYPES {
        let layer = KvLayer { heads: 1, head_dim: 32 };
        let setup = Setup::new(&gpu, &mut random, layer, kv_type, &[70, 3]);
        check(&setup, &mut random, &spec(2, 32, Mask::CAUSAL), false, 100);
    }
}

/// Parts of 16 bits have too small a range for these.
#[test]
fn queries_may_be_large_or_small() {
    let (gpu, mut random) = testing::device();
    for kv_type in KV_TYPES {
        let layer = KvLayer { heads: 1, head_dim: 96 };
        let setup = Setup::new(&gpu, &mut random, layer, kv_type, &[1, 90, 300]);
        for scale in [1e-30, 1e-9, 1e6, 1e25] {
            let spec = AttentionSpec { scale, ..spec(4, 96, Mask::CAUSAL) };
            check(&setup, &mut random, &spec, false, 1);
        }
    }
}

/// A long sequence among short ones: blocks find their rows, more of them than a warp has lanes.
#[test]
fn rows_of_many_lengths_are_packed() {
    let (gpu, mut random) = testing::device();
    let layer = KvLayer { heads: 1, head_dim: 16 };
    let mut lengths: Vec<usize> = (0..40).map(|_| 1 + random.below(SPLIT)).collect();
    for length in [3 * SPLIT + 1, 2 * SPLIT, 7 * SPLIT - 1] {
        lengths.insert(random.below(lengths.len() + 1), length);
    }
    let setup = Setup::new(&gpu, &mut random, layer, KvType::F16, &lengths);
    for (mask, with_sinks) in [
        (Mask::CAUSAL, false),
        (Mask { causal: true, window: Some(2 * SPLIT) }, true),
        (Mask { causal: true, window: Some(0) }, true),
    ] {
        check(&setup, &mut random, &spec(2, 16, mask), with_sinks, 2);
    }
}

/// More splits than a warp has lanes.
#[test]
fn long_sequences_have_many_splits() {
    let (gpu, mut random) = testing::device();
    let layer = KvLayer { heads: 1, head_dim: 16 };
    let lengths = [33 * SPLIT + 1 + random.below(2 * SPLIT), 5];
    let setup = Setup::new(&gpu, &mut random, layer, KvType::F16, &lengths);
    check(&setup, &mut random, &spec(3, 16, Mask::CAUSAL), true, 1);
    let far = Mask { causal: true, window: Some(32 * SPLIT) };
    check(&setup, &mut random, &spec(1, 16, far), false, 2);
}

#[test]
fn a_rows_bits_depend_on_its_own_sequence_alone() {
    let (gpu, mut random) = testing::device();
    for kv_type in KV_TYPES {
        for window in [None, Some(300)] {
            let head_dim = random.pick(&[32, 96, 128, 256]);
            let (kv_heads, group) = random.pick(&[(1, 4), (2, 3), (1, 8), (2, 1)]);
            let layer = KvLayer { heads: kv_heads, head_dim };
            let lengths = [1 + random.below(500), 512, 600 + random.below(600), 513];
            let setup = Setup::new(&gpu, &mut random, layer, kv_type, &lengths);
            let spec = spec(kv_heads * group, head_dim, Mask { causal: true, window });
            let cols = spec.heads * head_dim;
            let sinks = testing::normals(&mut random, spec.heads);
            let at = |length: usize| length.saturating_sub(2)..length;
            let (parts, step) = (setup.parts(at), setup.step(at));
            let query = testing::normals(&mut random, step.rows * cols);
            let how = |splits, rows_per_pass| How {
                form: Form::F32,
                splits,
                total: splits * (step.rows + 1),
                rows_per_pass,
            };
            let together = run(&setup, &step, &spec, &query, Some(&sinks), &how(8, step.rows));
            for pass in [1, 3] {
                let again = run(&setup, &step, &spec, &query, Some(&sinks), &how(16, pass));
                assert!(together == again, "{kv_type}, {spec:?}: {pass} rows a pass");
            }
            let mut row = 0;
            for part in parts {
                for position in part.rows.clone() {
                    // Alone, in other blocks of another cache, as a decoding row: what is behind it
                    // is gone.
                    let length = position + 1;
                    let alone = Part { rows: position..length, length, table: part.table.clone() };
                    let splits = length.div_ceil(SPLIT);
                    let (query, step) = (&query[row * cols..][..cols], Step::new(&gpu, &[alone]));
                    let found = run(&setup, &step, &spec, query, Some(&sinks), &how(splits, 1));
                    let expected = &together[row * cols * 4..][..cols * 4];
                    assert!(found == expected, "{kv_type}, {spec:?}: {length} tokens alone");
                    row += 1;
                }
            }
        }
    }
}

#[test]
fn results_are_stored_in_every_form() {
    let (gpu, mut random) = testing::device();
    // One split, and several.
    for lengths in [[65, 9], [700, 30]] {
        let layer = KvLayer { heads: random.pick(&[1, 2]), head_dim: 40 };
        let setup = Setup::new(&gpu, &mut random, layer, KvType::F16, &lengths);
        let spec = spec(6, 40, Mask::CAUSAL);
        let step = setup.step(|length| length - 2..length);
        let query = testing::normals(&mut random, step.rows * 240);
        let how = |form| How { form, ..How::plain(&setup, &step) };
        let plain = as_floats(&run(&setup, &step, &spec, &query, None, &how(Form::F32)));
        let bf16 = |value: f32| u16::from_le_bytes(Bf16::encode(&[value]).0);
        let value = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        let rows = |column: &dyn Fn(f32) -> u16| -> Vec<u16> {
            let row =
                |row: &[f32]| row.iter().map(|&x| column(x)).chain([0; 16]).collect::<Vec<_>>();
            plain.chunks_exact(240).flat_map(row).collect()
        };
        let expect = |form, expected: &[u16]| {
            let found = run(&setup, &step, &spec, &query, None, &how(form));
            assert!(found == expected.as_bytes(), "{form:?} after {lengths:?}");
        };
        expect(Form::BF16, &rows(&bf16));
        expect(Form::F16, &rows(&|x| F16::encode(&[x]).0.to_bits()));
        let first = |x: f32| value(bf16(x));
        let second = |x: f32| value(bf16(x - first(x)));
        let parts =
            [rows(&bf16), rows(&|x| bf16(x - first(x))), rows(&|x| bf16(x - first(x) - second(x)))];
        let columns =
            (0..step.rows).flat_map(|row| parts.iter().map(move |part| &part[row * 256..][..256]));
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
    assert!(supports(&spec(1, 40, Mask::CAUSAL), &pool(KvType::BF16)).is_ok());
}

#[test]
fn variants_fit_the_smallest_devices_shared_memory() {
    for head_dim in HEAD_DIMS {
        for group in [1, 2, 4, 5, 8, 71] {
            for kv_type in KV_TYPES {
                let variant = Variant::new(kv_type, head_dim, group);
                assert!(variant.dim >= head_dim, "{variant:?}");
                // Two blocks on a multiprocessor of sm_80.
                assert!(variant.shared(kv_type) <= 80 << 10, "{variant:?}, {kv_type}");
            }
        }
    }
}
