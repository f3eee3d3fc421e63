//! `realm run`: continues a prompt.

use std::path::Path;

use realm_runtime::{
    Model, RuntimeError, SamplingParams,
    text::{GenerateOptions, Llm, Piece},
};
use realm_tokenizer::{EncodeOptions, Tokenizer, TokenizerError};
use serde_json::json;

use crate::{
    args::{EngineArgs, IdsArgs, ModelArgs},
    console::{self, Output},
    error::{CliError, Result},
    generate::{self, End, Figures},
    interrupt::Generation,
    load,
    sampling::{SamplingArgs, is_random},
    stats,
};

const EXAMPLES: &str = "\
Examples:
      realm run \"Shall I compare thee\"
      realm run -m model.gguf \"The sea was calm that night, and\"
      realm run -m model.gguf -n 50 --temperature 0 < chapter.txt
      realm run -m model.gguf --stop $'\\n' $'Q: What is a lake?\\nA:'
      realm run -m model.gguf --ids 1,450,7205 --print-ids
      realm run -m model.gguf --json --logprobs 3 \"One, two,\" | jq .

The prompt is continued as it stands: no chat template is put around it; `realm chat` does that. What \
the vocabulary wants around a text (mostly a token at its start) is added, and markup like <|eot_id|> \
is read as the token of that name. One line end at the end of a prompt from stdin is left out. \
Generation ends at any token that ends a text, a turn or a message, before a text of --stop, after \
-n tokens, or where the context is full. Ctrl-C ends it, too: what came is complete, the figures are \
printed, and the exit code is 130; a second Ctrl-C ends the program at once.

With --json every token is a JSON object on a line of its own, as soon as it is there:
      {\"token\":450,\"text\":\" The\",\"logprobs\":{\"chosen\":-0.1,\"top\":[{\"token\":450,\"logprob\":-0.1}]}}
The text is what became certain with that token: it may be empty, as with half a character. Logprobs \
are natural logarithms of the model's own probabilities, there with --logprobs. The last line has the \
figures in place of a token:
      {\"finish\":\"end\",\"seed\":7,\"prompt_tokens\":5,\"generated_tokens\":40,…}
`finish` is end (by the model), stop (a text of --stop), length (-n), context (it is full) or \
interrupted (Ctrl-C). Beside these there are prompt_seconds, prompt_tokens_per_second, \
generated_seconds, generated_tokens_per_second, load_seconds, context, device, precision, kv_type and \
invariant. \
Rates and the seed are null where there are none.";

/// Options of `realm run`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
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
    /// Write a JSON object a token, and one with the figures at the end
    #[arg(long, conflicts_with = "print_ids")]
    json: bool,
    /// Write the log-probabilities of each token and of the N likeliest; needs --json
    #[arg(
        long,
        value_name = "N",
        requires = "json",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u16).range(0..=1000)
    )]
    logprobs: Option<u16>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl RunArgs {
    fn has_ids(&self) -> bool {
        self.ids.ids.is_some() || self.ids.ids_file.is_some()
    }
}

/// Continues the prompt.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let model = args.model.open()?;
    let path = model.file().path();
    args.sampling.check(&model)?;
    let tokenizer = tokenizer(args, &model)?;
    let prompt = prompt(args, path, tokenizer.as_ref())?;
    args.engine.check_prompt(prompt.len(), &model)?;
    let stop_tokens = match &tokenizer {
        None if !args.ignore_eos => named_ends(&model),
        _ => Vec::new(),
    };
    let generate = GenerateOptions {
        max_tokens: Some(args.n as usize),
        sampling: args.sampling.params(0),
        stop: args.sampling.stop.clone(),
        stop_tokens,
        ignore_eos: args.ignore_eos,
        logprobs: args.logprobs.map(usize::from),
    };
    let mut device = args.engine.device.open()?;
    let options = args.engine.options();
    let engine = load::engine(&model, &mut device, &options)?;
    let mut llm = Llm::new(&model, engine, tokenizer, None);
    let of_model = CliError::engine(path);
    let context = llm.engine().context();
    let generation = Generation::begin();
    let stream = llm.generate_ids(prompt, &generate).map_err(&of_model)?;
    if stream.is_cut() {
        console::note(format_args!(
            "-n {} is cut to {}: the context holds {context} tokens, the prompt has {}",
            args.n,
            stream.max_tokens(),
            stream.prompt_tokens()
        ));
    }
    let mut printer = Printer::new(args);
    let figures = generate::drive(stream, options.step_tokens, &generation, of_model, |piece| {
        printer.piece(piece)
    })?;
    printer.finish(&figures, &llm, &generate.sampling)?;
    console::say("");
    llm.engine_mut().take_notes().iter().for_each(console::note);
    figures.lines().iter().for_each(console::say);
    console::say(format_args!("loaded     {}", stats::loading(llm.engine())));
    stats::setting(llm.engine(), &options).iter().for_each(console::say);
    if is_random(&generate.sampling) {
        console::say(format_args!("seed       {}", generate.sampling.seed));
    }
    match figures.end {
        End::Interrupted => Err(CliError::Interrupted),
        End::Finished(_) => Ok(()),
    }
}

/// The file's tokenizer; a run from ids to ids can do without.
fn tokenizer(args: &RunArgs, model: &Model) -> Result<Option<Tokenizer>> {
    match model.tokenizer() {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(error) if !args.sampling.stop.is_empty() => {
            Err(CliError::Input(format!("{error}; --stop needs a tokenizer")))
        }
        Err(error) if args.has_ids() && args.print_ids => {
            console::note(format_args!("{error}; going on without, from ids to ids"));
            Ok(None)
        }
        Err(error) if args.has_ids() => {
            Err(CliError::Input(format!("{error}; with --print-ids no tokenizer is needed")))
        }
        Err(error) => Err(error.into()),
    }
}

/// The prompt's ids.
fn prompt(args: &RunArgs, path: &Path, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
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
    let of_file = |source: TokenizerError| CliError::Tokenizer { path: path.into(), source };
    let encode = || tokenizer.encode(&text, how);
    console::with_spinner("tokenizing the prompt".into(), encode).map_err(of_file)
}

/// The ending tokens that the metadata name, of a file whose tokenizer cannot be used.
fn named_ends(model: &Model) -> Vec<u32> {
    let id = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        model.file().metadata().find::<u32>(&key).ok().flatten()
    };
    ["eos", "eot", "eom"].into_iter().filter_map(id).collect()
}

/// What is written of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Ids,
    Json,
}

/// Writes tokens as they come.
struct Printer {
    out: Output,
    form: Form,
    first: bool,
}

impl Printer {
    fn new(args: &RunArgs) -> Self {
        let form = match args {
            _ if args.json => Form::Json,
            _ if args.print_ids => Form::Ids,
            _ => Form::Text,
        };
        Self { out: Output::new(), form, first: true }
    }

    fn piece(&mut self, piece: &Piece) -> Result<()> {
        match self.form {
            Form::Text => self.out.foreign_text(&piece.text)?,
            Form::Ids => {
                let space = if self.first { "" } else { " " };
                self.out.text(&format!("{space}{}", piece.token))?;
            }
            Form::Json => self.out.line(token_json(piece))?,
        }
        self.first = false;
        self.out.flush()
    }

    fn finish(mut self, figures: &Figures, llm: &Llm, sampling: &SamplingParams) -> Result<()> {
        match self.form {
            Form::Text => return self.out.end_text(),
            Form::Ids => self.out.text("\n")?,
            Form::Json => self.out.line(figures_json(figures, llm, sampling))?,
        }
        self.out.flush()
    }
}

/// A token with its text.
fn token_json(piece: &Piece) -> serde_json::Value {
    let mut object = json!({ "token": piece.token, "text": piece.text });
    if let Some(logprobs) = &piece.logprobs {
        let top = |&(token, logprob): &(u32, f32)| json!({ "token": token, "logprob": logprob });
        let top: Vec<_> = logprobs.top.iter().map(top).collect();
        object["logprobs"] = json!({ "chosen": logprobs.chosen, "top": top });
    }
    object
}

/// What stands in the last line.
fn figures_json(figures: &Figures, llm: &Llm, sampling: &SamplingParams) -> serde_json::Value {
    let engine = llm.engine();
    let Figures { prompt, generated, end, .. } = figures;
    json!({
        "finish": end.name(),
        "seed": is_random(sampling).then_some(sampling.seed),
        "prompt_tokens": prompt.tokens,
        "prompt_seconds": prompt.time.as_secs_f64(),
        "prompt_tokens_per_second": generate::rate(prompt),
        "generated_tokens": generated.tokens,
        "generated_seconds": generated.time.as_secs_f64(),
        "generated_tokens_per_second": generate::rate(generated),
        "load_seconds": engine.load_time().as_secs_f64(),
        "context": engine.context(),
        "device": engine.backend().info().name,
        "precision": engine.precision().to_string(),
        "kv_type": engine.memory().kv.kv_type.to_string(),
        "invariant": engine.invariant(),
    })
}

impl EngineArgs {
    /// Whether a prompt of so many tokens can fit, as far as that is known before anything is loaded.
    ///
    /// # Errors
    /// Where it cannot.
    fn check_prompt(&self, prompt: usize, model: &Model) -> Result<()> {
        let context = self.ctx.map_or(model.context(), |tokens| tokens as usize);
        if prompt > context {
            let error = RuntimeError::PromptTooLong { prompt, context };
            return Err(CliError::engine(model.file().path())(error));
        }
        Ok(())
    }
}
