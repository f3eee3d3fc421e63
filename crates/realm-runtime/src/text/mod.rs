//! Text in, text out: an engine with its tokenizer and chat template.
//!
//! ```no_run
//! use realm_runtime::text::{GenerateOptions, Llm};
//!
//! fn main() -> Result<(), realm_runtime::RuntimeError> {
//!     let mut llm = Llm::open("model.gguf")?;
//!     for piece in llm.generate("The sea was calm that night, and", &GenerateOptions::default())? {
//!         print!("{}", piece?.text);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A conversation goes through the model's chat template; the iterator may be left at any time, which
//! ends the answer:
//!
//! ```no_run
//! use realm_runtime::{
//!     SamplingParams,
//!     text::{GenerateOptions, Llm, chat::message},
//! };
//!
//! # fn main() -> Result<(), realm_runtime::RuntimeError> {
//! let mut llm = Llm::open("model.gguf")?;
//! let options = GenerateOptions {
//!     max_tokens: Some(200),
//!     sampling: SamplingParams { temperature: 0.7, seed: 42, ..SamplingParams::default() },
//!     stop: vec!["\n\n".into()],
//!     ..GenerateOptions::default()
//! };
//! let messages = [message("system", "Be brief."), message("user", "Why is the sky blue?")];
//! for piece in llm.chat(&messages, &options)? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```

mod decoder;
mod stream;

use std::{path::Path, sync::Arc};

use realm_tokenizer::{
    EncodeOptions, Tokenizer, TokenizerError,
    chat::{Chat, ChatTemplate},
};
use serde_json::{Map, Value};

use crate::{
    Engine, EngineOptions, Loaded, Model, Request, RuntimeError, SamplingParams,
    device::{self, DeviceOptions},
    vocab,
};

pub use decoder::TextDecoder;
pub use realm_tokenizer::chat;
pub use stream::{FinishReason, Piece, TextStream};

/// What to generate, and when to end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens; `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// How they are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation; they are left out of it.
    pub stop: Vec<String>,
    /// Tokens that end it, besides those of the vocabulary.
    pub stop_tokens: Vec<u32>,
    /// The vocabulary's own ending tokens do not end it.
    pub ignore_eos: bool,
    /// Log-probabilities of each token and of so many of the likeliest.
    pub logprobs: Option<usize>,
}

impl Model {
    /// The chat template of the file; `None` where it has none.
    ///
    /// # Errors
    /// A template that cannot be read, or a vocabulary of a kind that is not supported.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, RuntimeError> {
        let found: Option<&str> = self.file().metadata().find("tokenizer.chat_template")?;
        found.map(|source| self.chat_template_of(source)).transpose()
    }

    /// A chat template for this model's vocabulary, in place of the file's own.
    ///
    /// # Errors
    /// As [`Model::chat_template`].
    pub fn chat_template_of(&self, source: &str) -> Result<ChatTemplate, RuntimeError> {
        let vocab = vocab::read(self.file())?;
        let [bos, eos] = vocab.bos_and_eos().map_err(|source| self.refused(source))?;
        ChatTemplate::new(source, bos.unwrap_or_default(), eos.unwrap_or_default())
            .map_err(|source| self.refused(source))
    }

    fn refused(&self, source: TokenizerError) -> RuntimeError {
        RuntimeError::Tokenizer { path: self.file().path().display().to_string(), source }
    }
}

/// A model that takes and gives text, one generation after the other. To run many side by side, use
/// [`Engine`] with a [`TextDecoder`] a sequence.
pub struct Llm {
    engine: Engine,
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<ChatTemplate>,
    /// The file, for errors.
    name: String,
    notes: Vec<String>,
}

impl Llm {
    /// Puts a model file on the best device there is. [`Llm::notes`] says why it is that one.
    ///
    /// # Errors
    /// A file that cannot be used, or a model that fits no device.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RuntimeError> {
        Self::load(&Model::open(path)?, &DeviceOptions::default(), &EngineOptions::default())
    }

    /// Puts a model on a device of one's choice. A chat template that cannot be read is noted, and
    /// missing when it is needed.
    ///
    /// # Errors
    /// As [`Llm::open`], and where there is no such device.
    pub fn load(
        model: &Model,
        device: &DeviceOptions,
        options: &EngineOptions,
    ) -> Result<Self, RuntimeError> {
        let tokenizer = model.tokenizer()?;
        let mut device = device::open(device)?;
        let mut notes = device.notes().to_vec();
        // Whoever does not chat can do without a template.
        let template = model.chat_template().unwrap_or_else(|error| {
            notes.push(format!("no chat with this model: {error}"));
            None
        });
        let mut placement = device.place(model, options)?;
        let engine = loop {
            notes.extend_from_slice(placement.notes());
            match device.load(model, placement, &mut |_| {})? {
                Loaded::Engine(engine) => break *engine,
                Loaded::Moved(next) => placement = *next,
            }
        };
        for note in &notes {
            tracing::warn!("{note}");
        }
        Ok(Self { notes, ..Self::new(model, engine, Some(tokenizer), template) })
    }

    /// A model whose parts are there already. Without a tokenizer it takes ids and gives ids.
    pub fn new(
        model: &Model,
        engine: Engine,
        tokenizer: Option<Tokenizer>,
        template: Option<ChatTemplate>,
    ) -> Self {
        let name = model.file().path().display().to_string();
        Self { engine, tokenizer: tokenizer.map(Arc::new), template, name, notes: Vec::new() }
    }

    /// Why the model runs where it runs, and what it cannot do, a line each; to be shown to the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The engine, for sequences of one's own. They must have ended before the next generation starts:
    /// a [`TextStream`] passes over the tokens of others.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// The vocabulary, where the file has one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// The chat template, where there is one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Continues a text as it stands. What the vocabulary wants around a text is added; markup like
    /// `<|eot_id|>` is read as the token of that name.
    ///
    /// # Errors
    /// A text that the vocabulary cannot express or that does not fit the context, and options that
    /// make no sense.
    pub fn generate(
        &mut self,
        prompt: &str,
        options: &GenerateOptions,
    ) -> Result<TextStream<'_>, RuntimeError> {
        let ids = self.encode(prompt, true)?;
        self.generate_ids(ids, options)
    }

    /// Answers a conversation: `messages` are objects with `role` and `content`, as
    /// [`chat::message`] makes them.
    ///
    /// # Errors
    /// As [`Llm::generate`]; no chat template, or one that refuses the conversation.
    pub fn chat(
        &mut self,
        messages: &[Value],
        options: &GenerateOptions,
    ) -> Result<TextStream<'_>, RuntimeError> {
        let extra = Map::new();
        let chat =
            Chat { messages, tools: None, add_generation_prompt: true, extra: &extra, now: None };
        let ids = self.chat_prompt(&chat)?;
        self.generate_ids(ids, options)
    }

    /// The ids of a conversation as the chat template writes it.
    ///
    /// # Errors
    /// No chat template, or one that refuses the conversation.
    pub fn chat_prompt(&self, chat: &Chat<'_>) -> Result<Vec<u32>, RuntimeError> {
        let Some(template) = &self.template else {
            return Err(RuntimeError::NoChatTemplate { path: self.name.clone() });
        };
        let text = template.render(chat).map_err(|source| self.refused(source))?;
        // Most templates write the token that starts a text themselves.
        let start = self.tokenizer.as_ref().and_then(|t| t.token_text(t.bos()?));
        self.encode(&text, start.is_none_or(|start| !text.starts_with(start)))
    }

    /// Continues token ids.
    ///
    /// # Errors
    /// No ids, ids that the model does not know or that do not fit the context, and options that make
    /// no sense.
    pub fn generate_ids(
        &mut self,
        prompt: Vec<u32>,
        options: &GenerateOptions,
    ) -> Result<TextStream<'_>, RuntimeError> {
        if options.stop.iter().any(String::is_empty) {
            return Err(RuntimeError::Request("a stop text is empty; leave it out".into()));
        }
        let mut stop_tokens = options.stop_tokens.clone();
        if let Some(tokenizer) = self.tokenizer.as_ref().filter(|_| !options.ignore_eos) {
            stop_tokens.extend_from_slice(tokenizer.end_of_generation());
        }
        // The last token is given out and need not enter the context.
        let room = (self.engine.context() + 1).saturating_sub(prompt.len()).max(1);
        let wanted = options.max_tokens.unwrap_or(usize::MAX);
        let decoder = TextDecoder::new(self.tokenizer.clone(), &options.stop);
        let request = Request {
            prompt,
            max_tokens: wanted.min(room),
            sampling: options.sampling.clone(),
            stop_tokens,
            logprobs: options.logprobs,
        };
        TextStream::start(&mut self.engine, request, decoder, wanted > room)
    }

    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, RuntimeError> {
        let Some(tokenizer) = &self.tokenizer else {
            let problem = format!("{}: has no tokenizer in use; give token ids", self.name);
            return Err(RuntimeError::Request(problem));
        };
        let how = EncodeOptions { add_special, parse_special: true };
        tokenizer.encode(text, how).map_err(|source| self.refused(source))
    }

    fn refused(&self, source: TokenizerError) -> RuntimeError {
        RuntimeError::Tokenizer { path: self.name.clone(), source }
    }
}
