//! Chat templates: conversations to the text that a model was trained on.
//!
//! A model's file carries its template, a program in the Jinja language. [`ChatTemplate`] runs it
//! as Hugging Face's `transformers` does, on minijinja: blocks are trimmed, `tojson` writes what
//! Python's `json.dumps` writes, values print as in Python, and `raise_exception`, `strftime_now`
//! and the tag `generation` are known. Nothing outside the conversation can be reached: there is
//! nothing to include, and lists and maps do not change.
//!
//! Templates come with downloaded models, so they are not trusted. Time and memory of
//! [`ChatTemplate::new`] are bounded by the size of the source (at most 1 MiB) and its nesting,
//! those of [`ChatTemplate::render`] by a budget that grows with the conversation; a template that
//! loops, recurses or blows up a text gets a one-line error. One MiB of stack is enough for all,
//! with optimization. What Jinja has and this has not: `include`, `extends` and `import`, `*` of
//! lists, `%` for formats, integers without end, and a few filters for web pages.
//!
//! ```
//! use realm_tokenizer::chat::{Chat, ChatTemplate, message};
//!
//! let template = ChatTemplate::new(
//!     "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}\
//!      {% if add_generation_prompt %}<assistant>{% endif %}",
//!     "<s>",
//!     "</s>",
//! )?;
//! let text = template.render(&Chat {
//!     messages: &[message("user", "Hello! ")],
//!     tools: None,
//!     add_generation_prompt: true,
//!     extra: &serde_json::Map::new(),
//!     now: None,
//! })?;
//! assert_eq!(text, "<user>Hello!</s><assistant>");
//! # Ok::<(), realm_tokenizer::TokenizerError>(())
//! ```
mod environment;
mod filters;
mod guard;
mod lexer;
mod methods;
mod now;
mod operands;
mod python;
mod values;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

pub use now::Now;

use crate::TokenizerError;

/// A chat template, ready to render conversations.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: minijinja::Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

/// What a template is given: a conversation and what belongs to it.
#[derive(Debug, Clone, Copy)]
pub struct Chat<'a> {
    /// The messages, each a map with `role`, `content` and what else the template knows
    /// (`tool_calls`, `name`, …). Arguments of tool calls are maps, not JSON text.
    pub messages: &'a [Value],
    /// The tools that the model may call, as JSON schemas of functions; `None` without tools.
    pub tools: Option<&'a [Value]>,
    /// Whether the text ends with what begins an answer of the model.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`, `documents`, …).
    pub extra: &'a Map<String, Value>,
    /// The moment that `strftime_now` shows; `None` takes the clock, in UTC.
    pub now: Option<Now>,
}

/// A message with a role (`system`, `user`, `assistant`) and a text.
pub fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts of the tokens that begin and end a text,
    /// which templates write themselves (`bos_token`, `eos_token`).
    ///
    /// # Errors
    /// [`TokenizerError::TemplateTooLarge`] above 1 MiB, [`TokenizerError::TemplateSyntax`] with
    /// the line where the source is no template or nested too deeply.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TokenizerError> {
        let env = environment::compile(source)?;
        Ok(Self { env, source: source.to_owned(), bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation: the text whose special tokens are to be parsed, nothing added.
    ///
    /// # Errors
    /// [`TokenizerError::TemplateRaised`] where the template refuses the conversation,
    /// [`TokenizerError::TemplateFailed`] where it breaks on it, [`TokenizerError::TemplateLimit`]
    /// where it used up its budget, [`TokenizerError::ChatTooDeep`].
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, TokenizerError> {
        let mut variables = Variables::default();
        variables.set("bos_token", &Value::from(self.bos.as_str()), "tokens")?;
        variables.set("eos_token", &Value::from(self.eos.as_str()), "tokens")?;
        variables.set_list("messages", Some(chat.messages), "messages")?;
        variables.set_list("tools", chat.tools, "tools")?;
        variables.set("documents", &Value::Null, "documents")?;
        variables.set("add_generation_prompt", &chat.add_generation_prompt.into(), "flags")?;
        for (name, value) in chat.extra {
            variables.set(name, value, "further variables")?;
        }
        let now = chat.now;
        let strftime =
            move |format: &str| filters::strftime_now(now.unwrap_or_else(Now::clock), format);
        let strftime = minijinja::Value::from_function(strftime);
        variables.map.insert("strftime_now".to_owned(), strftime);
        let Variables { map, values, bytes } = variables;
        environment::render(&self.env, map.into(), values, bytes)
    }
}

/// The variables of a template and how much there is of them.
#[derive(Default)]
struct Variables {
    map: BTreeMap<String, minijinja::Value>,
    values: u64,
    bytes: u64,
}

impl Variables {
    fn set(&mut self, name: &str, value: &Value, what: &'static str) -> Result<(), TokenizerError> {
        let value = self.convert(value, what)?;
        self.map.insert(name.to_owned(), value);
        Ok(())
    }

    fn set_list(
        &mut self,
        name: &str,
        list: Option<&[Value]>,
        what: &'static str,
    ) -> Result<(), TokenizerError> {
        let value = match list {
            None => ().into(),
            Some(list) => {
                let items: Result<_, _> =
                    list.iter().map(|item| self.convert(item, what)).collect();
                values::list(items?).ok_or(too_deep(what))?
            }
        };
        self.map.insert(name.to_owned(), value);
        Ok(())
    }

    fn convert(
        &mut self,
        value: &Value,
        what: &'static str,
    ) -> Result<minijinja::Value, TokenizerError> {
        values::from_json(value, &mut self.values, &mut self.bytes).ok_or(too_deep(what))
    }
}

fn too_deep(what: &'static str) -> TokenizerError {
    TokenizerError::ChatTooDeep { what, limit: values::DEPTH }
}
