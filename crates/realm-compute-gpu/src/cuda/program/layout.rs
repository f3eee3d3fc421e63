//! Where activations lie: a plan over one arena, made from the graph before anything is loaded.
//!
//! A value is stored as f32 rows, as what a product reads (a [`Form`]), or both: its producer writes
//! what its readers want, so that no kernel runs only to convert. Where a producer cannot, a conversion
//! follows it.

use realm_core::{
    Graph,
    backend::{Limits, Precision},
    graph::{Op, Rows, Value, Weight, ops::Rope},
    plan::{Lifetime, pack},
};

use super::mixture::Mixtures;
use crate::cuda::{kernels::matvec::input_form, step::Form};

/// Alignment of everything in the arena.
const ALIGN: usize = 256;

/// A form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) form: Form,
    /// Rows of the form in one of the value: slots of a mixture of experts, else 1.
    pub(super) slots: usize,
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
    /// What products of many rows with chosen experts need.
    pub(super) mixtures: Mixtures,
    /// A node each.
    pub(super) spans: Vec<Span>,
    /// Size of the arena.
    pub(super) bytes: usize,
}

/// What the readers of a value want, with the last of them.
#[derive(Debug, Clone, Default)]
struct Demand {
    plain: Option<usize>,
    /// Forms and their slots.
    forms: Vec<((Form, usize), usize)>,
}

impl Demand {
    fn plain(&mut self, at: usize) {
        self.plain = Some(self.plain.map_or(at, |last| last.max(at)));
    }

    fn form(&mut self, form: Form, slots: usize, at: usize) {
        if form == Form::F32 {
            return self.plain(at);
        }
        match self.forms.iter_mut().find(|(known, _)| *known == (form, slots)) {
            Some((_, last)) => *last = (*last).max(at),
            None => self.forms.push(((form, slots), at)),
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
        let mut wants = |value: Value, form| demands[value.index()].form(form, 1, span.last);
        match &node.op {
            Op::Linear(op) => {
                op.projections.iter().for_each(|p| wants(op.input, form(p.weight)));
            }
            Op::GatedLinear(op) => {
                [op.gate, op.up].into_iter().for_each(|weight| wants(op.input, form(weight)));
            }
            Op::MoeGatedLinear(op) => {
                [op.gate, op.up].into_iter().for_each(|weight| wants(op.input, form(weight)));
                wants(op.experts, Form::F32);
            }
            Op::MoeLinear(op) => {
                wants(op.experts, Form::F32);
                let slots = graph.value(op.experts).cols;
                demands[op.input.index()].form(form(op.weight), slots, span.last);
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
pub(super) fn one_kernel(graph: &Graph, [gate, up]: [Weight; 2]) -> bool {
    graph.weight(gate).dtype == graph.weight(up).dtype
}

/// The result of a gated product whose weights have no kernel together.
fn needs_halves(graph: &Graph, op: &Op) -> Option<Value> {
    let (weights, output) = match op {
        Op::GatedLinear(op) => ([op.gate, op.up], op.output),
        Op::MoeGatedLinear(op) => ([op.gate, op.up], op.output),
        _ => return None,
    };
    (!one_kernel(graph, weights)).then_some(output)
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
pub(super) struct Items {
    lifetimes: Vec<Lifetime>,
}

impl Items {
    pub(super) fn add(&mut self, bytes: usize, first: usize, last: usize) -> usize {
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
                let targets = targets(graph, &node.op, value);
                values[value.index()] = store(&mut items, targets, demand, span, [rows, cols]);
            }
            if let Some(output) = needs_halves(graph, &node.op) {
                let bytes = most_rows(graph, output, limits) * graph.value(output).cols * 4;
                halves[at] = Some([0; 2].map(|_| items.add(bytes, span.first, span.last)));
            }
        }
        let mut mixtures = Mixtures::new(graph, limits, precision, &spans, &mut items);
        let (offsets, bytes) = pack(&items.lifetimes);
        mixtures.place(&offsets);
        for stored in &mut values {
            stored.plain = stored.plain.map(|item| offsets[item]);
            for form in &mut stored.forms {
                (form.data, form.scales) = (offsets[form.data], offsets[form.scales]);
            }
        }
        for half in halves.iter_mut().flatten() {
            *half = half.map(|item| offsets[item]);
        }
        Self { values, halves, mixtures, spans, bytes }
    }
}

/// In how many ways a node's kernel can write one of its results, besides plain f32 rows where 0, and in
/// how many slots a row.
fn targets(graph: &Graph, op: &Op, value: Value) -> (usize, usize) {
    let slots = |experts: Value| graph.value(experts).cols;
    match op {
        Op::Given(_) | Op::Sample(_) | Op::Rope(_) | Op::MoeRoute(_) => (0, 1),
        Op::RmsNorm(op) if op.output == value => (2, 1),
        Op::RmsNorm(_) => (0, 1),
        Op::MoeGatedLinear(op) if one_kernel(graph, [op.gate, op.up]) => (1, slots(op.experts)),
        Op::MoeLinear(op) => (1, slots(op.experts)),
        _ => (1, 1),
    }
}

/// Decides how a value is stored; offsets are numbers of items until the arena is packed.
fn store(
    items: &mut Items,
    (targets, slots): (usize, usize),
    demand: &Demand,
    span: &Span,
    [rows, cols]: [usize; 2],
) -> Stored {
    // Int8 needs a whole block of columns at once, which only the conversion has.
    let forms = demand.forms.iter().map(|&(form, _)| form);
    let first = forms.clone().find(|&form| form.0 != Form::Int8 && form.1 == slots);
    let others = demand.forms.len() > 1 || demand.plain.is_some();
    let direct = first.filter(|_| targets == 2 || (targets == 1 && !others));
    let converted = forms.clone().any(|form| Some(form) != direct);
    let forms = demand.forms.iter().map(|&((form, slots), last)| {
        let (rows, cols) = (rows * slots, cols / slots);
        let data = items.add(form.data_bytes(rows, cols), span.first, last);
        let scales = match form.scale_bytes(rows, cols) {
            0 => data,
            bytes => items.add(bytes, span.first, last),
        };
        Prepared { form, slots, data, scales, direct: Some((form, slots)) == direct }
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
