//! From the graph to launches.

use std::sync::Arc;

use realm_core::{
    DType, Graph,
    backend::{BackendError, Precision},
    graph::{
        Op, Rows, Value, Weight,
        ops::{Activation, Attention, GatedLinear, Linear, RmsNorm},
    },
};

use super::layout::{Layout, Stored, one_kernel, rotate_and_store};
use crate::cuda::{
    gpu::Launch,
    kernels::{
        attention, elementwise, embed, flash, matmul,
        matvec::{self, Segment},
        rope, sample,
    },
    kv::CudaKvPool,
    step::{Columns, Form, StepView},
    weights::CudaWeight,
};

/// Rows that run through the kernels for few rows, where the batch may choose the kernel.
const FEW_ROWS: usize = 8;

/// Sizes that launches are made for. A step of decoded rows runs in the smallest bucket that holds it; one
/// with prompts in it has its own. Its counts stand in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    pub(super) rows: usize,
    /// Of these, rows of prompts, the last ones.
    pub(super) prefill: usize,
    /// Prompts.
    pub(super) prompts: usize,
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
    /// Whether a row's role alone chooses its kernel.
    pub(super) invariant: bool,
    /// Where the arena starts.
    pub(super) arena: u64,
    /// Memory for partial results, and its bytes.
    pub(super) partials: (u64, usize),
    /// Counters of products whose k is split, 0 between launches.
    pub(super) counters: u64,
    /// Frequencies of each rope table.
    pub(super) ropes: &'a [rope::Frequencies],
    pub(super) view: StepView,
    /// Where the rows of a `Given` op lie.
    pub(super) given: u64,
    /// Where sampled tokens go.
    pub(super) sampled: u64,
    pub(super) bucket: Bucket,
}

/// Rows that one kind of kernel takes: from the first on where `first` is 0, else from the number at this
/// address on, up to the one at `end`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) rows: usize,
    pub(super) first: u64,
    pub(super) end: u64,
}

/// Whether attention of a prompt's rows has its own kernels in that precision.
pub(super) fn flash_in(precision: Precision) -> bool {
    precision != Precision::F32
}

/// A launch and the node that it belongs to.
pub(super) struct Stage {
    pub(super) node: usize,
    pub(super) launch: Launch,
}

impl Lowering<'_> {
    /// The launches of a step, in order.
    ///
    /// # Errors
    /// What the device says of their operands.
    pub(super) fn stages(&self) -> Result<Vec<Stage>, BackendError> {
        let mut stages = Vec::new();
        let mut at = 0;
        while at < self.graph.nodes().len() {
            let span = self.layout.spans[at];
            let mut launches = self.node(at)?;
            for node in &self.graph.nodes()[at..=span.last] {
                node.op.outputs().into_iter().for_each(|value| self.convert(value, &mut launches));
            }
            stages.extend(launches.into_iter().map(|launch| Stage { node: at, launch }));
            at = span.last + 1;
        }
        Ok(stages)
    }

    pub(super) fn rows(&self, value: Value) -> usize {
        match self.graph.value(value).rows {
            Rows::Tokens => self.bucket.rows,
            Rows::Outputs => self.bucket.outputs,
        }
    }

    pub(super) fn cols(&self, value: Value) -> usize {
        self.graph.value(value).cols
    }

    pub(super) fn stored(&self, value: Value) -> &Stored {
        &self.layout.values[value.index()]
    }

    /// Where the f32 rows of a value lie.
    pub(super) fn plain(&self, value: Value) -> u64 {
        self.arena + self.layout.plain(self.graph, value) as u64
    }

    /// A value in a form that has so many rows, slots, in each of its own.
    pub(super) fn form(&self, value: Value, form: Form, slots: usize) -> Columns {
        let cols = self.cols(value) / slots;
        let mut forms = self.stored(value).forms.iter();
        let found = forms.find(|prepared| (prepared.form, prepared.slots) == (form, slots));
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
        (plain, direct.map(|prepared| self.form(value, prepared.form, prepared.slots)))
    }

    /// The one target of a producer that writes one.
    pub(super) fn target(&self, value: Value) -> Columns {
        let (plain, form) = self.targets(value);
        form.or(plain).unwrap_or_else(|| Columns::f32(self.cols(value), self.plain(value)))
    }

    pub(super) fn count(&self, value: Value) -> u64 {
        self.view.count(self.graph.value(value).rows)
    }

    /// Conversions of a value to the forms that its producer did not write.
    fn convert(&self, value: Value, launches: &mut Vec<Launch>) {
        let forms = self.stored(value).forms.iter().filter(|prepared| !prepared.direct);
        launches.extend(forms.filter(|_| self.rows(value) > 0).map(|prepared| {
            let slots = prepared.slots;
            let map = self.map(value, value, self.form(value, prepared.form, slots));
            let (cols, rows) = (map.cols / slots, map.rows * slots);
            elementwise::prepare_slots(&elementwise::Map { cols, rows, ..map }, slots)
        }));
    }

    /// An op from the f32 rows of `input` to `target`, with as many rows as `output`.
    pub(super) fn map(&self, input: Value, output: Value, target: Columns) -> elementwise::Map {
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

    fn node(&self, at: usize) -> Result<Vec<Launch>, BackendError> {
        let op = &self.graph.nodes()[at].op;
        let rows = op.outputs().first().map_or(self.bucket.rows, |&output| self.rows(output));
        if rows == 0 {
            return Ok(Vec::new());
        }
        let unary = |input, output| self.map(input, output, self.target(output));
        let one = |launch: Launch| vec![launch];
        Ok(match op {
            Op::Embed(op) => {
                let table = &self.weights[op.table.index()];
                one(embed::embed(table, &self.view, rows, self.target(op.output)))
            }
            Op::Given(op) => {
                let map = self.map(op.output, op.output, self.target(op.output));
                one(elementwise::prepare(&elementwise::Map { input: self.given, ..map }))
            }
            Op::Linear(op) => self.linear(op)?,
            Op::GatedLinear(op) => self.gated_linear(at, op)?,
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
            Op::Attention(op) => self.attention(op)?,
            Op::Add(op) => one(elementwise::add(&unary(op.left, op.output), self.plain(op.right))),
            Op::Scale(op) => one(elementwise::scale(&unary(op.input, op.output), op.factor)),
            Op::SoftCap(op) => one(elementwise::soft_cap(&unary(op.input, op.output), op.cap)),
            Op::MoeRoute(op) => self.moe_route(op),
            Op::MoeGatedLinear(op) => self.moe_gated_linear(at, op)?,
            Op::MoeLinear(op) => self.moe_linear(at, op)?,
            Op::MoeSum(op) => one(self.moe_sum(op)),
            Op::GatherRows(op) => {
                one(elementwise::gather_rows(&unary(op.input, op.output), &self.view))
            }
            Op::Sample(_) if !self.bucket.samples => Vec::new(),
            Op::Sample(op) => {
                let (logits, vocabulary) = (self.plain(op.logits), self.cols(op.logits));
                one(sample::sample(logits, vocabulary, rows, &self.view, self.sampled))
            }
        })
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

    /// Decoded rows are cut along the sequence, those of prompts go through FlashAttention, where the
    /// precision has it.
    fn attention(&self, op: &Attention) -> Result<Vec<Launch>, BackendError> {
        let (partials, partial_bytes) = self.partials;
        let Bucket { rows, prefill, prompts, splits, all_splits, .. } = self.bucket;
        let (query, target) = (self.plain(op.query), self.target(op.output));
        let sinks = op.spec.sinks.map(|sinks| self.vector(sinks));
        let flash = flash_in(self.precision);
        let (cut, count) = match flash {
            true => (rows - prefill, self.view.decode_rows()),
            false => (rows, self.view.count(Rows::Tokens)),
        };
        let mut launches = Vec::new();
        if cut > 0 {
            launches = attention::attention(&attention::AttentionArgs {
                kv: self.kv,
                layer: op.layer,
                spec: &op.spec,
                query,
                sinks,
                view: &self.view,
                count,
                rows: cut,
                splits,
                total: all_splits,
                partials,
                partial_bytes,
                target,
            });
        }
        if flash && prefill > 0 {
            launches.push(flash::flash(&flash::FlashArgs {
                kv: self.kv,
                layer: op.layer,
                spec: &op.spec,
                query,
                sinks,
                view: &self.view,
                rows: prefill,
                sequences: prompts,
                precision: self.precision,
                target,
            })?);
        }
        Ok(launches)
    }

    /// The rows of a product's input that go through the kernels for few rows and through those for
    /// many: decoded ones and prompts', or, where the batch may choose, all of them through one.
    pub(super) fn shares(&self, input: Value, form: Form) -> [Share; 2] {
        let tokens = self.graph.value(input).rows == Rows::Tokens;
        let (rows, end) = (self.rows(input), self.count(input));
        let none = Share { rows: 0, first: 0, end };
        let all = Share { rows, ..none };
        if !matches!(form, Form::BF16 | Form::F16) {
            return [all, none];
        }
        if !self.invariant {
            return if rows > FEW_ROWS { [none, all] } else { [all, none] };
        }
        if !tokens {
            return [all, none];
        }
        let (prefill, first) = (self.bucket.prefill, self.view.decode_rows());
        let decoded = Share { rows: rows - prefill, first: 0, end: first };
        [decoded, Share { rows: prefill, first, end }]
    }

    /// The launches of a product of `input`, in its form for weights of that type.
    fn product(
        &self,
        input: Value,
        dtype: DType,
        segments: &[Segment<'_>],
        activation: Option<Activation>,
    ) -> Result<Vec<Launch>, BackendError> {
        let columns = self.form(input, matvec::input_form(dtype, self.precision), 1);
        let [few, many] = self.shares(input, columns.form());
        let k = self.cols(input);
        let mut launches = Vec::new();
        if few.rows > 0 {
            launches.push(matvec::product(&columns, k, few.rows, few.end, segments, activation));
        }
        if many.rows > 0 {
            launches.push(matmul::launch(&matmul::Matmul {
                input: &columns,
                input_rows: self.rows(input),
                k,
                rows: many.rows,
                first: many.first,
                end: many.end,
                segments,
                activation,
                invariant: self.invariant,
                scratch: self.scratch(),
            })?);
        }
        Ok(launches)
    }

    /// Memory of products whose k is split.
    pub(super) fn scratch(&self) -> matmul::Scratch {
        let (partials, bytes) = self.partials;
        matmul::Scratch { partials, bytes, counters: self.counters }
    }

    /// A gated product of node `at` as two products, each with a target of its own in f32, which
    /// `product` gets with the number of its half, and the activation.
    pub(super) fn halves(
        &self,
        at: usize,
        (input, output): (Value, Value),
        activation: Activation,
        product: impl Fn(usize, u64) -> Result<Vec<Launch>, BackendError>,
    ) -> Result<Vec<Launch>, BackendError> {
        let halves = self.layout.halves[at].unwrap_or([0; 2]);
        let [left, right] = halves.map(|offset| self.arena + offset as u64);
        let mut launches = product(0, left)?;
        launches.extend(product(1, right)?);
        let (cols, rows, count) = (self.cols(output), self.rows(input), self.count(input));
        let map = elementwise::Map { input: left, cols, rows, count, target: self.target(output) };
        launches.push(elementwise::glu(&map, right, activation));
        Ok(launches)
    }

    pub(super) fn segment(
        &self,
        weight: Weight,
        bias: Option<Weight>,
        target: Columns,
    ) -> Segment<'_> {
        let bias = bias.map(|bias| self.vector(bias));
        Segment { weight: &self.weights[weight.index()], bias, target }
    }

    /// One launch, or one for each share of the rows, for all weights of a format, up to as many as a
    /// launch takes.
    fn linear(&self, op: &Linear) -> Result<Vec<Launch>, BackendError> {
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
                .map(|it| self.segment(it.weight, it.bias, self.target(it.output)))
                .collect();
            launches.extend(self.product(op.input, dtype, &segments, None)?);
        }
        Ok(launches)
    }

    fn gated_linear(&self, at: usize, op: &GatedLinear) -> Result<Vec<Launch>, BackendError> {
        let dtype = |weight: Weight| self.graph.weight(weight).dtype;
        let halves = [(op.gate, op.gate_bias), (op.up, op.up_bias)];
        if one_kernel(self.graph, [op.gate, op.up]) {
            let target = self.target(op.output);
            let segments = halves.map(|(weight, bias)| self.segment(weight, bias, target));
            return self.product(op.input, dtype(op.gate), &segments, Some(op.activation));
        }
        let cols = self.cols(op.output);
        self.halves(at, (op.input, op.output), op.activation, |which, to| {
            let (weight, bias) = halves[which];
            let segments = [self.segment(weight, bias, Columns::f32(cols, to))];
            self.product(op.input, dtype(weight), &segments, None)
        })
    }
}
