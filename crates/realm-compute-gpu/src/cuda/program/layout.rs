//! Where activations lie: a plan over one arena, made from the graph before anything is loaded.
//!
//! A value is stored as f32 rows, as what a product reads (a [`Form`]), or both: its producer writes
//! what its readers want, so that no kernel runs only to convert. Where a producer cannot, a conversion
//! follows it.

use realm_core::{
    Graph,
    backend::{Limits, Precision},
    graph::{Op, Rows, Value, ops::Rope},
    plan::{Lifetime, pack},
};

use crate::cuda::{kernels::matvec::input_form, step::Form};

/// Alignment of everything in the arena.
const ALIGN: usize = 256;

/// A form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) form: Form,
    /// Offset of the elements.
    pub(super) data: usize,
    /// Offset of the scales of [`Form::Int8`].
    pub(super) scales: usize,
    /// Written by the value's producer; else by a conversion after it.
    pub(super) direct: bool,
}

/// Where a value is stored.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    /// Offset of its f32 rows, or its token ids.
    pub(super) plain: Option<usize>,
    pub(super) forms: Vec<Prepared>,
}

/// Several nodes that one launch computes, or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) last: usize,
}

/// The plan.
#[derive(Debug)]
pub(super) struct Layout {
    /// A value each.
    pub(super) values: Vec<Stored>,
    /// For each node the offsets of two f32 results of a gated product whose weights differ in format.
    pub(super) halves: Vec<Option<[usize; 2]>>,
    /// A node each.
    pub(super) spans: Vec<Span>,
    /// Size of the arena.
    pub(super) bytes: usize,
}

/// What the readers of a value want, with the last of them.
#[derive(Debug, Clone, Default)]
struct Demand {
    plain: Option<usize>,
    forms: Vec<(Form, usize)>,
}

impl Demand {
    fn plain(&mut self, at: usize) {
        self.plain = Some(self.plain.map_or(at, |last| last.max(at)));
    }

    fn form(&mut self, form: Form, at: usize) {
        if form == Form::F32 {
            return self.plain(at);
        }
        match self.forms.iter_mut().find(|(known, _)| *known == form) {
            Some((_, last)) => *last = (*last).max(at),
            None => self.forms.push((form, at)),
        }
    }
}

/// The two rotations and the cache write at `nodes[at..at + 3]` that one kernel can do: query first.
pub(super) fn rotate_and_store(graph: &Graph, at: usize) -> Option<[&Rope; 2]> {
    let nodes = graph.nodes().get(at..at + 3)?;
    let (Op::Rope(one), Op::Rope(two), Op::KvWrite(write)) =
        (&nodes[0].op, &nodes[1].op, &nodes[2].op)
    else {
        return None;
    };
    let (query, key) = if write.key == two.output { (one, two) } else { (two, one) };
    let alike = key.output == write.key
        && (query.rope, query.pairs, query.head_dim) == (key.rope, key.pairs, key.head_dim)
        && query.output != write.value;
    let readers = graph.nodes().iter().flat_map(|node| node.op.inputs());
    let alone = readers.filter(|&value| value == key.output).count() == 1;
    (alike && alone && graph.logits() != key.output).then_some([query, key])
}

fn spans(graph: &Graph) -> Vec<Span> {
    let mut spans = Vec::with_capacity(graph.nodes().len());
    while spans.len() < graph.nodes().len() {
        let first = spans.len();
        let nodes = if rotate_and_store(graph, first).is_some() { 3 } else { 1 };
        spans.extend((0..nodes).map(|_| Span { first, last: first + nodes - 1 }));
    }
    spans
}

fn demands(graph: &Graph, spans: &[Span], precision: Precision) -> Vec<Demand> {
    let mut demands = vec![Demand::default(); graph.values().len()];
    let form = |weight| input_form(graph.weight(weight).dtype, precision);
    for (node, span) in graph.nodes().iter().zip(spans) {
        let mut wants = |value: Value, form| demands[value.index()].form(form, span.last);
        match &node.op {
            Op::Linear(op) => {
                op.projections.iter().for_each(|p| wants(op.input, form(p.weight)));
            }
            Op::GatedLinear(op) => {
                [op.gate, op.up].into_iter().for_each(|weight| wants(op.input, form(weight)));
            }
            op => op.inputs().into_iter().for_each(|value| wants(value, Form::F32)),
        }
    }
    // Results are read after the last node.
    for value in std::iter::once(graph.logits()).chain(graph.sampled()) {
        demands[value.index()].plain(graph.nodes().len());
    }
    demands
}

/// Whether two weights of a gated product go through one kernel.
pub(super) fn one_kernel(graph: &Graph, op: &realm_core::graph::ops::GatedLinear) -> bool {
    graph.weight(op.gate).dtype == graph.weight(op.up).dtype
}

/// Rows that a value may have.
pub(super) fn most_rows(graph: &Graph, value: Value, limits: &Limits) -> usize {
    match graph.value(value).rows {
        Rows::Tokens => limits.tokens,
        Rows::Outputs => limits.outputs,
    }
}

/// Items of the arena, and where their offsets are to be written.
#[derive(Default)]
struct Items {
    lifetimes: Vec<Lifetime>,
}

impl Items {
    fn add(&mut self, bytes: usize, first: usize, last: usize) -> usize {
        let bytes = bytes.max(1).next_multiple_of(ALIGN);
        self.lifetimes.push(Lifetime { first, last, bytes });
        self.lifetimes.len() - 1
    }
}

impl Layout {
    /// Where a value's f32 rows lie.
    ///
    /// # Panics
    /// Where a value is read so and no reader was planned: a mistake of this module.
    pub(super) fn plain(&self, graph: &Graph, value: Value) -> usize {
        let plain = self.values[value.index()].plain;
        plain.unwrap_or_else(|| panic!("{} is not kept as f32 rows", graph.value(value).name))
    }

    /// Plans `graph` for steps within `limits`. `precision` is not `Auto`.
    pub(super) fn new(graph: &Graph, limits: &Limits, precision: Precision) -> Self {
        let spans = spans(graph);
        let demands = demands(graph, &spans, precision);
        let mut values = vec![Stored::default(); graph.values().len()];
        let mut halves: Vec<Option<[usize; 2]>> = vec![None; graph.nodes().len()];
        let mut items = Items::default();
        for ((at, node), span) in graph.nodes().iter().enumerate().zip(&spans) {
            for value in node.op.outputs() {
                let (demand, cols) = (&demands[value.index()], graph.value(value).cols);
                let rows = most_rows(graph, value, limits);
                let targets = targets(&node.op, value);
                values[value.index()] = store(&mut items, targets, demand, span, [rows, cols]);
            }
            if let Op::GatedLinear(op) = &node.op
                && !one_kernel(graph, op)
            {
                let bytes = most_rows(graph, op.output, limits) * graph.value(op.output).cols * 4;
                halves[at] = Some([0; 2].map(|_| items.add(bytes, span.first, span.last)));
            }
        }
        let (offsets, bytes) = pack(&items.lifetimes);
        for stored in &mut values {
            stored.plain = stored.plain.map(|item| offsets[item]);
            for form in &mut stored.forms {
                (form.data, form.scales) = (offsets[form.data], offsets[form.scales]);
            }
        }
        for half in halves.iter_mut().flatten() {
            *half = half.map(|item| offsets[item]);
        }
        Self { values, halves, spans, bytes }
    }
}

/// In how many ways a node's kernel can write one of its results, besides plain f32 rows where 0.
fn targets(op: &Op, value: Value) -> usize {
    match op {
        Op::Given(_) | Op::Sample(_) | Op::Rope(_) => 0,
        Op::RmsNorm(op) if op.output == value => 2,
        Op::RmsNorm(_) => 0,
        _ => 1,
    }
}

/// Decides how a value is stored; offsets are numbers of items until the arena is packed.
fn store(
    items: &mut Items,
    targets: usize,
    demand: &Demand,
    span: &Span,
    [rows, cols]: [usize; 2],
) -> Stored {
    // Int8 needs a whole block of columns at once, which only the conversion has.
    let first = demand.forms.iter().map(|&(form, _)| form).find(|&form| form != Form::Int8);
    let others = demand.forms.len() > 1 || demand.plain.is_some();
    let direct = first.filter(|_| targets == 2 || (targets == 1 && !others));
    let converted = demand.forms.iter().any(|&(form, _)| Some(form) != direct);
    let forms = demand.forms.iter().map(|&(form, last)| {
        let data = items.add(form.data_bytes(rows, cols), span.first, last);
        let scales = match form.scale_bytes(rows, cols) {
            0 => data,
            bytes => items.add(bytes, span.first, last),
        };
        Prepared { form, data, scales, direct: Some(form) == direct }
    });
    let forms = forms.collect();
    // A value that nobody reads is still written.
    let unread = demand.forms.is_empty() && demand.plain.is_none();
    let last = demand.plain.or((converted || unread).then_some(span.last));
    let plain = last.map(|last| items.add(rows * cols * 4, span.first, last.max(span.last)));
    Stored { plain, forms }
}

#[cfg(test)]
mod tests;
