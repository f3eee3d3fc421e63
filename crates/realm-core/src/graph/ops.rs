//! The ops. Shapes are `[rows, cols]`; `tokens` and `outputs` are the step's row counts.

mod moe;

pub use moe::{MoeGatedLinear, MoeLinear, MoeRoute, MoeSum};

use super::{RopeId, Value, Weight};

/// Row `tokens[i]` of the table becomes row `i`: `[tokens, cols]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Embed {
    /// `[vocabulary, cols]`.
    pub table: Weight,
    /// `[tokens, cols]`.
    pub output: Value,
}

/// The rows that the host hands over with the step, [`crate::backend::Inputs::given`]: where a graph
/// goes on from what another one computed. A graph has at most one.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// `[tokens, cols]`.
    pub output: Value,
}

/// One matrix of a [`Linear`]: `output = input · weightᵀ + bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// `[n, k]`.
    pub weight: Weight,
    /// `[1, n]`.
    pub bias: Option<Weight>,
    /// `[rows, n]`.
    pub output: Value,
}

/// Matrix products of one input with one or several weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// `[rows, k]`.
    pub input: Value,
    /// At least one.
    pub projections: Vec<Projection>,
}

/// The non-linearity of a gated unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)`: SwiGLU (Shazeer 2020, arXiv 2002.05202).
    Silu,
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`: GeGLU in the form Gemma uses.
    GeluTanh,
    /// `0.5 x (1 + erf(x/√2))`.
    Gelu,
}

/// `output = activation(gate) · up`, element by element.
#[derive(Debug, Clone, PartialEq)]
pub struct Glu {
    /// `[rows, n]`.
    pub gate: Value,
    /// `[rows, n]`.
    pub up: Value,
    /// The non-linearity.
    pub activation: Activation,
    /// `[rows, n]`.
    pub output: Value,
}

/// `output = activation(input · gateᵀ) · (input · upᵀ)`: a fused [`Linear`] and [`Glu`].
#[derive(Debug, Clone, PartialEq)]
pub struct GatedLinear {
    /// `[rows, k]`.
    pub input: Value,
    /// `[n, k]`.
    pub gate: Weight,
    /// `[1, n]`.
    pub gate_bias: Option<Weight>,
    /// `[n, k]`.
    pub up: Weight,
    /// `[1, n]`.
    pub up_bias: Option<Weight>,
    /// The non-linearity.
    pub activation: Activation,
    /// `[rows, n]`.
    pub output: Value,
}

/// The addition that a fused norm does first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Residual {
    /// `[rows, n]`, added to the norm's input.
    pub addend: Value,
    /// `[rows, n]`: the sum, which the next residual addition needs.
    pub sum: Value,
}

/// `output = x / √(mean(x²) + epsilon) · weight` a row, where `x` is the input, or its sum with a
/// residual (Zhang & Sennrich 2019, arXiv 1910.07467).
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNorm {
    /// `[rows, n]`.
    pub input: Value,
    /// The addition before the norm, where one was fused in.
    pub residual: Option<Residual>,
    /// `[1, n]`.
    pub weight: Weight,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Elements normalised together: `n`, or a head's size where heads are normed one by one
    /// (`weight` then has that many elements).
    pub group: usize,
    /// `[rows, n]`.
    pub output: Value,
}

/// `output = (x − mean) / √(variance + epsilon) · weight + bias` a row (Ba et al. 2016,
/// arXiv 1607.06450).
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    /// `[rows, n]`.
    pub input: Value,
    /// `[1, n]`.
    pub weight: Weight,
    /// `[1, n]`.
    pub bias: Option<Weight>,
    /// Added to the variance.
    pub epsilon: f32,
    /// `[rows, n]`.
    pub output: Value,
}

/// Which elements of a head form the rotated pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `(2i, 2i+1)`: Llama in GGUF files.
    Adjacent,
    /// `(i, i + rotary_dim/2)`: NeoX, Qwen, Gemma, Phi.
    Halves,
}

/// Rotary position embedding of every head (Su et al. 2021, arXiv 2104.09864). Elements from
/// `rotary_dim` on pass unchanged.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// `[tokens, heads · head_dim]`.
    pub input: Value,
    /// Heads side by side in a row.
    pub heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Pairing of the elements.
    pub pairs: RopePairs,
    /// Frequencies; `rotary_dim` is twice their number.
    pub rope: RopeId,
    /// `[tokens, heads · head_dim]`.
    pub output: Value,
}

/// Stores keys and values of the step's tokens in the KV cache.
#[derive(Debug, Clone, PartialEq)]
pub struct KvWrite {
    /// Layer of the cache.
    pub layer: usize,
    /// `[tokens, kv_heads · head_dim]`.
    pub key: Value,
    /// `[tokens, kv_heads · head_dim]`.
    pub value: Value,
}

/// Heads, scale and mask of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads, a multiple of the layer's KV heads.
    pub heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1/√head_dim`.
    pub scale: f32,
    /// Which positions a row sees.
    pub mask: Mask,
    /// `cap · tanh(score / cap)` before the mask (Gemma 2).
    pub soft_cap: Option<f32>,
    /// `[1, heads]`: a logit a head that takes part in the softmax's sum and carries no value.
    pub sinks: Option<Weight>,
}

/// Softmax attention over the KV cache, which already holds the step's own tokens. Query head `h`
/// reads KV head `h / (heads / kv_heads)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Layer of the cache.
    pub layer: usize,
    /// `[tokens, heads · head_dim]`.
    pub query: Value,
    /// Heads, scale and mask.
    pub spec: AttentionSpec,
    /// `[tokens, heads · head_dim]`.
    pub output: Value,
}

/// Which positions of its sequence a row may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Only itself and what came before; otherwise everything in the cache.
    pub causal: bool,
    /// Only the last so many positions, itself included.
    pub window: Option<usize>,
}

impl Mask {
    /// Itself and everything before.
    pub const CAUSAL: Self = Self { causal: true, window: None };

    /// The positions `start..end` that the row at `position` sees when the cache holds `length`.
    pub fn visible(&self, position: usize, length: usize) -> std::ops::Range<usize> {
        let end = if self.causal { (position + 1).min(length) } else { length };
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start.min(end)..end
    }
}

/// `output = left + right`.
#[derive(Debug, Clone, PartialEq)]
pub struct Add {
    /// `[rows, n]`.
    pub left: Value,
    /// `[rows, n]`.
    pub right: Value,
    /// `[rows, n]`.
    pub output: Value,
}

/// `output = factor · input`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// `[rows, n]`.
    pub input: Value,
    /// The factor.
    pub factor: f32,
    /// `[rows, n]`.
    pub output: Value,
}

/// `output = cap · tanh(input / cap)`.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftCap {
    /// `[rows, n]`.
    pub input: Value,
    /// The bound that no result exceeds.
    pub cap: f32,
    /// `[rows, n]`.
    pub output: Value,
}

/// The rows whose logits are wanted: row `i` is row `outputs[i]` of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct GatherRows {
    /// `[tokens, n]`.
    pub input: Value,
    /// `[outputs, n]`.
    pub output: Value,
}

/// The next token of each output row, by the row's [`crate::sampling::Sampling`].
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// `[outputs, vocabulary]`.
    pub logits: Value,
    /// `[outputs, 1]`, token ids.
    pub output: Value,
}

macro_rules! op_enum {
    ($($name:ident),* $(,)?) => {
        /// Any op.
        #[derive(Debug, Clone, PartialEq)]
        #[expect(missing_docs, reason = "each variant is documented at its struct")]
        pub enum Op { $($name($name)),* }

        impl Op {
            /// The op's name, as errors and pictures show it.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(_) => stringify!($name)),* }
            }
        }
        $(impl From<$name> for Op { fn from(op: $name) -> Self { Op::$name(op) } })*
    };
}

op_enum!(
    Embed,
    Given,
    Linear,
    Glu,
    GatedLinear,
    RmsNorm,
    LayerNorm,
    Rope,
    KvWrite,
    Attention,
    Add,
    Scale,
    SoftCap,
    MoeRoute,
    MoeGatedLinear,
    MoeLinear,
    MoeSum,
    GatherRows,
    Sample,
);

impl Op {
    /// The values it reads.
    pub fn inputs(&self) -> Vec<Value> {
        match self {
            Op::Embed(_) | Op::Given(_) => vec![],
            Op::Linear(op) => vec![op.input],
            Op::Glu(op) => vec![op.gate, op.up],
            Op::GatedLinear(op) => vec![op.input],
            Op::RmsNorm(op) => {
                std::iter::once(op.input).chain(op.residual.map(|r| r.addend)).collect()
            }
            Op::LayerNorm(op) => vec![op.input],
            Op::Rope(op) => vec![op.input],
            Op::KvWrite(op) => vec![op.key, op.value],
            Op::Attention(op) => vec![op.query],
            Op::Add(op) => vec![op.left, op.right],
            Op::Scale(op) => vec![op.input],
            Op::SoftCap(op) => vec![op.input],
            Op::MoeRoute(op) => vec![op.logits],
            Op::MoeGatedLinear(op) => vec![op.input, op.experts],
            Op::MoeLinear(op) => vec![op.input, op.experts],
            Op::MoeSum(op) => vec![op.input, op.weights],
            Op::GatherRows(op) => vec![op.input],
            Op::Sample(op) => vec![op.logits],
        }
    }

    /// The values it writes.
    pub fn outputs(&self) -> Vec<Value> {
        match self {
            Op::Embed(op) => vec![op.output],
            Op::Given(op) => vec![op.output],
            Op::Linear(op) => op.projections.iter().map(|p| p.output).collect(),
            Op::Glu(op) => vec![op.output],
            Op::GatedLinear(op) => vec![op.output],
            Op::RmsNorm(op) => {
                std::iter::once(op.output).chain(op.residual.map(|r| r.sum)).collect()
            }
            Op::LayerNorm(op) => vec![op.output],
            Op::Rope(op) => vec![op.output],
            Op::KvWrite(_) => vec![],
            Op::Attention(op) => vec![op.output],
            Op::Add(op) => vec![op.output],
            Op::Scale(op) => vec![op.output],
            Op::SoftCap(op) => vec![op.output],
            Op::MoeRoute(op) => vec![op.experts, op.weights],
            Op::MoeGatedLinear(op) => vec![op.output],
            Op::MoeLinear(op) => vec![op.output],
            Op::MoeSum(op) => vec![op.output],
            Op::GatherRows(op) => vec![op.output],
            Op::Sample(op) => vec![op.output],
        }
    }

    /// The weights it reads.
    pub fn weights(&self) -> Vec<Weight> {
        match self {
            Op::Embed(op) => vec![op.table],
            Op::Linear(op) => {
                op.projections.iter().flat_map(|p| [Some(p.weight), p.bias]).flatten().collect()
            }
            Op::GatedLinear(op) => [Some(op.gate), op.gate_bias, Some(op.up), op.up_bias]
                .into_iter()
                .flatten()
                .collect(),
            Op::RmsNorm(op) => vec![op.weight],
            Op::LayerNorm(op) => [Some(op.weight), op.bias].into_iter().flatten().collect(),
            Op::Attention(op) => op.spec.sinks.into_iter().collect(),
            Op::MoeGatedLinear(op) => vec![op.gate, op.up],
            Op::MoeLinear(op) => vec![op.weight],
            _ => vec![],
        }
    }

    /// Replaces the positions of its weights.
    pub(crate) fn map_weights(&mut self, at: impl Fn(usize) -> usize) {
        let map = |weight: &mut Weight| weight.0 = at(weight.index()) as u32;
        match self {
            Op::Embed(op) => map(&mut op.table),
            Op::Linear(op) => {
                for projection in &mut op.projections {
                    map(&mut projection.weight);
                    projection.bias.iter_mut().for_each(map);
                }
            }
            Op::GatedLinear(op) => {
                [&mut op.gate, &mut op.up].into_iter().for_each(map);
                [&mut op.gate_bias, &mut op.up_bias].into_iter().flatten().for_each(map);
            }
            Op::RmsNorm(op) => map(&mut op.weight),
            Op::LayerNorm(op) => {
                map(&mut op.weight);
                op.bias.iter_mut().for_each(map);
            }
            Op::Attention(op) => op.spec.sinks.iter_mut().for_each(map),
            Op::MoeGatedLinear(op) => [&mut op.gate, &mut op.up].into_iter().for_each(map),
            Op::MoeLinear(op) => map(&mut op.weight),
            _ => {}
        }
    }
}
