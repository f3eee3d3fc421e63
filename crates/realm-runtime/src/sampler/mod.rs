//! A request's wishes about sampling, and what they mean for one row.
//!
//! Devices choose tokens themselves where temperature, top-k, top-p and min-p are all that is asked for.
//! Everything else is done on the host ([`host`]), row by row.

mod host;

pub(crate) use host::{Choice, HostSampler, Said, logprobs};

use realm_core::sampling::Sampling;

/// How a request's tokens are chosen. What changes the logits comes first: repetition penalty,
/// frequency and presence penalty, bias. Then the filters leave tokens out: top-k, typical, top-p, min-p,
/// each judging by the probabilities of what the one before it left, at temperature 1. The temperature
/// comes last.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the likeliest so many; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep those at least so many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose information content is closest to the expected one, up to this sum of
    /// probabilities (locally typical sampling, Meister et al. 2022, arXiv 2202.00666); 1 keeps all.
    pub typical_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens that the prompt or the
    /// generated text has already (Keskar et al. 2019, arXiv 1909.05858); 1 changes none.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit as often as it was generated before; 0 changes none.
    pub frequency_penalty: f32,
    /// Subtracted once from the logits of tokens that were generated before; 0 changes none.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens; -∞ bans one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the random numbers: the same seed gives the same text.
    pub seed: u64,
}

/// Biases go no farther: sums of them and logits stay finite.
const MOST_BIAS: f32 = 1e6;

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Self::GREEDY }
    }
}

impl SamplingParams {
    /// The likeliest token, always.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        typical_p: 1.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        seed: 0,
    };

    /// The likeliest token, always: [`SamplingParams::GREEDY`].
    pub fn greedy() -> Self {
        Self::GREEDY
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter out of its range.
    pub fn check(&self) -> Result<(), String> {
        let unit = |name: &str, value: f32| {
            if (0.0..=1.0).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} is {value}; it lies in 0..1"))
            }
        };
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return Err(format!("temperature is {}; it is 0 or more", self.temperature));
        }
        unit("top-p", self.top_p)?;
        unit("min-p", self.min_p)?;
        unit("typical-p", self.typical_p)?;
        let penalty = self.repetition_penalty;
        if !(0.01..=100.0).contains(&penalty) {
            return Err(format!("the repetition penalty is {penalty}; it lies in 0.01..100"));
        }
        for (name, value) in
            [("frequency", self.frequency_penalty), ("presence", self.presence_penalty)]
        {
            if !(-100.0..=100.0).contains(&value) {
                return Err(format!("the {name} penalty is {value}; it lies in -100..100"));
            }
        }
        let good = |bias: f32| bias == f32::NEG_INFINITY || bias.abs() <= MOST_BIAS;
        match self.logit_bias.iter().find(|(_, bias)| !good(*bias)) {
            Some((id, bias)) => Err(format!(
                "the bias of token {id} is {bias}; it lies in -{MOST_BIAS}..{MOST_BIAS}, or is -inf to ban the token"
            )),
            None => Ok(()),
        }
    }

    /// Checks that biased tokens are among the `vocabulary`.
    ///
    /// # Errors
    /// The first one that is not.
    pub(crate) fn check_ids(&self, vocabulary: usize) -> Result<(), String> {
        match self.logit_bias.iter().find(|(id, _)| *id as usize >= vocabulary) {
            Some((id, _)) => Err(format!(
                "a bias is for token {id}, which is not in the vocabulary of {vocabulary}"
            )),
            None => Ok(()),
        }
    }

    /// Whether tokens are chosen on the host, as devices know neither what was said before nor any bias.
    pub(crate) fn on_host(&self) -> bool {
        self.typical_p < 1.0 || self.penalizes() || !self.logit_bias.is_empty()
    }

    /// Whether what was said before counts.
    pub(crate) fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// The choice of the token at `position` of its sequence.
    pub(crate) fn at(&self, position: usize) -> Sampling {
        let Self { temperature, top_k, top_p, min_p, seed, .. } = *self;
        Sampling { temperature, top_k, top_p, min_p, seed, position: position as u32 }
    }
}
