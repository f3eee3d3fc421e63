//! Sequences in a cache, runs of the kernels, and what they must give: the definition in f64, with as much
//! room as rounding needs.

use std::{ops::Range, sync::Arc};

use realm_conformance::random::Random;
use realm_core::{
    backend::{KvPool, KvType, Precision, Role},
    formats::{Bf16, BlockFormat, F16},
    graph::{
        KvLayer,
        ops::{AttentionSpec, Mask},
    },
};
use zerocopy::IntoBytes;

use crate::cuda::{
    gpu::{Buffer, Gpu},
    kernels::{
        attention::supports,
        flash::{FlashArgs, Input, flash},
        rope::{Write, kv_write},
    },
    kv::{
        CudaKvPool, KV_BLOCK_TOKENS,
        testing::{self, Contents, Part, Step},
    },
    step::{Columns, Counts, Form, Row, Sequence, StepView},
};

/// The layer under test is the second, so that a mix-up of layers shows.
const LAYER: usize = 1;

/// Sequences in a cache, all of whose tokens are written; the rest is NaN.
pub(super) struct Setup {
    pub(super) gpu: Arc<dyn Gpu>,
    pub(super) pool: Arc<CudaKvPool>,
    /// Which rows the step has of each sequence.
    pub(super) parts: Vec<Part>,
}

impl Setup {
    /// `rows` says which positions of each sequence are rows of the step, and how long it is.
    pub(super) fn new(
        gpu: &Arc<dyn Gpu>,
        random: &mut Random,
        layer: KvLayer,
        kv_type: KvType,
        rows: &[(Range<usize>, usize)],
    ) -> Self {
        let lengths: Vec<usize> = rows.iter().map(|(_, length)| *length).collect();
        let blocks = lengths.iter().map(|length| length.div_ceil(KV_BLOCK_TOKENS)).sum::<usize>();
        let pool = testing::pool(gpu, &[layer, layer], kv_type, blocks + 3);
        let tables = testing::tables(random, &lengths, blocks + 3);
        let part = |((rows, length), table): (&(Range<usize>, usize), _)| Part {
            rows: rows.clone(),
            length: *length,
            table,
        };
        let parts: Vec<Part> = rows.iter().zip(tables).map(part).collect();
        let whole = parts.iter().map(|part| Part { rows: 0..part.length, ..part.clone() });
        let step = Step::with(gpu, &whole.collect::<Vec<_>>(), Role::Prefill);
        let count = step.rows * layer.heads * layer.head_dim;
        let [key, value] = [(); 2].map(|()| testing::floats(gpu, &testing::normals(random, count)));
        let write = Write { kv: &pool, layer: LAYER, key: key.address(), value: value.address() };
        gpu.launch(&kv_write(&write, &step.view, step.rows)).unwrap();
        // Its buffers live until here.
        pool.swap_out(&[]).unwrap();
        Self { gpu: gpu.clone(), pool, parts }
    }

    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }
}

/// A step whose first sequences are decoded, a row each; the others are prompts.
pub(super) struct Mixed {
    view: StepView,
    rows: usize,
    sequences: usize,
    _buffers: Vec<Buffer>,
}

impl Mixed {
    pub(super) fn new(gpu: &Arc<dyn Gpu>, parts: &[Part], decoded: usize) -> Self {
        let (mut rows, mut sequences, mut tables) = (Vec::new(), Vec::new(), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            let prefill = if index < decoded { 0 } else { part.rows.len() as u32 };
            sequences.push(Sequence {
                length: part.length as u32,
                table: tables.len() as u32,
                first: rows.len() as u32,
                prefill,
            });
            rows.extend(part.rows.clone().map(|position| Row {
                position: position as u32,
                sequence: index as u32,
                ..Row::default()
            }));
            tables.extend_from_slice(&part.table);
        }
        let decode_rows = parts[..decoded].iter().map(|part| part.rows.len() as u32).sum();
        let counts = Counts {
            rows: rows.len() as u32,
            outputs: 0,
            sequences: parts.len() as u32,
            decode_rows,
        };
        let bytes = [counts.as_bytes(), rows.as_bytes(), sequences.as_bytes(), tables.as_bytes()];
        let buffers = bytes.map(|bytes| {
            let buffer = Buffer::new(gpu, bytes.len(), "a step").unwrap();
            buffer.write(0, bytes).unwrap();
            buffer
        });
        let [counts, of_rows, of_sequences, tables] = buffers.each_ref().map(Buffer::address);
        let view = StepView {
            counts,
            rows: of_rows,
            sequences: of_sequences,
            tables,
            ..StepView::default()
        };
        let sequences = parts.len();
        Self { view, rows: rows.len(), sequences, _buffers: buffers.into() }
    }
}

/// What is attended to, and how.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) spec: &'a AttentionSpec,
    pub(super) precision: Precision,
    pub(super) query: &'a [f32],
    pub(super) sinks: Option<&'a [f32]>,
}

/// The stored bytes of the step's rows. The launch is made for a few more, which stay poison.
pub(super) fn run(setup: &Setup, step: &Mixed, case: &Case<'_>, form: Form) -> Vec<u8> {
    let gpu = &setup.gpu;
    supports(case.spec, &setup.pool).unwrap();
    let cols = case.spec.heads * case.spec.head_dim;
    let query = testing::floats(gpu, case.query);
    let sinks = case.sinks.map(|sinks| testing::floats(gpu, sinks));
    let row = form.data_bytes(1, cols);
    let rows = step.rows + 3;
    let target = Buffer::new(gpu, rows * row, "results").unwrap();
    target.fill(0xff).unwrap();
    let launch = flash(&FlashArgs {
        kv: &setup.pool,
        layer: LAYER,
        spec: case.spec,
        query: query.address(),
        sinks: sinks.as_ref().map(Buffer::address),
        view: &step.view,
        rows,
        sequences: step.sequences + 1,
        precision: case.precision,
        target: Columns::new(form, cols, target.address(), 0),
    });
    gpu.launch(&launch.unwrap()).unwrap();
    let mut found = target.read(0..target.bytes()).unwrap();
    assert!(found.split_off(step.rows * row).iter().all(|&byte| byte == 0xff), "beyond the rows");
    found
}

pub(super) fn as_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn round(input: Input, value: f32) -> f64 {
    let mut rounded = [0.0];
    match input {
        Input::F16 => F16::encode(&[value]).decode(&mut rounded),
        Input::BF16 => Bf16::encode(&[value]).decode(&mut rounded),
    }
    f64::from(rounded[0])
}

/// A head's query as it is multiplied: f16 has too few exponents for what f32 holds, so a power of two
/// brings the largest number to 2^13..2^14 before it is rounded.
fn rounded_query(input: Input, query: &[f32]) -> Vec<f64> {
    let most = query.iter().fold(0f32, |most, x| most.max(x.abs()));
    if input == Input::BF16 || most == 0.0 {
        return query.iter().map(|&x| round(input, x)).collect();
    }
    let lift = (13.0 - f64::from(most).log2().floor()).exp2();
    let lifted = |&x: &f32| round(input, (f64::from(x) * lift) as f32) / lift;
    query.iter().map(lifted).collect()
}

/// What a result is, and how far off it may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) value: f64,
    pub(super) room: f64,
}

/// The definition in f64. With `rounding`, queries, keys and values are rounded to what the products
/// take, as the kernels do; then nothing is left but the rounding of the weights, by which each term of
/// the sum may be off by half a unit of its last place, and what happens in f32.
pub(super) fn definition(setup: &Setup, case: &Case<'_>, rounding: bool) -> Vec<Expected> {
    let (spec, kv_type) = (case.spec, setup.pool.spec().kv_type);
    let input = Input::new(kv_type, case.precision);
    let contents = Contents::new(&setup.pool);
    let kv_heads = setup.pool.layer(LAYER).heads;
    let group = spec.heads / kv_heads;
    let cols = spec.heads * spec.head_dim;
    let mut out = vec![Expected { value: 0.0, room: 0.0 }; case.query.len()];
    let mut first = 0;
    for part in &setup.parts {
        for kv_head in 0..kv_heads {
            let [keys, values] = [0, 1].map(|kind| -> Vec<Vec<f64>> {
                let row = |token| {
                    let row = contents.values(LAYER, kind, &part.table, kv_head, token);
                    let value = |x| if rounding { round(input, x) } else { f64::from(x) };
                    row.into_iter().map(value).collect()
                };
                (0..part.length).map(row).collect()
            });
            for (row, position) in part.rows.clone().enumerate() {
                for head in kv_head * group..(kv_head + 1) * group {
                    let at = (first + row) * cols + head * spec.head_dim;
                    let query = &case.query[at..at + spec.head_dim];
                    let query = if rounding {
                        rounded_query(input, query)
                    } else {
                        query.iter().map(|&x| x.into()).collect()
                    };
                    let seen = spec.mask.visible(position, part.length);
                    let sink = case.sinks.map(|sinks| f64::from(sinks[head]));
                    let (keys, values) = (&keys[seen.clone()], &values[seen]);
                    attend(spec, input, &query, sink, keys, values, &mut out[at..]);
                }
            }
        }
        first += part.rows.len();
    }
    out
}

/// One row of one head.
fn attend(
    spec: &AttentionSpec,
    input: Input,
    query: &[f64],
    sink: Option<f64>,
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    out: &mut [Expected],
) {
    // A score, and the sum of its products' magnitudes, to which rounding in f32 is proportional.
    let score = |key: &Vec<f64>| {
        let (mut dot, mut size) = (0.0, 0.0);
        for (q, k) in query.iter().zip(key) {
            dot += q * k;
            size += (q * k).abs();
        }
        let scale = f64::from(spec.scale);
        let score = dot * scale;
        let capped = |cap| f64::from(cap) * (score / f64::from(cap)).tanh();
        (spec.soft_cap.map_or(score, capped), size * scale.abs())
    };
    let scores: Vec<(f64, f64)> = keys.iter().map(score).collect();
    let top = scores.iter().map(|score| score.0).fold(f64::NEG_INFINITY, f64::max);
    let most = sink.map_or(top, |sink| sink.max(top));
    let weights: Vec<f64> = scores.iter().map(|score| (score.0 - most).exp()).collect();
    let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - most).exp());
    // Half a unit in the last place; what f16's subnormals may be off by.
    let (unit, floor) = match input {
        Input::F16 => (2f64.powi(-11), 2f64.powi(-32) * (top - most).exp()),
        Input::BF16 => (2f64.powi(-8), 0.0),
    };
    let single = 2f64.powi(-20);
    let count = 1.0 + keys.len() as f64 / 64.0;
    let loose: Vec<f64> = scores.iter().map(|score| single * (count + score.1)).collect();
    let of_total: f64 =
        weights.iter().zip(&loose).map(|(weight, loose)| weight * loose).sum::<f64>();
    for (i, out) in out[..spec.head_dim].iter_mut().enumerate() {
        let (mut sum, mut room) = (0.0, 0.0);
        for ((weight, loose), value) in weights.iter().zip(&loose).zip(values) {
            sum += weight * value[i];
            room += (weight * (unit + loose) + floor) * value[i].abs();
        }
        let total = if total == 0.0 { 1.0 } else { total };
        let value = sum / total;
        let room = (room + of_total * value.abs()) / total + 1e-6 * value.abs() + 1e-30;
        *out = Expected { value, room };
    }
}

/// Root of the squares' sums' ratio.
pub(super) fn error(found: &[f32], expected: &[Expected]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    let difference: f64 = pairs.map(|(&x, y)| (f64::from(x) - y.value).powi(2)).sum();
    let size: f64 = expected.iter().map(|y| y.value * y.value).sum();
    (difference / size.max(1e-30)).sqrt()
}

pub(super) fn spec(heads: usize, head_dim: usize, mask: Mask) -> AttentionSpec {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionSpec { heads, head_dim, scale, mask, soft_cap: None, sinks: None }
}

/// Queries that give scores with a deviation of 4, whatever the scale: references change, and some
/// weights all but vanish.
pub(super) fn queries(random: &mut Random, spec: &AttentionSpec, rows: usize) -> Vec<f32> {
    let sharpen = 4.0 / (spec.scale * (spec.head_dim as f32).sqrt());
    let query = testing::normals(random, rows * spec.heads * spec.head_dim);
    query.iter().map(|x| x * sharpen).collect()
}

/// Runs a case and checks it against the definition; returns by how much of its room it was off.
pub(super) fn check(
    setup: &Setup,
    random: &mut Random,
    spec: &AttentionSpec,
    precision: Precision,
    with_sinks: bool,
) -> f64 {
    let query = queries(random, spec, setup.rows());
    let sinks = with_sinks.then(|| testing::normals(random, spec.heads));
    let case = Case { spec, precision, query: &query, sinks: sinks.as_deref() };
    let step = Mixed::new(&setup.gpu, &setup.parts, 0);
    let found = as_floats(&run(setup, &step, &case, Form::F32));
    let expected = definition(setup, &case, true);
    let (layer, kv_type) = (setup.pool.layer(LAYER), setup.pool.spec().kv_type);
    let rows: Vec<_> = setup.parts.iter().map(|part| (&part.rows, part.length)).collect();
    let what =
        format!("{kv_type} {precision:?} {spec:?} sinks {with_sinks} on {layer:?}, {rows:?}");
    let mut most = 0f64;
    for (i, (&x, y)) in found.iter().zip(&expected).enumerate() {
        let off = (f64::from(x) - y.value).abs() / y.room;
        let (row, col) = (i / (spec.heads * spec.head_dim), i % (spec.heads * spec.head_dim));
        assert!(off <= 1.0, "{what}: {x} is not {y:?} in row {row}, column {col}");
        most = most.max(off);
    }
    most
}
