//! The contract between what runs models and what computes: object-safe and small.
//!
//! A backend says at [`Backend::compile`], by name, which op it lacks; there is no default that
//! answers "unsupported". Only [`Step::read`] waits for the device.

mod error;

pub use error::BackendError;

use std::{any::Any, fmt, ops::Range, str::FromStr, sync::Arc};

use crate::{
    Bytes, DType, Graph,
    graph::{KvLayer, WeightInfo},
    sampling::Sampling,
};

/// The type of a product's inputs. Sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// The backend's choice, said in its [`ProgramInfo`].
    Auto,
    /// Weights and activations in single precision.
    F32,
    /// Both rounded to half precision.
    F16,
    /// Both rounded to bfloat16.
    BF16,
    /// Quantized weights' integers times activations quantized to 8 bits a block of 32; weights
    /// stored as floats keep f32 products.
    Int8,
}

/// The type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 8 bits and a scale for 32 elements; head sizes must be multiples of 32.
    Q8_0,
}

impl KvType {
    /// The format of a row of keys or values.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::Q8_0 => DType::Q8_0,
        }
    }
}

macro_rules! names {
    ($type:ident, $what:literal, $($variant:ident = $name:literal),*) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $name),* })
            }
        }
        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(format!(concat!("{:?} is no ", $what, "; choose ", $($name, " "),*), text)),
                }
            }
        }
    };
}
names!(
    Precision,
    "precision",
    Auto = "auto",
    F32 = "f32",
    F16 = "f16",
    BF16 = "bf16",
    Int8 = "int8"
);
names!(KvType, "KV type", F32 = "f32", F16 = "f16", BF16 = "bf16", Q8_0 = "q8_0");

/// What a backend is and can do.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// As `--device` takes it: `cpu`, `cuda:0`.
    pub name: String,
    /// For people: the processor's name and the instruction sets or features in use.
    pub description: String,
    /// Memory that weights and caches may take, in bytes; `None` where it cannot be known.
    pub memory: Option<u64>,
    /// Worker threads, on the CPU.
    pub threads: Option<usize>,
    /// Tokens a block of the KV cache.
    pub kv_block_tokens: usize,
    /// What [`Precision::Auto`] means here.
    pub auto_precision: Precision,
    /// [`Program::enqueue`] returns before the step is done, so that it pays to enqueue the next one
    /// before this one is read.
    pub asynchronous: bool,
}

impl DeviceInfo {
    /// A precision that was asked for, [`Precision::Auto`] as the device means it.
    pub fn resolve(&self, precision: Precision) -> Precision {
        match precision {
            Precision::Auto => self.auto_precision,
            other => other,
        }
    }
}

/// The most that one step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the batch.
    pub tokens: usize,
    /// Rows whose logits are wanted.
    pub outputs: usize,
    /// Sequences side by side.
    pub sequences: usize,
}

/// Shape and type of a KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpec {
    /// Heads and head size, a layer each.
    pub layers: Vec<KvLayer>,
    /// Storage type.
    pub kv_type: KvType,
    /// Number of blocks.
    pub blocks: usize,
    /// Tokens a block: the backend's constant.
    pub block_tokens: usize,
}

impl KvSpec {
    /// Bytes of one block over all layers, keys and values.
    ///
    /// # Errors
    /// A head size that the type cannot hold.
    pub fn block_bytes(&self) -> Result<usize, BackendError> {
        self.layers.iter().try_fold(0, |sum, layer| {
            let row = self
                .kv_type
                .dtype()
                .row_bytes(layer.head_dim)
                .ok_or(BackendError::KvType { kv_type: self.kv_type, head_dim: layer.head_dim })?;
            Ok(sum + 2 * layer.heads * self.block_tokens * row)
        })
    }

    /// Bytes of the whole cache.
    ///
    /// # Errors
    /// A head size that the type cannot hold.
    pub fn bytes(&self) -> Result<usize, BackendError> {
        Ok(self.block_bytes()?.saturating_mul(self.blocks))
    }
}

/// One block of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A step's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// This id.
    Id(u32),
    /// What the step in [`Inputs::previous`] sampled at this output row. It need not have reached
    /// the host.
    Previous(u32),
}

/// Why a row is computed. Role, never batch size, chooses a row's kernel and compute type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Part of a prompt.
    Prefill,
    /// A generated token, or one that verifies speculation.
    Decode,
}

/// One sequence's rows in a ragged batch: consecutive positions from `cached` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceRows<'a> {
    /// Rows of the batch that belong to it.
    pub rows: Range<usize>,
    /// Tokens that its cache holds before this step: the position of the first row.
    pub cached: usize,
    /// Why these rows are computed.
    pub role: Role,
    /// Its KV blocks in order; they cover `cached + rows.len()` tokens.
    pub blocks: &'a [BlockId],
}

impl SequenceRows<'_> {
    /// Tokens in the cache once this step's own are written.
    pub fn length(&self) -> usize {
        self.cached + self.rows.len()
    }
}

/// What one step computes.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// A token a row.
    pub tokens: &'a [Token],
    /// The sequences, covering the rows in order.
    pub sequences: &'a [SequenceRows<'a>],
    /// `[tokens, cols]`, row-major: the result of the graph's `Given` op; empty where it has none.
    pub given: &'a [f32],
    /// Rows whose logits are wanted.
    pub outputs: &'a [u32],
    /// How each output row's next token is chosen; empty where none is wanted.
    pub sampling: &'a [Sampling],
    /// Whether the logits are to be read back.
    pub want_logits: bool,
    /// Whether each node's time is to be measured, which costs a little.
    pub want_times: bool,
    /// The step that [`Token::Previous`] refers to.
    pub previous: Option<&'a dyn Step>,
}

impl Inputs<'_> {
    /// Checks counts, ranges and block tables against the limits and the cache, so that backends
    /// may index by them.
    ///
    /// # Errors
    /// [`BackendError::Inputs`] with the first thing that does not fit.
    pub fn check(&self, limits: &Limits, kv: &KvSpec) -> Result<(), BackendError> {
        let fail = |problem: String| Err(BackendError::Inputs { problem });
        let (rows, outputs) = (self.tokens.len(), self.outputs.len());
        if rows == 0 || rows > limits.tokens {
            return fail(format!("{rows} tokens where 1 to {} fit", limits.tokens));
        }
        if outputs > limits.outputs || self.sequences.len() > limits.sequences {
            return fail(format!(
                "{outputs} outputs of {} sequences exceed the limits",
                self.sequences.len()
            ));
        }
        if let Some(row) = self.outputs.iter().find(|&&row| row as usize >= rows) {
            return fail(format!("output row {row} of {rows}"));
        }
        if !self.sampling.is_empty() && self.sampling.len() != outputs {
            return fail(format!(
                "{} sampling settings for {outputs} outputs",
                self.sampling.len()
            ));
        }
        let mut next = 0;
        for sequence in self.sequences {
            if sequence.rows.start != next || sequence.rows.end <= next {
                return fail(format!("rows {:?} where row {next} is due", sequence.rows));
            }
            next = sequence.rows.end;
            if sequence.blocks.len().saturating_mul(kv.block_tokens) < sequence.length() {
                return fail(format!(
                    "{} KV blocks for {} tokens",
                    sequence.blocks.len(),
                    sequence.length()
                ));
            }
            if let Some(block) = sequence.blocks.iter().find(|block| block.0 as usize >= kv.blocks)
            {
                return fail(format!("KV block {} of {}", block.0, kv.blocks));
            }
        }
        if next != rows {
            return fail(format!("sequences cover {next} of {rows} rows"));
        }
        Ok(())
    }

    /// The ids of the rows' tokens; `sampled` is what the previous step chose, where it is known.
    ///
    /// # Errors
    /// [`BackendError::Inputs`] where a row refers to a token that was not sampled.
    pub fn token_ids(&self, sampled: &[u32]) -> Result<Vec<u32>, BackendError> {
        let id = |token: &Token| match *token {
            Token::Id(id) => Ok(id),
            Token::Previous(row) => sampled.get(row as usize).copied().ok_or_else(|| {
                let problem = format!("no previous step sampled a token at row {row}");
                BackendError::Inputs { problem }
            }),
        };
        self.tokens.iter().map(id).collect()
    }

    /// Checks that [`Inputs::given`] holds what a graph's `Given` op needs.
    ///
    /// # Errors
    /// [`BackendError::Inputs`] where it is too long or too short.
    pub fn check_given(&self, graph: &Graph) -> Result<(), BackendError> {
        let cols = graph.given().map_or(0, |value| graph.value(value).cols);
        let (found, expected) = (self.given.len(), self.tokens.len().saturating_mul(cols));
        if found == expected {
            return Ok(());
        }
        let problem = format!("{found} numbers given where the graph takes {expected}");
        Err(BackendError::Inputs { problem })
    }

    /// Position of every row, in order.
    pub fn positions(&self) -> impl Iterator<Item = u32> {
        self.sequences
            .iter()
            .flat_map(|sequence| (sequence.cached..sequence.length()).map(|at| at as u32))
    }
}

/// What a step gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// `[outputs, vocabulary]`, row-major; empty where not wanted.
    pub logits: Vec<f32>,
    /// A token an output row, [`crate::sampling::NO_TOKEN`] where no logit is a number; empty where no
    /// sampling was asked for.
    pub sampled: Vec<u32>,
    /// Seconds a node; empty where not wanted.
    pub node_seconds: Vec<f64>,
}

/// A step under way. One that is dropped unread is computed nevertheless; its results are lost.
pub trait Step: Any + Send {
    /// Waits for the step and gives its results.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn read(self: Box<Self>) -> Result<StepOutput, BackendError>;
}

impl WeightInfo {
    /// Checks that a weight's bytes are as many as its shape needs.
    ///
    /// # Errors
    /// [`BackendError::WeightLength`].
    pub fn check(&self, data: &[u8]) -> Result<(), BackendError> {
        let expected = self.bytes();
        if expected == Some(data.len()) {
            return Ok(());
        }
        let (name, bytes) = (self.name.clone(), data.len());
        Err(BackendError::WeightLength { name, bytes, expected: expected.unwrap_or(0) })
    }
}

/// A weight in a backend's memory.
pub trait LoadedWeight: Any + Send + Sync {
    /// What was loaded.
    fn info(&self) -> &WeightInfo;
    /// Bytes it takes beyond the mapped file.
    fn device_bytes(&self) -> usize;
}

/// A KV cache in a backend's memory.
pub trait KvPool: Any + Send + Sync {
    /// Shape and type.
    fn spec(&self) -> &KvSpec;
    /// Copies block `from` to block `to`, all layers.
    ///
    /// # Errors
    /// A block that is not there, or the device's failure.
    fn copy(&self, from: BlockId, to: BlockId) -> Result<(), BackendError>;
    /// The blocks' contents, for [`KvPool::swap_in`] of the same pool.
    ///
    /// # Errors
    /// A block that is not there, or the device's failure.
    fn swap_out(&self, blocks: &[BlockId]) -> Result<Vec<u8>, BackendError>;
    /// Puts back what [`KvPool::swap_out`] gave, into the same number of any blocks.
    ///
    /// # Errors
    /// A block that is not there, a length that does not fit, or the device's failure.
    fn swap_in(&self, contents: &[u8], blocks: &[BlockId]) -> Result<(), BackendError>;
}

/// What a graph is compiled against.
#[derive(Clone)]
pub struct Bindings {
    /// The graph's weights, in its order.
    pub weights: Vec<Arc<dyn LoadedWeight>>,
    /// The cache that the graph reads and writes.
    pub kv: Arc<dyn KvPool>,
}

impl Bindings {
    /// The bindings as a backend's own types, checked against a graph.
    ///
    /// # Errors
    /// [`BackendError::Foreign`] where a weight or the cache is another backend's or does not fit.
    pub fn downcast<W: LoadedWeight, K: KvPool>(
        &self,
        graph: &Graph,
        device: &str,
    ) -> Result<(Vec<Arc<W>>, Arc<K>), BackendError> {
        let foreign = |what: String| BackendError::Foreign { device: device.into(), what };
        if self.weights.len() != graph.weights().len() {
            return Err(foreign("another graph's list of weights".into()));
        }
        let pairs = self.weights.iter().zip(graph.weights());
        let weights = pairs.map(|(weight, info)| {
            let ours = Arc::clone(weight) as Arc<dyn Any + Send + Sync>;
            let ours = ours.downcast::<W>().ok().filter(|ours| ours.info() == info);
            ours.ok_or_else(|| foreign(format!("weight {}", info.name)))
        });
        let weights = weights.collect::<Result<_, _>>()?;
        let kv = Arc::clone(&self.kv) as Arc<dyn Any + Send + Sync>;
        let kv = kv.downcast::<K>().ok().filter(|kv| kv.spec().layers == graph.kv());
        Ok((weights, kv.ok_or_else(|| foreign("the KV cache".into()))?))
    }
}

/// How a graph is compiled.
#[derive(Debug, Clone, Copy)]
pub struct CompileOptions {
    /// The most that one step may hold.
    pub limits: Limits,
    /// The type of the products' inputs.
    pub precision: Precision,
    /// Bits of a row do not depend on the rows beside it. Where a device can only do that slower, `false`
    /// lets it choose kernels by the batch; others keep to it always.
    pub invariant: bool,
    /// Fill work memory with NaN before each step: tests see what was never written.
    pub poison: bool,
}

/// What a compiled graph uses.
#[derive(Debug, Clone)]
pub struct ProgramInfo {
    /// The most that one step may hold.
    pub limits: Limits,
    /// The precision in use; never [`Precision::Auto`].
    pub precision: Precision,
    /// Bytes of work memory.
    pub workspace_bytes: usize,
}

/// A compiled graph.
pub trait Program: Send {
    /// What it uses.
    fn info(&self) -> &ProgramInfo;
    /// Starts a step, at most one while another one is under way. Where that one found no token for a
    /// row that this one takes over ([`crate::sampling::NO_TOKEN`]), this one is refused or its results
    /// mean nothing.
    ///
    /// # Errors
    /// Inputs beyond the limits, or the device's failure.
    fn enqueue(&mut self, inputs: &Inputs<'_>) -> Result<Box<dyn Step>, BackendError>;
}

/// A device that runs graphs.
pub trait Backend: Send + Sync {
    /// What it is and can do.
    fn info(&self) -> &DeviceInfo;
    /// Bytes that [`Backend::load_weight`] will take for a weight, in the device's memory or, where
    /// weights stay in the mapped file, there. Known from the shape, so that memory can be planned.
    fn weight_bytes(&self, info: &WeightInfo) -> usize;
    /// Brings a weight into the device's memory.
    ///
    /// # Errors
    /// A length that does not fit the shape, or too little memory.
    fn load_weight(
        &self,
        info: &WeightInfo,
        data: Bytes,
    ) -> Result<Arc<dyn LoadedWeight>, BackendError>;
    /// Makes a KV cache; its contents are undefined.
    ///
    /// # Errors
    /// A head size that the type cannot hold, or too little memory.
    fn kv_pool(&self, spec: &KvSpec) -> Result<Arc<dyn KvPool>, BackendError>;
    /// Bytes of work memory that [`Backend::compile`] will take for a graph, known from its shapes.
    fn workspace_bytes(&self, graph: &Graph, options: &CompileOptions) -> usize;
    /// Prepares a graph for steps within limits.
    ///
    /// # Errors
    /// The first op, format or precision that the backend lacks, by name, or too little memory.
    fn compile(
        &self,
        graph: &Graph,
        bindings: &Bindings,
        options: &CompileOptions,
    ) -> Result<Box<dyn Program>, BackendError>;
}
