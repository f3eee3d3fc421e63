//! `realm synth`: a model file with random weights, for measurements where no real one is at hand.

mod blocks;
pub(crate) mod random;
mod shape;
#[cfg(test)]
mod tests;
mod types;
mod vocabulary;

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Instant,
};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use realm_core::DType;
use realm_gguf::{GgufWriter, NewFile, TensorPlan};
use realm_runtime::memory::human;

use crate::{
    args,
    console::{self, Bar},
    error::{CliError, Result},
    output,
};
use random::Rng;
use shape::{Part, SHAPES, Shape};
use types::{FILE_TYPES, FileType};

/// Write a model file with random weights.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SynthArgs {
    /// Sizes of the model
    #[arg(value_parser = shapes())]
    shape: Shape,
    /// The file to write
    #[arg(value_name = "OUT", value_hint = clap::ValueHint::FilePath)]
    out: PathBuf,
    /// How weights are stored: a type for every matrix, or a mix in which each tensor gets the type
    /// that llama.cpp's quantizer chooses for it
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value = "q4_k_m",
        ignore_case = true,
        value_parser = file_types()
    )]
    file_type: FileType,
    /// Every matrix in the base type, the output matrix too
    #[arg(long)]
    pure: bool,
    /// The context that the file says it was trained for [default: the model's own]
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    ctx: Option<u32>,
    /// The same seed gives the same file
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true,
        value_parser = args::seed
    )]
    seed: u64,
    /// Replace OUT where it exists
    #[arg(long)]
    force: bool,
}

fn shapes() -> impl TypedValueParser<Value = Shape> {
    let values = SHAPES.iter().map(|shape| PossibleValue::new(shape.name).help(shape.about));
    PossibleValuesParser::new(values).try_map(|name| {
        SHAPES.iter().copied().find(|shape| shape.name == name).ok_or("no such shape")
    })
}

fn file_types() -> impl TypedValueParser<Value = FileType> {
    PossibleValuesParser::new(FILE_TYPES.iter().map(|known| known.name))
        .try_map(|name| FileType::from_name(&name).ok_or("no such type"))
}

/// Writes the file.
///
/// # Errors
/// A file that is there already, and the system's: no permission, disk full.
pub(crate) fn run(args: &SynthArgs) -> Result<()> {
    // What else may be there is refused when the file is begun.
    if args.out.is_file() && !args.force {
        let path = args.out.display();
        let problem = "exists; choose another name or replace it with --force";
        return Err(CliError::Input(format!("{path}: {problem}")));
    }
    let file = output::create(&args.out, [])?;
    let context = args.ctx.map_or(args.shape.context, |tokens| tokens as usize);
    let shape = Shape { context, ..args.shape };
    let file_type = if args.pure { args.file_type.pure() } else { args.file_type };
    let start = Instant::now();
    let writer = plan(&shape, &file_type, args.seed)?;
    let bytes = write(&writer, &shape, args.seed, file)?;
    let seconds = start.elapsed().as_secs_f64();
    console::say(format_args!(
        "{}: {} {}, {} tensors, {} in {seconds:.1} s",
        console::one_line(&args.out.display().to_string()),
        shape.name,
        file_type.name,
        writer.tensors().len(),
        human(bytes)
    ));
    Ok(())
}

/// Metadata and tensors of the file.
fn plan(shape: &Shape, file_type: &FileType, seed: u64) -> Result<GgufWriter> {
    let mut writer = GgufWriter::new();
    let size = |value: usize| value as u32;
    writer
        .set("general.architecture", "llama")?
        .set("general.type", "model")?
        .set("general.name", format!("{} with random weights", shape.name))?
        .set("general.size_label", size_label(shape.weights()))?
        .set("llama.block_count", size(shape.layers))?
        .set("llama.context_length", size(shape.context))?
        .set("llama.embedding_length", size(shape.hidden))?
        .set("llama.feed_forward_length", size(shape.feed_forward))?
        .set("llama.attention.head_count", size(shape.heads))?
        .set("llama.attention.head_count_kv", size(shape.kv_heads))?
        .set("llama.attention.key_length", size(shape.head_dim))?
        .set("llama.attention.value_length", size(shape.head_dim))?
        .set("llama.attention.layer_norm_rms_epsilon", 1e-5f32)?
        .set("llama.rope.dimension_count", size(shape.head_dim))?
        .set("llama.rope.freq_base", shape.rope_base)?
        .set("llama.vocab_size", size(shape.vocabulary))?
        .set("general.quantization_version", 2u32)?;
    if let Some(id) = file_type.id {
        writer.set("general.file_type", id)?;
    }
    let mut rng = Rng::new(seed).part(u64::MAX);
    vocabulary::write(shape.tokenizer, shape.vocabulary, &mut rng, &mut writer)?;
    for tensor in shape.tensors() {
        let dtype = file_type.tensor(shape, tensor.part, tensor.layer, tensor.cols);
        let dims: Vec<usize> = std::iter::once(tensor.cols).chain(tensor.rows).collect();
        writer.tensor(tensor.name, &dims, dtype)?;
    }
    Ok(writer)
}

/// The number of weights as people write it: `1.1B`.
fn size_label(weights: u64) -> String {
    match weights as f64 {
        weights @ 1e9.. => format!("{:.1}B", weights / 1e9),
        weights => format!("{:.1}M", weights / 1e6),
    }
}

/// Fills the tensors and writes everything; returns the file's length.
fn write(writer: &GgufWriter, shape: &Shape, seed: u64, file: NewFile) -> Result<u64> {
    let parts: Vec<Part> = shape.tensors().into_iter().map(|tensor| tensor.part).collect();
    let total = writer.tensors().iter().map(|tensor| tensor.bytes() as u64).sum();
    let (rng, mut at) = (Rng::new(seed), 0);
    let mut fill = |bar: &Bar, tensor: &TensorPlan, out: &mut dyn Write| {
        let mut rng = rng.part(at as u64);
        let part = parts[at];
        at += 1;
        match (part, tensor.name(), shape.rope_divisors()) {
            (Part::Vector, "rope_freqs.weight", Some(divisors)) => vector(&divisors, out),
            (Part::Vector, ..) => {
                let near_one = |_| 1.0 + 0.1 * rng.normal();
                vector(&(0..tensor.shape()[0]).map(near_one).collect::<Vec<f32>>(), out)
            }
            _ => matrix(tensor, &rng, out, bar),
        }
    };
    let bytes = console::with_progress("writing".into(), |bar| {
        bar.set(0, total);
        writer.write_new(file, |tensor, out| fill(bar, tensor, out))
    });
    Ok(bytes?)
}

fn vector(values: &[f32], out: &mut dyn Write) -> io::Result<()> {
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

/// Bytes that are made before they go to the file: enough to keep calls few, and in the caches.
const PIECE: usize = 1 << 18;

/// Random weights of deviation `1/√cols`, so that products keep the size of their inputs.
fn matrix(tensor: &TensorPlan, rng: &Rng, out: &mut dyn Write, bar: &Bar) -> io::Result<()> {
    let dtype: DType = tensor.dtype();
    let deviation = 1.0 / (tensor.shape()[0] as f32).sqrt();
    let piece = PIECE - PIECE % dtype.block_bytes();
    let mut buffer = vec![0; piece.min(tensor.bytes())];
    let mut left = tensor.bytes();
    for index in 0.. {
        let bytes = left.min(piece);
        if bytes == 0 {
            break;
        }
        blocks::fill(dtype, deviation, &mut rng.part(index), &mut buffer[..bytes]);
        out.write_all(&buffer[..bytes])?;
        bar.advance(bytes as u64);
        left -= bytes;
    }
    Ok(())
}
