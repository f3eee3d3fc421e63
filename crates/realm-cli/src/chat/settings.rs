//! What `/set` changes.

use crate::{
    error::{CliError, Result},
    sampling::{SETTINGS, SamplingArgs, Setting},
};

use super::commands::nearest;

/// The setting that is no matter of sampling.
const TOKENS: &str = "tokens";

/// How answers are made.
pub(super) struct Settings {
    /// How tokens are chosen.
    pub(super) sampling: SamplingArgs,
    /// Most tokens of an answer.
    pub(super) tokens: Option<usize>,
    /// Tokens that the model knows.
    vocabulary: usize,
}

impl Settings {
    /// As the command line has them, for a model that knows `vocabulary` tokens.
    pub(super) fn new(sampling: SamplingArgs, tokens: Option<usize>, vocabulary: usize) -> Self {
        Self { sampling, tokens, vocabulary }
    }

    /// All names.
    pub(super) fn names() -> Vec<String> {
        let names = SETTINGS.iter().map(|setting| setting.name).chain([TOKENS]);
        names.map(str::to_owned).collect()
    }

    /// All settings, a line each.
    pub(super) fn list(&self) -> String {
        let line = |name: &str, value: String, about: &str| format!("{name:18} {value:8}  {about}");
        let lines = SETTINGS.iter().map(|it| line(it.name, (it.get)(&self.sampling), it.about));
        let tokens = line(TOKENS, self.shown_tokens(), "most of an answer; none: all that fit");
        lines.chain([tokens]).collect::<Vec<_>>().join("\n")
    }

    fn shown_tokens(&self) -> String {
        self.tokens.map_or("none".into(), |tokens| tokens.to_string())
    }

    /// A setting with its value.
    ///
    /// # Errors
    /// An unknown name.
    pub(super) fn get(&self, name: &str) -> Result<String> {
        let value = match name {
            TOKENS => self.shown_tokens(),
            name => (find(name)?.get)(&self.sampling),
        };
        Ok(format!("{name} is {value}"))
    }

    /// Changes a setting.
    ///
    /// # Errors
    /// An unknown name, a value that makes no sense.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = |problem: String| CliError::Input(format!("{name}: {problem}"));
        if name == TOKENS {
            let tokens = value.parse().ok().filter(|tokens| *tokens > 0);
            if tokens.is_none() && value != "none" {
                return Err(wrong("a whole number from 1 up or none is wanted".into()));
            }
            self.tokens = tokens;
            return Ok(());
        }
        let mut changed = self.sampling.clone();
        (find(name)?.set)(&mut changed, value).map_err(wrong)?;
        changed.check_ids(self.vocabulary).map_err(wrong)?;
        self.sampling = changed;
        Ok(())
    }
}

fn find(name: &str) -> Result<&'static Setting> {
    let found = SETTINGS.iter().find(|setting| setting.name == name);
    found.ok_or_else(|| {
        let names = Settings::names();
        let near = match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near}?"),
            None => "/set lists them".to_owned(),
        };
        let name: String = name.chars().take(40).collect();
        CliError::Input(format!("{name}: no such setting; {near}"))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Args {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    #[test]
    fn settings_are_found_by_name() {
        let mut settings = Settings::new(Args::parse_from(["x"]).sampling, None, 262);
        settings.set("temperature", "0.5").unwrap();
        settings.set("tokens", "7").unwrap();
        assert_eq!(settings.tokens, Some(7));
        assert_eq!(settings.get("temperature").unwrap(), "temperature is 0.5");
        assert_eq!(settings.get("tokens").unwrap(), "tokens is 7");
        settings.set("tokens", "none").unwrap();
        assert_eq!(settings.tokens, None);
        for name in Settings::names() {
            assert!(settings.list().contains(&format!("{name} ")), "{name}");
        }
        for (name, value, part) in [
            ("temprature", "1", "did you mean temperature?"),
            ("wibble", "1", "/set lists them"),
            ("temperature", "-1", "temperature: a temperature is a number from 0 up"),
            ("tokens", "0", "tokens: a whole number from 1 up"),
            (
                "logit-bias",
                "262=1",
                "logit-bias: token 262 is not in the model's vocabulary; ids go from 0 to 261",
            ),
        ] {
            let error = settings.set(name, value).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(settings.get("logit-bias").unwrap(), "logit-bias is none");
        settings.set("logit-bias", "261=1").unwrap();
        assert!(settings.get("wibble").is_err());
    }
}
