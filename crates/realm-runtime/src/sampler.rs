//! A request's wishes about sampling, and what they mean for one row.

use realm_core::sampling::Sampling;

/// How a request's tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the likeliest so many; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep those at least so many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Key of the random numbers: the same seed gives the same text.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, seed: 0 }
    }
}

impl SamplingParams {
    /// The likeliest token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };

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
        unit("min-p", self.min_p)
    }

    /// The choice of the token at `position` of its sequence.
    pub(crate) fn at(&self, position: usize) -> Sampling {
        let Self { temperature, top_k, top_p, min_p, seed } = *self;
        Sampling { temperature, top_k, top_p, min_p, seed, position: position as u32 }
    }
}
