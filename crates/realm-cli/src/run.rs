//! `realm run`: continues a prompt.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::error::ErrorKind;
use realm_runtime::{
    Engine, EngineOptions, Event, Finish, Model, Request, RuntimeError, SamplingParams,
};
use realm_tokenizer::{DecodeOptions, DecodeStream, EncodeOptions, Tokenizer, TokenizerError};

use crate::{
    args::{self, EngineArgs, IdsArgs},
    console::{self, Output},
    error::{CliError, Result},
    load,
    stats::{self, Speed},
};

const EXAMPLES: &str = "\
Examples:
      realm run -m model.gguf \"The sea was calm that night, and\"
      realm run -m model.gguf -n 50 --temperature 0 < chapter.txt
      realm run -m model.gguf --ids 1,450,7205 --print-ids

The prompt is continued as it stands: no chat template is put around it. What the vocabulary wants \
around a text (mostly a token at its start) is added, and markup like <|eot_id|> is read as the \
token of that name. One line end at the end of a prompt from stdin is left out. Generation ends at \
any token that ends a text, a turn or a message, after -n tokens, or where the context is full.";

/// Options of `realm run`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RunArgs {
    /// The model, a GGUF file; of a split one its first part
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The text to continue; without it, or with -, it is read from stdin
    #[arg(conflicts_with_all = ["ids", "ids_file"])]
    prompt: Option<String>,
    /// The text to continue, as an option; it may start with a hyphen
    #[arg(
        short = 'p',
        long = "prompt",
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with_all = ["prompt", "ids", "ids_file"]
    )]
    text: Option<String>,
    #[command(flatten)]
    ids: IdsArgs,
    /// Most tokens to generate
    #[arg(
        short,
        long = "tokens",
        value_name = "N",
        default_value = "256",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    n: u32,
    /// Go on after a token that ends the text
    #[arg(long)]
    ignore_eos: bool,
    /// Write the ids of the generated tokens in place of their text
    #[arg(long)]
    print_ids: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// How tokens are chosen.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
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
    /// The same seed gives the same text [default: random, printed]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = args::seed)]
    seed: Option<u64>,
}

impl SamplingArgs {
    fn params(&self) -> SamplingParams {
        let &Self { temperature, top_k, top_p, min_p, seed } = self;
        // 32 bits, to be short enough for typing.
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32);
        SamplingParams { temperature, top_k, top_p, min_p, seed }
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if f32::is_finite(value) && value >= 0.0 => Ok(value),
        _ => Err("a temperature is a number from 0 up".into()),
    }
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("a probability is a number from 0 to 1".into()),
    }
}

/// Continues the prompt.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let Some(path) = &args.model else {
        let problem = "a model is needed: name a GGUF file with -m FILE.gguf";
        return Err(args::usage("run", ErrorKind::MissingRequiredArgument, problem));
    };
    let model = Model::open(path)?;
    let tokenizer = tokenizer(args, &model)?;
    let prompt = prompt(args, &model, tokenizer.as_ref())?;
    let stop_tokens = match &tokenizer {
        _ if args.ignore_eos => Vec::new(),
        Some(tokenizer) => tokenizer.end_of_generation().to_vec(),
        None => named_ends(&model),
    };
    let mut device = args.engine.device.open()?;
    let options = args.engine.options();
    let mut engine = load::engine(&model, &mut device, &options)?;
    let sampling = args.sampling.params();
    let max_tokens = tokens_left(args.n as usize, prompt.len(), engine.context());
    let request = Request { prompt, max_tokens, sampling, stop_tokens };
    let printer = match tokenizer.filter(|_| !args.print_ids) {
        Some(tokenizer) => Printer::text(tokenizer),
        None => Printer::ids(),
    };
    let figures = generate(&mut engine, request, printer, CliError::engine(path))?;
    figures.say(&engine, &options, &sampling);
    Ok(())
}

/// The file's tokenizer; a run from ids to ids can do without.
fn tokenizer(args: &RunArgs, model: &Model) -> Result<Option<Tokenizer>> {
    let from_ids = args.ids.ids.is_some() || args.ids.ids_file.is_some();
    match model.tokenizer() {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(error) if from_ids && args.print_ids => {
            console::note(format_args!("{error}; going on without, from ids to ids"));
            Ok(None)
        }
        Err(error) if from_ids => {
            Err(CliError::Input(format!("{error}; with --print-ids no tokenizer is needed")))
        }
        Err(error) => Err(error.into()),
    }
}

/// The prompt's ids.
fn prompt(args: &RunArgs, model: &Model, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
    if let Some(ids) = args.ids.read()? {
        return Ok(ids);
    }
    let text = match args.prompt.as_deref().or(args.text.as_deref()) {
        None | Some("-") => {
            let text = console::read_stdin("the text to continue")?;
            let trimmed = text.strip_suffix('\n').unwrap_or(&text);
            trimmed.strip_suffix('\r').unwrap_or(trimmed).to_owned()
        }
        Some(text) => text.to_owned(),
    };
    let Some(tokenizer) = tokenizer else { return Ok(Vec::new()) };
    // As llama.cpp's completion does it.
    let how = EncodeOptions { add_special: true, parse_special: true };
    tokenizer.encode(&text, how).map_err(at(model))
}

fn at(model: &Model) -> impl Fn(TokenizerError) -> CliError {
    |source| CliError::Tokenizer { path: model.file().path().to_path_buf(), source }
}

/// The ending tokens that the metadata name, of a file whose tokenizer cannot be used.
fn named_ends(model: &Model) -> Vec<u32> {
    let id = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        model.file().metadata().find::<u32>(&key).ok().flatten()
    };
    ["eos", "eot", "eom"].into_iter().filter_map(id).collect()
}

/// As many tokens as are wanted and as the context leaves: the last one need not enter it.
fn tokens_left(wanted: usize, prompt: usize, context: usize) -> usize {
    let room = (context + 1).saturating_sub(prompt);
    if room > 0 && room < wanted {
        console::note(format_args!(
            "-n {wanted} is cut to {room}: the context holds {context} tokens, the prompt has {prompt}"
        ));
    }
    wanted.min(room).max(1)
}

/// Writes tokens as they come.
enum Printer {
    Text { out: Output, stream: Box<DecodeStream<Tokenizer>>, vocabulary: usize },
    Ids { out: Output, first: bool },
}

impl Printer {
    fn text(tokenizer: Tokenizer) -> Self {
        let vocabulary = tokenizer.vocab_size();
        let how = DecodeOptions { special: false, continuation: true };
        let stream = Box::new(DecodeStream::new(tokenizer, how));
        Self::Text { out: Output::new(), stream, vocabulary }
    }

    fn ids() -> Self {
        Self::Ids { out: Output::new(), first: true }
    }

    fn token(&mut self, event: Event) -> Result<()> {
        match self {
            // Models with padded vocabularies have ids that stand for no text.
            Self::Text { out, stream, vocabulary } => {
                let silent =
                    event.finish == Some(Finish::Stop) || event.token as usize >= *vocabulary;
                if !silent && let Ok(text) = stream.push(event.token) {
                    out.text(text)?;
                }
                out.flush()
            }
            Self::Ids { out, first } => {
                let space = if std::mem::take(first) { "" } else { " " };
                out.text(&format!("{space}{}", event.token))?;
                out.flush()
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        match self {
            Self::Text { out, stream, .. } => {
                out.text(stream.finish())?;
                out.end_text()
            }
            Self::Ids { out, .. } => {
                out.text("\n")?;
                out.flush()
            }
        }
    }
}

/// What a run took.
struct Figures {
    prompt: Speed,
    generated: Speed,
    finish: Option<Finish>,
}

/// Runs a request to its end, printing its tokens as they come.
fn generate(
    engine: &mut Engine,
    request: Request,
    mut printer: Printer,
    of_model: impl Fn(RuntimeError) -> CliError,
) -> Result<Figures> {
    let prompt = request.prompt.len();
    let (mut tokens, mut first, mut finish) = (0, Duration::ZERO, None);
    let start = Instant::now();
    engine.submit(request).map_err(&of_model)?;
    while !engine.is_idle() {
        for event in engine.step().map_err(&of_model)? {
            if tokens == 0 {
                first = start.elapsed();
            }
            tokens += 1;
            finish = event.finish;
            printer.token(event)?;
        }
    }
    // The first token came of the prompt's last row.
    let rest = start.elapsed().saturating_sub(first);
    printer.finish()?;
    Ok(Figures {
        prompt: Speed { tokens: prompt, timed: prompt, time: first },
        generated: Speed { tokens, timed: usize::saturating_sub(tokens, 1), time: rest },
        finish,
    })
}

impl Figures {
    fn say(&self, engine: &Engine, options: &EngineOptions, sampling: &SamplingParams) {
        let end = match self.finish {
            Some(Finish::Stop) => ", ended by the model",
            _ => "",
        };
        console::say("");
        console::say(format_args!("prompt     {}", self.prompt));
        console::say(format_args!("generated  {}{end}", self.generated));
        console::say(format_args!("loaded     {}", stats::loading(engine)));
        stats::setting(engine, options).iter().for_each(console::say);
        if sampling.temperature > 0.0 && sampling.top_k != 1 {
            console::say(format_args!("seed       {}", sampling.seed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_leaves_room_for_one_token_more() {
        assert_eq!(tokens_left(10, 5, 100), 10);
        assert_eq!(tokens_left(10, 95, 100), 6);
        assert_eq!(tokens_left(10, 100, 100), 1);
        // Too long a prompt: the engine says so.
        assert_eq!(tokens_left(10, 200, 100), 1);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(temperature("0.5"), Ok(0.5));
        assert_eq!(probability("1"), Ok(1.0));
        for bad in ["-1", "nan", "inf", "x", ""] {
            assert!(temperature(bad).is_err(), "{bad}");
            assert!(probability(bad).is_err(), "{bad}");
        }
        assert!(probability("1.1").is_err());
    }
}
