//! The graph: what a model computes for one step, as a few ops over ragged batches.
//!
//! Values are in single-assignment form: each is written by one node, in the order of
//! [`Graph::nodes`]. Their row count stays symbolic ([`Rows`]): a graph is built once a model and
//! run with any number of tokens up to the limits it was compiled for.

mod builder;
mod mermaid;
pub mod ops;
mod validate;

pub use builder::GraphBuilder;
pub use ops::Op;
pub use validate::GraphError;

use crate::{DType, rope::RopeFrequencies};

/// An activation: the identity of one value of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

impl Value {
    /// Position in [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A weight: the identity of one named tensor of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight(pub(crate) u32);

impl Weight {
    /// Position in [`Graph::weights`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How many rows a value has; known only when a step is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rows {
    /// A row for each token of the step.
    Tokens,
    /// A row for each token whose logits are wanted.
    Outputs,
}

/// What a value's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// Activations. A backend may hold them in a narrower type where its precision says so.
    F32,
    /// Token ids.
    U32,
}

/// Name and shape `[rows, cols]` of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueInfo {
    /// Where it comes from, for people: `blk.3.attn_q`.
    pub name: String,
    /// Symbolic number of rows.
    pub rows: Rows,
    /// Elements a row.
    pub cols: usize,
    /// Element type.
    pub element: Element,
}

/// Name, shape and storage type of a weight, rows × cols, row-major. A vector has one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightInfo {
    /// The tensor's name in the model file; of a part of a tensor, what the model calls it.
    pub name: String,
    /// Outputs of a product; entries of an embedding table; 1 for a vector.
    pub rows: usize,
    /// Inputs of a product: the contiguous dimension.
    pub cols: usize,
    /// How it is stored.
    pub dtype: DType,
}

impl WeightInfo {
    /// Size in bytes; `None` where a row is no whole number of blocks.
    pub fn bytes(&self) -> Option<usize> {
        self.dtype.row_bytes(self.cols)?.checked_mul(self.rows)
    }
}

/// Shape of one layer's part of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvLayer {
    /// Key/value heads.
    pub heads: usize,
    /// Elements of a key and of a value, for one head.
    pub head_dim: usize,
}

/// One op and where it belongs.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// The layer it was built for; `None` for what stands before and after the layers.
    pub layer: Option<usize>,
}

/// Sizes of a product with chosen experts: [`ops::MoeGatedLinear`], [`ops::MoeLinear`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixture {
    /// All experts.
    pub count: usize,
    /// Experts that a row takes: its slots.
    pub used: usize,
    /// Elements of one expert's result, rows of its matrix.
    pub n: usize,
}

/// A rope table of the graph: position in [`Graph::ropes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RopeId(pub(crate) u32);

impl RopeId {
    /// Position in [`Graph::ropes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A model's step. Made by a [`GraphBuilder`], checked once, read by backends.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) values: Vec<ValueInfo>,
    pub(crate) weights: Vec<WeightInfo>,
    pub(crate) ropes: Vec<RopeFrequencies>,
    pub(crate) kv: Vec<KvLayer>,
    pub(crate) logits: Value,
}

impl Graph {
    /// The ops in the order in which they run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All values. After a rewrite some may be unused.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    /// All weights, in the order in which [`crate::backend::Bindings`] gives them.
    pub fn weights(&self) -> &[WeightInfo] {
        &self.weights
    }

    /// The rope tables' frequencies.
    pub fn ropes(&self) -> &[RopeFrequencies] {
        &self.ropes
    }

    /// The KV cache's shape, a layer each.
    pub fn kv(&self) -> &[KvLayer] {
        &self.kv
    }

    /// The result, `[outputs, vocabulary]`.
    pub fn logits(&self) -> Value {
        self.logits
    }

    /// The value's name and shape.
    pub fn value(&self, value: Value) -> &ValueInfo {
        &self.values[value.index()]
    }

    /// The weight's name, shape and type.
    pub fn weight(&self, weight: Weight) -> &WeightInfo {
        &self.weights[weight.index()]
    }

    /// Number of layers: one more than the last that a node belongs to.
    pub fn layers(&self) -> usize {
        self.nodes.iter().filter_map(|node| node.layer).max().map_or(0, |last| last + 1)
    }

    /// The sizes of a product with chosen experts; all 0 where they do not fit one another.
    pub fn mixture(&self, experts: Value, output: Value, weight: Weight) -> Mixture {
        let used = self.value(experts).cols;
        let n = self.value(output).cols.checked_div(used).unwrap_or(0);
        let count = self.weight(weight).rows.checked_div(n).unwrap_or(0);
        Mixture { count, used, n }
    }

    /// The rows that the host hands over, where the graph has a `Given` op.
    pub fn given(&self) -> Option<Value> {
        self.nodes.iter().find_map(|node| match &node.op {
            Op::Given(op) => Some(op.output),
            _ => None,
        })
    }

    /// The sampled tokens, where the graph ends in a `Sample` op.
    pub fn sampled(&self) -> Option<Value> {
        self.nodes.iter().rev().find_map(|node| match &node.op {
            Op::Sample(op) => Some(op.output),
            _ => None,
        })
    }
}
