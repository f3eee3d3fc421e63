//! What was said so far, and how much of it the model still sees.

use std::{io::Read, path::Path};

use realm_runtime::{RuntimeError, text::Llm};
use realm_tokenizer::chat::{self, Chat};
use serde_json::{Map, Value};

use crate::error::{CliError, Result};

/// Most bytes of a conversation that is read from a file.
const MOST_BYTES: u64 = 1 << 26;

/// Messages as chat templates take them: objects with `role` and `content`. A system message comes
/// first, where there is one.
#[derive(Debug, Clone, Default)]
pub(super) struct Conversation {
    messages: Vec<Value>,
    /// Messages after the system message that the model is no longer shown.
    left_out: usize,
}

/// The prompt of the next answer.
#[derive(Debug)]
pub(super) struct Prompt {
    /// Its tokens.
    pub(super) ids: Vec<u32>,
    /// Whether more of the conversation was left out than before.
    pub(super) shortened: bool,
}

fn role(message: &Value) -> &str {
    message["role"].as_str().unwrap_or_default()
}

impl Conversation {
    /// One that begins with a system text.
    pub(super) fn new(system: Option<&str>) -> Self {
        let mut new = Self::default();
        new.set_system(system);
        new
    }

    /// The system text.
    pub(super) fn system(&self) -> Option<&str> {
        let first = self.messages.first().filter(|first| role(first) == "system")?;
        first["content"].as_str()
    }

    /// Sets it or takes it away.
    pub(super) fn set_system(&mut self, text: Option<&str>) {
        if self.system().is_some() {
            self.messages.remove(0);
        }
        if let Some(text) = text {
            self.messages.insert(0, chat::message("system", text));
        }
    }

    /// Forgets all but the system text.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.system().map(str::to_owned).as_deref());
    }

    /// Adds what the user says.
    pub(super) fn ask(&mut self, text: &str) {
        self.messages.push(chat::message("user", text));
    }

    /// Adds what the model says.
    pub(super) fn answer(&mut self, text: &str) {
        self.messages.push(chat::message("assistant", text));
    }

    /// Takes back the user's last message and what followed; gives its text, where there is one.
    pub(super) fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|message| role(message) == "user")?;
        let text = self.messages[at]["content"].as_str().unwrap_or_default().to_owned();
        self.messages.truncate(at);
        self.left_out = 0;
        Some(text)
    }

    /// How often the user spoke.
    pub(super) fn turns(&self) -> usize {
        self.messages.iter().filter(|message| role(message) == "user").count()
    }

    /// The messages as JSON.
    pub(super) fn to_json(&self) -> String {
        format!("{:#}\n", Value::from(self.messages.clone()))
    }

    /// Reads messages from a file: a list of them, or an object with a list `messages`.
    ///
    /// # Errors
    /// The system's refusal, and where the file holds something else.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let refused = |source| CliError::io(path, "read the conversation", source);
        let file = std::fs::File::open(path).map_err(refused)?;
        let mut text = String::new();
        file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(refused)?;
        let wrong = |what: String| {
            let path = path.display();
            CliError::Input(format!(
                "{path}: {what}; a conversation is a JSON list of objects with role and content, as /save writes it"
            ))
        };
        if text.len() as u64 > MOST_BYTES {
            return Err(wrong(format!("is larger than {} MiB", MOST_BYTES >> 20)));
        }
        let value: Value =
            serde_json::from_str(&text).map_err(|error| wrong(format!("is no JSON: {error}")))?;
        let messages = match value {
            Value::Object(mut object) => object.remove("messages").unwrap_or_default(),
            value => value,
        };
        let Value::Array(messages) = messages else {
            return Err(wrong("holds no list of messages".into()));
        };
        for (at, message) in messages.iter().enumerate() {
            if !message["role"].is_string() || !message["content"].is_string() {
                return Err(wrong(format!("message {} lacks role or content", at + 1)));
            }
        }
        Ok(Self { messages, left_out: 0 })
    }

    /// The prompt of an answer to all that was said. Where it leaves less than `reserve` tokens for the
    /// answer, the oldest turns after the system message are left out: so many that half of the context
    /// is free, for a while.
    ///
    /// # Errors
    /// The template's, and a last message that alone does not fit.
    pub(super) fn prompt(&mut self, llm: &Llm, reserve: usize) -> Result<Prompt, RuntimeError> {
        let context = llm.engine().context();
        let ids = self.ids(llm, self.left_out)?;
        if ids.len() + reserve <= context {
            return Ok(Prompt { ids, shortened: false });
        }
        // Where a turn begins, an answer may: the last one stays.
        let body = usize::from(self.system().is_some());
        let starts = self.messages.iter().enumerate().skip(body + self.left_out + 1);
        let starts: Vec<usize> =
            starts.filter(|(_, m)| role(m) == "user").map(|(at, _)| at - body).collect();
        let Some(&last) = starts.last() else {
            return if ids.len() <= context {
                Ok(Prompt { ids, shortened: false })
            } else {
                Err(RuntimeError::PromptTooLong { prompt: ids.len(), context })
            };
        };
        // The more is left out, the shorter the prompt.
        let (mut from, mut to) = (0, starts.len() - 1);
        while from < to {
            let middle = (from + to) / 2;
            if self.ids(llm, starts[middle])?.len() <= context / 2 {
                to = middle;
            } else {
                from = middle + 1;
            }
        }
        let left_out = starts.get(from).copied().unwrap_or(last);
        let ids = self.ids(llm, left_out)?;
        if ids.len() > context {
            return Err(RuntimeError::PromptTooLong { prompt: ids.len(), context });
        }
        self.left_out = left_out;
        Ok(Prompt { ids, shortened: true })
    }

    /// The tokens of the conversation without its oldest messages.
    fn ids(&self, llm: &Llm, left_out: usize) -> Result<Vec<u32>, RuntimeError> {
        let body = usize::from(self.system().is_some());
        let mut messages = self.messages.clone();
        messages.drain(body..body + left_out);
        let extra = Map::new();
        llm.chat_prompt(&Chat {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            extra: &extra,
            now: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_and_go() {
        let mut talk = Conversation::new(Some("Be brief."));
        assert_eq!(talk.system(), Some("Be brief."));
        assert_eq!(talk.undo(), None);
        talk.ask("One?");
        talk.answer("1");
        talk.ask("Two?");
        talk.answer("2");
        assert_eq!(talk.turns(), 2);
        assert_eq!(talk.undo().as_deref(), Some("Two?"));
        assert_eq!((talk.turns(), talk.messages.len()), (1, 3));
        talk.set_system(Some("Rhyme."));
        assert_eq!((talk.system(), talk.messages.len()), (Some("Rhyme."), 3));
        talk.set_system(None);
        assert_eq!((talk.system(), talk.messages.len()), (None, 2));
        talk.set_system(Some("Again."));
        talk.clear();
        assert_eq!((talk.system(), talk.messages.len()), (Some("Again."), 1));
    }

    #[test]
    fn files_bring_a_conversation_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.json");
        let mut talk = Conversation::new(Some("Sé \"brief\"."));
        talk.ask("a\nb");
        talk.answer("c");
        std::fs::write(&path, talk.to_json()).unwrap();
        assert_eq!(Conversation::read(&path).unwrap().messages, talk.messages);
        std::fs::write(&path, format!("{{\"messages\": {}}}", talk.to_json())).unwrap();
        assert_eq!(Conversation::read(&path).unwrap().messages, talk.messages);
        for (text, part) in [
            ("", "no JSON"),
            ("{", "no JSON"),
            ("{}", "no list"),
            ("7", "no list"),
            ("[7]", "message 1 lacks"),
            (r#"[{"role":"user","content":"x"},{"role":"user"}]"#, "message 2 lacks"),
            (r#"[{"role":"user","content":["x"]}]"#, "message 1 lacks"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Conversation::read(&path).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("talk.json"), "{text}: {error}");
        }
        std::fs::write(&path, b"[\xff]").unwrap();
        assert!(Conversation::read(&path).unwrap_err().to_string().contains("talk.json"));
        assert!(Conversation::read(&folder.path().join("none")).is_err());
    }
}
