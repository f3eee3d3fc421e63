//! The engine: sequences come and go, and run side by side in one batch.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use realm_core::{
    Graph,
    backend::{Backend, Bindings, CompileOptions, KvType, Precision, Program},
    fuse,
    graph::Op,
};

use crate::{
    Event, Model, Request, RuntimeError, SequenceId,
    memory::{MemoryPlan, human},
    sampler::HostSampler,
    scheduler::{Rules, Scheduler, Sequence},
    steps::UnderWay,
};

/// How a model is put on a device.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Tokens a sequence may hold; `None`: the smaller of the model's context and what fits.
    pub context: Option<usize>,
    /// Sequences that run side by side.
    pub sequences: usize,
    /// Tokens that the KV cache holds, of all sequences together, rounded up to whole blocks; `None`:
    /// `sequences` times `context`. With fewer, sequences that run out of room wait for others.
    pub kv_tokens: Option<usize>,
    /// Most sequences that wait beside those that run: more are refused.
    pub queue: usize,
    /// Bytes of host memory for the cache blocks of sequences that had to make room; beyond that their
    /// tokens are computed again. They are taken when it comes to that, beside what is planned.
    pub swap_bytes: u64,
    /// Keep the cache blocks of prompts for sequences that begin alike.
    pub prefix_cache: bool,
    /// Most tokens of a step: longer prompts are cut into chunks of this size.
    pub step_tokens: usize,
    /// The type of the products' inputs.
    pub precision: Precision,
    /// The type of the KV cache; `None`: f32 with f32 precision, else f16.
    pub kv_type: Option<KvType>,
    /// A sequence's text does not depend on those beside it. Where a device can only do that slower,
    /// `false` lets it choose kernels by the batch; the others keep to it always.
    pub invariant: bool,
    /// Measure each node's time.
    pub times: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            context: None,
            sequences: 1,
            kv_tokens: None,
            queue: 1024,
            swap_bytes: 1 << 30,
            prefix_cache: true,
            step_tokens: 512,
            precision: Precision::Auto,
            kv_type: None,
            invariant: true,
            times: false,
        }
    }
}

impl EngineOptions {
    /// The KV type that these options and a device come to.
    pub fn resolved_kv_type(&self) -> KvType {
        self.kv_type.unwrap_or(match self.precision {
            Precision::F32 => KvType::F32,
            _ => KvType::F16,
        })
    }
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights that are on their device.
    pub loaded: u64,
    /// Bytes of all weights.
    pub total: u64,
}

/// Weights that were copied to a device's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Upload {
    /// Their bytes in the file.
    pub bytes: u64,
    /// How long it took, reading the file included.
    pub time: Duration,
}

impl Upload {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// How busy an engine is, and sums since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences that wait for their first step.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// Sequences that made room for others and come back.
    pub preempted: usize,
    /// Blocks of the KV cache that hold nothing of use.
    pub free_blocks: usize,
    /// Blocks that no sequence holds, kept for prompts that begin alike.
    pub cached_blocks: usize,
    /// Blocks that sequences hold.
    pub used_blocks: usize,
    /// Bytes of host memory that swapped-out blocks take.
    pub swapped_bytes: u64,
    /// Prompt tokens of all sequences that were let in.
    pub prompt_tokens: u64,
    /// Tokens that were not computed, as a block held them already.
    pub cached_prompt_tokens: u64,
    /// How often a sequence made room by swapping its blocks out.
    pub preempted_by_swap: u64,
    /// How often a sequence made room by dropping its blocks, to be computed again.
    pub preempted_by_replay: u64,
    /// How often the device failed to take blocks out or to put them back: the tokens were computed
    /// again.
    pub failed_swaps: u64,
}

/// Whether each row depends on what comes before it alone: only then does a block that a prompt filled
/// hold the same for every other one that begins alike.
fn looks_back_only(graph: &Graph) -> bool {
    graph.nodes().iter().all(|node| match &node.op {
        Op::Attention(op) => op.spec.mask.causal,
        _ => true,
    })
}

/// A model on a device.
pub struct Engine {
    pub(crate) graph: Graph,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) bindings: Bindings,
    pub(crate) program: Box<dyn Program>,
    pub(crate) scheduler: Scheduler,
    /// The step that is computed while nobody waits for it.
    pub(crate) under_way: Option<UnderWay>,
    /// Tokens of a step that was an error for other sequences.
    pub(crate) pending: Vec<Event>,
    /// Errors of a step that had several.
    pub(crate) failures: Vec<RuntimeError>,
    pub(crate) host: HostSampler,
    /// Most sequences that wait.
    queue: usize,
    pub(crate) plan: MemoryPlan,
    pub(crate) vocabulary: usize,
    /// As programs are compiled: what was asked for, or what took its place.
    pub(crate) precision: Precision,
    pub(crate) invariant: bool,
    /// Steps that were started.
    pub(crate) steps: u64,
    /// What users are still to be told.
    pub(crate) notes: Vec<String>,
    pub(crate) times: bool,
    pub(crate) node_seconds: Vec<f64>,
    load_time: Duration,
    upload: Option<Upload>,
    next: u64,
}

impl Engine {
    /// Plans the memory, loads the weights and compiles the model for `backend`.
    ///
    /// # Errors
    /// Where it does not fit (before anything is loaded) or the device fails.
    pub fn new(
        model: &Model,
        backend: Arc<dyn Backend>,
        options: &EngineOptions,
    ) -> Result<Self, RuntimeError> {
        let mut graph = model.graph().clone();
        fuse::fuse(&mut graph);
        let plan = MemoryPlan::new(model, &graph, &*backend, options)?;
        Self::load(model, graph, backend, plan, options, &mut |_| {})
    }

    /// Loads the weights and compiles `graph`, whose memory was planned.
    pub(crate) fn load(
        model: &Model,
        graph: Graph,
        backend: Arc<dyn Backend>,
        plan: MemoryPlan,
        options: &EngineOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, RuntimeError> {
        let start = Instant::now();
        let device = backend.info().name.as_str();
        tracing::info!(model = %model.file().path().display(), device, "loading");
        let sizes = graph.weights().iter().map(|info| info.bytes().unwrap_or(0) as u64);
        let (mut loaded, total) = (0, sizes.clone().sum());
        let mut upload = Upload::default();
        let mut weights = Vec::with_capacity(graph.weights().len());
        for (info, bytes) in graph.weights().iter().zip(sizes) {
            let begin = Instant::now();
            let data = model.data(info)?;
            let weight = backend.load_weight(info, data)?;
            // Vectors are small, and decoded on every device.
            if info.rows > 1 && weight.device_bytes() > 0 {
                upload.bytes += bytes;
                upload.time += begin.elapsed();
            }
            weights.push(weight);
            loaded += bytes;
            progress(Progress { loaded, total });
        }
        let bindings = Bindings { weights, kv: backend.kv_pool(&plan.kv)? };
        tracing::info!(weights = human(total), kv = human(plan.kv_bytes()), "loaded");
        let compile = CompileOptions {
            limits: plan.limits,
            precision: options.precision,
            invariant: options.invariant,
            poison: false,
        };
        let program = backend.compile(&graph, &bindings, &compile)?;
        let precision = program.info().precision;
        tracing::info!(%precision, limits = ?plan.limits, time = ?start.elapsed(), "compiled");
        let rules = Rules {
            swap_bytes: options.swap_bytes,
            prefix_cache: options.prefix_cache && looks_back_only(&graph),
        };
        Ok(Self {
            node_seconds: vec![0.0; graph.nodes().len()],
            graph,
            backend,
            bindings,
            program,
            scheduler: Scheduler::new(plan.limits, &plan.kv, rules),
            plan,
            under_way: None,
            pending: Vec::new(),
            failures: Vec::new(),
            host: HostSampler::default(),
            queue: options.queue,
            vocabulary: model.vocabulary(),
            precision: options.precision,
            invariant: options.invariant,
            steps: 0,
            notes: Vec::new(),
            times: options.times,
            load_time: start.elapsed(),
            upload: (upload.bytes > 0).then_some(upload),
            next: 0,
        })
    }

    /// What the model takes, as planned before it was loaded.
    pub fn memory(&self) -> &MemoryPlan {
        &self.plan
    }

    /// The graph that runs: the model's, fused.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The device.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The precision in use.
    pub fn precision(&self) -> Precision {
        self.program.info().precision
    }

    /// Whether a sequence's text does not depend on those beside it, as [`EngineOptions::invariant`] asks.
    pub fn invariant(&self) -> bool {
        self.invariant
    }

    /// Tokens that a sequence may hold.
    pub fn context(&self) -> usize {
        self.plan.context
    }

    /// How long loading and compiling took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// The weights that were copied to a device; `None` where all stay in the mapped file.
    pub fn upload(&self) -> Option<Upload> {
        self.upload
    }

    /// Seconds spent in each node of [`Engine::graph`] since the last call, where
    /// [`EngineOptions::times`] asks for them.
    pub fn take_node_seconds(&mut self) -> Vec<f64> {
        let zeros = vec![0.0; self.node_seconds.len()];
        std::mem::replace(&mut self.node_seconds, zeros)
    }

    /// How busy it is, and what came of its cache.
    pub fn stats(&self) -> EngineStats {
        let [waiting, running, preempted] = self.scheduler.numbers();
        let (counts, blocks) = (self.scheduler.counts(), &self.scheduler.blocks);
        EngineStats {
            waiting,
            running,
            preempted,
            free_blocks: blocks.free() - blocks.cached(),
            cached_blocks: blocks.cached(),
            used_blocks: blocks.len() - blocks.free(),
            swapped_bytes: self.scheduler.swapped_bytes(),
            prompt_tokens: counts.prompt_tokens,
            cached_prompt_tokens: counts.cached_prompt_tokens,
            preempted_by_swap: counts.swapped_out,
            preempted_by_replay: counts.dropped,
            failed_swaps: counts.failed_swaps,
        }
    }

    /// Adds a sequence. It starts with one of the next steps.
    ///
    /// # Errors
    /// An empty prompt, ids that the model does not know, sampling parameters out of range, more biases
    /// or stop tokens than the vocabulary has tokens, more tokens than the context holds, or as many
    /// sequences waiting as may.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, RuntimeError> {
        self.check_prompt(&request.prompt)?;
        self.check_lists(&request)?;
        request.sampling.check().map_err(RuntimeError::Request)?;
        request.sampling.check_ids(self.vocabulary).map_err(RuntimeError::Request)?;
        if request.max_tokens == 0 {
            return Err(RuntimeError::Request(
                "no tokens to generate; ask for at least one".into(),
            ));
        }
        let (prompt, context) = (request.prompt.len(), self.context());
        if prompt.saturating_add(request.max_tokens - 1) > context {
            let max_tokens = request.max_tokens;
            return Err(RuntimeError::TooManyTokens { prompt, max_tokens, context });
        }
        let (waiting, queue) = (self.scheduler.sequences(), self.queue);
        if waiting >= queue.saturating_add(self.plan.limits.sequences) {
            return Err(RuntimeError::QueueFull { waiting, queue });
        }
        let id = SequenceId(self.next);
        self.next += 1;
        tracing::debug!(sequence = id.0, prompt, max_tokens = request.max_tokens, "submitted");
        self.scheduler.submit(Sequence::new(id, request));
        Ok(id)
    }

    pub(crate) fn check_prompt(&self, prompt: &[u32]) -> Result<(), RuntimeError> {
        if prompt.is_empty() {
            return Err(RuntimeError::Request("the prompt has no tokens; give some text".into()));
        }
        if prompt.len() > self.context() {
            let (prompt, context) = (prompt.len(), self.context());
            return Err(RuntimeError::PromptTooLong { prompt, context });
        }
        match prompt.iter().find(|&&id| id as usize >= self.vocabulary) {
            Some(&id) => Err(RuntimeError::UnknownToken { id, vocabulary: self.vocabulary }),
            None => Ok(()),
        }
    }

    /// A request that waits is kept whole: no list of it may be longer than one without repetitions.
    fn check_lists(&self, request: &Request) -> Result<(), RuntimeError> {
        let lists = [
            ("logit biases", request.sampling.logit_bias.len()),
            ("stop tokens", request.stop_tokens.len()),
        ];
        match lists.into_iter().find(|&(_, count)| count > self.vocabulary) {
            Some((what, count)) => Err(RuntimeError::Request(format!(
                "{count} {what} for a vocabulary of {}; give each token once",
                self.vocabulary
            ))),
            None => Ok(()),
        }
    }

    /// Ends a sequence; its blocks are free for the next step. `false` where it had ended.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        let waits = self.scheduler.unqueue(id);
        if !waits && !self.scheduler.end(id, self.under_way.as_mut()) {
            return false;
        }
        self.pending.retain(|event| event.sequence != id);
        tracing::debug!(sequence = id.0, "cancelled");
        true
    }

    /// Whether no sequence waits or runs, and [`Engine::step`] has neither token nor error to give.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.pending.is_empty() && self.failures.is_empty()
    }
}
