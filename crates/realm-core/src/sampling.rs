//! Choosing the next token. Random numbers are counter-based, keyed by seed and position, so the same
//! seed gives the same text on any device, alone or in a batch.

/// How a row's next token is chosen. Filters apply in the order top-k, top-p, min-p, and the
/// temperature last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the likeliest so many; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep those at least so many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// Position in the sequence of the token that is chosen: the counter of the random numbers.
    pub position: u32,
}

impl Sampling {
    /// The likeliest token, always.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, position: 0 };
}

/// Philox 4×32 with ten rounds (Salmon et al., SC 2011): four random words of a counter and a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (x, y) = (u64::from(a) * 0xD251_1F53, u64::from(c) * 0xCD9E_8D57);
        (a, b, c, d) = ((y >> 32) as u32 ^ b ^ k0, y as u32, (x >> 32) as u32 ^ d ^ k1, x as u32);
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    [a, b, c, d]
}

/// The uniform number in `[0, 1)` of a seed and a position, a multiple of 2⁻²⁴.
pub fn uniform(seed: u64, position: u32) -> f32 {
    let [word, ..] = philox([position, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
    (word >> 8) as f32 / (1 << 24) as f32
}

/// What stands for a token where no logit is a number above −∞: the model or its arithmetic broke down.
pub const NO_TOKEN: u32 = u32::MAX;

/// The likeliest token; of equals the lowest id. NaN counts as impossible; [`NO_TOKEN`] where all are.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, NO_TOKEN);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    best.1
}

/// A token that may be chosen.
type Candidate = (f32, u32);

/// Likeliest first; of equals the lowest id.
fn by_rank(left: &Candidate, right: &Candidate) -> std::cmp::Ordering {
    right.0.total_cmp(&left.0).then(left.1.cmp(&right.1))
}

/// Chooses tokens; keeps its work memory between calls.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// The next token by `logits`, one a vocabulary entry; [`NO_TOKEN`] where none is possible.
    ///
    /// Candidates are walked in the order of their ids, so the choice does not depend on how they
    /// were sorted.
    pub fn sample(&mut self, logits: &[f32], how: &Sampling) -> u32 {
        let greedy = how.temperature.is_nan() || how.temperature <= 0.0 || how.top_k == 1;
        if greedy {
            return argmax(logits);
        }
        let candidates = &mut self.candidates;
        candidates.clear();
        let finite = |&(logit, _): &Candidate| logit > f32::NEG_INFINITY;
        candidates.extend(logits.iter().copied().zip(0..).filter(finite));
        if candidates.is_empty() {
            return argmax(logits);
        }
        top_k(candidates, how.top_k as usize);
        top_p(candidates, f64::from(how.top_p));
        let best = candidates.iter().map(|c| c.0).fold(f32::NEG_INFINITY, f32::max);
        if how.min_p > 0.0 {
            let least = f64::from(best) + f64::from(how.min_p.min(1.0)).ln();
            candidates.retain(|candidate| f64::from(candidate.0) >= least);
        }
        candidates.sort_unstable_by_key(|candidate| candidate.1);
        let weight = |c: &Candidate| (f64::from(c.0 - best) / f64::from(how.temperature)).exp();
        let total: f64 = candidates.iter().map(weight).sum();
        let mut rest = total * f64::from(uniform(how.seed, how.position));
        for candidate in candidates.iter() {
            rest -= weight(candidate);
            if rest < 0.0 {
                return candidate.1;
            }
        }
        candidates.last().map_or(0, |candidate| candidate.1)
    }
}

fn top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_rank);
        candidates.truncate(k);
    }
}

fn top_p(candidates: &mut Vec<Candidate>, p: f64) {
    if p.is_nan() || p >= 1.0 {
        return;
    }
    let best = candidates.iter().map(|c| c.0).fold(f32::NEG_INFINITY, f32::max);
    let weight = |c: &Candidate| f64::from(c.0 - best).exp();
    let wanted = p * candidates.iter().map(weight).sum::<f64>();
    // The kept ones are few as a rule: sort only as many of the likeliest as it takes.
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < candidates.len() {
        let more = (sorted * 3 + 64).min(candidates.len() - sorted);
        let rest = &mut candidates[sorted..];
        if more < rest.len() {
            rest.select_nth_unstable_by(more - 1, by_rank);
        }
        rest[..more].sort_unstable_by(by_rank);
        for at in sorted..sorted + more {
            sum += weight(&candidates[at]);
            if sum >= wanted {
                candidates.truncate(at + 1);
                return;
            }
        }
        sorted += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of the authors' Random123 library (kat_vectors).
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_no_nan() {
        assert_eq!(argmax(&[f32::NAN, 1.0, 3.0, 3.0]), 2);
        let mut sampler = Sampler::default();
        assert_eq!(sampler.sample(&[0.0, 2.0, 2.0], &Sampling::GREEDY), 1);
        let hot = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], &hot), NO_TOKEN);
        assert_eq!(sampler.sample(&[f32::NAN; 3], &Sampling::GREEDY), NO_TOKEN);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let mut sampler = Sampler::default();
        let mut counts = [0u32; 4];
        for position in 0..40_000 {
            let how = Sampling { temperature: 1.0, seed: 7, position, ..Sampling::GREEDY };
            counts[sampler.sample(&logits, &how) as usize] += 1;
        }
        for (count, logit) in counts.iter().zip(logits) {
            let expected = f64::from(logit).exp() / total;
            assert!((f64::from(*count) / 40_000.0 - expected).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn filters_keep_exactly_the_likeliest() {
        let mut sampler = Sampler::default();
        // Probabilities 0.5, 0.3, 0.15, 0.05, in mixed order.
        let logits = [0.15f32.ln(), 0.5f32.ln(), 0.05f32.ln(), 0.3f32.ln()];
        let mut seen = |how: Sampling| {
            let mut ids: Vec<u32> = (0..2_000)
                .map(|position| sampler.sample(&logits, &Sampling { position, ..how }))
                .collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let all = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        assert_eq!(seen(all), [0, 1, 2, 3]);
        assert_eq!(seen(Sampling { top_k: 2, ..all }), [1, 3]);
        assert_eq!(seen(Sampling { top_p: 0.79, ..all }), [1, 3]);
        assert_eq!(seen(Sampling { top_p: 0.0, ..all }), [1]);
        assert_eq!(seen(Sampling { min_p: 0.25, ..all }), [0, 1, 3]);
    }

    #[test]
    fn top_p_over_many_equals_sorting_everything() {
        let logits: Vec<f32> = (0..5_000u32)
            .map(|at| (philox([at, 0, 0, 0], [3, 4])[0] % 1000) as f32 / 250.0)
            .collect();
        for p in [0.1, 0.5, 0.9, 0.999] {
            let mut fast: Vec<Candidate> = logits.iter().copied().zip(0..).collect();
            let mut slow = fast.clone();
            top_p(&mut fast, p);
            slow.sort_by(by_rank);
            let weight = |c: &Candidate| f64::from(c.0 - slow[0].0).exp();
            let wanted = p * slow.iter().map(weight).sum::<f64>();
            let mut sum = 0.0;
            let count = slow
                .iter()
                .take_while(|c| {
                    let go = sum < wanted;
                    sum += weight(c);
                    go
                })
                .count();
            assert_eq!(fast.len(), count);
            assert_eq!(fast, slow[..count]);
        }
    }
}
