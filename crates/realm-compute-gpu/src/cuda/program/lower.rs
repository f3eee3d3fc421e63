//! From the graph to launches.

use std::sync::Arc;

use realm_core::{
    Graph,
    graph::{
        Op, Rows, Value, Weight,
        ops::{Attention, GatedLinear, Linear, RmsNorm},
    },
};

use super::layout::{Layout, Stored, one_kernel, rotate_and_store};
use crate::cuda::{
    gpu::Launch,
    kernels::{attention, elementwise, embed, matvec, rope, sample},
    kv::CudaKvPool,
    step::{Columns, Form, StepView},
    weights::CudaWeight,
};
use realm_core::backend::Precision;

/// Sizes that launches are made for. A step runs in the smallest bucket that holds it; its own counts
/// stand in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    pub(super) rows: usize,
    pub(super) outputs: usize,
    /// Splits of the longest sequence.
    pub(super) splits: usize,
    /// Splits that all rows see together, at most.
    pub(super) all_splits: usize,
    /// Whether tokens are sampled.
    pub(super) samples: bool,
}

/// What launches refer to.
pub(super) struct Lowering<'a> {
    pub(super) graph: &'a Graph,
    pub(super) layout: &'a Layout,
    pub(super) weights: &'a [Arc<CudaWeight>],
    pub(super) kv: &'a Arc<CudaKvPool>,
    pub(super) precision: Precision,
    /// Where the arena starts.
    pub(super) arena: u64,
    /// Work memory of attention, and its bytes.
    pub(super) partials: (u64, usize),
    /// Frequencies of each rope table.
    pub(super) ropes: &'a [rope::Frequencies],
    pub(super) view: StepView,
    /// Where the rows of a `Given` op lie.
    pub(super) given: u64,
    /// Where sampled tokens go.
    pub(super) sampled: u64,
    pub(super) bucket: Bucket,
}

/// A launch and the node that it belongs to.
pub(super) struct Stage {
    pub(super) node: usize,
    pub(super) launch: Launch,
}

impl Lowering<'_> {
    /// The launches of a step, in order.
    pub(super) fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        let mut at = 0;
        while at < self.graph.nodes().len() {
            let span = self.layout.spans[at];
            let mut launches = self.node(at);
            for node in &self.graph.nodes()[at..=span.last] {
                node.op.outputs().into_iter().for_each(|value| self.convert(value, &mut launches));
            }
            stages.extend(launches.into_iter().map(|launch| Stage { node: at, launch }));
            at = span.last + 1;
        }
        stages
    }

    fn rows(&self, value: Value) -> usize {
        match self.graph.value(value).rows {
            Rows::Tokens => self.bucket.rows,
            Rows::Outputs => self.bucket.outputs,
        }
    }

    fn cols(&self, value: Value) -> usize {
        self.graph.value(value).cols
    }

    fn stored(&self, value: Value) -> &Stored {
        &self.layout.values[value.index()]
    }

    /// Where the f32 rows of a value lie.
    fn plain(&self, value: Value) -> u64 {
        self.arena + self.layout.plain(self.graph, value) as u64
    }

    fn form(&self, value: Value, form: Form) -> Columns {
        let cols = self.cols(value);
        let found = self.stored(value).forms.iter().find(|prepared| prepared.form == form);
        match found {
            Some(it) => {
                let at = |offset: usize| self.arena + offset as u64;
                Columns::new(form, cols, at(it.data), at(it.scales))
            }
            None => Columns::f32(cols, self.plain(value)),
        }
    }

    /// What a producer writes: f32 rows, a form, or both.
    fn targets(&self, value: Value) -> (Option<Columns>, Option<Columns>) {
        let stored = self.stored(value);
        let direct = stored.forms.iter().find(|prepared| prepared.direct);
        let plain = stored.plain.map(|_| Columns::f32(self.cols(value), self.plain(value)));
        (plain, direct.map(|prepared| self.form(value, prepared.form)))
    }

    /// The one target of a producer that writes one.
    fn target(&self, value: Value) -> Columns {
        let (plain, form) = self.targets(value);
        form.or(plain).unwrap_or_else(|| Columns::f32(self.cols(value), self.plain(value)))
    }

    fn count(&self, value: Value) -> u64 {
        self.view.count(self.graph.value(value).rows)
    }

    /// Conversions of a value to the forms that its producer did not write.
    fn convert(&self, value: Value, launches: &mut Vec<Launch>) {
        let forms = self.stored(value).forms.iter().filter(|prepared| !prepared.direct);
        launches.extend(forms.filter(|_| self.rows(value) > 0).map(|prepared| {
            elementwise::prepare(&self.map(value, value, self.form(value, prepared.form)))
        }));
    }

    /// An op from the f32 rows of `input` to `target`, with as many rows as `output`.
    fn map(&self, input: Value, output: Value, target: Columns) -> elementwise::Map {
        elementwise::Map {
            input: self.plain(input),
            cols: self.cols(input),
            rows: self.rows(output),
            count: self.count(output),
            target,
        }
    }

    fn vector(&self, weight: Weight) -> u64 {
        self.weights[weight.index()].vector()
    }

    fn node(&self, at: usize) -> Vec<Launch> {
        let op = &self.graph.nodes()[at].op;
        let rows = op.outputs().first().map_or(self.bucket.rows, |&output| self.rows(output));
        if rows == 0 {
            return Vec::new();
        }
        let unary = |input, output| self.map(input, output, self.target(output));
        let one = |launch: Launch| vec![launch];
        match op {
            Op::Embed(op) => {
                let table = &self.weights[op.table.index()];
                one(embed::embed(table, &self.view, rows, self.target(op.output)))
            }
            Op::Given(op) => {
                let map = self.map(op.output, op.output, self.target(op.output));
                one(elementwise::prepare(&elementwise::Map { input: self.given, ..map }))
            }
            Op::Linear(op) => self.linear(op),
            Op::GatedLinear(op) => self.gated_linear(at, op),
            Op::Glu(op) => {
                one(elementwise::glu(&unary(op.gate, op.output), self.plain(op.up), op.activation))
            }
            Op::RmsNorm(op) => one(self.rms_norm(op)),
            Op::LayerNorm(op) => one(elementwise::layer_norm(
                &unary(op.input, op.output),
                self.vector(op.weight),
                op.bias.map(|bias| self.vector(bias)),
                op.epsilon,
            )),
            Op::Rope(_) | Op::KvWrite(_) => one(self.rotate(at)),
            Op::Attention(op) => self.attention(op),
            Op::Add(op) => one(elementwise::add(&unary(op.left, op.output), self.plain(op.right))),
            Op::Scale(op) => one(elementwise::scale(&unary(op.input, op.output), op.factor)),
            Op::SoftCap(op) => one(elementwise::soft_cap(&unary(op.input, op.output), op.cap)),
            Op::GatherRows(op) => {
                one(elementwise::gather_rows(&unary(op.input, op.output), &self.view))
            }
            Op::Sample(_) if !self.bucket.samples => Vec::new(),
            Op::Sample(op) => {
                let (logits, vocabulary) = (self.plain(op.logits), self.cols(op.logits));
                one(sample::sample(logits, vocabulary, rows, &self.view, self.sampled))
            }
        }
    }

    fn rms_norm(&self, op: &RmsNorm) -> Launch {
        let (plain, form) = self.targets(op.output);
        let residual = op.residual.map(|residual| elementwise::Residual {
            addend: self.plain(residual.addend),
            sum: self.plain(residual.sum),
        });
        let first = form.or(plain).unwrap_or_else(|| self.target(op.output));
        elementwise::rms_norm(&elementwise::RmsNorm {
            map: self.map(op.input, op.output, first),
            second: form.and(plain),
            residual,
            weight: self.vector(op.weight),
            epsilon: op.epsilon,
            group: op.group,
        })
    }

    fn rotate(&self, at: usize) -> Launch {
        let rows = self.bucket.rows;
        let rotation = |op: &realm_core::graph::ops::Rope| rope::Rotation {
            input: self.plain(op.input),
            output: self.plain(op.output),
            heads: op.heads,
            head_dim: op.head_dim,
            pairs: op.pairs,
            frequencies: &self.ropes[op.rope.index()],
        };
        let nodes = self.graph.nodes();
        if let (Some([query, key]), Some(Op::KvWrite(write))) =
            (rotate_and_store(self.graph, at), nodes.get(at + 2).map(|node| &node.op))
        {
            let write = rope::Write {
                kv: self.kv,
                layer: write.layer,
                key: self.plain(key.input),
                value: self.plain(write.value),
            };
            return rope::rope_kv_write(&rotation(query), &write, &self.view, rows);
        }
        match &nodes[at].op {
            Op::KvWrite(op) => {
                let (key, value) = (self.plain(op.key), self.plain(op.value));
                let write = rope::Write { kv: self.kv, layer: op.layer, key, value };
                rope::kv_write(&write, &self.view, rows)
            }
            Op::Rope(op) => rope::rope(&rotation(op), &self.view, rows),
            other => unreachable!("{} is no rotation", other.name()),
        }
    }

    fn attention(&self, op: &Attention) -> Vec<Launch> {
        let (partials, partial_bytes) = self.partials;
        attention::attention(&attention::AttentionArgs {
            kv: self.kv,
            layer: op.layer,
            spec: &op.spec,
            query: self.plain(op.query),
            sinks: op.spec.sinks.map(|sinks| self.vector(sinks)),
            view: &self.view,
            rows: self.bucket.rows,
            splits: self.bucket.splits,
            total: self.bucket.all_splits,
            partials,
            partial_bytes,
            target: self.target(op.output),
        })
    }

    /// One launch for all weights of a format, up to as many as a launch takes.
    fn linear(&self, op: &Linear) -> Vec<Launch> {
        let mut launches = Vec::new();
        let mut left: Vec<_> = op.projections.iter().collect();
        while let Some(first) = left.first() {
            let dtype = self.graph.weight(first.weight).dtype;
            let (mut same, mut others) = (Vec::new(), Vec::new());
            for projection in left {
                let fits = self.graph.weight(projection.weight).dtype == dtype
                    && same.len() < matvec::SEGMENTS;
                if fits { &mut same } else { &mut others }.push(projection);
            }
            left = others;
            let segments: Vec<_> = same
                .iter()
                .map(|projection| matvec::Segment {
                    weight: &self.weights[projection.weight.index()],
                    bias: projection.bias.map(|bias| self.vector(bias)),
                    target: self.target(projection.output),
                })
                .collect();
            let input = self.form(op.input, matvec::input_form(dtype, self.precision));
            let (k, rows) = (self.cols(op.input), self.rows(op.input));
            launches.push(matvec::linear(&input, k, rows, self.count(op.input), &segments));
        }
        launches
    }

    fn gated_linear(&self, at: usize, op: &GatedLinear) -> Vec<Launch> {
        let half = |weight: Weight, bias: Option<Weight>| {
            (&*self.weights[weight.index()], bias.map(|bias| self.vector(bias)))
        };
        let (gate, up) = (half(op.gate, op.gate_bias), half(op.up, op.up_bias));
        let (k, rows, count) = (self.cols(op.input), self.rows(op.input), self.count(op.input));
        let input = |weight: Weight| {
            let dtype = self.graph.weight(weight).dtype;
            self.form(op.input, matvec::input_form(dtype, self.precision))
        };
        let target = self.target(op.output);
        let (true, input_of_both) = (one_kernel(self.graph, op), input(op.gate)) else {
            let halves = self.layout.halves[at].unwrap_or([0; 2]);
            let [left, right] = halves.map(|offset| self.arena + offset as u64);
            let cols = self.cols(op.output);
            let product = |weight, (planes, bias), to| {
                let target = Columns::f32(cols, to);
                let segment = matvec::Segment { weight: planes, bias, target };
                matvec::linear(&input(weight), k, rows, count, &[segment])
            };
            let map = elementwise::Map { input: left, cols, rows, count, target };
            return vec![
                product(op.gate, gate, left),
                product(op.up, up, right),
                elementwise::glu(&map, right, op.activation),
            ];
        };
        vec![matvec::gated(&input_of_both, k, rows, count, gate, up, op.activation, target)]
    }
}
