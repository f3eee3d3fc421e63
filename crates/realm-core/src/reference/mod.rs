//! The reference interpreter: every op as plain loops in f64. Slow and simple; other backends are held
//! to it.

mod moe;
mod ops;

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    Bytes, Graph,
    backend::*,
    graph::{Op, WeightInfo},
    sampling::Sampler,
};

/// The reference interpreter as a backend.
#[derive(Debug)]
pub struct ReferenceBackend {
    info: DeviceInfo,
}

impl ReferenceBackend {
    /// A reference interpreter whose KV blocks hold `kv_block_tokens` tokens.
    pub fn new(kv_block_tokens: usize) -> Self {
        Self {
            info: DeviceInfo {
                name: "reference".into(),
                description: "plain loops in f64".into(),
                memory: None,
                threads: Some(1),
                kv_block_tokens,
                auto_precision: Precision::F32,
                asynchronous: false,
            },
        }
    }
}

struct ReferenceWeight {
    info: WeightInfo,
    values: Vec<f32>,
}

impl LoadedWeight for ReferenceWeight {
    fn info(&self) -> &WeightInfo {
        &self.info
    }

    fn device_bytes(&self) -> usize {
        self.values.len() * 4
    }
}

/// Keys and values as the KV type rounds them: `[layer][block][key, value][head][slot][element]`.
struct ReferenceKv {
    spec: KvSpec,
    blocks: Mutex<Vec<Vec<f32>>>,
}

impl ReferenceKv {
    fn block_len(&self) -> usize {
        let layers = self.spec.layers.iter();
        layers.map(|layer| 2 * layer.heads * layer.head_dim * self.spec.block_tokens).sum()
    }

    /// Where a row of a head lies in its block.
    fn offset(&self, layer: usize, value: bool, head: usize, slot: usize) -> usize {
        let tokens = self.spec.block_tokens;
        let before: usize =
            self.spec.layers[..layer].iter().map(|l| 2 * l.heads * l.head_dim * tokens).sum();
        let at = &self.spec.layers[layer];
        before + ((usize::from(value) * at.heads + head) * tokens + slot) * at.head_dim
    }

    fn checked(&self, blocks: &[BlockId]) -> Result<(), BackendError> {
        match blocks.iter().find(|block| block.0 as usize >= self.spec.blocks) {
            Some(block) => Err(BackendError::Inputs {
                problem: format!("KV block {} of {}", block.0, self.spec.blocks),
            }),
            None => Ok(()),
        }
    }
}

impl KvPool for ReferenceKv {
    fn spec(&self) -> &KvSpec {
        &self.spec
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.checked(&[from, to])?;
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks[to.0 as usize] = blocks[from.0 as usize].clone();
        Ok(())
    }

    fn swap_out(&self, ids: &[BlockId]) -> Result<Vec<u8>, BackendError> {
        self.checked(ids)?;
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let values = ids.iter().flat_map(|id| &blocks[id.0 as usize]);
        Ok(values.flat_map(|value| value.to_le_bytes()).collect())
    }

    fn swap_in(&self, contents: &[u8], ids: &[BlockId]) -> Result<(), BackendError> {
        self.checked(ids)?;
        let bytes = self.block_len() * 4;
        if contents.len() != bytes * ids.len() {
            let problem =
                format!("{} bytes for {} KV blocks of {bytes}", contents.len(), ids.len());
            return Err(BackendError::Inputs { problem });
        }
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, block) in ids.iter().zip(contents.chunks_exact(bytes.max(1))) {
            let (words, _) = block.as_chunks::<4>();
            blocks[id.0 as usize] = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        }
        Ok(())
    }
}

impl Backend for ReferenceBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn weight_bytes(&self, info: &WeightInfo) -> usize {
        info.bytes().unwrap_or(0)
    }

    fn load_weight(
        &self,
        info: &WeightInfo,
        data: Bytes,
    ) -> Result<Arc<dyn LoadedWeight>, BackendError> {
        info.check(&data)?;
        let mut values = vec![0.0; info.rows * info.cols];
        info.dtype.decode(&data, &mut values);
        Ok(Arc::new(ReferenceWeight { info: info.clone(), values }))
    }

    fn kv_pool(&self, spec: &KvSpec) -> Result<Arc<dyn KvPool>, BackendError> {
        spec.bytes()?;
        let mut pool = ReferenceKv { spec: spec.clone(), blocks: Mutex::default() };
        // Undefined contents show as NaN where they reach a result.
        let blocks = vec![vec![f32::NAN; pool.block_len()]; spec.blocks];
        pool.blocks = Mutex::new(blocks);
        Ok(Arc::new(pool))
    }

    fn workspace_bytes(&self, _graph: &Graph, _options: &CompileOptions) -> usize {
        // Values are made as the ops run.
        0
    }

    fn compile(
        &self,
        graph: &Graph,
        bindings: &Bindings,
        options: &CompileOptions,
    ) -> Result<Box<dyn Program>, BackendError> {
        let (weights, kv) = bindings.downcast(graph, &self.info.name)?;
        Ok(Box::new(ReferenceProgram {
            graph: graph.clone(),
            weights,
            kv,
            info: ProgramInfo {
                limits: options.limits,
                precision: Precision::F32,
                workspace_bytes: 0,
            },
            sampler: Sampler::default(),
        }))
    }
}

struct ReferenceProgram {
    graph: Graph,
    weights: Vec<Arc<ReferenceWeight>>,
    kv: Arc<ReferenceKv>,
    info: ProgramInfo,
    sampler: Sampler,
}

struct ReferenceStep(StepOutput);

impl Step for ReferenceStep {
    fn read(self: Box<Self>) -> Result<StepOutput, BackendError> {
        Ok(self.0)
    }
}

impl Program for ReferenceProgram {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn enqueue(&mut self, inputs: &Inputs<'_>) -> Result<Box<dyn Step>, BackendError> {
        inputs.check(&self.info.limits, &self.kv.spec)?;
        inputs.check_given(&self.graph)?;
        let previous =
            inputs.previous.and_then(|step| (step as &dyn Any).downcast_ref::<ReferenceStep>());
        let ids = inputs.token_ids(previous.map_or(&[], |step| &step.0.sampled))?;
        let mut values: Vec<Vec<f64>> = vec![Vec::new(); self.graph.values().len()];
        let mut output = StepOutput::default();
        let graph = self.graph.clone();
        for node in graph.nodes() {
            let start = std::time::Instant::now();
            match &node.op {
                Op::Sample(op) => {
                    let logits: Vec<f32> =
                        values[op.logits.index()].iter().map(|&x| x as f32).collect();
                    let vocabulary = graph.value(op.logits).cols.max(1);
                    for (row, how) in logits.chunks_exact(vocabulary).zip(inputs.sampling) {
                        output.sampled.push(self.sampler.sample(row, how));
                    }
                }
                op => self.run(op, inputs, &ids, &mut values)?,
            }
            if inputs.want_times {
                output.node_seconds.push(start.elapsed().as_secs_f64());
            }
        }
        if inputs.want_logits {
            output.logits = values[graph.logits().index()].iter().map(|&x| x as f32).collect();
        }
        Ok(Box::new(ReferenceStep(output)))
    }
}

impl ReferenceProgram {
    /// A weight's values.
    fn weight(&self, weight: crate::graph::Weight) -> &[f32] {
        &self.weights[weight.index()].values
    }
}
