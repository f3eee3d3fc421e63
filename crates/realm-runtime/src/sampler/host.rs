//! Choosing tokens on the host, where a request asks for more than devices do.

use std::collections::HashMap;

use realm_core::sampling::{NO_TOKEN, Sampler, argmax, log_probabilities};

use super::SamplingParams;
use crate::TokenLogprobs;

/// The tokens of a sequence so far.
#[derive(Debug)]
pub(crate) struct Said {
    /// How often each token was generated; of the prompt's, 0 where never.
    generated: HashMap<u32, u32>,
}

impl Said {
    /// Counts `tokens`, of which the first `prompt` were not generated.
    pub(crate) fn new(tokens: &[u32], prompt: usize) -> Self {
        let (prompt, generated) = tokens.split_at(prompt);
        let mut said = Self { generated: prompt.iter().map(|&token| (token, 0)).collect() };
        generated.iter().for_each(|&token| said.add(token));
        said
    }

    /// One more generated token.
    pub(crate) fn add(&mut self, token: u32) {
        *self.generated.entry(token).or_default() += 1;
    }
}

/// What came of choosing on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Token(u32),
    /// No logit is a number, or one is infinite.
    NotNumbers,
    /// No logit is left by penalties and biases.
    AllBanned,
}

/// Chooses tokens as the devices do, by logits changed before; keeps its work memory.
#[derive(Debug, Default)]
pub(crate) struct HostSampler {
    sampler: Sampler,
    logits: Vec<f32>,
}

impl HostSampler {
    /// The token at `position` by the model's `logits`, one a vocabulary entry. `said` is there where
    /// the parameters penalize.
    pub(crate) fn choose(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        said: Option<&Said>,
        position: usize,
    ) -> Choice {
        if argmax(logits) == NO_TOKEN {
            return Choice::NotNumbers;
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        if let Some(said) = said {
            penalize(&mut self.logits, params, said);
        }
        for (id, bias) in &params.logit_bias {
            if let Some(logit) = self.logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        let how = params.at(position);
        match self.sampler.sample_typical(&self.logits, &how, params.typical_p) {
            NO_TOKEN => Choice::AllBanned,
            token => Choice::Token(token),
        }
    }
}

/// Each token's logit is changed by its own count alone, so that the order means nothing.
fn penalize(logits: &mut [f32], params: &SamplingParams, said: &Said) {
    let SamplingParams { repetition_penalty, frequency_penalty, presence_penalty, .. } = *params;
    for (&token, &count) in &said.generated {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        if *logit > 0.0 {
            *logit /= repetition_penalty;
        } else {
            *logit *= repetition_penalty;
        }
        if count > 0 {
            *logit -= frequency_penalty * count as f32 + presence_penalty;
        }
    }
}

/// The log-probabilities of a chosen token and of the `top` likeliest by the model's `logits`.
pub(crate) fn logprobs(logits: &[f32], chosen: u32, top: usize) -> TokenLogprobs {
    let (chosen, top) = log_probabilities(logits, chosen, top);
    TokenLogprobs { chosen, top }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(logits: &[f32], params: &SamplingParams, tokens: &[u32], prompt: usize) -> Choice {
        let said = Said::new(tokens, prompt);
        HostSampler::default().choose(logits, params, Some(&said), tokens.len())
    }

    #[test]
    fn penalties_change_what_was_said_and_no_more() {
        let mut logits = [4.0, 2.0, -1.0, -2.0, 3.0];
        let params = SamplingParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..SamplingParams::GREEDY
        };
        // The prompt has 1 and 3, generated were 3, 0, 0; 99 is no token.
        penalize(&mut logits, &params, &Said::new(&[1, 3, 3, 0, 0, 99], 2));
        assert_eq!(logits, [4.0 / 2.0 - 1.25, 2.0 / 2.0, -1.0, -2.0 * 2.0 - 0.75, 3.0]);
    }

    #[test]
    fn counts_grow_with_the_text() {
        let mut said = Said::new(&[5, 6, 7], 2);
        said.add(7);
        said.add(5);
        assert_eq!(said.generated, HashMap::from([(5, 1), (6, 0), (7, 2)]));
    }

    #[test]
    fn biases_win_over_the_model() {
        let greedy = SamplingParams::GREEDY;
        let logits = [1.0, 3.0, 2.0];
        assert_eq!(choose(&logits, &greedy, &[], 0), Choice::Token(1));
        let ban = SamplingParams { logit_bias: vec![(1, f32::NEG_INFINITY)], ..greedy.clone() };
        assert_eq!(choose(&logits, &ban, &[], 0), Choice::Token(2));
        let twice = SamplingParams { logit_bias: vec![(0, 1.5), (0, 1.0)], ..greedy.clone() };
        assert_eq!(choose(&logits, &twice, &[], 0), Choice::Token(0));
        let all = (0..3).map(|id| (id, f32::NEG_INFINITY)).collect();
        let all = SamplingParams { logit_bias: all, ..greedy };
        assert_eq!(choose(&logits, &all, &[], 0), Choice::AllBanned);
        assert_eq!(choose(&[f32::NAN; 3], &all, &[], 0), Choice::NotNumbers);
        // To ban the token of an infinite logit does not make it a number.
        assert_eq!(choose(&[1.0, f32::INFINITY, 2.0], &ban, &[], 0), Choice::NotNumbers);
    }

    #[test]
    fn without_penalties_the_choice_is_the_devices() {
        let logits: Vec<f32> = (0..300).map(|at| (at * 37 % 101) as f32 / 20.0).collect();
        let mut device = Sampler::default();
        for position in 0..200 {
            let params = SamplingParams { temperature: 1.1, seed: 9, ..SamplingParams::default() };
            let token = device.sample(&logits, &params.at(position));
            let said = None;
            let found = HostSampler::default().choose(&logits, &params, said, position);
            assert_eq!(found, Choice::Token(token));
        }
    }
}
