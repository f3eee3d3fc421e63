//! How tokens are chosen: the options of the commands that generate, by name too for `/set` of a chat.

use std::{
    fmt::Display,
    hash::{BuildHasher, Hasher, RandomState},
    str::FromStr,
};

use realm_runtime::{Model, SamplingParams};

use crate::{args, error::CliError};

/// How tokens are chosen, and texts that end the choosing.
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Higher is more adventurous; 0 always takes the likeliest token
    #[arg(
        long,
        visible_alias = "temp",
        value_name = "T",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::default().temperature,
        value_parser = temperature
    )]
    temperature: f32,
    /// Choose among the likeliest K tokens; 0: among all
    #[arg(
        long,
        value_name = "K",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::default().top_k
    )]
    top_k: u32,
    /// Choose among the likeliest tokens whose probabilities reach P; 1: among all
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::default().top_p,
        value_parser = probability
    )]
    top_p: f32,
    /// Leave out tokens less than P times as likely as the likeliest; 0: leave out none
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::default().min_p,
        value_parser = probability
    )]
    min_p: f32,
    /// Choose among the tokens that surprise as much as is to be expected, until their probabilities
    /// reach P (locally typical sampling); 1: among all
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::default().typical_p,
        value_parser = probability
    )]
    typical_p: f32,
    /// Make tokens that the text has already, the prompt's too, less likely: above 1; 1: no change
    #[arg(
        long,
        visible_alias = "repetition-penalty",
        value_name = "X",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::default().repetition_penalty,
        value_parser = factor
    )]
    repeat_penalty: f32,
    /// Make generated tokens less likely each time they come: above 0; 0: no change
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::default().frequency_penalty,
        value_parser = number
    )]
    frequency_penalty: f32,
    /// Make generated tokens less likely once they came: above 0; 0: no change
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::default().presence_penalty,
        value_parser = number
    )]
    presence_penalty: f32,
    /// Make the token ID likelier (above 0) or less likely (below 0): 15043=2.5; 15043=-inf bans it.
    /// May be given several times
    #[arg(long, value_name = "ID=BIAS", allow_hyphen_values = true, value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text [default: random, printed]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = args::seed)]
    seed: Option<u64>,
    /// End before this text, which is left out. May be given several times; $'\n' is a line end in
    /// most shells
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub(crate) stop: Vec<String>,
}

impl SamplingArgs {
    /// As the engine wants them. `again` counts how often the same text was asked for before: each time
    /// brings another seed. Without a seed, one is drawn.
    pub(crate) fn params(&self, again: u64) -> SamplingParams {
        // 32 bits, to be short enough for typing.
        let draw = || RandomState::new().build_hasher().finish() >> 32;
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repeat_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.map_or_else(draw, |seed| seed.wrapping_add(again)),
        }
    }
}

impl SamplingArgs {
    /// Whether biased tokens are among the `vocabulary`.
    ///
    /// # Errors
    /// The first one that is not, with the range.
    pub(crate) fn check_ids(&self, vocabulary: usize) -> Result<(), String> {
        match self.logit_bias.iter().find(|(id, _)| *id as usize >= vocabulary) {
            Some((id, _)) => Err(format!(
                "token {id} is not in the model's vocabulary; ids go from 0 to {}",
                vocabulary.saturating_sub(1)
            )),
            None => Ok(()),
        }
    }

    /// The same for the command line, before anything is loaded.
    ///
    /// # Errors
    /// As [`check_ids`](Self::check_ids).
    pub(crate) fn check(&self, model: &Model) -> crate::error::Result<()> {
        let wrong = |problem| CliError::Input(format!("--logit-bias: {problem}"));
        self.check_ids(model.vocabulary()).map_err(wrong)
    }
}

/// Whether the seed makes a difference.
pub(crate) fn is_random(params: &SamplingParams) -> bool {
    params.temperature > 0.0 && params.top_k != 1
}

fn parsed<T: FromStr>(text: &str, good: impl Fn(&T) -> bool, wanted: &str) -> Result<T, String> {
    text.parse().ok().filter(good).ok_or_else(|| wanted.to_owned())
}

fn temperature(text: &str) -> Result<f32, String> {
    let good = |&value: &f32| value.is_finite() && value >= 0.0;
    parsed(text, good, "a temperature is a number from 0 up")
}

fn probability(text: &str) -> Result<f32, String> {
    parsed(text, |value| (0.0..=1.0).contains(value), "a probability is a number from 0 to 1")
}

fn factor(text: &str) -> Result<f32, String> {
    let good = |&value: &f32| value.is_finite() && value > 0.0;
    parsed(text, good, "a repetition penalty is a number above 0")
}

fn number(text: &str) -> Result<f32, String> {
    parsed(text, |value: &f32| value.is_finite(), "a penalty is a number")
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let pair = text.split_once('=').and_then(|(id, bias)| {
        let (id, bias): (u32, f32) = (id.trim().parse().ok()?, bias.trim().parse().ok()?);
        (bias < f32::INFINITY).then_some((id, bias))
    });
    pair.ok_or_else(|| "a bias is a token's id and a number or -inf: 15043=-1.5".into())
}

/// An option that can be read and changed by its name.
pub(crate) struct Setting {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What it does, in a few words.
    pub(crate) about: &'static str,
    /// Its value.
    pub(crate) get: fn(&SamplingArgs) -> String,
    /// Changes it; the error says what is wanted.
    pub(crate) set: fn(&mut SamplingArgs, &str) -> Result<(), String>,
}

/// A setting with a number, parsed as on the command line.
macro_rules! setting {
    ($name:literal, $about:literal, $field:ident, $parse:expr) => {
        Setting {
            name: $name,
            about: $about,
            get: |args| args.$field.to_string(),
            set: |args, text| $parse(text).map(|value| args.$field = value),
        }
    };
}

/// All options of [`SamplingArgs`], in the order of the help.
pub(crate) const SETTINGS: [Setting; 11] = [
    setting!("temperature", "0 takes the likeliest token", temperature, temperature),
    setting!("top-k", "0 keeps all", top_k, whole),
    setting!("top-p", "1 keeps all", top_p, probability),
    setting!("min-p", "0 keeps all", min_p, probability),
    setting!("typical-p", "1 keeps all", typical_p, probability),
    setting!("repeat-penalty", "1 changes none", repeat_penalty, factor),
    setting!("frequency-penalty", "0 changes none", frequency_penalty, number),
    setting!("presence-penalty", "0 changes none", presence_penalty, number),
    Setting {
        name: "logit-bias",
        about: "ID=BIAS adds one, none removes all",
        get: |args| join(args.logit_bias.iter().map(|(id, bias)| format!("{id}={bias}"))),
        set: |args, text| {
            match text {
                "none" => args.logit_bias.clear(),
                text => {
                    let (id, value) = bias(text)?;
                    args.logit_bias.retain(|(other, _)| *other != id);
                    args.logit_bias.push((id, value));
                }
            }
            Ok(())
        },
    },
    Setting {
        name: "seed",
        about: "the same one gives the same text",
        get: |args| args.seed.map_or("random".into(), |seed| seed.to_string()),
        set: |args, text| {
            args.seed = if text == "random" { None } else { Some(args::seed(text)?) };
            Ok(())
        },
    },
    Setting {
        name: "stop",
        about: "TEXT adds one, none removes all",
        get: |args| join(args.stop.iter().map(|text| format!("{text:?}"))),
        set: |args, text| {
            match text {
                "none" => args.stop.clear(),
                text => args.stop.push(text.into()),
            }
            Ok(())
        },
    },
];

fn whole(text: &str) -> Result<u32, String> {
    parsed(text, |_| true, "a whole number from 0 up is wanted")
}

fn join(items: impl Iterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    if items.is_empty() { "none".into() } else { items.join(" ") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn args(line: &str) -> SamplingArgs {
        Line::try_parse_from(line.split_whitespace()).unwrap().sampling
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(temperature("0.5"), Ok(0.5));
        assert_eq!(probability("1"), Ok(1.0));
        assert_eq!(factor("1.1"), Ok(1.1));
        assert_eq!(number("-1"), Ok(-1.0));
        for bad in ["nan", "inf", "-inf", "x", ""] {
            assert!(temperature(bad).is_err(), "{bad}");
            assert!(probability(bad).is_err(), "{bad}");
            assert!(factor(bad).is_err(), "{bad}");
            assert!(number(bad).is_err(), "{bad}");
        }
        assert!(probability("1.1").is_err() && temperature("-1").is_err() && factor("0").is_err());
    }

    #[test]
    fn a_bias_is_a_pair() {
        assert_eq!(bias("5=1.5"), Ok((5, 1.5)));
        assert_eq!(bias("5 = -inf"), Ok((5, f32::NEG_INFINITY)));
        for bad in ["", "5", "=1", "-1=1", "5=", "5=x", "5=nan", "5=inf", "4294967296=1"] {
            assert!(bias(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_option_can_be_set_by_its_name() {
        // The default of the command line is the engine's.
        let mut changed = args("x --seed 0");
        assert_eq!(changed.params(0), SamplingParams::default());
        assert_eq!(changed.params(3).seed, 3);
        let line = "x --temp 0.5 --top-k 3 --top-p 0.25 --min-p 0.125 --typical-p 0.75 \
                    --repetition-penalty 1.25 --frequency-penalty -0.5 --presence-penalty 0.5 \
                    --logit-bias 7=-inf --logit-bias 8=2 --seed 9 --stop a --stop -b";
        let wanted = args(line);
        for (name, value) in [
            ("temperature", "0.5"),
            ("top-k", "3"),
            ("top-p", "0.25"),
            ("min-p", "0.125"),
            ("typical-p", "0.75"),
            ("repeat-penalty", "1.25"),
            ("frequency-penalty", "-0.5"),
            ("presence-penalty", "0.5"),
            ("logit-bias", "7=1"),
            ("logit-bias", "7=-inf"),
            ("logit-bias", "8=2"),
            ("seed", "9"),
            ("stop", "a"),
            ("stop", "-b"),
        ] {
            let setting = SETTINGS.iter().find(|setting| setting.name == name).unwrap();
            (setting.set)(&mut changed, value).unwrap();
        }
        assert_eq!(changed, wanted);
        assert_eq!(changed.params(0), wanted.params(0));
        for setting in &SETTINGS {
            assert_ne!((setting.get)(&changed), (setting.get)(&args("x")), "{}", setting.name);
        }
    }
}
