//! Running the tests and taking their times.

use std::{collections::HashMap, time::Instant};

use realm_core::{
    Graph,
    cost::{self, Cost, SequenceShape, StepShape},
};
use realm_runtime::{Engine, Request, SamplingParams, SequenceId};

use super::{
    plan::{Test, Work},
    progress::Progress,
};
use crate::{
    error::{CliError, Result},
    synth::random::Rng,
};

/// Most tokens that a warm-up generates.
const WARM_UP: usize = 8;

/// A loaded model and how often it is measured.
pub(super) struct Bench {
    engine: Engine,
    vocabulary: usize,
    repetitions: u32,
    /// The engine takes each node's time.
    times: bool,
    rng: Rng,
}

/// What a test gave.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) test: Test,
    /// Seconds of each repetition.
    pub(super) seconds: Vec<f64>,
    /// Steps of a repetition.
    pub(super) steps: usize,
    /// Work of a repetition, a node each.
    pub(super) costs: Vec<Cost>,
    /// Seconds of all repetitions, a node each; zeros where they were not taken.
    pub(super) node_seconds: Vec<f64>,
}

/// Median, smallest and largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of at least one number.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            at(half)
        } else {
            (at(half.wrapping_sub(1)) + at(half)) / 2.0
        };
        Self { median, min: at(0), max: at(values.len().wrapping_sub(1)) }
    }
}

impl Measured {
    /// Tokens a second of the repetitions.
    pub(super) fn rates(&self) -> Spread {
        let tokens = self.test.tokens() as f64;
        Spread::of(self.seconds.iter().map(|seconds| tokens / seconds).collect())
    }

    /// Work of a repetition.
    pub(super) fn cost(&self) -> Cost {
        self.costs.iter().copied().sum()
    }
}

/// One repetition: the shapes of its timed steps, its time, and each node's.
struct Repetition {
    steps: Vec<Vec<SequenceShape>>,
    seconds: f64,
    node_seconds: Vec<f64>,
}

impl Bench {
    /// A bench of a loaded model with a vocabulary of that size.
    pub(super) fn new(engine: Engine, vocabulary: usize, repetitions: u32, times: bool) -> Self {
        Self { engine, vocabulary, repetitions, times, rng: Rng::new(0) }
    }

    /// The graph that runs.
    pub(super) fn graph(&self) -> &Graph {
        self.engine.graph()
    }

    /// Warms up and measures, and tells `progress` of the warm-up and of each repetition.
    ///
    /// # Errors
    /// The engine's.
    pub(super) fn run(&mut self, test: &Test, progress: &Progress) -> Result<Measured> {
        let work = match test.work {
            Work::Generate { tokens, sequences } => {
                Work::Generate { tokens: tokens.min(WARM_UP), sequences }
            }
            work => work,
        };
        progress.begin(format!("{test}: warming up"));
        self.repeat(&Test { work, depth: 0 })?;
        progress.done();
        let nodes = self.graph().nodes().len();
        let mut measured = Measured {
            test: *test,
            seconds: Vec::new(),
            steps: 0,
            costs: Vec::new(),
            node_seconds: vec![0.0; nodes],
        };
        let mut last = String::new();
        for at in 1..=self.repetitions {
            progress.begin(format!("{test}: {at} of {}{last}", self.repetitions));
            let Repetition { steps, seconds, node_seconds } = self.repeat(test)?;
            progress.done();
            last = format!(", before {:.1} tokens/s", test.tokens() as f64 / seconds);
            measured.seconds.push(seconds);
            for (sum, seconds) in measured.node_seconds.iter_mut().zip(node_seconds) {
                *sum += seconds;
            }
            if at == 1 {
                measured.steps = steps.len();
                measured.costs = self.costs(test, &steps);
            }
        }
        Ok(measured)
    }

    fn repeat(&mut self, test: &Test) -> Result<Repetition> {
        match test.work {
            Work::Prompt { tokens } => self.prompt(test, tokens),
            Work::Generate { tokens, sequences } => self.generate(test, tokens, sequences),
        }
    }

    fn submit(&mut self, tokens: usize, max_tokens: usize) -> Result<SequenceId> {
        let prompt = (0..tokens).map(|_| self.rng.below(self.vocabulary) as u32).collect();
        let sampling = SamplingParams::GREEDY;
        let request = Request { prompt, max_tokens, sampling, stop_tokens: vec![], logprobs: None };
        Ok(self.engine.submit(request)?)
    }

    /// Times a prompt of `tokens` after the test's depth. Where that is not whole steps, a sequence
    /// that ends with the first step takes what is left of it.
    fn prompt(&mut self, test: &Test, tokens: usize) -> Result<Repetition> {
        let step_tokens = self.engine.memory().limits.tokens;
        let filler = test.filler(step_tokens);
        if filler > 0 {
            self.submit(filler, 1)?;
        }
        self.submit(test.prompt(), 1)?;
        for _ in 0..test.depth.div_ceil(step_tokens) {
            self.engine.step()?;
        }
        let mut steps = Vec::new();
        let (mut cached, end) = (test.depth, test.depth + tokens);
        while cached < end {
            let rows = (end - cached).min(step_tokens);
            steps.push(vec![SequenceShape { cached, rows }]);
            cached += rows;
        }
        let repetition = self.time(test, steps)?;
        if self.engine.is_idle() { Ok(repetition) } else { Err(self.out_of_step(test)) }
    }

    /// Times `tokens` steps of `sequences` rows, once every prompt is taken in.
    fn generate(&mut self, test: &Test, tokens: usize, sequences: usize) -> Result<Repetition> {
        let mut generated: HashMap<SequenceId, usize> = HashMap::new();
        let max_tokens = test.most_generated(self.engine.memory().limits.tokens);
        for _ in 0..sequences {
            generated.insert(self.submit(test.prompt(), max_tokens)?, 0);
        }
        while generated.values().any(|&count| count == 0) {
            for event in self.engine.step()? {
                *generated.entry(event.sequence).or_default() += 1;
            }
        }
        // The token generated last is not in the cache yet.
        let at = |step: usize| {
            let cached = |count: &usize| test.prompt() + count - 1 + step;
            generated
                .values()
                .map(|count| SequenceShape { cached: cached(count), rows: 1 })
                .collect()
        };
        let repetition = self.time(test, (0..tokens).map(at).collect());
        for &sequence in generated.keys() {
            self.engine.cancel(sequence);
        }
        repetition
    }

    /// Runs as many steps as there are shapes.
    fn time(&mut self, test: &Test, steps: Vec<Vec<SequenceShape>>) -> Result<Repetition> {
        self.engine.take_node_seconds();
        let start = Instant::now();
        for _ in &steps {
            if self.engine.is_idle() {
                return Err(self.out_of_step(test));
            }
            self.engine.step()?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let node_seconds = if self.times { self.engine.take_node_seconds() } else { Vec::new() };
        Ok(Repetition { steps, seconds, node_seconds })
    }

    /// The engine took other steps than were counted on: times would be wrong.
    fn out_of_step(&mut self, test: &Test) -> CliError {
        CliError::Input(match self.engine.take_notes().pop() {
            // What overflowed was computed again.
            Some(note) => format!("{test}: {note}; measure with --precision bf16 --kv-type bf16"),
            None => format!(
                "{test}: the engine took other steps than planned; this is a bug, please report it"
            ),
        })
    }

    /// The work of a repetition, a node each.
    fn costs(&self, test: &Test, steps: &[Vec<SequenceShape>]) -> Vec<Cost> {
        let kv_type = self.engine.memory().kv.kv_type;
        let graph = self.graph();
        let mut costs = vec![Cost::default(); graph.nodes().len()];
        for sequences in steps {
            // A part of a prompt gives logits only where it is the last.
            let ended = |sequence: &&SequenceShape| match test.work {
                Work::Prompt { .. } => sequence.cached + sequence.rows == test.prompt(),
                Work::Generate { .. } => true,
            };
            let outputs = sequences.iter().filter(ended).count();
            let shape = StepShape { sequences, outputs, kv_type };
            for (sum, node) in costs.iter_mut().zip(graph.nodes()) {
                *sum = *sum + cost::node(graph, node, &shape);
            }
        }
        costs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_found_in_any_order() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
        let spread = Spread::of(vec![4.0, 1.0]);
        assert_eq!(spread, Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert!(Spread::of(vec![]).median.is_nan());
    }
}
