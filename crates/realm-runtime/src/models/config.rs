//! What the settings of decoders have in common: sizes, the attention's scale, rope frequencies, which
//! layers see a window only. Keys are those of GGUF files, checked as they are read.

use realm_core::rope::{RopeFrequencies, YarnScaling};
use realm_gguf::{Array, Value};

use super::Source;
use crate::RuntimeError;

/// Beyond what any model has, and little enough to hold a number for each element.
const MOST_HEAD_DIM: usize = 1 << 16;

/// Sizes of a decoder, and the two numbers that all its norms and attentions share.
pub(super) struct Config {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) feed_forward: usize,
    /// Query heads.
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Elements of a head that rotate.
    pub(super) rotary_dim: usize,
    pub(super) epsilon: f32,
    /// Factor on the attention's scores.
    pub(super) scale: f32,
    pub(super) vocabulary: usize,
    /// Longest context that the model was trained for.
    pub(super) context: usize,
}

impl Config {
    /// Reads the settings of a file that has no mixture of experts.
    ///
    /// # Errors
    /// As [`Config::read_any`], and experts.
    pub(super) fn read(source: &Source<'_>) -> Result<Self, RuntimeError> {
        match source.count_or("expert_count", 0)? {
            Some(2..) => Err(source.error("mixtures of experts of this kind are not supported")),
            _ => Self::read_any(source),
        }
    }

    /// Reads the settings of a file that may have a mixture of experts, see [`Experts`].
    ///
    /// # Errors
    /// Settings that are missing, that contradict each other, or that no decoder here can have.
    pub(super) fn read_any(source: &Source<'_>) -> Result<Self, RuntimeError> {
        let hidden = source.size("embedding_length")?;
        let heads = source.size("attention.head_count")?;
        let kv_heads = source.size_or("attention.head_count_kv", heads)?;
        let head_dim = source.size_or("attention.key_length", hidden / heads)?;
        let value_dim = source.size_or("attention.value_length", head_dim)?;
        let rotary_dim = source.size_or("rope.dimension_count", head_dim)?;
        let epsilon = source.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5);
        let scale = source.number("attention.scale")?.unwrap_or(1.0 / (head_dim as f64).sqrt());
        let problem = if !heads.is_multiple_of(kv_heads) {
            Some(format!("{heads} heads cannot share {kv_heads} KV heads"))
        } else if value_dim != head_dim || head_dim == 0 {
            Some(format!(
                "keys of {head_dim} with values of {value_dim} elements are not supported"
            ))
        } else if head_dim > MOST_HEAD_DIM {
            Some(format!("heads of {head_dim} elements are not supported"))
        } else if rotary_dim > head_dim || rotary_dim % 2 != 0 {
            Some(format!("cannot rotate {rotary_dim} elements of heads of {head_dim}"))
        } else if epsilon < 0.0 || scale <= 0.0 {
            Some(format!("an epsilon of {epsilon} and an attention scale of {scale} make no sense"))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(source.error(problem));
        }
        Ok(Self {
            layers: source.size("block_count")?,
            hidden,
            feed_forward: source.size("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            rotary_dim,
            epsilon: epsilon as f32,
            scale: scale as f32,
            vocabulary: source.rows("token_embd.weight")?,
            context: source.size("context_length")?,
        })
    }

    /// Gemma's largest models divide their scores by `√(hidden / heads)`, not by `√head_dim`. Files do
    /// not say which models these are; their number of layers does, unless `attention.scale` is there.
    ///
    /// # Errors
    /// A scale that is no number.
    pub(super) fn scale_of_largest_gemma(
        &mut self,
        source: &Source<'_>,
        layers: usize,
    ) -> Result<(), RuntimeError> {
        if self.layers == layers && source.number("attention.scale")?.is_none() {
            self.scale = ((self.hidden / self.heads).max(1) as f32).sqrt().recip();
        }
        Ok(())
    }

    /// Rope frequencies as the file scales them: by one factor, by YaRN's rule, or by a divisor for each,
    /// the form in which Llama 3.1's stretched frequencies come.
    ///
    /// # Errors
    /// A base, factors or divisors out of range, a kind of scaling that is not known.
    pub(super) fn frequencies(&self, source: &Source<'_>) -> Result<RopeFrequencies, RuntimeError> {
        let base = base(source, "rope.freq_base")?;
        let mut rope = RopeFrequencies::new(base, self.rotary_dim);
        match source.text("rope.scaling.type")? {
            Some("none" | "llama3") => {}
            None | Some("linear") => {
                rope = rope.divided(std::iter::repeat(linear_factor(source)?));
            }
            Some("yarn") => {
                let yarn = self.yarn(source)?;
                rope = rope.divided(yarn.divisors(base, self.rotary_dim));
                let own = source.bound_or("rope.scaling.yarn_attn_factor", 0.0)?.map(f64::from);
                rope.magnitude = own.unwrap_or_else(|| yarn.magnitude());
            }
            Some(other) => {
                return Err(source.error(format!("rope scaling {other:?} is not supported")));
            }
        }
        rope.magnitude *= magnitude(source)?;
        let divisors = self.divisors(source, "rope_freqs.weight")?.unwrap_or_default();
        Ok(rope.divided(divisors))
    }

    /// YaRN's settings.
    fn yarn(&self, source: &Source<'_>) -> Result<YarnScaling, RuntimeError> {
        let turns = |key: &str, usual: f64| -> Result<f64, RuntimeError> {
            Ok(source.bound_or(key, usual as f32)?.map_or(usual, f64::from))
        };
        let original = source.size_or("rope.scaling.original_context_length", self.context)?;
        for (key, usual) in
            [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)]
        {
            let value = source.number(key)?.unwrap_or(usual);
            if value != usual {
                return Err(source.error(format!("{key} {value} is not supported")));
            }
        }
        Ok(YarnScaling {
            factor: linear_factor(source)?,
            original_context: original as f64,
            beta_fast: turns("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: turns("rope.scaling.yarn_beta_slow", 1.0)?,
        })
    }

    /// Rope frequencies that no scaling applies to, with the base under `key`.
    ///
    /// # Errors
    /// A base out of range.
    pub(super) fn unscaled_frequencies(
        &self,
        source: &Source<'_>,
        key: &str,
    ) -> Result<RopeFrequencies, RuntimeError> {
        Ok(RopeFrequencies::new(base(source, key)?, self.rotary_dim))
    }

    /// A tensor with a divisor for each rope frequency, where the file has it.
    ///
    /// # Errors
    /// Where they are too few or too many, or not positive.
    pub(super) fn divisors(
        &self,
        source: &Source<'_>,
        name: &str,
    ) -> Result<Option<Vec<f64>>, RuntimeError> {
        let pairs = self.rotary_dim / 2;
        let Some(divisors) = source.values(name)? else { return Ok(None) };
        if divisors.len() != pairs || !divisors.iter().all(|d| *d > 0.0 && d.is_finite()) {
            return Err(source.error(format!("{name} must hold {pairs} positive divisors")));
        }
        Ok(Some(divisors.into_iter().map(f64::from).collect()))
    }
}

/// A mixture of experts in place of a layer's feed-forward network.
#[derive(Clone, Copy)]
pub(super) struct Experts {
    /// All experts.
    pub(super) count: usize,
    /// Those that a token takes.
    pub(super) used: usize,
    /// Elements of an expert's hidden layer.
    pub(super) feed_forward: usize,
    /// Whether the weights of a token's experts add up to 1.
    pub(super) normalized: bool,
}

impl Experts {
    /// Reads the settings of a file; `None` where it has no experts.
    ///
    /// # Errors
    /// Settings that are missing, that contradict each other, or that are not supported.
    pub(super) fn read(source: &Source<'_>, config: &Config) -> Result<Option<Self>, RuntimeError> {
        let Some(count) = source.count_or("expert_count", 0)? else { return Ok(None) };
        let used = source.size("expert_used_count")?;
        if used > count {
            return Err(source.error(format!("a token cannot use {used} of {count} experts")));
        }
        // What changes the choice or its weights, by the value that does not; 0 stands for not set.
        for (key, usual) in [
            ("expert_shared_count", 0.0),
            ("expert_group_count", 1.0),
            ("expert_weights_scale", 1.0),
            ("expert_gating_func", 1.0),
        ] {
            let value = source.any_number(key)?.filter(|&value| value != 0.0);
            if let Some(value) = value.filter(|&value| value != usual) {
                return Err(source.error(format!("{key} {value} is not supported")));
            }
        }
        Ok(Some(Self {
            count,
            used,
            feed_forward: source.size_or("expert_feed_forward_length", config.feed_forward)?,
            normalized: source.flag_or("expert_weights_norm", true)?,
        }))
    }
}

/// The factor on the rotated result that a file asks for beside what its kind of scaling brings.
///
/// # Errors
/// One that is no number, or negative.
pub(super) fn magnitude(source: &Source<'_>) -> Result<f64, RuntimeError> {
    Ok(source.bound_or("rope.scaling.attn_factor", 1.0)?.map_or(1.0, f64::from))
}

/// The base of rope frequencies.
fn base(source: &Source<'_>, key: &str) -> Result<f64, RuntimeError> {
    let base = source.number(key)?.unwrap_or(10_000.0);
    if base > 1.0 { Ok(base) } else { Err(source.error(format!("{key} is {base}"))) }
}

/// The factor by which positions are compressed, under its key or under the one of older files.
fn linear_factor(source: &Source<'_>) -> Result<f64, RuntimeError> {
    for key in ["rope.scaling.factor", "rope.scale_linear"] {
        match source.number(key)? {
            // Some writers put 0 where nothing is scaled.
            None | Some(0.0) => {}
            Some(factor) if factor > 0.0 => return Ok(factor),
            Some(factor) => return Err(source.error(format!("{key} is {factor}"))),
        }
    }
    Ok(1.0)
}

/// The sliding window that all layers have: positions that a token sees, itself included.
///
/// # Errors
/// A setting that is no integer.
pub(super) fn window(source: &Source<'_>) -> Result<Option<usize>, RuntimeError> {
    source.count_or("attention.sliding_window", 0)
}

/// Which layers see a window only, in models where some see everything.
pub(super) struct Windows {
    width: Option<usize>,
    pattern: Pattern,
}

enum Pattern {
    /// Every so-manieth layer sees everything; 0: none does.
    Period(usize),
    /// Whether a layer has the window.
    List(Vec<bool>),
}

impl Windows {
    /// Reads `attention.sliding_window` and, where the file has it, the pattern: a number, or a boolean
    /// for each layer. Without a pattern every `period`th layer sees everything; without a window the
    /// others see `width` positions, or everything where that is 0.
    ///
    /// # Errors
    /// Settings of other types, a pattern with fewer entries than layers.
    pub(super) fn read(
        source: &Source<'_>,
        period: usize,
        width: usize,
    ) -> Result<Self, RuntimeError> {
        let name = "attention.sliding_window_pattern";
        let layers = source.size("block_count")?;
        let pattern = match source.value(name) {
            Some(Value::Array(Array::Bool(list))) if list.len() >= layers => {
                Pattern::List(list.clone())
            }
            Some(Value::Array(_)) => {
                let problem = format!("is neither a number nor a list of {layers} booleans");
                return Err(source.error(format!("{name} {problem}")));
            }
            Some(_) => Pattern::Period(source.count_or(name, 0)?.unwrap_or(0)),
            None => Pattern::Period(period),
        };
        Ok(Self { width: source.count_or("attention.sliding_window", width)?, pattern })
    }

    /// The window of a layer; `None` where it sees everything.
    pub(super) fn of(&self, layer: usize) -> Option<usize> {
        let windowed = match &self.pattern {
            Pattern::Period(0) => true,
            Pattern::Period(period) => !(layer + 1).is_multiple_of(*period),
            Pattern::List(list) => list.get(layer).is_some_and(|windowed| *windowed),
        };
        self.width.filter(|_| windowed)
    }
}
