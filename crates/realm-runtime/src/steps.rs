//! The engine's steps. On a device that computes while the host goes on, a step is started before the
//! one before it is read: the token that it takes is still on the device, and the host's work costs no
//! time.
//!
//! A token that the host chooses is not on the device: its sequence has no rows in the step that is
//! started ahead.
//!
//! A sequence that turns out to have ended was then computed for one step too many. That step's result
//! is dropped and nobody sees what it wrote to the cache; the blocks are given to others only when it
//! is done.

use realm_core::{
    backend::{BackendError, Inputs, SequenceRows, Step, StepOutput, Token},
    sampling::{NO_TOKEN, Sampling},
};

use crate::{
    Engine, Event, Finish, RuntimeError, SequenceId, TokenLogprobs,
    attention::BlockTable,
    overflow::Narrow,
    sampler::Choice,
    scheduler::{Scheduler, Share},
};

/// A step that was started and not yet read.
pub(crate) struct UnderWay {
    step: Box<dyn Step>,
    rows: Vec<Rows>,
    /// Blocks of sequences that ended meanwhile.
    held: Vec<BlockTable>,
}

/// A sequence's rows in a step.
struct Rows {
    sequence: SequenceId,
    count: usize,
    /// Tokens that its cache holds when the step is done.
    cached: usize,
    /// The last row's token is chosen.
    chooses: bool,
}

/// A token that a step gave a sequence.
struct Chosen {
    sequence: SequenceId,
    token: u32,
    logprobs: Option<TokenLogprobs>,
}

/// Sequences that a step found no token for.
#[derive(Default)]
struct Lost {
    not_numbers: Vec<SequenceId>,
    all_banned: Vec<SequenceId>,
}

impl UnderWay {
    /// Whether it computes rows of a sequence.
    pub(crate) fn computes(&self, id: SequenceId) -> bool {
        self.rows.iter().any(|rows| rows.sequence == id)
    }

    /// Keeps blocks from others until the step is done.
    pub(crate) fn hold(&mut self, table: BlockTable) {
        self.held.push(table);
    }
}

/// A step's inputs, sequence by sequence.
#[derive(Default)]
struct Batch<'a> {
    tokens: Vec<Token>,
    sequences: Vec<SequenceRows<'a>>,
    outputs: Vec<u32>,
    sampling: Vec<Sampling>,
    want_logits: bool,
    rows: Vec<Rows>,
}

impl<'a> Batch<'a> {
    /// Lays shares side by side.
    fn new(scheduler: &'a Scheduler, shares: &[Share]) -> Self {
        let mut batch = Self::default();
        for share in shares {
            let Some(sequence) = scheduler.get(share.sequence) else { continue };
            let (start, end) = (batch.tokens.len(), sequence.cached + share.rows);
            // A token that is not known yet is what the step under way chooses.
            let token = |at| match sequence.tokens.get(at) {
                Some(&id) => Token::Id(id),
                None => Token::Previous(sequence.output),
            };
            batch.tokens.extend((sequence.cached..end).map(token));
            let chooses = end == sequence.tokens.len() + sequence.choosing;
            if chooses {
                batch.outputs.push(batch.tokens.len() as u32 - 1);
                // Where the host chooses, the device's choice is not looked at.
                batch.sampling.push(match sequence.on_host {
                    true => Sampling::GREEDY,
                    false => sequence.sampling.at(end),
                });
                batch.want_logits |= sequence.on_host || sequence.logprobs.is_some();
            }
            batch.sequences.push(SequenceRows {
                rows: start..batch.tokens.len(),
                cached: sequence.cached,
                role: share.role,
                blocks: sequence.table.blocks(),
            });
            let (sequence, count) = (sequence.id, share.rows);
            batch.rows.push(Rows { sequence, count, cached: end, chooses });
        }
        batch
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nothing that a step uses goes before it is done.
        if let Some(UnderWay { step, .. }) = self.under_way.take() {
            _ = step.read();
        }
    }
}

impl Engine {
    /// Runs one step and gives the tokens that came of it. A step that only took in part of a prompt
    /// gives none. Where the device computes on its own, the next step is under way when this returns.
    ///
    /// # Errors
    /// The device's failure: the sequences are as they were, and the next call tries again. Logits that
    /// are no numbers where nothing is in f16 (otherwise bf16 takes its place), which ends the sequences
    /// that the error names; the others go on, and the next call gives the tokens that they got in this
    /// step. The same where biases and penalties leave no token.
    pub fn step(&mut self) -> Result<Vec<Event>, RuntimeError> {
        if let Some(error) = self.failures.pop() {
            return Err(error);
        }
        if !self.pending.is_empty() {
            return Ok(std::mem::take(&mut self.pending));
        }
        self.finish_surplus()?;
        let current = match self.under_way.take() {
            Some(step) => step,
            None => match self.start(None)? {
                Some(step) => step,
                None => return Ok(Vec::new()),
            },
        };
        let looks_ahead = self.backend.info().asynchronous && !self.times;
        if looks_ahead {
            // A step that cannot be started, for want of a token that is a number, say, is started when
            // this one is read: then it is known why.
            self.under_way = self.start(Some(&*current.step)).unwrap_or(None);
        }
        let UnderWay { step, rows, held } = current;
        let output = step.read();
        self.free(held);
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                self.take_back(&rows);
                return Err(error.into());
            }
        };
        for (total, seconds) in self.node_seconds.iter_mut().zip(&output.node_seconds) {
            *total += seconds;
        }
        let (chosen, mut lost) = self.choose(&rows, &output);
        if let Some(narrow) = self.narrow().filter(|_| !lost.not_numbers.is_empty()) {
            let broken = std::mem::take(&mut lost.not_numbers);
            return self.go_on_wider(narrow, &broken, chosen, lost);
        }
        let mut broken = lost.not_numbers.iter().chain(&lost.all_banned);
        if broken.any(|&id| self.under_way.as_ref().is_some_and(|step| step.computes(id))) {
            self.drop_next();
        }
        for &id in lost.not_numbers.iter().chain(&lost.all_banned) {
            self.scheduler.end(id, None);
            tracing::debug!(sequence = id.0, "ended without a token");
        }
        for rows in &rows {
            self.scheduler.computed(rows.sequence, rows.cached);
        }
        let events = self.advance(chosen);
        self.give(events, lost)
    }

    /// The tokens that a step gave, or first what went wrong in it.
    fn give(&mut self, events: Vec<Event>, lost: Lost) -> Result<Vec<Event>, RuntimeError> {
        self.failures = self.errors(lost);
        let Some(error) = self.failures.pop() else { return Ok(events) };
        self.pending = events;
        Err(error)
    }

    /// After a step in which f16 overflowed: the `broken` sequences have no token yet, the others have
    /// theirs, and all go on in bf16.
    fn go_on_wider(
        &mut self,
        narrow: Narrow,
        broken: &[SequenceId],
        chosen: Vec<Chosen>,
        lost: Lost,
    ) -> Result<Vec<Event>, RuntimeError> {
        self.drop_next();
        lost.all_banned.iter().for_each(|&id| _ = self.scheduler.end(id, None));
        let mut first = (None, 0);
        for &id in broken.iter().rev() {
            if let Some(sequence) = self.scheduler.find(id) {
                sequence.choosing -= 1;
                first = (Some(id), sequence.tokens.len());
            }
        }
        let events = self.advance(chosen);
        if let Err(error) = self.widen(narrow, first) {
            self.pending = events;
            return Err(error);
        }
        self.give(events, lost)
    }

    /// The tokens that a step gave: the device's choices, or the host's where the request asks for more
    /// than devices do. Sequences that ended while the step was under way have none.
    fn choose(&mut self, rows: &[Rows], output: &StepOutput) -> (Vec<Chosen>, Lost) {
        let (mut chosen, mut lost) = (Vec::with_capacity(rows.len()), Lost::default());
        let vocabulary = self.vocabulary.max(1);
        let choosing = rows.iter().filter(|rows| rows.chooses).map(|rows| rows.sequence);
        for (at, (id, &sampled)) in choosing.zip(&output.sampled).enumerate() {
            let Some(sequence) = self.scheduler.find(id) else { continue };
            let logits = output.logits.get(at * vocabulary..(at + 1) * vocabulary);
            let choice = match (sequence.on_host, logits) {
                (true, Some(logits)) => {
                    let position = sequence.tokens.len();
                    sequence.count_said();
                    let (params, said) = (&sequence.sampling, sequence.said());
                    self.host.choose(logits, params, said, position)
                }
                _ if sampled == NO_TOKEN => Choice::NotNumbers,
                _ => Choice::Token(sampled),
            };
            let token = match choice {
                Choice::Token(token) => token,
                Choice::NotNumbers => {
                    lost.not_numbers.push(id);
                    continue;
                }
                Choice::AllBanned => {
                    lost.all_banned.push(id);
                    continue;
                }
            };
            let logprobs = sequence.logprobs.zip(logits);
            let logprobs =
                logprobs.map(|(top, logits)| crate::sampler::logprobs(logits, token, top));
            chosen.push(Chosen { sequence: id, token, logprobs });
        }
        (chosen, lost)
    }

    /// What to say about sequences without a token.
    fn errors(&self, lost: Lost) -> Vec<RuntimeError> {
        let Lost { not_numbers, all_banned } = lost;
        let mut errors = Vec::new();
        if !all_banned.is_empty() {
            errors.push(RuntimeError::AllBanned { sequences: all_banned });
        }
        if !not_numbers.is_empty() {
            let (precision, sequences) = (self.precision(), not_numbers);
            errors.push(RuntimeError::NotNumbers { precision, sequences });
        }
        errors
    }

    /// Waits for the step started ahead and forgets it: what it went on from does not exist, so that
    /// its results mean nothing. Its sequences compute their rows again.
    pub(crate) fn drop_next(&mut self) {
        let Some(UnderWay { step, rows, held }) = self.under_way.take() else { return };
        // Where it failed, the device does so again in the step that takes its place.
        _ = step.read();
        self.free(held);
        self.rewind(&rows);
    }

    /// Starts the next step; `None` where there is nothing to compute. `previous` is the step under
    /// way.
    fn start(&mut self, previous: Option<&dyn Step>) -> Result<Option<UnderWay>, BackendError> {
        let shares = self.scheduler.plan(previous.is_none(), &*self.bindings.kv);
        if shares.is_empty() {
            return Ok(None);
        }
        let batch = Batch::new(&self.scheduler, &shares);
        let step = self.program.enqueue(&Inputs {
            tokens: &batch.tokens,
            sequences: &batch.sequences,
            given: &[],
            outputs: &batch.outputs,
            sampling: &batch.sampling,
            want_logits: batch.want_logits,
            want_times: self.times,
            previous,
        })?;
        tracing::trace!(
            rows = batch.tokens.len(),
            sequences = batch.sequences.len(),
            ahead = previous.is_some(),
            "step"
        );
        self.steps += 1;
        let rows = batch.rows;
        let mut output = 0;
        for rows in &rows {
            let Some(sequence) = self.scheduler.find(rows.sequence) else { continue };
            sequence.cached += rows.count;
            if rows.chooses {
                sequence.choosing += 1;
                sequence.output = output;
                output += 1;
            }
        }
        Ok(Some(UnderWay { step, rows, held: Vec::new() }))
    }

    /// Adds the chosen tokens to their sequences and lets finished ones go.
    fn advance(&mut self, chosen: Vec<Chosen>) -> Vec<Event> {
        let mut events = Vec::with_capacity(chosen.len());
        for Chosen { sequence: id, token, logprobs } in chosen {
            let Some(sequence) = self.scheduler.find(id) else { continue };
            sequence.push(token);
            let finish = if sequence.stop_tokens.contains(&token) {
                Some(Finish::Stop)
            } else if sequence.generated() >= sequence.max_tokens {
                Some(Finish::Length)
            } else {
                None
            };
            if let Some(finish) = finish {
                tracing::debug!(
                    sequence = id.0,
                    ?finish,
                    tokens = sequence.generated(),
                    "finished"
                );
                self.scheduler.end(id, self.under_way.as_mut());
            }
            events.push(Event { sequence: id, token, finish, logprobs });
        }
        events
    }

    /// Waits for a step under way whose sequences have all ended, so that their blocks are free.
    ///
    /// # Errors
    /// The device's failure.
    pub(crate) fn finish_surplus(&mut self) -> Result<(), RuntimeError> {
        let Some(UnderWay { step, rows, held }) = self.under_way.take() else { return Ok(()) };
        if rows.iter().any(|rows| self.scheduler.find(rows.sequence).is_some()) {
            self.under_way = Some(UnderWay { step, rows, held });
            return Ok(());
        }
        let result = step.read();
        self.free(held);
        result.map(|_| ()).map_err(RuntimeError::from)
    }

    fn free(&mut self, held: Vec<BlockTable>) {
        for mut table in held {
            table.release(&mut self.scheduler.blocks);
        }
    }

    /// After a step that failed: its sequences, and those of the step started after it, are as they
    /// were before.
    fn take_back(&mut self, failed: &[Rows]) {
        // Waited for, so that nothing is under way when the cache's blocks are moved next.
        self.drop_next();
        self.rewind(failed);
    }

    /// Rows are to be computed again.
    fn rewind(&mut self, rows: &[Rows]) {
        for Rows { sequence, count, chooses, .. } in rows {
            if let Some(sequence) = self.scheduler.find(*sequence) {
                sequence.cached -= count;
                sequence.choosing -= usize::from(*chooses);
            }
        }
    }
}
