//! One model on two devices: the first layers and the embedding on one, the other layers and the output
//! on the other. The residual stream passes between them through the host, once a step.

use std::{any::Any, cell::RefCell, collections::HashMap, ops::Range, sync::Arc};

use realm_core::{
    Bytes, Graph,
    backend::{
        Backend, BackendError, Bindings, BlockId, CompileOptions, DeviceInfo, Inputs, KvPool,
        KvSpec, Limits, LoadedWeight, Program, ProgramInfo, Step, StepOutput, Token,
    },
    cut::{Cut, Part, cut},
    graph::{KvLayer, WeightInfo},
};

use crate::RuntimeError;

/// Two backends as one. Made for the graph of one model, plain or fused.
pub struct SplitBackend {
    parts: [Arc<dyn Backend>; 2],
    info: DeviceInfo,
    /// The first layer of the second part.
    layer: usize,
    /// Which parts use a weight.
    users: HashMap<String, [bool; 2]>,
    /// The KV layers of the whole model and of each part.
    kv: Vec<KvLayer>,
    kv_of: [Vec<usize>; 2],
}

impl SplitBackend {
    /// The layers of `graph` before `layer` on `first`, the others on `second`.
    ///
    /// # Errors
    /// A graph that cannot be cut there, or devices whose KV blocks differ in size.
    pub fn new(
        graph: &Graph,
        layer: usize,
        first: Arc<dyn Backend>,
        second: Arc<dyn Backend>,
    ) -> Result<Self, RuntimeError> {
        let Cut { first: before, second: after, .. } = cut(graph, layer)?;
        let (a, b) = (first.info(), second.info());
        check_blocks(a, b)?;
        let info = DeviceInfo {
            name: format!("{}+{}", b.name, a.name),
            description: format!(
                "{} on {} ({}), {} on {} ({})",
                layers_said(&(0..layer)),
                a.name,
                a.description,
                layers_said(&(layer..graph.layers())),
                b.name,
                b.description
            ),
            memory: None,
            threads: a.threads.or(b.threads),
            kv_block_tokens: a.kv_block_tokens,
            auto_precision: b.auto_precision,
            // Each step starts with the token that the last one's second part chose.
            asynchronous: false,
        };
        let mut users: HashMap<String, [bool; 2]> = HashMap::new();
        for (part, graph) in [&before.graph, &after.graph].into_iter().enumerate() {
            for weight in graph.weights() {
                users.entry(weight.name.clone()).or_default()[part] = true;
            }
        }
        let kv_of = [before.kv, after.kv];
        Ok(Self { parts: [first, second], info, layer, users, kv: graph.kv().to_vec(), kv_of })
    }

    fn foreign(&self, what: impl Into<String>) -> BackendError {
        BackendError::Foreign { device: self.info.name.clone(), what: what.into() }
    }

    fn cut(&self, graph: &Graph) -> Result<Cut, BackendError> {
        cut(graph, self.layer).map_err(|error| BackendError::Unsupported {
            device: self.info.name.clone(),
            op: "the graph".into(),
            why: error.to_string(),
        })
    }
}

/// Refuses devices whose KV blocks differ in size.
pub(crate) fn check_blocks(a: &DeviceInfo, b: &DeviceInfo) -> Result<(), RuntimeError> {
    if a.kv_block_tokens == b.kv_block_tokens {
        return Ok(());
    }
    Err(RuntimeError::Device(format!(
        "a model cannot be split between {} and {}: their KV blocks hold {} and {} tokens",
        a.name, b.name, a.kv_block_tokens, b.kv_block_tokens
    )))
}

/// `layer 3`, `layers 0 to 11`.
pub(crate) fn layers_said(layers: &Range<usize>) -> String {
    match layers.len() {
        0 => "no layer".into(),
        1 => format!("layer {}", layers.start),
        _ => format!("layers {} to {}", layers.start, layers.end - 1),
    }
}

/// The limits of a part: every row of the first part's is an output.
pub(crate) fn limits_of(part: usize, limits: Limits) -> Limits {
    if part == 0 { Limits { outputs: limits.tokens, ..limits } } else { limits }
}

/// A weight, on the devices that use it.
struct SplitWeight {
    info: WeightInfo,
    parts: [Option<Arc<dyn LoadedWeight>>; 2],
}

impl LoadedWeight for SplitWeight {
    fn info(&self) -> &WeightInfo {
        &self.info
    }

    fn device_bytes(&self) -> usize {
        self.parts.iter().flatten().map(|weight| weight.device_bytes()).sum()
    }
}

/// A cache whose layers lie on two devices.
struct SplitKvPool {
    spec: KvSpec,
    parts: [Arc<dyn KvPool>; 2],
}

impl KvPool for SplitKvPool {
    fn spec(&self) -> &KvSpec {
        &self.spec
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.parts.iter().try_for_each(|part| part.copy(from, to))
    }

    /// The first part's contents behind their length, then the second's.
    fn swap_out(&self, blocks: &[BlockId]) -> Result<Vec<u8>, BackendError> {
        let [first, second] = &self.parts;
        let first = first.swap_out(blocks)?;
        let length = (first.len() as u64).to_le_bytes();
        Ok([&length[..], &first, &second.swap_out(blocks)?].concat())
    }

    fn swap_in(&self, contents: &[u8], blocks: &[BlockId]) -> Result<(), BackendError> {
        let split = contents.split_first_chunk().and_then(|(length, rest)| {
            rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
        });
        let (first, second) = split.ok_or_else(|| BackendError::Inputs {
            problem: format!("{} swapped bytes are not what was taken out", contents.len()),
        })?;
        self.parts[0].swap_in(first, blocks)?;
        self.parts[1].swap_in(second, blocks)
    }
}

impl Backend for SplitBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn weight_bytes(&self, info: &WeightInfo) -> usize {
        let users = self.users.get(&info.name).copied().unwrap_or_default();
        let parts = self.parts.iter().zip(users).filter(|(_, uses)| *uses);
        parts.map(|(part, _)| part.weight_bytes(info)).sum()
    }

    fn load_weight(
        &self,
        info: &WeightInfo,
        data: Bytes,
    ) -> Result<Arc<dyn LoadedWeight>, BackendError> {
        let users = self.users.get(&info.name);
        let users = users.ok_or_else(|| self.foreign(format!("weight {}", info.name)))?;
        let mut parts = [None, None];
        for ((loaded, part), uses) in parts.iter_mut().zip(&self.parts).zip(users) {
            if *uses {
                *loaded = Some(part.load_weight(info, data.clone())?);
            }
        }
        Ok(Arc::new(SplitWeight { info: info.clone(), parts }))
    }

    fn kv_pool(&self, spec: &KvSpec) -> Result<Arc<dyn KvPool>, BackendError> {
        if spec.layers != self.kv {
            return Err(self.foreign("another model's KV cache"));
        }
        let pool = |part: usize| {
            let layers = self.kv_of[part].iter().map(|&layer| self.kv[layer]).collect();
            self.parts[part].kv_pool(&KvSpec { layers, ..spec.clone() })
        };
        Ok(Arc::new(SplitKvPool { spec: spec.clone(), parts: [pool(0)?, pool(1)?] }))
    }

    fn workspace_bytes(&self, graph: &Graph, options: &CompileOptions) -> usize {
        let bytes = |part: usize, graph: &Graph| {
            let options = CompileOptions { limits: limits_of(part, options.limits), ..*options };
            self.parts[part].workspace_bytes(graph, &options)
        };
        match self.cut(graph) {
            Ok(Cut { first, second, .. }) => {
                bytes(0, &first.graph).saturating_add(bytes(1, &second.graph))
            }
            // A part takes no more than the whole graph does.
            Err(_) => bytes(0, graph).saturating_add(bytes(1, graph)),
        }
    }

    fn compile(
        &self,
        graph: &Graph,
        bindings: &Bindings,
        options: &CompileOptions,
    ) -> Result<Box<dyn Program>, BackendError> {
        let (weights, kv) =
            bindings.downcast::<SplitWeight, SplitKvPool>(graph, &self.info.name)?;
        let Cut { first, second, at } = self.cut(graph)?;
        let compile = |part: usize, Part { graph, weights: list, kv: layers }: &Part| {
            let loaded = list.iter().map(|&at| {
                let weight = weights[at].parts[part].clone();
                weight.ok_or_else(|| self.foreign(format!("weight {}", weights[at].info.name)))
            });
            let weights = loaded.collect::<Result<_, _>>()?;
            if *layers != self.kv_of[part] {
                return Err(self.foreign("another model's graph"));
            }
            let bindings = Bindings { weights, kv: kv.parts[part].clone() };
            let options = CompileOptions { limits: limits_of(part, options.limits), ..*options };
            self.parts[part].compile(graph, &bindings, &options)
        };
        let programs = [compile(0, &first)?, compile(1, &second)?];
        let [first, second] = [programs[0].info(), programs[1].info()];
        let info = ProgramInfo {
            limits: options.limits,
            precision: second.precision,
            workspace_bytes: first.workspace_bytes + second.workspace_bytes,
        };
        let (spec, nodes) = (kv.spec.clone(), graph.nodes().len());
        Ok(Box::new(SplitProgram { programs, info, spec, at, nodes }))
    }
}

/// A graph that was cut.
struct SplitProgram {
    programs: [Box<dyn Program>; 2],
    info: ProgramInfo,
    spec: KvSpec,
    /// Nodes of the whole graph before the cut, and in all.
    at: usize,
    nodes: usize,
}

impl Program for SplitProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn enqueue(&mut self, inputs: &Inputs<'_>) -> Result<Box<dyn Step>, BackendError> {
        inputs.check(&self.info.limits, &self.spec)?;
        let previous =
            inputs.previous.and_then(|step| (step as &dyn Any).downcast_ref::<SplitStep>());
        let waits = inputs.tokens.iter().any(|token| matches!(token, Token::Previous(_)));
        let sampled = match previous {
            Some(step) if waits => step.sampled()?,
            _ => Vec::new(),
        };
        let ids = inputs.token_ids(&sampled)?;
        let tokens: Vec<Token> = ids.into_iter().map(Token::Id).collect();
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        let [first, second] = &mut self.programs;
        let inputs = Inputs { tokens: &tokens, previous: None, ..*inputs };
        let start = first.enqueue(&Inputs {
            outputs: &rows,
            sampling: &[],
            want_logits: true,
            ..inputs
        })?;
        let start = start.read()?;
        let rest = second.enqueue(&Inputs { given: &start.logits, ..inputs })?;
        Ok(Box::new(SplitStep {
            rest: RefCell::new(Rest::Running(rest)),
            first_seconds: start.node_seconds,
            at: self.at,
            nodes: self.nodes,
        }))
    }
}

/// A step whose first part is done.
struct SplitStep {
    /// In a cell, as the next step may want its tokens while it is only lent.
    rest: RefCell<Rest>,
    /// Seconds of the first part's nodes; empty where not wanted.
    first_seconds: Vec<f64>,
    at: usize,
    nodes: usize,
}

/// The second part of a step.
enum Rest {
    Running(Box<dyn Step>),
    Done(Result<StepOutput, BackendError>),
}

impl Rest {
    fn wait(self) -> Result<StepOutput, BackendError> {
        match self {
            Self::Running(step) => step.read(),
            Self::Done(result) => result,
        }
    }
}

impl SplitStep {
    /// Waits for the tokens that the step chose.
    fn sampled(&self) -> Result<Vec<u32>, BackendError> {
        let taken = self.rest.replace(Rest::Done(Ok(StepOutput::default())));
        let result = taken.wait();
        let sampled = result.clone().map(|output| output.sampled);
        self.rest.replace(Rest::Done(result));
        sampled
    }

    /// The whole graph's times from those of the parts. What was added at the cut counts for the node
    /// after it.
    fn node_seconds(&self, second: &[f64]) -> Vec<f64> {
        let behind = self.nodes - self.at;
        let fits = self.first_seconds.len() >= self.at && second.len() == behind + 1;
        if !fits {
            return Vec::new();
        }
        let (first, added) = self.first_seconds.split_at(self.at);
        let mut all = [first, &second[1..]].concat();
        if let Some(node) = all.get_mut(self.at) {
            *node += added.iter().sum::<f64>() + second[0];
        }
        all
    }
}

impl Step for SplitStep {
    fn read(self: Box<Self>) -> Result<StepOutput, BackendError> {
        let rest = self.rest.replace(Rest::Done(Ok(StepOutput::default())));
        let mut output = rest.wait()?;
        output.node_seconds = self.node_seconds(&output.node_seconds);
        Ok(output)
    }
}
