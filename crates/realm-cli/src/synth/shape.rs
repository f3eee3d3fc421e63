//! The shapes of models that can be written, and the tensors that each has.

use super::vocabulary::Kind;

/// Sizes of a model of the Llama architecture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    /// As the command line takes it.
    pub(crate) name: &'static str,
    /// What it is, for `--help`.
    pub(crate) about: &'static str,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocabulary: usize,
    /// The context that the file says it was trained for.
    pub(crate) context: usize,
    /// The embedding table is the output matrix too.
    pub(crate) tied: bool,
    pub(crate) rope_base: f32,
    /// How much Llama 3.1's scaling stretches low frequencies.
    pub(crate) rope_factor: Option<f32>,
    pub(crate) tokenizer: Kind,
}

const LLAMA_3: Shape = Shape {
    name: "llama-3.1-8b",
    about: "Llama 3.1 8B",
    layers: 32,
    hidden: 4096,
    feed_forward: 14336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocabulary: 128_256,
    context: 131_072,
    tied: false,
    rope_base: 500_000.0,
    rope_factor: Some(8.0),
    tokenizer: Kind::Gpt2,
};

const TINYLLAMA: Shape = Shape {
    name: "tinyllama-1.1b",
    about: "TinyLlama 1.1B",
    layers: 22,
    hidden: 2048,
    feed_forward: 5632,
    heads: 32,
    kv_heads: 4,
    head_dim: 64,
    vocabulary: 32_000,
    context: 2048,
    tied: false,
    rope_base: 10_000.0,
    rope_factor: None,
    tokenizer: Kind::Llama,
};

/// Every shape, the smallest first.
pub(crate) const SHAPES: &[Shape] = &[
    Shape {
        name: "tiny",
        about: "a few megabytes, for tests",
        layers: 2,
        hidden: 256,
        feed_forward: 512,
        heads: 4,
        kv_heads: 2,
        vocabulary: 1024,
        ..TINYLLAMA
    },
    TINYLLAMA,
    Shape {
        name: "llama-3.2-1b",
        about: "Llama 3.2 1B",
        layers: 16,
        hidden: 2048,
        feed_forward: 8192,
        head_dim: 64,
        tied: true,
        rope_factor: Some(32.0),
        ..LLAMA_3
    },
    LLAMA_3,
    Shape {
        name: "llama-3.1-70b",
        about: "Llama 3.1 70B",
        layers: 80,
        hidden: 8192,
        feed_forward: 28672,
        heads: 64,
        ..LLAMA_3
    },
];

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Embedding,
    Output,
    AttentionQuery,
    AttentionKey,
    AttentionValue,
    AttentionOutput,
    FeedForwardGate,
    FeedForwardUp,
    FeedForwardDown,
    /// Norms and rope divisors.
    Vector,
}

const EMBEDDING: (&str, Part) = ("token_embd", Part::Embedding);
const ROPE_DIVISORS: (&str, Part) = ("rope_freqs", Part::Vector);
const OUTPUT_NORM: (&str, Part) = ("output_norm", Part::Vector);
const OUTPUT: (&str, Part) = ("output", Part::Output);

/// Names of a layer's tensors and their parts, in the order in which a step needs them.
const LAYER: &[(&str, Part)] = &[
    ("attn_norm", Part::Vector),
    ("attn_q", Part::AttentionQuery),
    ("attn_k", Part::AttentionKey),
    ("attn_v", Part::AttentionValue),
    ("attn_output", Part::AttentionOutput),
    ("ffn_norm", Part::Vector),
    ("ffn_gate", Part::FeedForwardGate),
    ("ffn_up", Part::FeedForwardUp),
    ("ffn_down", Part::FeedForwardDown),
];

/// A tensor of a shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) part: Part,
    /// The layer; 0 for tensors outside the layers.
    pub(crate) layer: usize,
    /// Values a row.
    pub(crate) cols: usize,
    /// Rows; `None` for a vector.
    pub(crate) rows: Option<usize>,
}

impl Part {
    /// The part and layer of a tensor of that name.
    #[cfg(test)]
    pub(crate) fn of(name: &str) -> Option<(Self, usize)> {
        let name = name.strip_suffix(".weight")?;
        let (names, name, layer) = match name.strip_prefix("blk.") {
            Some(rest) => {
                let (layer, name) = rest.split_once('.')?;
                (LAYER, name, layer.parse().ok()?)
            }
            None => (&[EMBEDDING, ROPE_DIVISORS, OUTPUT_NORM, OUTPUT][..], name, 0),
        };
        names.iter().find(|(known, _)| *known == name).map(|&(_, part)| (part, layer))
    }
}

impl Shape {
    /// `[cols, rows]` of a part.
    fn dims(&self, part: Part) -> (usize, Option<usize>) {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match part {
            Part::Embedding | Part::Output => (self.hidden, Some(self.vocabulary)),
            Part::AttentionQuery => (self.hidden, Some(queries)),
            Part::AttentionKey | Part::AttentionValue => (self.hidden, Some(keys)),
            Part::AttentionOutput => (queries, Some(self.hidden)),
            Part::FeedForwardGate | Part::FeedForwardUp => (self.hidden, Some(self.feed_forward)),
            Part::FeedForwardDown => (self.feed_forward, Some(self.hidden)),
            Part::Vector => (self.hidden, None),
        }
    }

    fn tensor(&self, (name, part): (&str, Part), layer: Option<usize>) -> Tensor {
        let name =
            layer.map_or(format!("{name}.weight"), |layer| format!("blk.{layer}.{name}.weight"));
        let (cols, rows) = self.dims(part);
        Tensor { name, part, layer: layer.unwrap_or(0), cols, rows }
    }

    /// All tensors, in the order in which a step needs them.
    pub(crate) fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = vec![self.tensor(EMBEDDING, None)];
        if self.rope_factor.is_some() {
            tensors.push(Tensor { cols: self.head_dim / 2, ..self.tensor(ROPE_DIVISORS, None) });
        }
        for layer in 0..self.layers {
            tensors.extend(LAYER.iter().map(|&named| self.tensor(named, Some(layer))));
        }
        tensors.push(self.tensor(OUTPUT_NORM, None));
        if !self.tied {
            tensors.push(self.tensor(OUTPUT, None));
        }
        tensors
    }

    /// The number of weights.
    pub(crate) fn weights(&self) -> u64 {
        let one = |tensor: &Tensor| tensor.cols as u64 * tensor.rows.unwrap_or(1) as u64;
        self.tensors().iter().map(one).sum()
    }

    /// The divisors of the rope frequencies, `[head_dim / 2]`: 1 where a turn takes few positions,
    /// the factor where it takes many, a smooth passage between (`_compute_llama3_parameters` in
    /// Hugging Face's transformers).
    pub(crate) fn rope_divisors(&self) -> Option<Vec<f32>> {
        /// The context before stretching, and how often its length holds the longest wave that is left
        /// alone and the shortest that is stretched in full.
        const CONTEXT: f64 = 8192.0;
        const HIGH: f64 = 4.0;
        const LOW: f64 = 1.0;
        let factor = f64::from(self.rope_factor?);
        let divisor = |pair: usize| {
            let exponent = 2.0 * pair as f64 / self.head_dim as f64;
            let wave = 2.0 * std::f64::consts::PI * f64::from(self.rope_base).powf(exponent);
            let smooth = ((CONTEXT / wave - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        };
        Some((0..self.head_dim / 2).map(divisor).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_as_many_weights_as_their_models() {
        let counts: Vec<_> = SHAPES.iter().map(|shape| (shape.name, shape.weights())).collect();
        // As published; Llama 3's files also hold the rope divisors.
        assert_eq!(
            counts[1..],
            [
                ("tinyllama-1.1b", 1_100_048_384),
                ("llama-3.2-1b", 1_235_814_400 + 32),
                ("llama-3.1-8b", 8_030_261_248 + 64),
                ("llama-3.1-70b", 70_553_706_496 + 64),
            ]
        );
        assert!(counts[0].1 < 2_000_000);
    }

    #[test]
    fn names_lead_back_to_parts() {
        for tensor in SHAPES[2].tensors() {
            assert_eq!(Part::of(&tensor.name), Some((tensor.part, tensor.layer)));
        }
        assert_eq!(Part::of("blk.x.attn_q.weight"), None);
        assert_eq!(Part::of("attn_q.weight"), None);
    }

    #[test]
    fn slow_waves_are_stretched_and_fast_ones_are_not() {
        assert_eq!(SHAPES[1].rope_divisors(), None);
        let divisors = SHAPES[2].rope_divisors().unwrap();
        assert_eq!(divisors.len(), 32);
        assert_eq!((divisors[0], divisors[31]), (1.0, 32.0));
        assert!(divisors.is_sorted());
        assert!(divisors.iter().any(|&d| d > 1.0 && d < 32.0));
    }
}
