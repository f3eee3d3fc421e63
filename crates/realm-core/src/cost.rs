//! The cost model: what each node of a step must read from memory and multiply at the least.
//!
//! Measured times are set against it. It counts what no implementation can avoid: each weight read
//! once a step (of a mixture's experts those of one row), the part of the KV cache that the step's rows see read once a sequence, and the
//! multiplications and additions of the products. Activations are left out: they stay in caches, and
//! what fusion spares is not to be counted as work.

use std::{iter::Sum, ops::Add};

use crate::{
    backend::{KvType, Precision},
    graph::{
        Graph, Mixture, Node, Op, Rows, Value, Weight,
        ops::{Attention, KvWrite},
    },
};

/// New rows of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceShape {
    /// Tokens in the cache before the step.
    pub cached: usize,
    /// Rows that the step computes.
    pub rows: usize,
}

/// The size of a step, as far as its cost depends on it.
#[derive(Debug, Clone, Copy)]
pub struct StepShape<'a> {
    /// The sequences side by side.
    pub sequences: &'a [SequenceShape],
    /// Rows whose logits are wanted.
    pub outputs: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
}

impl StepShape<'_> {
    fn rows(&self, rows: Rows) -> u64 {
        match rows {
            Rows::Tokens => self.sequences.iter().map(|sequence| sequence.rows as u64).sum(),
            Rows::Outputs => self.outputs as u64,
        }
    }
}

/// The least work of a node or a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights read, at the width in which they are stored.
    pub weight_bytes: u64,
    /// Bytes of the KV cache read and written.
    pub kv_bytes: u64,
    /// Multiplications and additions of products, two for each pair of elements.
    pub ops: u64,
}

impl Cost {
    /// Everything that has to come from or go to memory.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.kv_bytes)
    }

    /// Seconds that the work takes where memory and arithmetic run at their limits side by side.
    pub fn seconds(&self, bytes_per_second: f64, ops_per_second: f64) -> f64 {
        (self.bytes() as f64 / bytes_per_second).max(self.ops as f64 / ops_per_second)
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes.saturating_add(other.weight_bytes),
            kv_bytes: self.kv_bytes.saturating_add(other.kv_bytes),
            ops: self.ops.saturating_add(other.ops),
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Self::add)
    }
}

/// The cost of one node in a step.
pub fn node(graph: &Graph, node: &Node, step: &StepShape<'_>) -> Cost {
    let rows_of = |value: Value| step.rows(graph.value(value).rows);
    match &node.op {
        Op::Embed(op) => {
            let table = graph.weight(op.table);
            let row = table.dtype.row_bytes(table.cols).unwrap_or(0) as u64;
            Cost { weight_bytes: rows_of(op.output).saturating_mul(row), ..Cost::default() }
        }
        Op::Linear(op) => {
            let rows = rows_of(op.input);
            let (weights, biases): (Vec<_>, Vec<_>) = op
                .projections
                .iter()
                .map(|projection| (projection.weight, projection.bias))
                .unzip();
            products(graph, weights, rows) + vectors(graph, biases.into_iter().flatten(), rows)
        }
        Op::GatedLinear(op) => {
            let rows = rows_of(op.input);
            let biases = [op.gate_bias, op.up_bias].into_iter().flatten();
            products(graph, [op.gate, op.up], rows) + vectors(graph, biases, rows)
        }
        Op::MoeGatedLinear(op) => {
            let mixture = graph.mixture(op.experts, op.output, op.gate);
            experts(graph, mixture, [op.gate, op.up], rows_of(op.output))
        }
        Op::MoeLinear(op) => {
            let mixture = graph.mixture(op.experts, op.output, op.weight);
            experts(graph, mixture, [op.weight], rows_of(op.output))
        }
        Op::KvWrite(op) => kv_write(graph, op, step),
        Op::Attention(op) => {
            attention(graph, op, step) + vectors(graph, op.spec.sinks, rows_of(op.query))
        }
        op => {
            let rows = op.outputs().first().map_or(0, |&output| rows_of(output));
            vectors(graph, op.weights(), rows)
        }
    }
}

/// The precision in which a node computes where its program runs in `precision` (not
/// [`Precision::Auto`]): products of quantized weights in that one, all else in f32. With
/// [`Precision::Int8`] products of weights that are all floats are f32 too.
pub fn precision(graph: &Graph, node: &Node, precision: Precision) -> Precision {
    let floats = |weight: Weight| graph.weight(weight).dtype.is_float();
    let floats = match &node.op {
        Op::Linear(op) => op.projections.iter().all(|projection| floats(projection.weight)),
        Op::GatedLinear(op) => floats(op.gate) && floats(op.up),
        Op::MoeGatedLinear(op) => floats(op.gate) && floats(op.up),
        Op::MoeLinear(op) => floats(op.weight),
        _ => return Precision::F32,
    };
    if floats && precision == Precision::Int8 { Precision::F32 } else { precision }
}

/// The cost of a whole step.
pub fn step(graph: &Graph, shape: &StepShape<'_>) -> Cost {
    graph.nodes().iter().map(|each| node(graph, each, shape)).sum()
}

/// Products of `rows` rows with matrices `[n, k]`: each matrix is read once.
fn products(graph: &Graph, weights: impl IntoIterator<Item = Weight>, rows: u64) -> Cost {
    if rows == 0 {
        return Cost::default();
    }
    let one = |weight: Weight| {
        let info = graph.weight(weight);
        let elements = (info.rows as u64).saturating_mul(info.cols as u64);
        Cost {
            weight_bytes: info.bytes().unwrap_or(0) as u64,
            kv_bytes: 0,
            ops: elements.saturating_mul(2).saturating_mul(rows),
        }
    };
    weights.into_iter().map(one).sum()
}

/// Products of `rows` rows with the experts that each has chosen. How many different ones a step's
/// rows choose is not known before it runs: as many as one row has are read at the least.
fn experts(
    graph: &Graph,
    mixture: Mixture,
    weights: impl IntoIterator<Item = Weight>,
    rows: u64,
) -> Cost {
    if rows == 0 {
        return Cost::default();
    }
    let one = |weight: Weight| {
        let info = graph.weight(weight);
        let (n, used) = (mixture.n as u64, mixture.used as u64);
        let row = info.dtype.row_bytes(info.cols).unwrap_or(0) as u64;
        let elements = n.saturating_mul(info.cols as u64).saturating_mul(used);
        Cost {
            weight_bytes: row.saturating_mul(n).saturating_mul(used),
            kv_bytes: 0,
            ops: elements.saturating_mul(2).saturating_mul(rows),
        }
    };
    weights.into_iter().map(one).sum()
}

/// Norm weights, biases and the like: read once where there are rows.
fn vectors(graph: &Graph, weights: impl IntoIterator<Item = Weight>, rows: u64) -> Cost {
    let bytes = weights.into_iter().filter_map(|weight| graph.weight(weight).bytes());
    let bytes: u64 = bytes.map(|bytes| bytes as u64).sum();
    Cost { weight_bytes: if rows > 0 { bytes } else { 0 }, ..Cost::default() }
}

/// Bytes of one position's keys or values, all heads.
fn kv_row_bytes(graph: &Graph, layer: usize, kv_type: KvType) -> u64 {
    let layer = graph.kv()[layer];
    let head = kv_type.dtype().row_bytes(layer.head_dim).unwrap_or(0);
    (layer.heads * head) as u64
}

fn kv_write(graph: &Graph, op: &KvWrite, step: &StepShape<'_>) -> Cost {
    let row = kv_row_bytes(graph, op.layer, step.kv_type);
    Cost { kv_bytes: 2 * row * step.rows(Rows::Tokens), ..Cost::default() }
}

/// Scores and weighted sums over the positions that each row sees; every position that some row of a
/// sequence sees is read once for it.
fn attention(graph: &Graph, op: &Attention, step: &StepShape<'_>) -> Cost {
    let mut seen = 0; // pairs of a row and a position
    let mut read = 0; // positions
    for &SequenceShape { cached, rows } in step.sequences {
        let length = cached + rows;
        let visible = |position| op.spec.mask.visible(position, length);
        seen += (cached..length).map(|position| visible(position).len() as u64).sum::<u64>();
        if rows > 0 {
            read += (visible(cached).start..visible(length - 1).end).len() as u64;
        }
    }
    let elements = (op.spec.heads * op.spec.head_dim) as u64;
    Cost {
        weight_bytes: 0,
        kv_bytes: 2 * read * kv_row_bytes(graph, op.layer, step.kv_type),
        ops: 4 * seen * elements,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType,
        fuse::fuse,
        graph::{
            GraphBuilder, KvLayer, WeightInfo,
            ops::{Activation, AttentionSpec, Mask},
        },
    };

    const HIDDEN: usize = 64;
    const VOCABULARY: usize = 100;

    /// A layer with 2 heads of 32 on one KV head, and an output that shares the embedding table.
    fn graph(window: Option<usize>) -> Graph {
        let mut graph = GraphBuilder::new();
        let matrix = |graph: &mut GraphBuilder, name: &str, rows, cols, dtype| {
            graph.weight(WeightInfo { name: name.into(), rows, cols, dtype })
        };
        let table = matrix(&mut graph, "table", VOCABULARY, HIDDEN, DType::Q8_0);
        let norm = matrix(&mut graph, "norm", 1, HIDDEN, DType::F32);
        let q = matrix(&mut graph, "q", 64, HIDDEN, DType::Q4_0);
        let k = matrix(&mut graph, "k", 32, HIDDEN, DType::Q4_0);
        let v = matrix(&mut graph, "v", 32, HIDDEN, DType::F16);
        let bias = matrix(&mut graph, "v.bias", 1, 32, DType::F32);
        let gate = matrix(&mut graph, "gate", 96, HIDDEN, DType::Q4_0);
        let up = matrix(&mut graph, "up", 96, HIDDEN, DType::Q4_0);
        let down = matrix(&mut graph, "down", HIDDEN, 96, DType::Q4_0);
        let x = graph.embed(table);
        let normed = graph.rms_norm(x, norm, 1e-5);
        let (q, k) = (graph.linear(normed, q, None), graph.linear(normed, k, None));
        let v = graph.linear(normed, v, Some(bias));
        let layer = graph.kv_layer(KvLayer { heads: 1, head_dim: 32 });
        graph.kv_write(layer, k, v);
        let mask = Mask { causal: true, window };
        let spec =
            AttentionSpec { heads: 2, head_dim: 32, scale: 0.2, mask, soft_cap: None, sinks: None };
        let attended = graph.attention(layer, q, spec);
        let x = graph.add(x, attended);
        let (gate, up) = (graph.linear(x, gate, None), graph.linear(x, up, None));
        let gated = graph.glu(gate, up, Activation::Silu);
        let fed = graph.linear(gated, down, None);
        let x = graph.add(x, fed);
        let rows = graph.gather_rows(x);
        let logits = graph.linear(rows, table, None);
        graph.finish(logits).unwrap()
    }

    fn shape(sequences: &[SequenceShape], outputs: usize) -> StepShape<'_> {
        StepShape { sequences, outputs, kv_type: KvType::F16 }
    }

    const Q4: u64 = 18; // bytes for 32 weights
    const Q8: u64 = 34;

    /// Bytes of all layer weights but the biases and norms.
    const LAYER: u64 = (64 + 32 + 96 + 96) * 2 * Q4 + 32 * 64 * 2 + 64 * 3 * Q4;
    const VECTORS: u64 = 4 * (64 + 32);
    /// Weights of the layer's matrices.
    const ELEMENTS: u64 = (64 + 32 + 32 + 96 + 96 + 96) * 64;

    #[test]
    fn a_decode_step_reads_every_weight_and_the_cache_once() {
        let sequences = [SequenceShape { cached: 9, rows: 1 }];
        let cost = step(&graph(None), &shape(&sequences, 1));
        // One row of the embedding table, and all of it again as the output matrix.
        assert_eq!(cost.weight_bytes, 2 * Q8 + LAYER + VECTORS + 100 * 2 * Q8);
        // Keys and values of ten positions read, of one written.
        assert_eq!(cost.kv_bytes, 2 * 64 * (10 + 1));
        assert_eq!(cost.ops, 2 * ELEMENTS + 2 * 100 * 64 + 4 * 10 * 64);
        assert_eq!(cost.bytes(), cost.weight_bytes + cost.kv_bytes);
    }

    #[test]
    fn a_prefill_multiplies_each_row_and_the_output_once() {
        let sequences = [SequenceShape { cached: 4, rows: 3 }];
        let cost = step(&graph(None), &shape(&sequences, 1));
        assert_eq!(cost.weight_bytes, 3 * 2 * Q8 + LAYER + VECTORS + 100 * 2 * Q8);
        assert_eq!(cost.kv_bytes, 2 * 64 * (7 + 3));
        assert_eq!(cost.ops, 3 * 2 * ELEMENTS + 2 * 100 * 64 + 4 * (5 + 6 + 7) * 64);
    }

    #[test]
    fn a_chunk_without_outputs_spares_the_output_matrix() {
        let sequences = [SequenceShape { cached: 0, rows: 2 }];
        let cost = step(&graph(None), &shape(&sequences, 0));
        assert_eq!(cost.weight_bytes, 2 * 2 * Q8 + LAYER + VECTORS);
        assert_eq!(cost.ops, 2 * 2 * ELEMENTS + 4 * (1 + 2) * 64);
    }

    #[test]
    fn sequences_share_the_weights_but_not_the_cache() {
        let sequences =
            [SequenceShape { cached: 5, rows: 1 }, SequenceShape { cached: 0, rows: 4 }];
        let cost = step(&graph(None), &shape(&sequences, 2));
        assert_eq!(cost.weight_bytes, 5 * 2 * Q8 + LAYER + VECTORS + 100 * 2 * Q8);
        assert_eq!(cost.kv_bytes, 2 * 64 * (6 + 1 + 4 + 4));
        let seen = 6 + 1 + 2 + 3 + 4;
        assert_eq!(cost.ops, 5 * 2 * ELEMENTS + 2 * 2 * 100 * 64 + 4 * seen * 64);
    }

    #[test]
    fn a_window_bounds_what_is_read_and_multiplied() {
        let sequences = [SequenceShape { cached: 20, rows: 2 }];
        let plain = step(&graph(None), &shape(&sequences, 1));
        let cost = step(&graph(Some(8)), &shape(&sequences, 1));
        // Rows 20 and 21 see eight positions each, nine together.
        assert_eq!(plain.ops - cost.ops, 4 * (21 + 22 - 2 * 8) * 64);
        assert_eq!(plain.kv_bytes - cost.kv_bytes, 2 * 64 * (22 - 9));
    }

    #[test]
    fn fusion_leaves_the_cost_as_it_is() {
        let sequences = [SequenceShape { cached: 3, rows: 5 }];
        let plain = graph(None);
        let mut fused = plain.clone();
        fuse(&mut fused);
        assert!(fused.nodes().len() < plain.nodes().len());
        assert_eq!(step(&fused, &shape(&sequences, 1)), step(&plain, &shape(&sequences, 1)));
    }

    #[test]
    fn only_products_of_quantized_weights_are_int8() {
        let graph = graph(None);
        let of = |asked| -> Vec<(&str, Precision)> {
            let found = |each: &Node| (each.op.name(), precision(&graph, each, asked));
            graph.nodes().iter().map(found).filter(|(_, found)| *found == asked).collect()
        };
        // All but `v`, which is F16: q, k, gate, up, down and the output.
        assert_eq!(of(Precision::Int8), [("Linear", Precision::Int8); 6]);
        assert_eq!(of(Precision::BF16), [("Linear", Precision::BF16); 7]);
        assert_eq!(of(Precision::F32).len(), graph.nodes().len());
    }

    #[test]
    fn the_slower_of_memory_and_arithmetic_decides() {
        let cost = Cost { weight_bytes: 60, kv_bytes: 40, ops: 400 };
        assert_eq!(cost.seconds(100.0, 1000.0), 1.0);
        assert_eq!(cost.seconds(1000.0, 100.0), 4.0);
    }
}
