//! What a model takes on a device, known from its graph before anything is loaded.

use realm_core::{
    Graph,
    backend::{Backend, CompileOptions, KvSpec, Limits},
};

use crate::{EngineOptions, Model, RuntimeError};

/// Bytes of weights, cache and work memory, and the context that they leave room for.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// Bytes of all weights, at the width of the file.
    pub weight_bytes: u64,
    /// The KV cache.
    pub kv: KvSpec,
    /// Its bytes.
    pub kv_bytes: u64,
    /// Bytes of the program's work memory.
    pub workspace_bytes: u64,
    /// Memory of the device, where known.
    pub device_bytes: Option<u64>,
    /// Tokens a sequence may hold.
    pub context: usize,
    /// The context that the model was trained for.
    pub model_context: usize,
    /// The most that a step may hold.
    pub limits: Limits,
}

/// Memory left to everything else: a fiftieth of the device, at least 128 MiB.
fn reserve(device: u64) -> u64 {
    (device / 50).max(128 << 20)
}

impl MemoryPlan {
    /// Plans `graph` on a device.
    ///
    /// # Errors
    /// Where weights and work memory, or the context that was asked for, do not fit.
    pub fn new(
        model: &Model,
        graph: &Graph,
        backend: &dyn Backend,
        options: &EngineOptions,
    ) -> Result<Self, RuntimeError> {
        let sequences = options.sequences.max(1);
        let tokens = options.step_tokens.max(sequences);
        let limits = Limits { tokens, outputs: sequences, sequences };
        let weight_bytes =
            graph.weights().iter().filter_map(|weight| weight.bytes()).map(|b| b as u64).sum();
        let device = backend.info();
        let compile = CompileOptions { limits, precision: options.precision, poison: false };
        let workspace_bytes = backend.workspace_bytes(graph, &compile) as u64;
        let block_tokens = device.kv_block_tokens;
        let kv_type = options.resolved_kv_type();
        let mut kv = KvSpec { layers: graph.kv().to_vec(), kv_type, blocks: 1, block_tokens };
        let block_bytes = (kv.block_bytes()? as u64 * sequences as u64).max(1);

        let needed = weight_bytes + workspace_bytes;
        let path = || model.file().path().display().to_string();
        let room = device.memory.map(|memory| memory.saturating_sub(reserve(memory)));
        let fitting = match room {
            Some(room) if room < needed + block_bytes => {
                return Err(RuntimeError::Memory(format!(
                    "{}: weights of {} and {} of work memory do not fit {}, which has {} free; use a smaller file",
                    path(),
                    human(weight_bytes),
                    human(workspace_bytes),
                    device.name,
                    human(room)
                )));
            }
            Some(room) => ((room - needed) / block_bytes) as usize * block_tokens,
            None => usize::MAX,
        };
        let context = match options.context {
            Some(context) if context > fitting => {
                return Err(RuntimeError::Memory(format!(
                    "{}: a context of {context} tokens takes {} of KV cache and does not fit {}; at most --ctx {fitting} does",
                    path(),
                    human(block_bytes.saturating_mul(context.div_ceil(block_tokens) as u64)),
                    device.name
                )));
            }
            Some(context) => context.max(1),
            None => model.context().min(fitting),
        };
        kv.blocks = context.div_ceil(block_tokens).saturating_mul(sequences);
        Ok(Self {
            weight_bytes,
            kv_bytes: kv.bytes()? as u64,
            kv,
            workspace_bytes,
            device_bytes: device.memory,
            context,
            model_context: model.context(),
            limits,
        })
    }

    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + self.workspace_bytes
    }
}

/// Bytes as people read them.
pub fn human(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        1e9.. => format!("{:.2} GB", bytes / 1e9),
        1e6.. => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} kB", bytes / 1e3),
    }
}
