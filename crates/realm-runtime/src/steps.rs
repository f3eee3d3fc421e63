//! The engine's steps. On a device that computes while the host goes on, a step is started before the
//! one before it is read: the token that it takes is still on the device, and the host's work costs no
//! time.
//!
//! A sequence that turns out to have ended was then computed for one step too many. That step's result
//! is dropped and nobody sees what it wrote to the cache; the blocks are given to others only when it
//! is done.

use realm_core::{
    backend::{BackendError, Inputs, SequenceRows, Step, Token},
    sampling::NO_TOKEN,
};

use crate::{
    Engine, Event, Finish, RuntimeError, SequenceId,
    attention::BlockTable,
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
    /// The last row's token is chosen.
    chooses: bool,
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
    sampling: Vec<realm_core::sampling::Sampling>,
    rows: Vec<Rows>,
}

impl<'a> Batch<'a> {
    /// Lays shares side by side.
    fn new(scheduler: &'a Scheduler, shares: &[Share]) -> Self {
        let mut batch = Self::default();
        for share in shares {
            let sequence = &scheduler.running[share.sequence];
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
                batch.sampling.push(sequence.request.sampling.at(end));
            }
            batch.sequences.push(SequenceRows {
                rows: start..batch.tokens.len(),
                cached: sequence.cached,
                role: share.role,
                blocks: sequence.table.blocks(),
            });
            batch.rows.push(Rows { sequence: sequence.id, count: share.rows, chooses });
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
    /// The device's failure. Logits that are no numbers, which ends the sequences that the error names;
    /// the others go on, and the next call gives the tokens that they got in this step.
    pub fn step(&mut self) -> Result<Vec<Event>, RuntimeError> {
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
        let broken = self.broken(&rows, &output.sampled);
        if broken.iter().any(|&id| self.under_way.as_ref().is_some_and(|step| step.computes(id))) {
            self.drop_next();
        }
        for &id in &broken {
            self.scheduler.end(id, None);
        }
        let events = self.advance(&rows, &output.sampled);
        if broken.is_empty() {
            return Ok(events);
        }
        self.pending = events;
        Err(RuntimeError::NotNumbers { precision: self.precision(), sequences: broken })
    }

    /// The sequences that a step found no token for. One that ended while the step was under way is
    /// none of them.
    fn broken(&mut self, rows: &[Rows], sampled: &[u32]) -> Vec<SequenceId> {
        let choosing = rows.iter().filter(|rows| rows.chooses).zip(sampled);
        let lost = choosing.filter(|(_, token)| **token == NO_TOKEN).map(|(rows, _)| rows.sequence);
        lost.filter(|&id| self.scheduler.find(id).is_some()).collect()
    }

    /// Waits for the step started ahead and forgets it: it took a token that does not exist, so that
    /// its results mean nothing. Its other sequences compute their rows again.
    fn drop_next(&mut self) {
        let Some(UnderWay { step, rows, held }) = self.under_way.take() else { return };
        // Where it failed, the device does so again in the step that takes its place.
        _ = step.read();
        self.free(held);
        self.rewind(&rows);
    }

    /// Starts the next step; `None` where there is nothing to compute. `previous` is the step under
    /// way.
    fn start(&mut self, previous: Option<&dyn Step>) -> Result<Option<UnderWay>, BackendError> {
        let shares = self.scheduler.plan();
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
            want_logits: false,
            want_times: self.times,
            previous,
        })?;
        let rows = batch.rows;
        let mut output = 0;
        for (share, rows) in shares.iter().zip(&rows) {
            let sequence = &mut self.scheduler.running[share.sequence];
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
    fn advance(&mut self, rows: &[Rows], sampled: &[u32]) -> Vec<Event> {
        let mut events = Vec::new();
        let choosing = rows.iter().filter(|rows| rows.chooses);
        for (rows, &token) in choosing.zip(sampled) {
            // One that ended while the step was under way wants no more.
            let Some(sequence) = self.scheduler.find(rows.sequence) else { continue };
            sequence.choosing -= 1;
            sequence.tokens.push(token);
            let finish = if sequence.request.stop_tokens.contains(&token) {
                Some(Finish::Stop)
            } else if sequence.generated() >= sequence.request.max_tokens {
                Some(Finish::Length)
            } else {
                None
            };
            events.push(Event { sequence: sequence.id, token, finish });
        }
        for event in events.iter().filter(|event| event.finish.is_some()) {
            self.scheduler.end(event.sequence, self.under_way.as_mut());
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
        let after = self.under_way.take();
        let (rows, held) = after.map_or((Vec::new(), Vec::new()), |step| (step.rows, step.held));
        self.rewind(&rows);
        self.rewind(failed);
        self.free(held);
    }

    /// Rows are to be computed again.
    fn rewind(&mut self, rows: &[Rows]) {
        for Rows { sequence, count, chooses } in rows {
            if let Some(sequence) = self.scheduler.find(*sequence) {
                sequence.cached -= count;
                sequence.choosing -= usize::from(*chooses);
            }
        }
    }
}
