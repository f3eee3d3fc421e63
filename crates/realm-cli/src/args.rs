//! What the command line can say: the commands and the options they share.

use std::{ffi::OsString, path::PathBuf};

use clap::{CommandFactory, Parser, Subcommand, ValueHint, error::ErrorKind};
use realm_core::backend::Precision;
use realm_gguf::GgufFile;
use realm_runtime::{
    EngineOptions, Model,
    device::{self, Device, DeviceOptions},
};

use crate::{
    bench::BenchArgs,
    chat::ChatArgs,
    completions::CompletionsArgs,
    console,
    detokenize::DetokenizeArgs,
    devices::DevicesArgs,
    doctor::DoctorArgs,
    error::CliError,
    error::Result,
    inspect::InspectArgs,
    log::LogArgs,
    logits::LogitsArgs,
    man::ManArgs,
    model, npy,
    precision::{self, KvChoice},
    run::RunArgs,
    synth::SynthArgs,
    tokenize::TokenizeArgs,
};

/// Of the short help, which is also what `realm` alone shows.
const FIRST_EXAMPLES: &str = "\
Examples, with the small model that is built in:
  realm run \"Shall I compare thee\"
  realm chat
  realm doctor

`realm --help` shows more examples, `realm COMMAND --help` tells about a command.";

const EXAMPLES: &str = "\
Examples:
  Continue a text with the small model that is built in, or with one from a GGUF file:
      realm run \"Shall I compare thee\"
      realm run -m model.gguf \"The sea was calm that night, and\"

  Talk with it:
      realm chat -m model.gguf

  See what is in a file and how much memory it will take:
      realm inspect -m model.gguf --ctx 8192

  See where it would run, and what keeps it off a GPU:
      realm doctor
      realm doctor -m model.gguf

  Measure speed without a large model at hand, with random weights:
      realm synth tinyllama-1.1b --type q4_k_m t.gguf
      realm bench -m t.gguf

`realm COMMAND --help` tells more about each command.";

/// Runs quantized language models: one file, one program, any device.
///
/// Realm continues texts and talks, with a model from a GGUF file or the small one that is built in.
/// Generated text goes to stdout, figures and messages to stderr, so that it can stand in a pipe.
#[derive(Debug, Parser)]
#[command(
    name = "realm",
    version,
    arg_required_else_help = true,
    after_help = FIRST_EXAMPLES,
    after_long_help = EXAMPLES
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue a text
    Run(RunArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// Measure the speed of prompts and of generation, beside the machine's limits
    ///
    /// Before each test comes a warm-up that is not counted, with an empty cache and at most 8 generated
    /// tokens; then it runs as often as --repetitions says, and the table shows median, slowest and
    /// fastest. In the same run the machine's read bandwidth and the arithmetic peak of the
    /// instructions in use are measured, and the table says which part of each a test reached: weights
    /// and KV cache read against the bandwidth, multiplications and additions against the peak. A test
    /// that stays far below both leaves speed on the table.
    ///
    /// pp512 is a prompt of 512 tokens, tg128 the generation of 128 tokens one by one, pp512@d4096 and
    /// tg128@d4096 the same after 4096 tokens of context, tg128x8 generation in 8 sequences side by side.
    /// The time of a prompt includes its first generated token; that of a context is not counted.
    Bench(BenchArgs),
    /// Show a file's metadata, its tensors and the memory it will take, without loading it
    ///
    /// Works on every GGUF file: of an architecture that Realm does not know, or of one with a
    /// vocabulary alone, it shows metadata and tensors and says why there is no memory plan.
    Inspect(InspectArgs),
    /// List the devices: what each can do, or why it cannot be used
    Devices(DevicesArgs),
    /// Say in one screen what would run where, and why
    ///
    /// Looks at the processor, at each kind of GPU, at the settings in the environment and at a model,
    /// that of -m or the built-in one: whether Realm knows its architecture, its tokenizer and its chat
    /// template, where its layers would go and what memory they take. Nothing is loaded. The last line is
    /// the verdict.
    /// The exit code is 0 where something can run, 1 where nothing can.
    Doctor(DoctorArgs),
    /// Turn text on stdin into token ids
    Tokenize(TokenizeArgs),
    /// Turn token ids into text
    Detokenize(DetokenizeArgs),
    /// Write the logits of a prompt to a NumPy file
    ///
    /// The file is a float32 array of shape [tokens, vocabulary]; row i holds the logits of the
    /// token that follows token i. All tokens are computed as a prompt is.
    Logits(LogitsArgs),
    /// Write a model file with random weights, for measurements
    Synth(SynthArgs),
    /// Print a script that completes realm's commands and options in a shell
    ///
    /// The script goes to stdout. It knows the commands of this version of realm: write it anew after
    /// an update.
    Completions(CompletionsArgs),
    /// Print or write the manual pages
    ///
    /// Without --out the main page goes to stdout, in the format of `man` (roff).
    Man(ManArgs),
}

const DEVICE: &str = "Device and precision";

/// Which device is wanted.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where to run: auto (the best there is), cpu, cuda, cuda:1, wgpu, wgpu:0; see `realm devices`
    #[arg(
        long,
        env = "REALM_DEVICE",
        value_name = "DEVICE",
        default_value = "auto",
        value_parser = device_name,
        help_heading = DEVICE
    )]
    pub(crate) device: String,
    /// Stop with an error rather than run on the CPU
    #[arg(long, help_heading = DEVICE)]
    pub(crate) require_gpu: bool,
    /// Layers that the GPU takes, the last ones; the others run on the CPU [default: as many as fit]
    #[arg(
        long,
        visible_alias = "ngl",
        env = "REALM_GPU_LAYERS",
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = DEVICE
    )]
    pub(crate) gpu_layers: Option<u32>,
    /// Threads of the CPU [default: as many as the system grants]
    #[arg(
        short,
        long,
        env = "REALM_THREADS",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u16).range(1..=1024),
        help_heading = DEVICE
    )]
    pub(crate) threads: Option<u16>,
    /// The most that the CPU's kernels may use, for tests
    #[arg(
        long,
        value_name = "ISA",
        default_value = "avx512",
        value_parser = ["scalar", "avx2", "avx512"],
        hide = true
    )]
    pub(crate) isa: String,
}

impl DeviceArgs {
    /// As the runtime wants them.
    pub(crate) fn options(&self) -> DeviceOptions {
        DeviceOptions {
            name: self.device.clone(),
            require_gpu: self.require_gpu,
            gpu_layers: self.gpu_layers.map(|layers| layers as usize),
            threads: self.threads.map(usize::from),
            isa: self.isa.parse().unwrap_or_default(),
        }
    }

    /// Whether the options go together.
    ///
    /// # Errors
    /// A GPU that is required where the CPU is asked for.
    pub(crate) fn check(&self) -> Result<()> {
        if self.require_gpu && self.device == "cpu" {
            let problem = "--require-gpu contradicts --device cpu (or REALM_DEVICE); drop one\n";
            return Err(CliError::Usage(clap::Error::raw(ErrorKind::ArgumentConflict, problem)));
        }
        Ok(())
    }

    /// Opens the device and says why it is this one.
    pub(crate) fn open(&self) -> Result<Device> {
        self.check()?;
        let device = device::open(&self.options())?;
        device.notes().iter().for_each(console::note);
        Ok(device)
    }
}

/// How a model is put on a device: the options of every command that runs one.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EngineArgs {
    /// Where to run.
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Type of the products' inputs; sums are always f32
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "auto",
        value_parser = precision::precisions(),
        help_heading = DEVICE
    )]
    pub(crate) precision: Precision,
    /// Type of the KV cache
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "auto",
        value_parser = precision::kv_types(),
        help_heading = DEVICE
    )]
    pub(crate) kv_type: KvChoice,
    /// Whether a sequence's text must not depend on those beside it. Where a device can only do that
    /// slower, false lets it choose kernels by the batch; the CPU keeps to it always
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        help_heading = DEVICE
    )]
    pub(crate) invariant: bool,
    /// Tokens that prompt and answer together may have [default: the smaller of what the model was
    /// trained for and what fits the memory]
    #[arg(
        short,
        long,
        value_name = "TOKENS",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = DEVICE
    )]
    pub(crate) ctx: Option<u32>,
}

impl EngineArgs {
    /// As the runtime wants them, for one sequence.
    pub(crate) fn options(&self) -> EngineOptions {
        EngineOptions {
            context: self.ctx.map(|tokens| tokens as usize),
            precision: self.precision,
            kv_type: self.kv_type.0,
            invariant: self.invariant,
            ..EngineOptions::default()
        }
    }
}

/// The model of a command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// The model, a GGUF file; of a split one its first part [default: the built-in demo model]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    model: Option<PathBuf>,
}

impl ModelArgs {
    /// Opens the file, without looking for a model in it.
    pub(crate) fn file(&self) -> Result<GgufFile> {
        model::file(self.model.as_deref())
    }

    /// Opens the model.
    pub(crate) fn open(&self) -> Result<Model> {
        model::open(self.model.as_deref())
    }
}

/// A list of token ids on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids(pub(crate) Vec<u32>);

/// A prompt that is token ids already.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct IdsArgs {
    /// Token ids as prompt: 1,2,3
    #[arg(long, value_name = "IDS", value_parser = parse_ids)]
    pub(crate) ids: Option<Ids>,
    /// Token ids as prompt, from a one-dimensional int32, int64 or uint32 .npy file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "ids")]
    pub(crate) ids_file: Option<PathBuf>,
}

impl IdsArgs {
    /// The ids, where there are some.
    pub(crate) fn read(&self) -> Result<Option<Vec<u32>>> {
        match (&self.ids, &self.ids_file) {
            (Some(Ids(ids)), _) => Ok(Some(ids.clone())),
            (None, Some(path)) => npy::read_ids(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Ids with commas or white space between.
pub(crate) fn parse_ids(text: &str) -> Result<Ids, String> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    let id = |part: &str| {
        part.parse().map_err(|_| {
            let shown: String = part.chars().take(40).flat_map(char::escape_debug).collect();
            format!("{shown:?} is no token id; ids are whole numbers like 1,2,3")
        })
    };
    parts.map(id).collect::<Result<_, String>>().map(Ids)
}

/// A seed of random numbers.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

fn device_name(text: &str) -> Result<String, String> {
    if device::is_name(text) {
        Ok(text.into())
    } else {
        Err("choose auto, cpu, cuda, cuda:N, wgpu or wgpu:N".into())
    }
}

/// Words of the command line with `-ngl`, which people know from other programs, as `--gpu-layers`:
/// short options have one letter here. What follows `-p` or stands behind `--` is text.
pub(crate) fn long_names(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let (mut text, mut all_text) = (false, false);
    let name = |word: OsString| {
        let replaced = word == "-ngl" && !text && !all_text;
        all_text |= word == "--" && !text;
        text = word == "-p" || word == "--prompt";
        if replaced { "--gpu-layers".into() } else { word }
    };
    words.into_iter().map(name).collect()
}

/// A usage error of a command, as clap would report it.
pub(crate) fn usage(command: &str, kind: ErrorKind, problem: impl std::fmt::Display) -> CliError {
    let mut cli = Cli::command();
    cli.build();
    let command = match cli.find_subcommand_mut(command) {
        Some(command) => command,
        None => return CliError::Input(problem.to_string()),
    };
    CliError::Usage(command.error(kind, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ids_may_stand_apart_in_any_way() {
        assert_eq!(parse_ids("1,2, 3\n4"), Ok(Ids(vec![1, 2, 3, 4])));
        assert_eq!(parse_ids(""), Ok(Ids(vec![])));
        assert!(parse_ids("1,x").unwrap_err().contains("\"x\""));
        assert!(parse_ids("-1").is_err());
        assert!(parse_ids("4294967296").is_err());
    }

    #[test]
    fn layers_have_their_usual_short_name() {
        let parse = |line: &str| {
            let words = line.split(' ').map(OsString::from);
            Cli::try_parse_from(long_names(words)).map(|cli| match cli.command {
                Command::Devices(args) => args.device.gpu_layers,
                _ => None,
            })
        };
        assert_eq!(parse("realm devices -ngl 12").unwrap(), Some(12));
        assert_eq!(parse("realm devices --ngl 0").unwrap(), Some(0));
        assert_eq!(parse("realm devices").unwrap(), None);
        assert!(parse("realm devices -ngl").is_err() && parse("realm devices -ngl -1").is_err());
        for text in ["realm run -p -ngl", "realm run -- -ngl"] {
            let words = text.split(' ').map(OsString::from);
            assert_eq!(long_names(words).last().unwrap(), "-ngl");
        }
    }

    #[test]
    fn devices_are_names_with_numbers() {
        for good in ["auto", "cpu", "cuda", "cuda:1", "wgpu:0"] {
            assert!(device_name(good).is_ok(), "{good}");
        }
        for bad in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(device_name(bad).is_err(), "{bad}");
        }
    }
}
