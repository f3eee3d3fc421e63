//! The ops, each written from its definition.

use super::ReferenceProgram;
use crate::{
    backend::{BackendError, Inputs, SequenceRows},
    graph::{
        Op, Value, Weight,
        ops::{Activation, Attention, Glu, KvWrite, LayerNorm, RmsNorm, Rope, RopePairs},
    },
};

pub(super) type Values = [Vec<f64>];

/// The non-linearity of a gated unit.
pub(super) fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

/// The error function: its Taylor series near zero, its continued fraction beyond (Abramowitz &
/// Stegun 7.1.5 and 7.1.14); accurate to about 1e-14.
fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let fraction = (1..60).rev().fold(size, |tail, n| size + f64::from(n) / 2.0 / tail);
    let complement = (-size * size).exp() / (fraction * std::f64::consts::PI.sqrt());
    (1.0 - complement).copysign(x)
}

impl ReferenceProgram {
    // One arm an op: longer than other functions, and read an arm at a time.
    pub(super) fn run(
        &self,
        op: &Op,
        inputs: &Inputs<'_>,
        ids: &[u32],
        values: &mut Values,
    ) -> Result<(), BackendError> {
        match op {
            Op::Embed(op) => {
                let info = self.graph.weight(op.table);
                let table = self.weight(op.table);
                let mut rows = Vec::with_capacity(ids.len() * info.cols);
                for &id in ids {
                    let row = table.get(id as usize * info.cols..(id as usize + 1) * info.cols);
                    let row = row.ok_or_else(|| BackendError::Inputs {
                        problem: format!("token {id} of a vocabulary of {}", info.rows),
                    })?;
                    rows.extend(row.iter().map(|&x| f64::from(x)));
                }
                values[op.output.index()] = rows;
            }
            Op::Given(op) => {
                values[op.output.index()] = inputs.given.iter().map(|&x| f64::from(x)).collect();
            }
            Op::Linear(op) => {
                for p in &op.projections {
                    values[p.output.index()] = self.product(op.input, p.weight, p.bias, values);
                }
            }
            Op::GatedLinear(op) => {
                let gate = self.product(op.input, op.gate, op.gate_bias, values);
                let up = self.product(op.input, op.up, op.up_bias, values);
                let gated = gate.iter().zip(&up).map(|(&g, u)| activate(op.activation, g) * u);
                values[op.output.index()] = gated.collect();
            }
            Op::Glu(Glu { gate, up, activation, output }) => {
                let pairs = values[gate.index()].iter().zip(&values[up.index()]);
                values[output.index()] =
                    pairs.map(|(&g, u)| activate(*activation, g) * u).collect();
            }
            Op::RmsNorm(op) => self.rms_norm(op, values),
            Op::LayerNorm(op) => self.layer_norm(op, values),
            Op::Rope(op) => self.rope(op, inputs, values),
            Op::KvWrite(op) => self.kv_write(op, inputs, values),
            Op::Attention(op) => self.attention(op, inputs, values),
            Op::Add(op) => {
                let pairs = values[op.left.index()].iter().zip(&values[op.right.index()]);
                values[op.output.index()] = pairs.map(|(l, r)| l + r).collect();
            }
            Op::Scale(op) => {
                let factor = f64::from(op.factor);
                values[op.output.index()] =
                    values[op.input.index()].iter().map(|x| x * factor).collect();
            }
            Op::SoftCap(op) => {
                let cap = f64::from(op.cap);
                let capped = values[op.input.index()].iter().map(|x| cap * (x / cap).tanh());
                values[op.output.index()] = capped.collect();
            }
            Op::MoeRoute(op) => self.moe_route(op, values),
            Op::MoeGatedLinear(op) => self.moe_gated_linear(op, values),
            Op::MoeLinear(op) => self.moe_linear(op, values),
            Op::MoeSum(op) => self.moe_sum(op, values),
            Op::GatherRows(op) => {
                let cols = self.graph.value(op.input).cols;
                let input = &values[op.input.index()];
                let rows = inputs.outputs.iter();
                let gathered = rows.flat_map(|&row| &input[row as usize * cols..][..cols]).copied();
                values[op.output.index()] = gathered.collect();
            }
            Op::Sample(_) => {}
        }
        Ok(())
    }

    fn product(
        &self,
        input: Value,
        weight: Weight,
        bias: Option<Weight>,
        values: &Values,
    ) -> Vec<f64> {
        let info = self.graph.weight(weight);
        let (weight, input) = (self.weight(weight), &values[input.index()]);
        let bias = bias.map(|bias| self.weight(bias));
        let mut output = Vec::with_capacity(input.len() / info.cols.max(1) * info.rows);
        for x in input.chunks_exact(info.cols) {
            for (n, w) in weight.chunks_exact(info.cols).enumerate() {
                let sum: f64 = x.iter().zip(w).map(|(x, &w)| x * f64::from(w)).sum();
                output.push(sum + bias.map_or(0.0, |bias| f64::from(bias[n])));
            }
        }
        output
    }

    fn rms_norm(&self, op: &RmsNorm, values: &mut Values) {
        let mut input = values[op.input.index()].clone();
        if let Some(residual) = op.residual {
            for (x, addend) in input.iter_mut().zip(&values[residual.addend.index()]) {
                *x += addend;
            }
            values[residual.sum.index()] = input.clone();
        }
        let weight = self.weight(op.weight);
        for group in input.chunks_exact_mut(op.group) {
            let mean = group.iter().map(|x| x * x).sum::<f64>() / op.group as f64;
            let factor = 1.0 / (mean + f64::from(op.epsilon)).sqrt();
            for (x, &w) in group.iter_mut().zip(weight) {
                *x *= factor * f64::from(w);
            }
        }
        values[op.output.index()] = input;
    }

    fn layer_norm(&self, op: &LayerNorm, values: &mut Values) {
        let mut rows = values[op.input.index()].clone();
        let weight = self.weight(op.weight);
        let bias = op.bias.map(|bias| self.weight(bias));
        for row in rows.chunks_exact_mut(weight.len()) {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let factor = 1.0 / (variance + f64::from(op.epsilon)).sqrt();
            for (at, (x, &w)) in row.iter_mut().zip(weight).enumerate() {
                *x = (*x - mean) * factor * f64::from(w) + bias.map_or(0.0, |b| f64::from(b[at]));
            }
        }
        values[op.output.index()] = rows;
    }

    fn rope(&self, op: &Rope, inputs: &Inputs<'_>, values: &mut Values) {
        let rope = &self.graph.ropes()[op.rope.index()];
        let mut rows = values[op.input.index()].clone();
        let pairs = rope.inverse.len();
        for (row, position) in rows.chunks_exact_mut(op.heads * op.head_dim).zip(inputs.positions())
        {
            for head in row.chunks_exact_mut(op.head_dim) {
                for (pair, inverse) in rope.inverse.iter().enumerate() {
                    let (a, b) = match op.pairs {
                        RopePairs::Adjacent => (2 * pair, 2 * pair + 1),
                        RopePairs::Halves => (pair, pair + pairs),
                    };
                    let (sin, cos) = (f64::from(position) * inverse).sin_cos();
                    let (sin, cos) = (sin * rope.magnitude, cos * rope.magnitude);
                    (head[a], head[b]) =
                        (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
        }
        values[op.output.index()] = rows;
    }

    fn kv_write(&self, op: &KvWrite, inputs: &Inputs<'_>, values: &Values) {
        let layer = self.graph.kv()[op.layer];
        let dtype = self.kv.spec.kv_type.dtype();
        let mut bytes = vec![0; dtype.row_bytes(layer.head_dim).unwrap_or(0)];
        let mut blocks = self.kv.blocks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for sequence in inputs.sequences {
            for (row, position) in sequence.rows.clone().zip(sequence.cached..) {
                let block = sequence.blocks[position / self.kv.spec.block_tokens].0 as usize;
                let slot = position % self.kv.spec.block_tokens;
                for (is_value, from) in [(false, op.key), (true, op.value)] {
                    for head in 0..layer.heads {
                        let start = (row * layer.heads + head) * layer.head_dim;
                        let row = &values[from.index()][start..start + layer.head_dim];
                        let row: Vec<f32> = row.iter().map(|&x| x as f32).collect();
                        dtype.encode(&row, &mut bytes);
                        let at = self.kv.offset(op.layer, is_value, head, slot);
                        dtype.decode(&bytes, &mut blocks[block][at..at + layer.head_dim]);
                    }
                }
            }
        }
    }

    fn attention(&self, op: &Attention, inputs: &Inputs<'_>, values: &mut Values) {
        let query = &values[op.query.index()];
        let mut output = vec![0.0; query.len()];
        let width = op.spec.heads * op.spec.head_dim;
        for sequence in inputs.sequences {
            for (row, position) in sequence.rows.clone().zip(sequence.cached..) {
                for head in 0..op.spec.heads {
                    let range = row * width + head * op.spec.head_dim..;
                    let query = &query[range.clone()][..op.spec.head_dim];
                    let out = &mut output[range][..op.spec.head_dim];
                    self.attend(op, sequence, position, head, query, out);
                }
            }
        }
        values[op.output.index()] = output;
    }

    /// One head of one row.
    fn attend(
        &self,
        op: &Attention,
        sequence: &SequenceRows<'_>,
        position: usize,
        head: usize,
        query: &[f64],
        out: &mut [f64],
    ) {
        let spec = &op.spec;
        let kv_head = head / (spec.heads / self.graph.kv()[op.layer].heads);
        let blocks = self.kv.blocks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let tokens = self.kv.spec.block_tokens;
        let row = |is_value: bool, at: usize| {
            let start = self.kv.offset(op.layer, is_value, kv_head, at % tokens);
            &blocks[sequence.blocks[at / tokens].0 as usize][start..start + spec.head_dim]
        };
        let score = |at: usize| {
            let dot: f64 = query.iter().zip(row(false, at)).map(|(q, &k)| q * f64::from(k)).sum();
            let score = dot * f64::from(spec.scale);
            spec.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let visible = spec.mask.visible(position, sequence.length());
        let scores: Vec<f64> = visible.clone().map(score).collect();
        let sink = spec.sinks.map(|sinks| f64::from(self.weight(sinks)[head]));
        let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - most).exp());
        if total == 0.0 {
            return;
        }
        for (weight, at) in weights.iter().zip(visible) {
            for (out, &value) in out.iter_mut().zip(row(true, at)) {
                *out += weight / total * f64::from(value);
            }
        }
    }
}
