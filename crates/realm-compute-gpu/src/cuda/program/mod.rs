//! A compiled graph: launches on one arena, recorded as CUDA graphs, one a bucket of step sizes.

mod description;
mod layout;
mod lower;
mod mixture;
mod step;

use std::{any::Any, collections::HashMap, sync::Arc};

use realm_core::{
    Graph,
    backend::{
        BackendError, CompileOptions, Inputs, KvPool, Limits, Precision, Program, ProgramInfo,
        Role, SequenceRows, Step, Token,
    },
    graph::Op,
};

use self::{
    description::Description,
    layout::Layout,
    lower::{Bucket, Lowering, Stage, flash_in},
    step::{CudaStep, Slots},
};
use super::{
    gpu::{Buffer, Gpu, HostBuffer, Mark, Recording},
    kernels::{attention, matmul, rope},
    kv::{CudaKvPool, KV_BLOCK_TOKENS},
    weights::CudaWeight,
};

/// Work memory of attention that is always enough but for very long contexts: prompts' rows go through
/// it in passes.
const PARTIAL_BYTES: usize = 32 << 20;

/// Splits that the work memory is planned for where the cache is not known yet.
const PLANNED_SPLITS: usize = 512;

/// A graph made ready for a device.
pub(super) struct CudaProgram {
    gpu: Arc<dyn Gpu>,
    graph: Graph,
    weights: Vec<Arc<CudaWeight>>,
    kv: Arc<CudaKvPool>,
    layout: Layout,
    arena: Buffer,
    partials: Buffer,
    /// Counters of products whose k is split: 0 between launches.
    counters: Buffer,
    ropes: Vec<rope::Frequencies>,
    description: Description,
    /// The tokens that the last step chose.
    sampled: Buffer,
    slots: Slots,
    /// Steps so far.
    steps: u64,
    /// Tells this program from others.
    identity: Arc<()>,
    recordings: Recordings,
    info: ProgramInfo,
    /// Whether a row's role alone chooses its kernels.
    invariant: bool,
    poison: bool,
}

/// The attentions of a graph.
fn attentions(graph: &Graph) -> impl Iterator<Item = &realm_core::graph::ops::Attention> {
    graph.nodes().iter().filter_map(|node| match &node.op {
        Op::Attention(op) => Some(op),
        _ => None,
    })
}

/// Bytes of memory for partial results: of attention what all rows need at `splits` splits, or the cap,
/// but at least what one row needs; of products whose k is split, where it may be.
fn partial_bytes(graph: &Graph, limits: &Limits, splits: usize, invariant: bool) -> usize {
    let bytes = attentions(graph).map(|op| {
        let one = attention::partial_bytes(&op.spec, 1, splits);
        (one * limits.tokens).min(PARTIAL_BYTES).max(one)
    });
    let products = if invariant { 0 } else { matmul::SCRATCH_BYTES };
    bytes.max().unwrap_or(0).max(products)
}

/// Splits of a sequence of so many tokens, as buckets count them.
fn splits(tokens: usize) -> usize {
    tokens.div_ceil(attention::SPLIT).max(1).next_power_of_two()
}

/// Splits that a step's rows see together, at most, as buckets count them: eight numbers an octave, so
/// that few blocks find no work.
fn all_splits<'a>(sequences: impl Iterator<Item = &'a SequenceRows<'a>>) -> usize {
    let splits =
        |it: &SequenceRows<'_>| it.rows.len() * it.length().div_ceil(attention::SPLIT).max(1);
    let all = sequences.map(splits).sum::<usize>().max(1);
    all.next_multiple_of((all.next_power_of_two() / 16).max(1))
}

impl CudaProgram {
    /// Bytes of work memory, as far as the graph and the limits tell. `options.precision` is not `Auto`.
    pub(super) fn workspace_bytes(graph: &Graph, options: &CompileOptions) -> usize {
        let CompileOptions { limits, precision, invariant, .. } = options;
        Layout::new(graph, limits, *precision).bytes
            + partial_bytes(graph, limits, PLANNED_SPLITS, *invariant)
            + Description::bytes(graph, limits, 0)
    }

    /// Allocates the work memory. `options.precision` is not `Auto`.
    pub(super) fn new(
        gpu: &Arc<dyn Gpu>,
        graph: &Graph,
        weights: Vec<Arc<CudaWeight>>,
        kv: Arc<CudaKvPool>,
        options: CompileOptions,
    ) -> Result<Self, BackendError> {
        let CompileOptions { limits, precision, invariant, poison } = options;
        check(gpu, graph, &kv)?;
        let layout = Layout::new(graph, &limits, precision);
        let blocks = kv.spec().blocks;
        let splits = splits(blocks * KV_BLOCK_TOKENS);
        let arena = Buffer::new(gpu, layout.bytes, "the work memory")?;
        let partial_bytes = partial_bytes(graph, &limits, splits, invariant);
        let partials = Buffer::new(gpu, partial_bytes, "the work memory")?;
        let counters = Buffer::new(gpu, matmul::COUNTERS * 4, "the work memory")?;
        counters.fill(0)?;
        let ropes = graph.ropes().iter().map(|table| rope::Frequencies::new(gpu, table));
        let ropes = ropes.collect::<Result<_, _>>()?;
        let description = Description::new(gpu, graph, &limits, blocks)?;
        let workspace_bytes =
            arena.bytes() + partials.bytes() + Description::bytes(graph, &limits, blocks);
        Ok(Self {
            gpu: gpu.clone(),
            graph: graph.clone(),
            weights,
            kv,
            layout,
            arena,
            partials,
            counters,
            ropes,
            description,
            sampled: Buffer::new(gpu, limits.outputs * 4, "the sampled tokens")?,
            slots: Slots::new(gpu),
            steps: 0,
            identity: Arc::default(),
            recordings: Recordings::default(),
            info: ProgramInfo { limits, precision, workspace_bytes },
            invariant,
            poison,
        })
    }

    fn stages(&self, bucket: Bucket) -> Result<Vec<Stage>, BackendError> {
        let lowering = Lowering {
            graph: &self.graph,
            layout: &self.layout,
            weights: &self.weights,
            kv: &self.kv,
            precision: self.info.precision,
            invariant: self.invariant,
            arena: self.arena.address(),
            partials: (self.partials.address(), self.partials.bytes()),
            counters: self.counters.address(),
            ropes: &self.ropes,
            view: self.description.view(self.sampled.address()),
            given: self.description.given(),
            sampled: self.sampled.address(),
            bucket,
        };
        lowering.stages()
    }

    /// The smallest bucket that holds a step; its own sizes, where it has prompts and is not recorded.
    fn bucket(&self, inputs: &Inputs<'_>) -> Bucket {
        let Limits { tokens, outputs, .. } = self.info.limits;
        let prompt = |it: &&SequenceRows<'_>| it.role == Role::Prefill && !it.rows.is_empty();
        let prompts = inputs.sequences.iter().filter(prompt);
        let prefill: usize = prompts.clone().map(|it| it.rows.len()).sum();
        let up = |count: usize, most: usize| match count {
            0 => 0,
            _ if prefill > 0 => count,
            _ => count.next_power_of_two().min(most),
        };
        let flash = flash_in(self.info.precision);
        let cut = inputs.sequences.iter().filter(|it| !flash || it.role == Role::Decode);
        let splits = splits(cut.clone().map(SequenceRows::length).max().unwrap_or(1));
        Bucket {
            rows: up(inputs.tokens.len(), tokens),
            prefill,
            prompts: prompts.count(),
            outputs: up(inputs.outputs.len(), outputs),
            splits,
            // A single row wastes little, and would change its bucket often.
            all_splits: if inputs.tokens.len() == 1 { splits } else { all_splits(cut) },
            samples: !inputs.sampling.is_empty() && self.graph.sampled().is_some(),
        }
    }

    /// Checks a step's tokens.
    fn check_tokens(
        &self,
        inputs: &Inputs<'_>,
        previous: Option<&CudaStep>,
    ) -> Result<(), BackendError> {
        let fail = |problem: String| Err(BackendError::Inputs { problem });
        let vocabulary = self.graph.nodes().iter().find_map(|node| match &node.op {
            Op::Embed(op) => Some(self.graph.weight(op.table).rows),
            _ => None,
        });
        let sampled = previous.map_or(0, |step| step.sampled.min(self.info.limits.outputs));
        for token in inputs.tokens {
            match *token {
                Token::Id(id) if vocabulary.is_some_and(|rows| id as usize >= rows) => {
                    let rows = vocabulary.unwrap_or(0);
                    return fail(format!("token {id} of a vocabulary of {rows}"));
                }
                Token::Previous(row) if row as usize >= sampled => {
                    return fail(format!("no previous step sampled a token at row {row}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Brings a step's tokens to where the kernels take them from. The last step's are there already.
    fn bring_tokens(&self, previous: Option<&CudaStep>) -> Result<(), BackendError> {
        let Some(step) = previous.filter(|step| step.sampled > 0) else { return Ok(()) };
        let (number, program) = &step.number;
        if *number == self.steps && Arc::ptr_eq(program, &self.identity) {
            return Ok(());
        }
        let count = step.sampled.min(self.info.limits.outputs);
        step.tokens_on(&self.gpu).map_or(Ok(()), |host| host.upload(0..count * 4, &self.sampled, 0))
    }

    /// Starts the launches: a step of generated tokens as a recording, since the next ones are like it;
    /// one with prompts in it one by one; with a mark after each where times are wanted.
    fn start(
        &mut self,
        bucket: Bucket,
        inputs: &Inputs<'_>,
    ) -> Result<Vec<(usize, Mark)>, BackendError> {
        if inputs.want_times {
            let mut times = vec![(0, Mark::timed(&self.gpu)?)];
            for stage in self.stages(bucket)? {
                self.gpu.launch(&stage.launch)?;
                times.push((stage.node, Mark::timed(&self.gpu)?));
            }
            return Ok(times);
        }
        if inputs.sequences.iter().any(|sequence| sequence.role == Role::Prefill) {
            self.stages(bucket)?.iter().try_for_each(|stage| self.gpu.launch(&stage.launch))?;
            return Ok(Vec::new());
        }
        if !self.recordings.replay(bucket, self.steps)? {
            let launches: Vec<_> =
                self.stages(bucket)?.into_iter().map(|stage| stage.launch).collect();
            self.recordings.add(bucket, Recording::new(&self.gpu, &launches)?, self.steps);
            self.recordings.replay(bucket, self.steps)?;
        }
        Ok(Vec::new())
    }

    /// Brings a step's results to the host, and marks the end.
    fn collect(
        &self,
        host: &mut HostBuffer,
        sampled: usize,
        logits: usize,
    ) -> Result<Mark, BackendError> {
        if sampled > 0 {
            host.download(0, &self.sampled, 0..sampled * 4)?;
        }
        if logits > 0 {
            let start = self.layout.plain(&self.graph, self.graph.logits());
            host.download(sampled * 4, &self.arena, start..start + logits * 4)?;
        }
        Mark::new(&self.gpu)
    }

    /// Fills all work memory with NaN.
    fn poison(&self) -> Result<(), BackendError> {
        [&self.arena, &self.partials].into_iter().try_for_each(|it| it.fill(0xFF))
    }
}

/// Recordings by what they were made for: those used last, as many as [`Recordings::MOST`].
#[derive(Default)]
struct Recordings(HashMap<Bucket, (Recording, u64)>);

impl Recordings {
    /// A recording of a few hundred launches takes about a megabyte of the device.
    const MOST: usize = 32;

    /// Starts the bucket's recording, at step `now`; `false` where there is none.
    fn replay(&mut self, bucket: Bucket, now: u64) -> Result<bool, BackendError> {
        let Some((recording, used)) = self.0.get_mut(&bucket) else { return Ok(false) };
        *used = now;
        recording.replay().map(|()| true)
    }

    /// Adds a recording, in place of the one that was not used for longest where there are many.
    fn add(&mut self, bucket: Bucket, recording: Recording, now: u64) {
        if self.0.len() >= Self::MOST {
            let oldest =
                self.0.iter().min_by_key(|(_, (_, used))| *used).map(|(&bucket, _)| bucket);
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        self.0.insert(bucket, (recording, now));
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Whether there are kernels for everything in a graph.
fn check(gpu: &Arc<dyn Gpu>, graph: &Graph, kv: &CudaKvPool) -> Result<(), BackendError> {
    for op in attentions(graph) {
        attention::supports(&op.spec, kv).map_err(|why| BackendError::Unsupported {
            device: gpu.facts().name.clone(),
            op: "Attention".into(),
            why,
        })?;
    }
    Ok(())
}

impl Program for CudaProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn enqueue(&mut self, inputs: &Inputs<'_>) -> Result<Box<dyn Step>, BackendError> {
        inputs.check(&self.info.limits, self.kv.spec())?;
        inputs.check_given(&self.graph)?;
        let previous =
            inputs.previous.and_then(|step| (step as &dyn Any).downcast_ref::<CudaStep>());
        let previous = previous.filter(|step| step.tokens_on(&self.gpu).is_some());
        self.check_tokens(inputs, previous)?;
        self.bring_tokens(previous)?;
        if self.description.make_room(inputs)? {
            self.recordings.clear();
        }
        self.description.send(inputs)?;
        if self.poison {
            self.poison()?;
        }
        let bucket = self.bucket(inputs);
        let cols = self.graph.value(self.graph.logits()).cols;
        let sampled = if bucket.samples { inputs.outputs.len() } else { 0 };
        let logits = if inputs.want_logits { inputs.outputs.len() * cols } else { 0 };
        let mut host = self.slots.take((sampled + logits) * 4)?;
        // From here on `sampled` is no longer what the step before left.
        self.steps += 1;
        let times = self.start(bucket, inputs)?;
        let done = self.collect(&mut host, sampled, logits).inspect_err(|_| {
            // What was put on the stream may still write to the host's memory.
            _ = Mark::new(&self.gpu).and_then(|mark| mark.wait());
        })?;
        Ok(Box::new(CudaStep {
            gpu: self.gpu.clone(),
            slots: self.slots.clone(),
            host: Some(host),
            number: (self.steps, self.identity.clone()),
            sampled,
            logits,
            done,
            times,
            nodes: self.graph.nodes().len(),
        }))
    }
}

impl Drop for CudaProgram {
    fn drop(&mut self) {
        // Memory goes back only once the stream is done with it; a failed device has stopped.
        _ = Mark::new(&self.gpu).and_then(|mark| mark.wait());
    }
}

/// Activations in bf16: the range of f32, and weights that stay as they are, so that the error is a
/// fraction of what 8-bit activations cost.
pub(super) const AUTO: Precision = Precision::BF16;
