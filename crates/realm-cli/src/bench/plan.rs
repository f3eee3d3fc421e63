//! What is measured, and what the engine must hold for it.

use std::fmt;

/// What a test times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// A prompt.
    Prompt {
        /// Its tokens.
        tokens: usize,
    },
    /// Generation, token by token.
    Generate {
        /// Tokens for each sequence.
        tokens: usize,
        /// Sequences side by side.
        sequences: usize,
    },
}

/// One test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) work: Work,
    /// Tokens in the cache before it starts.
    pub(super) depth: usize,
}

impl Test {
    /// Tokens that the time is for.
    pub(super) fn tokens(&self) -> usize {
        match self.work {
            Work::Prompt { tokens } => tokens,
            Work::Generate { tokens, sequences } => tokens * sequences,
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Prompt { tokens } => write!(f, "pp{tokens}")?,
            Work::Generate { tokens, sequences: 1 } => write!(f, "tg{tokens}")?,
            Work::Generate { tokens, sequences } => write!(f, "tg{tokens}x{sequences}")?,
        }
        if self.depth > 0 { write!(f, "@d{}", self.depth) } else { Ok(()) }
    }
}

/// All tests, and the engine that runs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) tests: Vec<Test>,
    /// Most tokens of a step.
    pub(super) step_tokens: usize,
    /// Tokens a sequence must be able to hold.
    pub(super) context: usize,
    /// Most sequences side by side, those that fill up a step included.
    pub(super) sequences: usize,
}

impl Plan {
    /// The tests of all combinations; sizes of 0 make none.
    pub(super) fn new(
        prompts: &[usize],
        generated: &[usize],
        depths: &[usize],
        batches: &[usize],
        step: usize,
    ) -> Self {
        let sequences = if generated.iter().any(|&tokens| tokens > 0) {
            batches.iter().copied().max().unwrap_or(1)
        } else {
            1
        };
        // Decoding sequences come first: room must remain for prompts that are still on their way.
        let step_tokens = step.max(2 * sequences);
        let mut tests = Vec::new();
        for &depth in depths {
            for &tokens in prompts.iter().filter(|&&tokens| tokens > 0) {
                tests.push(Test { work: Work::Prompt { tokens }, depth });
            }
            for &tokens in generated.iter().filter(|&&tokens| tokens > 0) {
                tests.extend(
                    batches.iter().map(|&sequences| Test {
                        work: Work::Generate { tokens, sequences },
                        depth,
                    }),
                );
            }
        }
        let context = tests.iter().map(|test| test.context(step_tokens)).max().unwrap_or(1);
        let filler = tests.iter().map(|test| test.filler(step_tokens)).max().unwrap_or(0);
        let sequences = if filler > 0 { sequences.max(2) } else { sequences };
        let context = context.max(filler);
        Self { tests, step_tokens, context, sequences }
    }
}

impl Test {
    /// Tokens of each sequence before the timed ones: generation starts from at least one.
    pub(super) fn prompt(&self) -> usize {
        match self.work {
            Work::Prompt { tokens } => self.depth + tokens,
            Work::Generate { .. } => self.depth.max(1),
        }
    }

    /// Most tokens that a sequence generates, the one that its prompt gives included. Of several
    /// sequences the first generate while the prompts of the last are still taken in.
    pub(super) fn most_generated(&self, step_tokens: usize) -> usize {
        match self.work {
            Work::Prompt { .. } => 1,
            Work::Generate { tokens, sequences: 1 } => tokens + 1,
            Work::Generate { tokens, sequences } => {
                let room = step_tokens.saturating_sub(sequences).max(1);
                tokens + 2 + (sequences * self.prompt()).div_ceil(room)
            }
        }
    }

    /// Tokens of another sequence that, beside the first tokens of this test's prompt, make a whole
    /// step: then its last tokens start with a step, whatever the depth.
    pub(super) fn filler(&self, step_tokens: usize) -> usize {
        match self.work {
            Work::Prompt { .. } => self.depth.next_multiple_of(step_tokens) - self.depth,
            Work::Generate { .. } => 0,
        }
    }

    /// Tokens that a sequence comes to hold.
    fn context(&self, step_tokens: usize) -> usize {
        self.prompt() + self.most_generated(step_tokens) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(plan: &Plan) -> Vec<String> {
        plan.tests.iter().map(Test::to_string).collect()
    }

    #[test]
    fn tests_are_all_combinations() {
        let plan = Plan::new(&[128, 512], &[32], &[0, 4096], &[1], 512);
        let expected = ["pp128", "pp512", "tg32", "pp128@d4096", "pp512@d4096", "tg32@d4096"];
        assert_eq!(names(&plan), expected);
        assert_eq!((plan.context, plan.sequences, plan.step_tokens), (4096 + 512, 1, 512));
        let plan = Plan::new(&[0], &[16], &[0], &[1, 8], 512);
        assert_eq!(names(&plan), ["tg16", "tg16x8"]);
        assert_eq!(plan.tests[1].tokens(), 128);
        assert_eq!(plan.sequences, 8);
        assert!(Plan::new(&[0], &[0], &[0], &[1], 512).tests.is_empty());
    }

    #[test]
    fn a_step_is_filled_before_a_prompt() {
        let plan = Plan::new(&[512], &[128], &[1000], &[1], 512);
        assert_eq!(names(&plan), ["pp512@d1000", "tg128@d1000"]);
        let fillers: Vec<usize> = plan.tests.iter().map(|test| test.filler(512)).collect();
        assert_eq!((fillers, plan.context, plan.sequences), (vec![24, 0], 1512, 2));
        let plan = Plan::new(&[16], &[], &[10], &[1], 512);
        assert_eq!((plan.tests[0].filler(512), plan.context, plan.sequences), (502, 502, 2));
        let plan = Plan::new(&[16], &[], &[1024], &[1], 512);
        assert_eq!((plan.tests[0].filler(512), plan.context, plan.sequences), (0, 1040, 1));
        let plan = Plan::new(&[64], &[8], &[0], &[100], 32);
        assert_eq!(plan.step_tokens, 200);
    }

    #[test]
    fn contexts_hold_what_is_generated() {
        let generate = |tokens| Plan::new(&[], &[tokens], &[0], &[1], 512).context;
        assert_eq!(generate(1), 2);
        assert_eq!(generate(128), 129);
        assert_eq!(Plan::new(&[512], &[], &[0], &[64], 512).context, 512);
    }
}
