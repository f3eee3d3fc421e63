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

/// What stands for a token where no logit is a number above −∞, or one is +∞: the model or its arithmetic
/// broke down.
pub const NO_TOKEN: u32 = u32::MAX;

/// The likeliest token; of equals the lowest id. NaN counts as impossible; [`NO_TOKEN`] where all are, or
/// where a logit is +∞.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, NO_TOKEN);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    if best.0 == f32::INFINITY { NO_TOKEN } else { best.1 }
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
    /// The next token by `logits`, one a vocabulary entry; [`NO_TOKEN`] where none is possible
    /// or one is +∞.
    ///
    /// Candidates are walked in the order of their ids, so the choice does not depend on how they
    /// were sorted.
    pub fn sample(&mut self, logits: &[f32], how: &Sampling) -> u32 {
        self.sample_typical(logits, how, 1.0)
    }

    /// The same with the filter of locally typical sampling (Meister et al. 2022, arXiv 2202.00666)
    /// between top-k and top-p: of what is left it keeps the tokens whose information content is
    /// closest to the expected one, up to `typical_p` of the probability; 1 keeps all.
    pub fn sample_typical(&mut self, logits: &[f32], how: &Sampling, typical_p: f32) -> u32 {
        let greedy = how.temperature.is_nan() || how.temperature <= 0.0 || how.top_k == 1;
        if greedy {
            return argmax(logits);
        }
        let candidates = &mut self.candidates;
        candidates.clear();
        let finite = |&(logit, _): &Candidate| logit > f32::NEG_INFINITY;
        candidates.extend(logits.iter().copied().zip(0..).filter(finite));
        if candidates.is_empty() || highest(candidates) == f32::INFINITY {
            return NO_TOKEN;
        }
        top_k(candidates, how.top_k as usize);
        typical(candidates, f64::from(typical_p));
        top_p(candidates, f64::from(how.top_p));
        let best = highest(candidates);
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

/// The highest logit.
fn highest(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(|c| c.0).fold(f32::NEG_INFINITY, f32::max)
}

/// Keeps the candidates nearest by information content `-ln p` to the entropy of all, until their
/// probabilities reach `p`; of equals the likelier, then the lower id goes first.
fn typical(candidates: &mut Vec<Candidate>, p: f64) {
    if p.is_nan() || p >= 1.0 {
        return;
    }
    let best = highest(candidates);
    let weight = |c: &Candidate| f64::from(c.0 - best).exp();
    let total: f64 = candidates.iter().map(weight).sum();
    let logarithm = |c: &Candidate| f64::from(c.0 - best) - total.ln();
    let entropy: f64 = candidates.iter().map(|c| -weight(c) / total * logarithm(c)).sum();
    let distance = |c: &Candidate| (logarithm(c) + entropy).abs();
    let order = |left: &Candidate, right: &Candidate| {
        distance(left).total_cmp(&distance(right)).then_with(|| by_rank(left, right))
    };
    keep_first(candidates, p * total, order, weight);
}

fn top_p(candidates: &mut Vec<Candidate>, p: f64) {
    if p.is_nan() || p >= 1.0 {
        return;
    }
    let best = highest(candidates);
    let weight = |c: &Candidate| f64::from(c.0 - best).exp();
    let wanted = p * candidates.iter().map(weight).sum::<f64>();
    keep_first(candidates, wanted, by_rank, weight);
}

/// Keeps the first ones by `order`, as few as weigh `wanted` together.
fn keep_first(
    candidates: &mut Vec<Candidate>,
    wanted: f64,
    order: impl Fn(&Candidate, &Candidate) -> std::cmp::Ordering,
    weight: impl Fn(&Candidate) -> f64,
) {
    // The kept ones are few as a rule: sort only as many of the first as it takes.
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < candidates.len() {
        let more = (sorted * 3 + 64).min(candidates.len() - sorted);
        let rest = &mut candidates[sorted..];
        if more < rest.len() {
            rest.select_nth_unstable_by(more - 1, &order);
        }
        rest[..more].sort_unstable_by(&order);
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

/// The natural logarithm of the probability of `chosen` under `logits`, and the `top` likeliest tokens
/// with theirs, likeliest first, of equals the lowest id. NaN counts as impossible; an id beyond the
/// vocabulary as well. +∞ counts as the greatest number, so that no result is NaN.
pub fn log_probabilities(logits: &[f32], chosen: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let possible = |logit: f32| match logit.is_nan() {
        true => f32::NEG_INFINITY,
        false => logit.min(f32::MAX),
    };
    let mut candidates: Vec<Candidate> = logits.iter().map(|&l| possible(l)).zip(0..).collect();
    let best = highest(&candidates);
    let total: f64 = candidates.iter().map(|c| f64::from(c.0 - best).exp()).sum();
    let of = |logit: f32| match logit {
        f32::NEG_INFINITY => logit,
        logit => (f64::from(logit) - f64::from(best) - total.ln()) as f32,
    };
    let chosen = logits.get(chosen as usize).map_or(f32::NEG_INFINITY, |&l| of(possible(l)));
    let top = top.min(candidates.len());
    if top == 0 {
        return (chosen, Vec::new());
    }
    top_k(&mut candidates, top);
    candidates.sort_unstable_by(by_rank);
    (chosen, candidates.into_iter().map(|(logit, id)| (id, of(logit))).collect())
}

#[cfg(test)]
mod tests;
