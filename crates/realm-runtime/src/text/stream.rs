//! A generation under way.

use std::collections::VecDeque;

use crate::{
    Engine, Event, Finish, Request, RuntimeError, SequenceId, TokenLogprobs, text::TextDecoder,
};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, by a token that ends a text, a turn or a message, or by one that was asked
    /// for.
    End,
    /// A stop string came.
    StopString,
    /// As many tokens came as were asked for.
    Length,
    /// The context is full.
    Context,
}

/// A token and the text that became certain with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// May be empty: half a character, or the possible start of a stop string. The last piece holds all
    /// that was held back.
    pub text: String,
    /// The token; an ending one too.
    pub token: u32,
    /// Set with the last piece.
    pub finish: Option<FinishReason>,
    /// Where they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// The pieces of a generation, as the model makes them. Dropping the stream ends the generation.
pub struct TextStream<'a> {
    engine: &'a mut Engine,
    sequence: SequenceId,
    decoder: TextDecoder,
    prompt_tokens: usize,
    max_tokens: usize,
    /// The context leaves less than was asked for.
    cut: bool,
    events: VecDeque<Event>,
    done: bool,
}

impl<'a> TextStream<'a> {
    pub(super) fn start(
        engine: &'a mut Engine,
        request: Request,
        decoder: TextDecoder,
        cut: bool,
    ) -> Result<Self, RuntimeError> {
        let (prompt_tokens, max_tokens) = (request.prompt.len(), request.max_tokens);
        let sequence = engine.submit(request)?;
        let (events, done) = (VecDeque::new(), false);
        Ok(Self { engine, sequence, decoder, prompt_tokens, max_tokens, cut, events, done })
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Most tokens that come: what was asked for, or what the context leaves.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Whether the context leaves fewer tokens than were asked for.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Runs one step of the engine. Where it gave no token, as while a long prompt is taken in, there
    /// is no piece yet; [`Iterator::next`] goes on until there is one.
    ///
    /// # Errors
    /// The device's failure, or logits that are no numbers: the generation has ended.
    pub fn poll(&mut self) -> Result<Option<Piece>, RuntimeError> {
        if self.done {
            return Ok(None);
        }
        if self.events.is_empty() {
            match self.engine.step() {
                Ok(events) => {
                    let ours = events.into_iter().filter(|event| event.sequence == self.sequence);
                    self.events.extend(ours);
                }
                Err(error) => {
                    self.end();
                    return Err(error);
                }
            }
        }
        Ok(self.events.pop_front().map(|event| self.piece(event)))
    }

    /// Whether the last piece was given.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Ends the generation before its end, and gives the text that was held back.
    pub fn stop(&mut self) -> String {
        self.end();
        self.decoder.take_held()
    }

    fn piece(&mut self, event: Event) -> Piece {
        let Event { token, finish, logprobs, .. } = event;
        // A token that ends the text is no part of it.
        let mut text = match finish {
            Some(Finish::Stop) => String::new(),
            _ => self.decoder.push(token),
        };
        if finish.is_some() {
            text.push_str(&self.decoder.finish());
        }
        let finish = match finish {
            _ if self.decoder.stopped() => Some(FinishReason::StopString),
            Some(Finish::Stop) => Some(FinishReason::End),
            Some(Finish::Length) if self.cut => Some(FinishReason::Context),
            Some(Finish::Length) => Some(FinishReason::Length),
            None => None,
        };
        if finish.is_some() {
            self.end();
        }
        Piece { text, token, finish, logprobs }
    }

    fn end(&mut self) {
        self.done = true;
        self.events.clear();
        self.engine.cancel(self.sequence);
    }
}

impl Iterator for TextStream<'_> {
    type Item = Result<Piece, RuntimeError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            if let Some(piece) = self.poll().transpose() {
                return Some(piece);
            }
        }
        None
    }
}

impl Drop for TextStream<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
