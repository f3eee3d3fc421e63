//! A device around another one: it may claim to compute on its own, to have little memory, or fail,
//! and it watches what is asked of it.

use std::{
    any::Any,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use realm_core::{
    Bytes, Graph,
    backend::{
        Backend, BackendError, Bindings, BlockId, CompileOptions, DeviceInfo, Inputs, KvPool,
        KvSpec, LoadedWeight, Program, ProgramInfo, Role, SequenceRows, Step, StepOutput, Token,
    },
    graph::WeightInfo,
    sampling::NO_TOKEN,
};

/// The device.
pub(crate) struct Pretend {
    inner: Arc<dyn Backend>,
    info: DeviceInfo,
    /// Loading fails after so many weights.
    pub(crate) fails_after: Option<usize>,
    /// Reading fails once after so many steps.
    pub(crate) lost_after: Option<usize>,
    /// What is computed in place of a token that a step under way did not find, and given in place of
    /// every token of such a step, whose results mean nothing; without, it is left to `inner`.
    pub(crate) stand_in: Option<u32>,
    /// Decode rows are computed as if they held the next token id below this: what a row gives depends on
    /// its role.
    pub(crate) by_role: Option<u32>,
    /// Compiling fails after so many programs.
    compiles: Option<usize>,
    compiled: AtomicUsize,
    loaded: AtomicUsize,
    pub(crate) watch: Arc<Watch>,
}

/// What was asked for.
#[derive(Default)]
pub(crate) struct Watch {
    /// Steps started.
    pub(crate) steps: AtomicUsize,
    /// Steps that took a token which another step under way had chosen.
    pub(crate) ahead: AtomicUsize,
    /// Steps that held prompts as well as what was generated.
    pub(crate) mixed: AtomicUsize,
    /// Steps read.
    pub(crate) read: AtomicUsize,
    /// Steps started and neither read nor dropped.
    under_way: Mutex<Vec<(usize, Vec<Taken>)>>,
}

/// A sequence's blocks in a step, as far as it has tokens.
struct Taken {
    blocks: Vec<BlockId>,
    /// Those that the step writes to.
    written: Vec<BlockId>,
    /// Tokens before the step, and after it.
    cached: usize,
    end: usize,
}

impl Taken {
    fn new(sequence: &SequenceRows<'_>, block_tokens: usize) -> Self {
        let (cached, end) = (sequence.cached, sequence.length());
        let blocks = sequence.blocks[..end.div_ceil(block_tokens)].to_vec();
        let written = blocks[cached / block_tokens..].to_vec();
        Self { blocks, written, cached, end }
    }

    /// Whether it may be computed while `before` is: it is the same sequence and goes on where that ends,
    /// or neither writes what the other one has.
    fn goes_with(&self, before: &Self) -> bool {
        let goes_on = self.blocks.starts_with(&before.blocks) && self.cached == before.end;
        let apart = |written: &[BlockId], blocks: &[BlockId]| {
            written.iter().all(|block| !blocks.contains(block))
        };
        goes_on || apart(&self.written, &before.blocks) && apart(&before.written, &self.blocks)
    }
}

impl Pretend {
    /// The same as `inner`, under another name.
    pub(crate) fn new(inner: Arc<dyn Backend>, name: &str) -> Self {
        let info = DeviceInfo { name: name.into(), ..inner.info().clone() };
        let (fails_after, lost_after, watch) = (None, None, Arc::default());
        let (loaded, compiled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (stand_in, by_role, compiles) = (None, None, None);
        Self {
            inner,
            info,
            fails_after,
            lost_after,
            stand_in,
            by_role,
            compiles,
            compiled,
            loaded,
            watch,
        }
    }

    /// Claims that steps go on when `enqueue` has returned.
    pub(crate) fn asynchronous(mut self) -> Self {
        self.info.asynchronous = true;
        self
    }

    /// Claims to have so many bytes beyond what is kept free.
    pub(crate) fn room(mut self, bytes: u64) -> Self {
        self.info.memory = Some((128 << 20) + bytes);
        self
    }

    /// Compiles so many programs and no more.
    pub(crate) fn compiling(mut self, programs: usize) -> Self {
        self.compiles = Some(programs);
        self
    }

    /// The same under another name.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.info.name = name.into();
        self
    }

    /// Does not tell its memory.
    pub(crate) fn silent(mut self) -> Self {
        self.info.memory = None;
        self
    }
}

impl Backend for Pretend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn weight_bytes(&self, info: &WeightInfo) -> usize {
        self.inner.weight_bytes(info)
    }

    fn load_weight(
        &self,
        info: &WeightInfo,
        data: Bytes,
    ) -> Result<Arc<dyn LoadedWeight>, BackendError> {
        if self.fails_after == Some(self.loaded.fetch_add(1, Relaxed)) {
            return Err(BackendError::OutOfMemory {
                device: self.info.name.clone(),
                what: info.name.clone(),
                needed: data.len() as u64,
                available: Some(7),
            });
        }
        self.inner.load_weight(info, data)
    }

    fn kv_pool(&self, spec: &KvSpec) -> Result<Arc<dyn KvPool>, BackendError> {
        self.inner.kv_pool(spec)
    }

    fn workspace_bytes(&self, graph: &Graph, options: &CompileOptions) -> usize {
        self.inner.workspace_bytes(graph, options)
    }

    fn compile(
        &self,
        graph: &Graph,
        bindings: &Bindings,
        options: &CompileOptions,
    ) -> Result<Box<dyn Program>, BackendError> {
        if self.compiles.is_some_and(|most| self.compiled.fetch_add(1, Relaxed) >= most) {
            return Err(BackendError::Failed {
                device: self.info.name.clone(),
                call: "compile".into(),
                cause: "as it was told to".into(),
            });
        }
        let inner = self.inner.compile(graph, bindings, options)?;
        let (watch, lost_after) = (self.watch.clone(), self.lost_after);
        let (stand_in, by_role) = (self.stand_in, self.by_role);
        let block_tokens = self.info.kv_block_tokens;
        Ok(Box::new(PretendProgram { inner, watch, lost_after, stand_in, by_role, block_tokens }))
    }
}

struct PretendProgram {
    inner: Box<dyn Program>,
    watch: Arc<Watch>,
    lost_after: Option<usize>,
    stand_in: Option<u32>,
    by_role: Option<u32>,
    block_tokens: usize,
}

impl Program for PretendProgram {
    fn info(&self) -> &ProgramInfo {
        self.inner.info()
    }

    fn enqueue(&mut self, inputs: &Inputs<'_>) -> Result<Box<dyn Step>, BackendError> {
        let previous = inputs.previous.map(|step| {
            (step as &dyn Any).downcast_ref::<PretendStep>().expect("a step of this program")
        });
        let taken = inputs.sequences.iter();
        let taken: Vec<Taken> =
            taken.map(|sequence| Taken::new(sequence, self.block_tokens)).collect();
        // Side by side, too, nobody writes to what another one has.
        for (at, sequence) in taken.iter().enumerate() {
            let alone = taken[..at].iter().all(|other| sequence.goes_with(other));
            assert!(alone, "two sequences of a step write to the same block");
        }
        let mut under_way = self.watch.under_way.lock().unwrap();
        assert!(under_way.len() < 2, "a third step at once");
        for other in under_way.iter().flat_map(|(_, others)| others) {
            let kept = taken.iter().all(|sequence| sequence.goes_with(other));
            assert!(kept, "blocks of a step under way were given away");
        }
        let decodes = |sequence: &&SequenceRows<'_>| sequence.role == Role::Decode;
        if (1..taken.len()).contains(&inputs.sequences.iter().filter(decodes).count()) {
            self.watch.mixed.fetch_add(1, Relaxed);
        }
        let step: Box<dyn Step> = match self.stand_in.or(self.by_role) {
            Some(stand_in) => {
                // Computed at once, so that the tokens are there for the next step.
                let mut spoilt = false;
                let id = |token: &Token| match *token {
                    Token::Previous(row) => {
                        let chosen =
                            previous.expect("a step before").inner.as_ref().expect("not read yet");
                        let chosen = (&**chosen as &dyn Any).downcast_ref::<Known>();
                        match chosen.expect("computed at once").0.sampled[row as usize] {
                            NO_TOKEN => {
                                spoilt = true;
                                stand_in
                            }
                            id => id,
                        }
                    }
                    Token::Id(id) => id,
                };
                let mut ids: Vec<u32> = inputs.tokens.iter().map(id).collect();
                let decodes = inputs.sequences.iter().filter(decodes);
                if let Some(vocabulary) = self.by_role {
                    for row in decodes.flat_map(|sequence| sequence.rows.clone()) {
                        ids[row] = (ids[row] + 1) % vocabulary;
                    }
                }
                let tokens: Vec<Token> = ids.into_iter().map(Token::Id).collect();
                let inputs = Inputs { tokens: &tokens, previous: None, ..*inputs };
                let mut output = self.inner.enqueue(&inputs)?.read()?;
                if spoilt {
                    output.sampled.fill(stand_in);
                }
                Box::new(Known(output))
            }
            None => self.inner.enqueue(&Inputs {
                previous: previous.map(|step| &**step.inner.as_ref().expect("not read yet")),
                ..*inputs
            })?,
        };
        let number = self.watch.steps.fetch_add(1, Relaxed);
        if inputs.tokens.iter().any(|token| matches!(token, Token::Previous(_))) {
            self.watch.ahead.fetch_add(1, Relaxed);
        }
        under_way.push((number, taken));
        let lost = self.lost_after == Some(number);
        Ok(Box::new(PretendStep { inner: Some(step), number, lost, watch: self.watch.clone() }))
    }
}

/// A step whose results are there already.
struct Known(StepOutput);

impl Step for Known {
    fn read(self: Box<Self>) -> Result<StepOutput, BackendError> {
        Ok(self.0)
    }
}

struct PretendStep {
    inner: Option<Box<dyn Step>>,
    number: usize,
    lost: bool,
    watch: Arc<Watch>,
}

impl Drop for PretendStep {
    fn drop(&mut self) {
        let number = self.number;
        if let Ok(mut under_way) = self.watch.under_way.lock() {
            under_way.retain(|(other, _)| *other != number);
        }
    }
}

impl Step for PretendStep {
    fn read(mut self: Box<Self>) -> Result<StepOutput, BackendError> {
        self.watch.read.fetch_add(1, Relaxed);
        if self.lost {
            let [device, call, cause] = ["pretend", "read", "lost"].map(String::from);
            return Err(BackendError::Failed { device, call, cause });
        }
        self.inner.take().expect("read once").read()
    }
}
