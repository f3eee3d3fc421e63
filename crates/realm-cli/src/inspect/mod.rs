//! `realm inspect`: what a file holds and what running it will take, before anything is loaded.

pub(crate) mod json;

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use clap::{ValueHint, error::ErrorKind};
use realm_core::{Graph, fuse};
use realm_gguf::{GgufFile, TensorInfo};
use realm_runtime::{Model, Placement, device::Device, memory::human};

use crate::{
    args::{self, EngineArgs, ModelArgs},
    console::{self, Output, one_line},
    error::{CliError, Result},
    output, precision,
};

/// Options of `realm inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Sequences that are to run side by side, for the memory plan
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    batch: u16,
    /// Write the graph that would run, its ops fused, as a Mermaid flowchart; with - to stdout, in
    /// place of the description
    #[arg(long, value_name = "OUT.mmd", value_hint = ValueHint::FilePath)]
    graph: Option<PathBuf>,
    /// Print a JSON object instead
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What there is to say about running a file.
struct Prospect {
    device: Device,
    placement: Placement,
}

/// Shows a file.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let to_stdout = args.graph.as_deref() == Some(Path::new("-"));
    if to_stdout && args.json {
        let problem = "--graph - and --json both write to stdout; name a file for the graph";
        return Err(args::usage("inspect", ErrorKind::ArgumentConflict, problem));
    }
    let file = args.model.file()?;
    let device = args.engine.device.open()?;
    let prospect = prospect(&file, args, device);
    if let Some(path) = &args.graph {
        let graph = match &prospect {
            Ok(prospect) => prospect.placement.graph().to_mermaid(),
            // The graph is there even if its weights do not fit.
            Err(_) => fused(&args.model.open()?).to_mermaid(),
        };
        if to_stdout {
            let mut out = Output::new();
            out.text(&graph)?;
            return out.flush();
        }
        let mut file = output::create(path, file.parts())?;
        let write = file.write_all(graph.as_bytes());
        write.map_err(|source| CliError::io(path, "write the file", source))?;
        file.finish()?;
        console::say(format_args!("wrote {}", path.display()));
    }
    let mut out = Output::new();
    if args.json {
        out.line(json::describe(&file, &prospect, args.batch))?;
    } else {
        print(&mut out, &file)?;
        match &prospect {
            Ok(prospect) => print_plan(&mut out, prospect, args)?,
            Err(error) => {
                let error = one_line(&error.to_string());
                out.line(format_args!("\nno memory plan: {error}"))?;
            }
        }
    }
    out.flush()
}

fn fused(model: &Model) -> Graph {
    let mut graph = model.graph().clone();
    fuse::fuse(&mut graph);
    graph
}

/// Plans the file for a device.
fn prospect(file: &GgufFile, args: &InspectArgs, mut device: Device) -> Result<Prospect> {
    if file.tensors().is_empty() {
        let path = file.path().display();
        return Err(CliError::Input(format!("{path}: no tensors, so nothing to run")));
    }
    let model = args.model.open()?;
    let mut options = args.engine.options();
    options.sequences = args.batch.into();
    let placement = device.place(&model, &options)?;
    placement.notes().iter().for_each(console::note);
    Ok(Prospect { device, placement })
}

fn print(out: &mut Output, file: &GgufFile) -> Result<()> {
    let tensors = file.tensors();
    let path = one_line(&file.path().display().to_string());
    out.line(format_args!(
        "{path}: GGUF version {}, {}, {} tensors with {} weights",
        file.version(),
        human(file.file_bytes()),
        tensors.len(),
        count(elements(tensors))
    ))?;
    if file.parts().len() > 1 {
        for (at, part) in file.parts().enumerate() {
            out.line(format_args!("part {}: {}", at + 1, one_line(&part.display().to_string())))?;
        }
    }
    print_metadata(out, file)?;
    if !tensors.is_empty() {
        print_tensors(out, file)?;
        print_types(out, tensors)?;
    }
    Ok(())
}

fn print_metadata(out: &mut Output, file: &GgufFile) -> Result<()> {
    out.line("\nmetadata")?;
    let keys: Vec<String> = file.metadata().iter().map(|(key, _)| one_line(key)).collect();
    let width = width(keys.iter().map(String::as_str));
    for (key, (_, value)) in keys.iter().zip(file.metadata().iter()) {
        out.line(format_args!("  {key:width$}  {value}"))?;
    }
    Ok(())
}

fn print_tensors(out: &mut Output, file: &GgufFile) -> Result<()> {
    out.line("\ntensors (type, shape with the contiguous dimension first, bytes)")?;
    let names: Vec<String> = file.tensors().iter().map(|t| one_line(t.name())).collect();
    let shapes: Vec<String> = file.tensors().iter().map(|t| format!("{:?}", t.shape())).collect();
    let name_width = width(names.iter().map(String::as_str));
    let shape_width = width(shapes.iter().map(String::as_str));
    let split = file.parts().len() > 1;
    for ((tensor, name), shape) in file.tensors().iter().zip(&names).zip(&shapes) {
        let part = if split { format!("  part {}", tensor.part() + 1) } else { String::new() };
        out.line(format_args!(
            "  {name:name_width$}  {:7}  {shape:shape_width$}  {:>12}{part}",
            type_name(tensor),
            tensor.byte_range().len()
        ))?;
    }
    Ok(())
}

/// The type's name; where it has none here, its number.
fn type_name(tensor: &TensorInfo) -> String {
    match (tensor.dtype(), tensor.type_name()) {
        (None, "unknown") => format!("type {}", tensor.type_id()),
        (_, name) => name.to_owned(),
    }
}

/// What each type takes of the file.
fn print_types(out: &mut Output, tensors: &[TensorInfo]) -> Result<()> {
    let mut types: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
    for tensor in tensors {
        let (tensors, weights, bytes) = types.entry(type_name(tensor)).or_default();
        *tensors += 1;
        *weights += tensor.elements() as u64;
        *bytes += tensor.byte_range().len() as u64;
    }
    out.line("\ntypes")?;
    for (name, (tensors, weights, bytes)) in types {
        out.line(format_args!(
            "  {name:7}  {tensors:>5} tensors  {:>8} weights  {:>9}",
            count(weights),
            human(bytes)
        ))?;
    }
    Ok(())
}

fn print_plan(out: &mut Output, prospect: &Prospect, args: &InspectArgs) -> Result<()> {
    let (plan, graph) = (prospect.placement.memory(), prospect.placement.graph());
    let devices: Vec<&str> = plan.devices.iter().map(|part| part.device.as_str()).collect();
    let why = match args.engine.ctx {
        Some(_) => "--ctx".to_owned(),
        None if plan.context == plan.model_context => "the model's".into(),
        None => format!("what fits; the model's is {}", plan.model_context),
    };
    let sequences = plan.limits.sequences;
    let s = if sequences == 1 { "" } else { "s" };
    out.line(format_args!(
        "\nmemory on {} for {sequences} sequence{s} of {} tokens ({why})",
        devices.join(" and "),
        plan.context
    ))?;
    let line = |what: &str, bytes: u64| format!("  {what:26}  {:>9}", human(bytes));
    for part in &plan.devices {
        if plan.devices.len() > 1 {
            let (first, last) = (part.layers.start, part.layers.end.saturating_sub(1));
            out.line(format_args!(" layers {first} to {last} on {}", part.device))?;
        }
        out.line(line("weights", part.weight_bytes))?;
        out.line(line(&format!("KV cache ({})", plan.kv.kv_type), part.kv_bytes))?;
        let step = format!("work ({} tokens a step)", plan.limits.tokens);
        out.line(line(&step, part.workspace_bytes))?;
        out.line(line("together", part.total_bytes()))?;
        if let Some(bytes) = part.device_bytes {
            out.line(line("the device has", bytes))?;
        }
    }
    for part in &plan.devices {
        let said = precision::precision_said(part.precision, args.engine.precision);
        out.line(format_args!("\nprecision on {}\n  {said}", part.device))?;
    }
    let said = precision::kv_said(plan.kv.kv_type, args.engine.kv_type);
    out.line(format_args!("KV cache\n  {said}"))?;
    let layers = graph.kv().len();
    out.line(format_args!(
        "\ngraph: {} ops over {layers} layers, {} weights",
        graph.nodes().len(),
        graph.weights().len()
    ))
}

fn elements(tensors: &[TensorInfo]) -> u64 {
    tensors.iter().map(|tensor| tensor.elements() as u64).fold(0, u64::saturating_add)
}

fn width<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    // One long name is no reason to spread all lines.
    texts.map(|text| text.chars().count()).filter(|&width| width <= 64).max().unwrap_or(0)
}

/// A number of weights as people say it.
pub(crate) fn count(number: u64) -> String {
    let value = number as f64;
    match value {
        1e9.. => format!("{:.2} B", value / 1e9),
        1e6.. => format!("{:.1} M", value / 1e6),
        1e3.. => format!("{:.1} k", value / 1e3),
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_said_as_people_say_them() {
        let said: Vec<String> = [999, 1_500, 1_100_048_384].into_iter().map(count).collect();
        assert_eq!(said, ["999", "1.5 k", "1.10 B"]);
    }
}
