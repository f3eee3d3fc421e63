//! Mixtures of experts. Rows that the kernels for few rows take are multiplied slot by slot; those for
//! many rows have their slots ordered by expert first, their inputs gathered in this order, and put each
//! result where its slot is.

use realm_core::{
    Graph,
    backend::{BackendError, Limits, Precision},
    graph::{
        Mixture, Op, Value, Weight,
        ops::{Activation, MoeGatedLinear, MoeLinear, MoeRoute, MoeSum},
    },
};

use super::{
    layout::{Items, Span, most_rows, one_kernel},
    lower::{Lowering, Share},
};
use crate::cuda::{
    gpu::Launch,
    kernels::{
        elementwise, matmul,
        matvec::{self, Segment, input_form},
        moe,
    },
    step::{Columns, Form},
};

/// A product with chosen experts.
#[derive(Clone, Copy)]
struct Product {
    input: Value,
    experts: Value,
    /// One of the product's weights.
    weight: Weight,
    output: Value,
    /// Whether the input has a row a slot.
    own_input: bool,
}

impl Product {
    fn of(op: &Op) -> Option<Self> {
        match op {
            Op::MoeGatedLinear(op) => Some(op.into()),
            Op::MoeLinear(op) => Some(op.into()),
            _ => None,
        }
    }

    fn mixture(&self, graph: &Graph) -> Mixture {
        graph.mixture(self.experts, self.output, self.weight)
    }
}

impl From<&MoeGatedLinear> for Product {
    fn from(op: &MoeGatedLinear) -> Self {
        let &MoeGatedLinear { input, experts, gate, output, .. } = op;
        Self { input, experts, weight: gate, output, own_input: false }
    }
}

impl From<&MoeLinear> for Product {
    fn from(op: &MoeLinear) -> Self {
        let &MoeLinear { input, experts, weight, output } = op;
        Self { input, experts, weight, output, own_input: true }
    }
}

/// What products of many rows read; f32 where the precision has none.
fn many_form(precision: Precision) -> Form {
    match precision {
        Precision::BF16 => Form::BF16,
        Precision::F16 => Form::F16,
        _ => Form::F32,
    }
}

/// Where slots ordered by expert lie in the arena.
#[derive(Debug)]
pub(super) struct Mixtures {
    /// For each value of chosen experts: where each expert's slots start, and the slots' numbers.
    pub(super) groups: Vec<Option<[usize; 2]>>,
    /// For each node its input's rows.
    pub(super) gathered: Vec<Option<usize>>,
}

impl Mixtures {
    /// Offsets are numbers of items until [`Mixtures::place`].
    pub(super) fn new(
        graph: &Graph,
        limits: &Limits,
        precision: Precision,
        spans: &[Span],
        items: &mut Items,
    ) -> Self {
        let mut groups = vec![None; graph.values().len()];
        let mut gathered = vec![None; graph.nodes().len()];
        if many_form(precision) == Form::F32 {
            return Self { groups, gathered };
        }
        let products = |at: usize| Product::of(&graph.nodes()[at].op);
        for (at, node) in graph.nodes().iter().enumerate() {
            if let Some(product) = products(at) {
                let Mixture { used, .. } = product.mixture(graph);
                let slots = most_rows(graph, product.input, limits) * used;
                let k = graph.weight(product.weight).cols;
                let bytes = many_form(precision).data_bytes(slots, k);
                gathered[at] = Some(items.add(bytes, spans[at].first, spans[at].last));
            }
            let Op::MoeRoute(op) = &node.op else { continue };
            let reads =
                |reader: &usize| products(*reader).is_some_and(|it| it.experts == op.experts);
            let Some(last) = (at..graph.nodes().len()).rev().find(reads) else { continue };
            let experts = graph.value(op.logits).cols;
            let slots = most_rows(graph, op.experts, limits) * graph.value(op.experts).cols;
            let sizes = [experts + 1, slots].map(|words| 4 * words);
            groups[op.experts.index()] =
                Some(sizes.map(|bytes| items.add(bytes, spans[at].first, spans[last].last)));
        }
        Self { groups, gathered }
    }

    /// Makes offsets of numbers of items.
    pub(super) fn place(&mut self, offsets: &[usize]) {
        for groups in self.groups.iter_mut().flatten() {
            *groups = groups.map(|item| offsets[item]);
        }
        for gathered in self.gathered.iter_mut().flatten() {
            *gathered = offsets[*gathered];
        }
    }
}

impl Lowering<'_> {
    /// The choice, and the order of slots, where there are rows that need it.
    pub(super) fn moe_route(&self, op: &MoeRoute) -> Vec<Launch> {
        let chosen = self.plain(op.experts);
        let mut launches = vec![moe::route(&moe::Route {
            logits: self.plain(op.logits),
            rows: self.rows(op.logits),
            count: self.count(op.logits),
            experts: chosen,
            weights: self.plain(op.weights),
            all: self.cols(op.logits),
            used: self.cols(op.experts),
            normalized: op.normalized,
        })];
        let [_, many] = self.shares(op.experts, many_form(self.precision));
        let groups = self.groups(op.experts, self.cols(op.logits), &many);
        launches.extend(groups.filter(|_| many.rows > 0).map(|it| moe::group(&it, chosen)));
        launches
    }

    /// The order of slots of a share of the rows.
    fn groups(&self, experts: Value, count: usize, share: &Share) -> Option<moe::Groups> {
        let places = self.layout.mixtures.groups[experts.index()]?;
        let [starts, order] = places.map(|offset| self.arena + offset as u64);
        let (used, &Share { first, end, .. }) = (self.cols(experts), share);
        Some(moe::Groups { first, end, used, experts: count, starts, order })
    }

    /// The launches of a product of node `at`.
    fn mixture_product(
        &self,
        at: usize,
        product: &Product,
        segments: &[Segment<'_>],
        activation: Option<Activation>,
    ) -> Result<Vec<Launch>, BackendError> {
        let &Product { input, experts, own_input, .. } = product;
        let Mixture { count, used, .. } = product.mixture(self.graph);
        let info = self.graph.weight(product.weight);
        let (form, k) = (input_form(info.dtype, self.precision), info.cols);
        let columns = self.form(input, form, if own_input { used } else { 1 });
        let [few, many] = self.shares(input, form);
        let mut launches = Vec::new();
        if few.rows > 0 {
            let slots = matvec::Slots { experts: self.plain(experts), count, used, own_input };
            let (rows, end) = (few.rows, few.end);
            launches.push(matvec::mixture(&columns, k, rows, end, segments, activation, &slots));
        }
        if let Some(offset) = self.layout.mixtures.gathered[at]
            && let Some(groups) = self.groups(experts, count, &many)
            && many.rows > 0
        {
            let sorted = Columns::new(form, k, self.arena + offset as u64, 0);
            launches.push(moe::gather(&groups, many.rows, &columns, own_input, &sorted));
            let product = matmul::Matmul {
                input: &sorted,
                input_rows: self.rows(input) * used,
                k,
                rows: many.rows * used,
                first: many.first,
                end: many.end,
                segments,
                activation,
                invariant: self.invariant,
                scratch: self.scratch(),
            };
            let experts = matmul::Experts { count, starts: groups.starts, order: groups.order };
            launches.push(matmul::grouped(&product, experts)?);
        }
        Ok(launches)
    }

    /// Rows of a slot each: the form that its readers want, or f32.
    fn slots_target(&self, value: Value, used: usize) -> Columns {
        let direct = self.stored(value).forms.iter().find(|prepared| prepared.direct);
        match direct {
            Some(prepared) => self.form(value, prepared.form, used),
            None => Columns::f32(self.cols(value) / used, self.plain(value)),
        }
    }

    pub(super) fn moe_gated_linear(
        &self,
        at: usize,
        op: &MoeGatedLinear,
    ) -> Result<Vec<Launch>, BackendError> {
        let (product, activation) = (Product::from(op), op.activation);
        let used = self.cols(op.experts);
        let weights = [op.gate, op.up];
        if one_kernel(self.graph, weights) {
            let target = self.slots_target(op.output, used);
            let segments = weights.map(|weight| self.segment(weight, None, target));
            return self.mixture_product(at, &product, &segments, Some(activation));
        }
        let cols = self.cols(op.output) / used;
        self.halves(at, (op.input, op.output), activation, |which, to| {
            let weight = weights[which];
            let segment = self.segment(weight, None, Columns::f32(cols, to));
            self.mixture_product(at, &Product { weight, ..product }, &[segment], None)
        })
    }

    pub(super) fn moe_linear(
        &self,
        at: usize,
        op: &MoeLinear,
    ) -> Result<Vec<Launch>, BackendError> {
        let target = self.slots_target(op.output, self.cols(op.experts));
        let segment = self.segment(op.weight, None, target);
        self.mixture_product(at, &op.into(), &[segment], None)
    }

    pub(super) fn moe_sum(&self, op: &MoeSum) -> Launch {
        let map = self.map(op.input, op.output, self.target(op.output));
        let map = elementwise::Map { cols: self.cols(op.output), ..map };
        moe::sum(&map, self.plain(op.weights), self.cols(op.weights))
    }
}
