//! Building a graph: one method an op, shapes of the results inferred.

use super::ops::*;
use super::{
    Element, Graph, GraphError, KvLayer, Node, RopeId, Rows, Value, ValueInfo, Weight, WeightInfo,
};
use crate::rope::RopeFrequencies;

/// Collects the ops of a model. Shapes are checked as a whole by [`GraphBuilder::finish`].
#[derive(Debug, Default)]
pub struct GraphBuilder {
    nodes: Vec<Node>,
    values: Vec<ValueInfo>,
    weights: Vec<WeightInfo>,
    ropes: Vec<RopeFrequencies>,
    kv: Vec<KvLayer>,
    layer: Option<usize>,
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nodes built from now on belong to this layer.
    pub fn layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// Declares a weight; the same name gives the same weight.
    pub fn weight(&mut self, info: WeightInfo) -> Weight {
        let at = self.weights.iter().position(|known| known.name == info.name);
        let at = at.unwrap_or_else(|| {
            self.weights.push(info);
            self.weights.len() - 1
        });
        Weight(at as u32)
    }

    /// Declares a rope table.
    pub fn rope_table(&mut self, frequencies: RopeFrequencies) -> RopeId {
        self.ropes.push(frequencies);
        RopeId(self.ropes.len() as u32 - 1)
    }

    /// Declares the next layer of the KV cache and gives its number.
    pub fn kv_layer(&mut self, layer: KvLayer) -> usize {
        self.kv.push(layer);
        self.kv.len() - 1
    }

    /// Elements in a row of a value: what a product of it takes as inputs.
    pub fn cols(&self, value: Value) -> usize {
        self.values[value.index()].cols
    }

    fn value(&mut self, name: String, rows: Rows, cols: usize, element: Element) -> Value {
        self.values.push(ValueInfo { name, rows, cols, element });
        Value(self.values.len() as u32 - 1)
    }

    /// A new value shaped like `of`.
    fn like(&mut self, of: Value, suffix: &str) -> Value {
        let ValueInfo { name, rows, cols, element } = self.values[of.index()].clone();
        self.value(format!("{name}.{suffix}"), rows, cols, element)
    }

    fn push(&mut self, op: impl Into<Op>) {
        self.nodes.push(Node { op: op.into(), layer: self.layer });
    }

    fn named(&self, weight: Weight) -> String {
        self.weights[weight.index()].name.trim_end_matches(".weight").to_owned()
    }

    /// Embeddings of the step's tokens: `[tokens, cols]`.
    pub fn embed(&mut self, table: Weight) -> Value {
        let cols = self.weights[table.index()].cols;
        let output = self.value(self.named(table), Rows::Tokens, cols, Element::F32);
        self.push(Embed { table, output });
        output
    }

    /// The rows that the host hands over: `[tokens, cols]`.
    pub fn given(&mut self, name: impl Into<String>, cols: usize) -> Value {
        let output = self.value(name.into(), Rows::Tokens, cols, Element::F32);
        self.push(Given { output });
        output
    }

    /// `input · weightᵀ + bias`.
    pub fn linear(&mut self, input: Value, weight: Weight, bias: Option<Weight>) -> Value {
        let (rows, cols) = (self.values[input.index()].rows, self.weights[weight.index()].rows);
        let output = self.value(self.named(weight), rows, cols, Element::F32);
        self.push(Linear { input, projections: vec![Projection { weight, bias, output }] });
        output
    }

    /// `activation(gate) · up`.
    pub fn glu(&mut self, gate: Value, up: Value, activation: Activation) -> Value {
        let output = self.like(gate, "glu");
        self.push(Glu { gate, up, activation, output });
        output
    }

    /// RMS norm of whole rows.
    pub fn rms_norm(&mut self, input: Value, weight: Weight, epsilon: f32) -> Value {
        let group = self.values[input.index()].cols;
        self.rms_norm_groups(input, weight, epsilon, group)
    }

    /// RMS norm of groups of elements, such as heads.
    pub fn rms_norm_groups(
        &mut self,
        input: Value,
        weight: Weight,
        epsilon: f32,
        group: usize,
    ) -> Value {
        let output = self.like(input, "norm");
        self.push(RmsNorm { input, residual: None, weight, epsilon, group, output });
        output
    }

    /// Layer norm of whole rows.
    pub fn layer_norm(
        &mut self,
        input: Value,
        weight: Weight,
        bias: Option<Weight>,
        epsilon: f32,
    ) -> Value {
        let output = self.like(input, "norm");
        self.push(LayerNorm { input, weight, bias, epsilon, output });
        output
    }

    /// Rotates the heads of `input` by their rows' positions.
    pub fn rope(
        &mut self,
        input: Value,
        heads: usize,
        head_dim: usize,
        pairs: RopePairs,
        rope: RopeId,
    ) -> Value {
        let output = self.like(input, "rope");
        self.push(Rope { input, heads, head_dim, pairs, rope, output });
        output
    }

    /// Stores keys and values in the cache.
    pub fn kv_write(&mut self, layer: usize, key: Value, value: Value) {
        self.push(KvWrite { layer, key, value });
    }

    /// Attention of `query` over a layer's cache.
    pub fn attention(&mut self, layer: usize, query: Value, spec: AttentionSpec) -> Value {
        let output = self.like(query, "attention");
        self.push(Attention { layer, query, spec, output });
        output
    }

    /// `left + right`.
    pub fn add(&mut self, left: Value, right: Value) -> Value {
        let output = self.like(left, "add");
        self.push(Add { left, right, output });
        output
    }

    /// `factor · input`.
    pub fn scale(&mut self, input: Value, factor: f32) -> Value {
        let output = self.like(input, "scale");
        self.push(Scale { input, factor, output });
        output
    }

    /// `cap · tanh(input / cap)`.
    pub fn soft_cap(&mut self, input: Value, cap: f32) -> Value {
        let output = self.like(input, "softcap");
        self.push(SoftCap { input, cap, output });
        output
    }

    /// Each row's `used` experts, and their weights: `[rows, used]` both.
    pub fn moe_route(&mut self, logits: Value, used: usize, normalized: bool) -> [Value; 2] {
        let ValueInfo { name, rows, .. } = self.values[logits.index()].clone();
        let experts = self.value(format!("{name}.experts"), rows, used, Element::U32);
        let weights = self.value(format!("{name}.weights"), rows, used, Element::F32);
        self.push(MoeRoute { logits, normalized, experts, weights });
        [experts, weights]
    }

    /// The gated products of `input` with the chosen ones of `count` experts: `[rows, used · n]`.
    pub fn moe_gated_linear(
        &mut self,
        input: Value,
        (experts, count): (Value, usize),
        [gate, up]: [Weight; 2],
        activation: Activation,
    ) -> Value {
        let output = self.slots(experts, count, gate);
        self.push(MoeGatedLinear { input, experts, gate, up, activation, output });
        output
    }

    /// The products of each slot with its one of `count` experts: `[rows, used · n]`.
    pub fn moe_linear(
        &mut self,
        input: Value,
        (experts, count): (Value, usize),
        weight: Weight,
    ) -> Value {
        let output = self.slots(experts, count, weight);
        self.push(MoeLinear { input, experts, weight, output });
        output
    }

    /// A value with a slot for each chosen expert of a row.
    fn slots(&mut self, experts: Value, count: usize, weight: Weight) -> Value {
        let ValueInfo { rows, cols: used, .. } = self.values[experts.index()];
        let n = self.weights[weight.index()].rows.checked_div(count).unwrap_or(0);
        self.value(self.named(weight), rows, used.saturating_mul(n), Element::F32)
    }

    /// The weighted sum of a row's slots: `[rows, n]`.
    pub fn moe_sum(&mut self, input: Value, weights: Value) -> Value {
        let ValueInfo { name, rows, cols, element } = self.values[input.index()].clone();
        let used = self.values[weights.index()].cols;
        let n = cols.checked_div(used).unwrap_or(0);
        let output = self.value(format!("{name}.sum"), rows, n, element);
        self.push(MoeSum { input, weights, output });
        output
    }

    /// The rows whose logits are wanted.
    pub fn gather_rows(&mut self, input: Value) -> Value {
        let ValueInfo { name, cols, element, .. } = self.values[input.index()].clone();
        let output = self.value(format!("{name}.rows"), Rows::Outputs, cols, element);
        self.push(GatherRows { input, output });
        output
    }

    /// The next token of each row of `logits`.
    pub fn sample(&mut self, logits: Value) -> Value {
        let output = self.value("sampled".into(), Rows::Outputs, 1, Element::U32);
        self.push(Sample { logits, output });
        output
    }

    /// Checks all shapes and closes the graph.
    ///
    /// # Errors
    /// The first op whose shapes do not fit, by name.
    pub fn finish(self, logits: Value) -> Result<Graph, GraphError> {
        let Self { nodes, values, weights, ropes, kv, layer: _ } = self;
        let graph = Graph { nodes, values, weights, ropes, kv, logits };
        graph.validate()?;
        Ok(graph)
    }
}
