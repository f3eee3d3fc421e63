//! `realm doctor`: what would run where, and why, in one screen.

mod environment;
mod json;
mod model;
mod report;

use std::path::PathBuf;

use clap::ValueHint;
use realm_core::backend::Precision;
use realm_runtime::{
    RuntimeError,
    device::{self, Device, Report},
};

use self::{environment::Variable, model::Subject};
use crate::{
    args::EngineArgs,
    console::{Output, one_line},
    error::{CliError, Result},
    precision::KvChoice,
};

const EXAMPLES: &str = "\
Examples:
  Where does `realm run` run here, and what keeps it off the GPU?
      realm doctor

  How fast could the built-in model generate at most?
      realm doctor --measure

  Does this model fit, and how fast could it generate?
      realm doctor -m model.gguf --measure";

/// Options of `realm doctor`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// The model to look at, a GGUF file; of a split one its first part [default: the built-in demo
    /// model]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    model: Option<PathBuf>,
    /// Measure how fast the CPU reads memory, which takes a second or two, and say how many tokens a
    /// second the model can generate there at most
    #[arg(long)]
    measure: bool,
    /// Print a JSON object instead
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What was found.
struct Findings {
    reports: Vec<Report>,
    subject: Subject,
    environment: Vec<Variable>,
    verdict: Verdict,
    /// What the command line says of products and of the KV cache.
    asked: (Precision, KvChoice),
}

/// What `realm run` would do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// It runs on these devices, that of the first layers first; and why there.
    Runs { devices: Vec<String>, because: String },
    /// It cannot; and why.
    Nothing { because: String },
}

impl Verdict {
    /// For people, on one line.
    fn said(&self) -> String {
        match self {
            Self::Runs { devices, because } => {
                let devices = devices.join(" and ");
                one_line(&format!("realm run will use {devices}, because {because}"))
            }
            Self::Nothing { because } => one_line(&format!("nothing can run: {because}")),
        }
    }
}

/// Looks and says.
///
/// # Errors
/// [`CliError::Told`] where nothing can run, or the system's refusal to take output.
pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    args.engine.device.check()?;
    let options = args.engine.device.options();
    let reports = device::list(&options);
    let device = device::open(&options);
    let (subject, verdict) = examine(args, device);
    let environment = environment::read();
    let asked = (args.engine.precision, args.engine.kv_type);
    let findings = Findings { reports, subject, environment, verdict, asked };
    let mut out = Output::new();
    if args.json {
        out.line(json::describe(&findings))?;
    } else {
        out.text(&report::describe(&findings, args.measure))?;
    }
    out.flush()?;
    match findings.verdict {
        Verdict::Runs { .. } => Ok(()),
        Verdict::Nothing { .. } => Err(CliError::Told),
    }
}

/// Puts the model on the device, as far as that goes without loading it.
fn examine(
    args: &DoctorArgs,
    device: std::result::Result<Device, RuntimeError>,
) -> (Subject, Verdict) {
    let mut device = match device {
        Ok(device) => device,
        Err(error) => {
            return (Subject::open(None, args), Verdict::Nothing { because: error.to_string() });
        }
    };
    let subject = Subject::open(Some(&mut device), args);
    if let Some(problem) = subject.problem.clone() {
        return (subject, Verdict::Nothing { because: problem });
    }
    let devices = match &subject.placed {
        Some(placed) => placed.memory.devices.iter().map(|part| part.device.clone()).collect(),
        None => vec![device.backend().info().name.clone()],
    };
    let because = because(args, &device, subject.notes.iter());
    (subject, Verdict::Runs { devices, because })
}

/// Why a device was chosen; `notes` are the placement's.
fn because<'a>(
    args: &DoctorArgs,
    device: &Device,
    notes: impl Iterator<Item = &'a String>,
) -> String {
    let wanted = args.engine.device.device.as_str();
    let notes: Vec<&str> = notes.map(String::as_str).collect();
    let chosen = match device.is_cpu() {
        _ if wanted != "auto" => match std::env::var("REALM_DEVICE") {
            Ok(value) if value == wanted => format!("REALM_DEVICE={wanted} asks for it"),
            _ => format!("--device {wanted} asks for it"),
        },
        // The placement says why the GPU was given up.
        true if !notes.is_empty() => String::new(),
        true => "no GPU can be used (see above)".into(),
        false => "it is the first GPU that can be used".into(),
    };
    let all: Vec<&str> = [chosen.as_str()].into_iter().chain(notes).collect();
    all.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}
