//! What a model takes on its devices, known from its graph before anything is loaded.

use std::ops::Range;

use realm_core::{
    Graph,
    backend::{Backend, CompileOptions, KvSpec, Limits, Precision},
    cut::cut,
};

use crate::{
    EngineOptions, Model, RuntimeError,
    split::{check_blocks, layers_said, limits_of},
};

/// What a part of a model takes on its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlan {
    /// The device, as `--device` takes it.
    pub device: String,
    /// The layers that run there.
    pub layers: Range<usize>,
    /// The type of the products' inputs there.
    pub precision: Precision,
    /// Bytes of the weights, as the device keeps them.
    pub weight_bytes: u64,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Bytes of the program's work memory.
    pub workspace_bytes: u64,
    /// Memory of the device that may be taken, where known.
    pub device_bytes: Option<u64>,
}

impl DevicePlan {
    /// Whether weights go to a device's own memory, or stay in the mapped file.
    pub fn uploads(&self) -> bool {
        self.device != "cpu"
    }

    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.kv_bytes).saturating_add(self.workspace_bytes)
    }
}

/// Bytes of weights, cache and work memory, and the context that they leave room for.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// What each device takes: one device, or two, that of the first layers first.
    pub devices: Vec<DevicePlan>,
    /// The KV cache of all layers.
    pub kv: KvSpec,
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

/// What a part of a model needs, whatever its context.
struct Need {
    plan: DevicePlan,
    /// Bytes of a KV block.
    block_bytes: u64,
    /// Bytes that may be taken.
    room: Option<u64>,
}

impl Need {
    fn new(
        backend: &dyn Backend,
        graph: &Graph,
        layers: Range<usize>,
        limits: Limits,
        options: &EngineOptions,
    ) -> Result<Self, RuntimeError> {
        let info = backend.info();
        let weights = graph.weights().iter().map(|weight| backend.weight_bytes(weight) as u64);
        let compile = CompileOptions {
            limits,
            precision: options.precision,
            invariant: options.invariant,
            poison: false,
        };
        let kv = kv_spec(graph, backend, options);
        Ok(Self {
            block_bytes: kv.block_bytes()? as u64,
            room: info.memory.map(|memory| memory.saturating_sub(reserve(memory))),
            plan: DevicePlan {
                device: info.name.clone(),
                layers,
                precision: match options.precision {
                    Precision::Auto => info.auto_precision,
                    precision => precision,
                },
                weight_bytes: weights.sum(),
                kv_bytes: 0,
                workspace_bytes: backend.workspace_bytes(graph, &compile) as u64,
                device_bytes: info.memory,
            },
        })
    }

    /// Bytes with so many KV blocks.
    fn bytes(&self, blocks: usize) -> u64 {
        self.plan.total_bytes().saturating_add(self.block_bytes.saturating_mul(blocks as u64))
    }

    /// KV blocks that fit; `None` where not even one does.
    fn fitting(&self) -> Option<usize> {
        let Some(room) = self.room else { return Some(usize::MAX) };
        let left = room.checked_sub(self.bytes(1))?;
        Some(1usize.saturating_add((left / self.block_bytes.max(1)) as usize))
    }

    fn fits(&self, blocks: usize) -> bool {
        self.room.is_none_or(|room| self.bytes(blocks) <= room)
    }

    /// What is needed and what is there, for people.
    fn said(&self, blocks: usize) -> String {
        let DevicePlan { device, weight_bytes, workspace_bytes, .. } = &self.plan;
        format!(
            "weights of {}, {} of KV cache and {} of work memory do not fit {device}, which has {} free",
            human(*weight_bytes),
            human(self.block_bytes.saturating_mul(blocks as u64)),
            human(*workspace_bytes),
            human(self.room.unwrap_or(u64::MAX))
        )
    }

    /// The last layer's need, where more does not fit.
    fn said_alone(&self, block_tokens: usize, options: &EngineOptions) -> String {
        match self.fitting() {
            Some(blocks) => format!(
                "; with --gpu-layers 1 at most --ctx {} fits",
                largest_context(blocks, block_tokens, options)
            ),
            None => format!("; the last layer alone takes {}", human(self.bytes(1))),
        }
    }

    fn taking(mut self, blocks: usize) -> DevicePlan {
        self.plan.kv_bytes = self.block_bytes.saturating_mul(blocks as u64);
        self.plan
    }
}

fn kv_spec(graph: &Graph, backend: &dyn Backend, options: &EngineOptions) -> KvSpec {
    let kv_type = options.resolved_kv_type();
    let block_tokens = backend.info().kv_block_tokens;
    KvSpec { layers: graph.kv().to_vec(), kv_type, blocks: 1, block_tokens }
}

/// No step has more rows than their 32-bit numbers tell apart: sizes made of them do not overflow.
fn limits(options: &EngineOptions) -> Limits {
    let most = u32::MAX as usize;
    let sequences = options.sequences.clamp(1, most);
    let tokens = options.step_tokens.clamp(sequences, most);
    Limits { tokens, outputs: sequences, sequences }
}

/// KV blocks that fit all devices; of those where not even one does, the first.
fn fitting(needs: &[Need]) -> Result<Option<usize>, &Need> {
    let blocks = needs.iter().map(|need| need.fitting().ok_or(need));
    blocks.collect::<Result<Vec<_>, _>>().map(|blocks| blocks.into_iter().min())
}

/// Blocks of the cache: what was asked for, or a whole context for each sequence.
fn pool_blocks(context: usize, block_tokens: usize, options: &EngineOptions) -> usize {
    let blocks = match options.kv_tokens {
        Some(tokens) => tokens.div_ceil(block_tokens),
        None => context.div_ceil(block_tokens).saturating_mul(options.sequences.max(1)),
    };
    blocks.max(1)
}

/// The context that so many blocks hold for each sequence, or where the cache's size was asked for, for
/// one.
fn largest_context(blocks: usize, block_tokens: usize, options: &EngineOptions) -> usize {
    let each = match options.kv_tokens {
        Some(_) => blocks,
        None => blocks / options.sequences.max(1),
    };
    each.saturating_mul(block_tokens)
}

impl MemoryPlan {
    /// Plans `graph` on one device.
    ///
    /// # Errors
    /// Where weights and work memory, or the context that was asked for, do not fit.
    pub fn new(
        model: &Model,
        graph: &Graph,
        backend: &dyn Backend,
        options: &EngineOptions,
    ) -> Result<Self, RuntimeError> {
        let need = Need::new(backend, graph, 0..graph.layers(), limits(options), options)?;
        Self::of(model, kv_spec(graph, backend, options), vec![need], options)
    }

    /// Plans `graph` on two devices: the layers before `layer` on the first.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`], for the device where it does not fit; a graph that cannot be cut there.
    pub fn split(
        model: &Model,
        graph: &Graph,
        layer: usize,
        backends: [&dyn Backend; 2],
        options: &EngineOptions,
    ) -> Result<Self, RuntimeError> {
        let needs = split_needs(graph, layer, backends, options)?;
        Self::of(model, kv_spec(graph, backends[0], options), needs.into(), options)
    }

    fn of(
        model: &Model,
        mut kv: KvSpec,
        needs: Vec<Need>,
        options: &EngineOptions,
    ) -> Result<Self, RuntimeError> {
        let error = |problem: String| {
            RuntimeError::Memory(format!("{}: {problem}", model.file().path().display()))
        };
        let fitting = fitting(&needs)
            .map_err(|tight| error(tight.said(1) + "; use a smaller file"))?
            .unwrap_or(usize::MAX);
        let block_tokens = kv.block_tokens;
        let too_much = |blocks: usize, what: String, advice: String| {
            let tight = needs.iter().find(|need| !need.fits(blocks));
            let device = tight.map_or("the device", |need| &need.plan.device);
            let bytes = tight.map_or(0, |n| n.block_bytes.saturating_mul(blocks as u64));
            let bytes = human(bytes);
            error(format!("{what} takes {bytes} of KV cache and does not fit {device}; {advice}"))
        };
        // Without a wish each sequence can have its whole context at once.
        let asked = options.kv_tokens.map_or(usize::MAX, |_| pool_blocks(1, block_tokens, options));
        let even = largest_context(fitting.min(asked), block_tokens, options).max(block_tokens);
        let context = match options.context {
            Some(context) => context.max(1),
            None => model.context().min(even),
        };
        let (alone, most) = (context.div_ceil(block_tokens), fitting.saturating_mul(block_tokens));
        if alone > fitting {
            let what = format!("a context of {context} tokens");
            return Err(too_much(alone, what, format!("at most --ctx {most} does")));
        }
        let mut blocks = pool_blocks(context, block_tokens, options);
        if let Some(tokens) = options.kv_tokens {
            if blocks > fitting {
                let what = format!("a cache of {tokens} tokens");
                return Err(too_much(
                    blocks,
                    what,
                    format!("at most {most} do: fewer sequences or a smaller context take less"),
                ));
            }
            if alone > blocks {
                let holds = blocks.saturating_mul(block_tokens);
                return Err(error(format!(
                    "a cache of {tokens} tokens does not hold a context of {context}; make it larger, or the context smaller by --ctx {holds}"
                )));
            }
        }
        // Sequences that find no room wait for others, so that one context is all it takes.
        blocks = blocks.min(fitting);
        kv.blocks = blocks;
        Ok(Self {
            devices: needs.into_iter().map(|need| need.taking(blocks)).collect(),
            kv,
            context,
            model_context: model.context(),
            limits: limits(options),
        })
    }

    /// Bytes of all weights; one that two devices use counts twice.
    pub fn weight_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.weight_bytes).sum()
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.kv_bytes).sum()
    }

    /// Bytes of work memory.
    pub fn workspace_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.workspace_bytes).sum()
    }

    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        self.devices.iter().map(DevicePlan::total_bytes).sum()
    }
}

/// What the two parts of a graph need.
fn split_needs(
    graph: &Graph,
    layer: usize,
    backends: [&dyn Backend; 2],
    options: &EngineOptions,
) -> Result<[Need; 2], RuntimeError> {
    check_blocks(backends[0].info(), backends[1].info())?;
    let cut = cut(graph, layer)?;
    let limits = limits(options);
    let need = |part: usize, graph: &Graph, layers: Range<usize>| {
        Need::new(backends[part], graph, layers, limits_of(part, limits), options)
    };
    Ok([need(0, &cut.first.graph, 0..layer)?, need(1, &cut.second.graph, layer..graph.layers())?])
}

/// Where a model's layers go.
#[derive(Debug, Clone)]
pub(crate) enum Fit {
    /// All of them fit the GPU.
    Whole,
    /// Those from this one on do; and why not all.
    From(usize, String),
    /// Not even one does; and why.
    Nothing(String),
}

/// A context that is worth keeping layers off the GPU for, where none was asked for.
const COMMON_CONTEXT: usize = 4096;

/// What the layers from `layer` on need of a GPU.
fn gpu_need(
    graph: &Graph,
    layer: usize,
    [cpu, gpu]: [&dyn Backend; 2],
    options: &EngineOptions,
) -> Result<Need, RuntimeError> {
    if layer == 0 {
        return Need::new(gpu, graph, 0..graph.layers(), limits(options), options);
    }
    let [_, on_gpu] = split_needs(graph, layer, [cpu, gpu], options)?;
    Ok(on_gpu)
}

/// As many layers as fit a GPU with the context that was asked for, or with [`COMMON_CONTEXT`];
/// `trained` is the model's. Where a graph cannot be cut it goes to the GPU as a whole or not at all.
///
/// # Errors
/// A KV type that the model's heads cannot have.
pub(crate) fn fit(
    trained: usize,
    graph: &Graph,
    backends: [&dyn Backend; 2],
    options: &EngineOptions,
) -> Result<Fit, RuntimeError> {
    let block_tokens = backends[1].info().kv_block_tokens;
    let context = options.context.unwrap_or(trained.min(COMMON_CONTEXT));
    let blocks = pool_blocks(context, block_tokens, options);
    let layers = graph.layers();
    let whole = gpu_need(graph, 0, backends, options)?;
    if whole.fits(blocks) {
        return Ok(Fit::Whole);
    }
    let cause = whole.said(blocks);
    // Fewer layers take less memory: the search halves the range of those that may fit.
    let (mut low, mut high) = (1, layers);
    let mut no_cut = None;
    let mut last = None;
    while low < high {
        let middle = low.midpoint(high);
        let fits = match gpu_need(graph, middle, backends, options) {
            Ok(need) => {
                let fits = need.fits(blocks);
                last = (middle + 1 == layers).then_some(need);
                fits
            }
            Err(error @ (RuntimeError::Cut(_) | RuntimeError::Device(_))) => {
                no_cut.get_or_insert(error);
                false
            }
            Err(error) => return Err(error),
        };
        if fits {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if low < layers {
        let on_cpu = layers_said(&(0..low));
        let s = if low == 1 { "s" } else { "" };
        return Ok(Fit::From(low, format!("{on_cpu} of {layers} run{s} on the CPU: {cause}")));
    }
    let part = match (no_cut, last) {
        (Some(error), _) => format!("; {error}"),
        (None, Some(last)) => last.said_alone(block_tokens, options),
        (None, None) => String::new(),
    };
    Ok(Fit::Nothing(format!("no layer fits: {cause}{part}")))
}

/// Why the layers from `layer` on, asked for by number, do not fit a GPU with the context that was
/// asked for, or with any; `None` where they do.
///
/// # Errors
/// As [`MemoryPlan::split`].
pub(crate) fn too_many(
    graph: &Graph,
    layer: usize,
    backends: [&dyn Backend; 2],
    options: &EngineOptions,
) -> Result<Option<String>, RuntimeError> {
    let need = gpu_need(graph, layer, backends, options)?;
    let block_tokens = backends[1].info().kv_block_tokens;
    // One sequence can have the context that was asked for; others wait where there is no more room.
    let context = options.context.unwrap_or(1);
    let blocks = match options.kv_tokens {
        Some(_) => pool_blocks(context, block_tokens, options),
        None => context.div_ceil(block_tokens).max(1),
    };
    Ok((!need.fits(blocks)).then(|| match need.fitting() {
        Some(most) => format!(
            "{}; at most --ctx {} fits beside them",
            need.said(blocks),
            most.saturating_mul(block_tokens)
        ),
        None => need.said(blocks),
    }))
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

#[cfg(test)]
mod tests;
