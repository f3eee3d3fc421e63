//! A model file and what running it takes.

use std::{collections::BTreeMap, path::PathBuf};

use realm_core::{
    Graph,
    backend::Precision,
    cost::{self, SequenceShape, StepShape},
};
use realm_gguf::{GgufFile, TensorInfo};
use realm_runtime::{Model, device::Device, memory::MemoryPlan};

use super::DoctorArgs;
use crate::{console::with_spinner, demo};

/// A model file.
pub(super) struct Subject {
    pub(super) path: PathBuf,
    /// No file was named: it is the model in the box.
    pub(super) built_in: bool,
    /// Why it cannot run; `None` where it can, or where there is no device to run it.
    pub(super) problem: Option<String>,
    /// `None` where the file cannot be read.
    pub(super) file: Option<FileFacts>,
    /// Of an architecture that is known.
    pub(super) layers: Option<usize>,
    pub(super) placed: Option<Placed>,
    /// Why layers go where they go.
    pub(super) notes: Vec<String>,
}

/// What the file says.
pub(super) struct FileFacts {
    /// `general.architecture`.
    pub(super) architecture: Option<String>,
    /// `general.name`.
    pub(super) name: Option<String>,
    pub(super) bytes: u64,
    pub(super) weights: u64,
    /// Types of the tensors and their parts of all bytes, the largest first.
    pub(super) types: Vec<(String, f64)>,
    pub(super) tokenizer: Result<TokenizerFacts, String>,
    /// Whether there is a chat template, or why it cannot be used.
    pub(super) chat_template: Result<bool, String>,
}

/// A tokenizer that works.
pub(super) struct TokenizerFacts {
    /// `tokenizer.ggml.model`, and `tokenizer.ggml.pre` where there is one.
    pub(super) kind: String,
    pub(super) tokens: usize,
}

/// Where the model goes.
pub(super) struct Placed {
    pub(super) memory: MemoryPlan,
    /// Bytes that generating one token must read, with an empty cache.
    pub(super) bytes_per_token: u64,
    /// Bytes a second; measured where it was asked for and can be.
    pub(super) read_bytes_per_second: Option<f64>,
}

impl Placed {
    /// Tokens a second, where memory is the only limit.
    pub(super) fn most_tokens_per_second(&self) -> Option<f64> {
        self.read_bytes_per_second.map(|rate| rate / self.bytes_per_token as f64)
    }
}

impl Subject {
    /// Looks at the model that is asked for, and plans it for `device` where there is one.
    pub(super) fn open(device: Option<&mut Device>, args: &DoctorArgs) -> Self {
        let mut subject = Self {
            path: args.model.clone().unwrap_or_default(),
            built_in: args.model.is_none(),
            problem: None,
            file: None,
            layers: None,
            placed: None,
            notes: Vec::new(),
        };
        let file = match args.model.as_deref().map_or_else(demo::file, GgufFile::open) {
            Ok(file) => file,
            Err(error) => {
                subject.problem = Some(error.to_string());
                return subject;
            }
        };
        subject.path = file.path().to_path_buf();
        let mut facts = FileFacts::new(&file);
        if file.tensors().is_empty() {
            subject.problem =
                Some(format!("{}: no tensors, so nothing to run", subject.path.display()));
            subject.file = Some(facts);
            return subject;
        }
        match Model::new(file) {
            Ok(model) => {
                facts.chat_template =
                    model.chat_template().map(|found| found.is_some()).map_err(|e| e.to_string());
                subject.layers = Some(model.graph().layers());
                if let Some(device) = device {
                    subject.place(&model, device, args);
                }
            }
            Err(error) => subject.problem = Some(error.to_string()),
        }
        subject.file = Some(facts);
        subject
    }

    fn place(&mut self, model: &Model, device: &mut Device, args: &DoctorArgs) {
        let options = args.engine.options();
        let placement = match device.place(model, &options) {
            Ok(placement) => placement,
            Err(error) => {
                self.problem = Some(error.to_string());
                return;
            }
        };
        self.notes = placement.notes().to_vec();
        let memory = placement.memory().clone();
        let bytes_per_token = bytes_per_token(placement.graph(), &memory);
        // What other devices read is not measured.
        let on_cpu = memory.devices.iter().all(|part| !part.uploads());
        let read_bytes_per_second = (args.measure && on_cpu)
            .then(|| {
                with_spinner("measuring the memory".into(), || device.roofline(Precision::F32))
            })
            .flatten()
            .map(|roofline| roofline.read_bytes_per_second)
            .filter(|rate| *rate > 0.0);
        self.placed = Some(Placed { memory, bytes_per_token, read_bytes_per_second });
    }
}

/// What one sequence's first token reads.
fn bytes_per_token(graph: &Graph, memory: &MemoryPlan) -> u64 {
    let sequences = [SequenceShape { cached: 0, rows: 1 }];
    let shape = StepShape { sequences: &sequences, outputs: 1, kv_type: memory.kv.kv_type };
    cost::step(graph, &shape).bytes()
}

impl FileFacts {
    fn new(file: &GgufFile) -> Self {
        let text = |key: &str| -> Option<String> {
            file.metadata().find::<&str>(key).ok().flatten().map(str::to_owned)
        };
        let kind = || {
            let model = text("tokenizer.ggml.model").unwrap_or_default();
            let pre = text("tokenizer.ggml.pre").map(|pre| format!(" ({pre})"));
            model + &pre.unwrap_or_default()
        };
        let tokenizer = realm_runtime::tokenizer(file)
            .map(|tokenizer| TokenizerFacts { kind: kind(), tokens: tokenizer.vocab_size() })
            .map_err(|error| error.to_string());
        Self {
            architecture: text("general.architecture"),
            name: text("general.name"),
            bytes: file.file_bytes(),
            weights: file.tensors().iter().map(|tensor| tensor.elements() as u64).sum(),
            types: types(file.tensors()),
            tokenizer,
            chat_template: Ok(text("tokenizer.chat_template").is_some()),
        }
    }
}

fn types(tensors: &[TensorInfo]) -> Vec<(String, f64)> {
    let mut bytes: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in tensors {
        *bytes.entry(tensor.type_name()).or_default() += tensor.byte_range().len();
    }
    let total = bytes.values().sum::<usize>().max(1) as f64;
    let parts = bytes.into_iter().map(|(name, bytes)| (name.to_owned(), bytes as f64 / total));
    let mut parts: Vec<_> = parts.collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    parts
}
