//! Rotary position embedding: frequencies and tables, made on the host in f64.

/// The angular frequency of each rotated pair, and a factor on the rotated result.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeFrequencies {
    /// Radians a position, a pair each.
    pub inverse: Vec<f64>,
    /// Factor on sine and cosine (YaRN's attention factor); 1 where there is none.
    pub magnitude: f64,
}

/// Llama 3.1's stretch of the low frequencies (`rope_type: llama3`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// By how much the lowest frequencies are divided.
    pub factor: f64,
    /// Wavelengths above `original_context / low` are divided by the whole factor.
    pub low_frequency_factor: f64,
    /// Wavelengths below `original_context / high` stay as they are.
    pub high_frequency_factor: f64,
    /// Context length of the first training.
    pub original_context: f64,
}

impl Llama3Scaling {
    /// The divisor of one frequency.
    pub fn divisor(&self, inverse: f64) -> f64 {
        let turns = self.original_context * inverse / std::f64::consts::TAU;
        if turns > self.high_frequency_factor {
            return 1.0;
        }
        if turns < self.low_frequency_factor {
            return self.factor;
        }
        let smooth = (turns - self.low_frequency_factor)
            / (self.high_frequency_factor - self.low_frequency_factor);
        1.0 / ((1.0 - smooth) / self.factor + smooth)
    }
}

/// YaRN: frequencies that turn often in the original context stay, slow ones are compressed, and those
/// between are mixed (Peng et al. 2023, arXiv 2309.00071).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnScaling {
    /// By how much the context is stretched.
    pub factor: f64,
    /// Context length of the first training.
    pub original_context: f64,
    /// Pairs that turn more often than this in the original context stay; 32 in the paper.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are compressed by the whole factor; 1 in the paper.
    pub beta_slow: f64,
}

impl YarnScaling {
    /// The divisors of the frequencies of [`RopeFrequencies::new`] with the same arguments. As in other
    /// implementations the ramp between the two kinds starts and ends at whole pairs.
    pub fn divisors(&self, base: f64, rotary_dim: usize) -> impl Iterator<Item = f64> + use<> {
        let dims = rotary_dim as f64;
        // The pair that turns so often in the original context, as a fraction.
        let pair = |turns: f64| {
            let wavelength = self.original_context / (turns * std::f64::consts::TAU);
            dims * wavelength.ln() / (2.0 * base.ln())
        };
        let low = pair(self.beta_fast).floor().max(0.0);
        let high = pair(self.beta_slow).ceil().min(dims - 1.0);
        let width = if high > low { high - low } else { 1e-3 };
        let factor = self.factor;
        (0..rotary_dim / 2).map(move |at| {
            let compressed = ((at as f64 - low) / width).clamp(0.0, 1.0);
            1.0 / (compressed / factor + 1.0 - compressed)
        })
    }

    /// The factor on sine and cosine that keeps the scores' spread: `0.1 ln factor + 1`.
    pub fn magnitude(&self) -> f64 {
        if self.factor > 1.0 { 0.1 * self.factor.ln() + 1.0 } else { 1.0 }
    }
}

impl RopeFrequencies {
    /// The standard frequencies `base^(-2i/rotary_dim)`.
    pub fn new(base: f64, rotary_dim: usize) -> Self {
        let inverse =
            (0..rotary_dim / 2).map(|i| base.powf(-2.0 * i as f64 / rotary_dim as f64)).collect();
        Self { inverse, magnitude: 1.0 }
    }

    /// The same frequencies, each divided by its divisor (linear scaling, Llama 3, `rope_freqs`
    /// tensors). Divisors beyond the frequencies are ignored.
    pub fn divided(mut self, divisors: impl IntoIterator<Item = f64>) -> Self {
        for (inverse, divisor) in self.inverse.iter_mut().zip(divisors) {
            *inverse /= divisor;
        }
        self
    }

    /// Cosines and sines of one position, a pair each: computed in f64, rounded once.
    ///
    /// `cos` and `sin` have one element a pair.
    pub fn fill(&self, position: u32, cos: &mut [f32], sin: &mut [f32]) {
        for ((inverse, cos), sin) in self.inverse.iter().zip(cos).zip(sin) {
            let (s, c) = (f64::from(position) * inverse).sin_cos();
            (*cos, *sin) = ((c * self.magnitude) as f32, (s * self.magnitude) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_frequencies_fall_from_one() {
        let rope = RopeFrequencies::new(10_000.0, 4);
        assert_eq!(rope.inverse, [1.0, 0.01]);
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        rope.fill(2, &mut cos, &mut sin);
        assert_eq!(cos, [2f64.cos() as f32, 0.02f64.cos() as f32]);
        assert_eq!(sin, [2f64.sin() as f32, 0.02f64.sin() as f32]);
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192.0,
        };
        assert_eq!(scaling.divisor(1.0), 1.0);
        assert_eq!(scaling.divisor(1e-6), 8.0);
        let middle = scaling.divisor(2.0 * std::f64::consts::TAU / 8192.0);
        // Two turns in the original context lie a third of the way from one to four.
        assert!((middle - 1.0 / ((2.0 / 3.0) / 8.0 + 1.0 / 3.0)).abs() < 1e-12, "{middle}");
    }

    #[test]
    fn yarn_mixes_between_whole_pairs() {
        let scaling =
            YarnScaling { factor: 4.0, original_context: 32768.0, beta_fast: 32.0, beta_slow: 1.0 };
        let divisors: Vec<f64> = scaling.divisors(1e6, 128).collect();
        assert_eq!(divisors.len(), 64);
        // 64 ln(32768 / 64π) / ln 1e6 = 23.6; 64 ln(32768 / 2π) / ln 1e6 = 39.7.
        assert!(divisors[..=23].iter().all(|divisor| *divisor == 1.0), "{divisors:?}");
        assert!(divisors[40..].iter().all(|divisor| *divisor == 4.0), "{divisors:?}");
        // 24 lies a seventeenth of the way from 23 to 40.
        assert!((divisors[24] - 1.0 / (1.0 - 0.75 / 17.0)).abs() < 1e-12);
        assert!(divisors.is_sorted());
        assert!((scaling.magnitude() - 1.138_629_436_111_989).abs() < 1e-12);
        // A context too short for any ramp leaves a step.
        let short = YarnScaling { original_context: 1.0, ..scaling };
        assert!(short.divisors(1e4, 8).skip(1).all(|divisor| divisor == 4.0));
    }
}
