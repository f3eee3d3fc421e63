//! The logits of whole prompts.

use realm_core::{
    backend::{Inputs, Limits, Role, SequenceRows, Token},
    sampling::{NO_TOKEN, argmax},
};

use crate::{Engine, RuntimeError, attention::BlockTable};

/// Rows a step: their logits are held at once, 33 MB for a vocabulary of 128 k.
const ROWS: usize = 64;

impl Engine {
    /// The logits of every token of a prompt, as a prefill computes them: `sink` gets rows of
    /// `[vocabulary]` in order, some at a time. Where f16 overflows on the way, the rows from there on are
    /// bf16's ([`Engine::take_notes`]).
    ///
    /// # Errors
    /// As [`Engine::submit`], and where too few cache blocks are free beside running sequences, or too
    /// little memory: the logits of 64 rows at once are no part of [`Engine::memory`].
    pub fn logits(
        &mut self,
        prompt: &[u32],
        mut sink: impl FnMut(&[f32]) -> Result<(), RuntimeError>,
    ) -> Result<(), RuntimeError> {
        self.check_prompt(prompt)?;
        let mut given = 0;
        loop {
            self.finish_surplus()?;
            let mut table = BlockTable::default();
            let result = self.pass(prompt, &mut table, &mut given, &mut sink);
            table.release(&mut self.scheduler.blocks);
            match (result?, self.narrow()) {
                (Some(row), Some(narrow)) => self.widen(narrow, (None, row + 1))?,
                _ => return Ok(()),
            }
        }
    }

    /// Computes the prompt's rows and gives those that were not `given`. Stops at the first one that shows
    /// an overflow of f16 and tells which that is.
    fn pass(
        &mut self,
        prompt: &[u32],
        table: &mut BlockTable,
        given: &mut usize,
        sink: &mut impl FnMut(&[f32]) -> Result<(), RuntimeError>,
    ) -> Result<Option<usize>, RuntimeError> {
        let options = self.compile_options(Limits { tokens: ROWS, outputs: ROWS, sequences: 1 });
        let mut program = self.backend.compile(&self.graph, &self.bindings, &options)?;
        let (vocabulary, narrow) = (self.vocabulary.max(1), self.narrow());
        let scheduler = &mut self.scheduler;
        if !table.grow(prompt.len(), scheduler.block_tokens, &mut scheduler.blocks) {
            let free = scheduler.blocks.free().saturating_mul(scheduler.block_tokens);
            return Err(RuntimeError::CacheFull { prompt: prompt.len(), free });
        }
        for (at, chunk) in prompt.chunks(ROWS).enumerate() {
            let tokens: Vec<Token> = chunk.iter().map(|&id| Token::Id(id)).collect();
            let rows: Vec<u32> = (0..chunk.len() as u32).collect();
            let cached = at * ROWS;
            let sequence = SequenceRows {
                rows: 0..chunk.len(),
                cached,
                role: Role::Prefill,
                blocks: table.blocks(),
            };
            self.steps += 1;
            let step = program.enqueue(&Inputs {
                tokens: &tokens,
                sequences: &[sequence],
                given: &[],
                outputs: &rows,
                sampling: &[],
                want_logits: true,
                want_times: false,
                previous: None,
            })?;
            let logits = step.read()?.logits;
            let broken = || logits.chunks(vocabulary).position(|row| argmax(row) == NO_TOKEN);
            let broken = narrow.and_then(|_| broken());
            let good = broken.unwrap_or(chunk.len());
            let from = given.saturating_sub(cached).min(good);
            if from < good {
                sink(&logits[from * vocabulary..good * vocabulary])?;
                *given = cached + good;
            }
            if let Some(row) = broken {
                return Ok(Some(cached + row));
            }
        }
        Ok(None)
    }
}
