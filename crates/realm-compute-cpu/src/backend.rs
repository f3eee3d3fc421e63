//! The CPU as a backend: weights, cache and programs.

use std::sync::Arc;

use realm_core::{
    Bytes, Graph,
    backend::{
        Backend, BackendError, Bindings, CompileOptions, DeviceInfo, KvPool, KvSpec, LoadedWeight,
        Precision, Program,
    },
    graph::WeightInfo,
};

use crate::{
    KV_BLOCK_TOKENS, Roofline,
    isa::{Isa, IsaLimit},
    kv::CpuKvPool,
    matmul::Matrix,
    pool::Pool,
    program::CpuProgram,
    roofline, system,
};

/// The device's name in messages.
pub(crate) const NAME: &str = "cpu";

/// How the CPU backend is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuOptions {
    /// Threads that compute; `None`: as many as the system grants.
    pub threads: Option<usize>,
    /// The most that may be used of the processor.
    pub isa: IsaLimit,
}

/// The CPU.
pub struct CpuBackend {
    info: DeviceInfo,
    pool: Arc<Pool>,
    isa: Isa,
}

/// A weight. Matrices stay in the mapped file; vectors are decoded.
pub(crate) struct CpuWeight {
    info: WeightInfo,
    data: Bytes,
    vector: Vec<f32>,
}

impl CpuWeight {
    /// As products take it.
    ///
    /// # Panics
    /// Never: the length was checked when the weight was loaded.
    pub(crate) fn matrix(&self) -> Matrix<'_> {
        Matrix::new(&self.info, &self.data).expect("a weight of its own length")
    }

    /// The blocks, row after row.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    /// The values of a weight of one row.
    pub(crate) fn vector(&self) -> &[f32] {
        &self.vector
    }
}

impl LoadedWeight for CpuWeight {
    fn info(&self) -> &WeightInfo {
        &self.info
    }

    fn device_bytes(&self) -> usize {
        self.vector.len() * size_of::<f32>()
    }
}

impl CpuBackend {
    /// Starts the worker threads and finds out what the processor can do.
    pub fn new(options: &CpuOptions) -> Self {
        let granted = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = Arc::new(Pool::new(options.threads.unwrap_or(granted).max(1)));
        let isa = Isa::detect(options.isa);
        let info = DeviceInfo {
            name: NAME.into(),
            description: format!("{} ({isa})", system::processor()),
            memory: system::available_memory(),
            threads: Some(pool.threads()),
            kv_block_tokens: KV_BLOCK_TOKENS,
            auto_precision: Precision::Int8,
            asynchronous: false,
        };
        Self { info, pool, isa }
    }

    /// The most that this processor allows.
    pub fn best_isa() -> IsaLimit {
        Isa::detect(IsaLimit::default()).into()
    }

    /// Measures the memory's read bandwidth and the arithmetic peak of a precision's inner loop.
    pub fn roofline(&self, precision: Precision) -> Roofline {
        roofline::measure(&self.pool, self.isa, self.info.resolve(precision))
    }
}

impl Backend for CpuBackend {
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
        let mut vector = Vec::new();
        if info.rows == 1 {
            vector.resize(info.cols, 0.0);
            info.dtype.decode(&data, &mut vector);
        }
        Ok(Arc::new(CpuWeight { info: info.clone(), data, vector }))
    }

    fn kv_pool(&self, spec: &KvSpec) -> Result<Arc<dyn KvPool>, BackendError> {
        Ok(Arc::new(CpuKvPool::new(spec)?))
    }

    fn workspace_bytes(&self, graph: &Graph, options: &CompileOptions) -> usize {
        let precision = self.info.resolve(options.precision);
        CpuProgram::workspace_bytes(graph, &CompileOptions { precision, ..*options })
    }

    fn compile(
        &self,
        graph: &Graph,
        bindings: &Bindings,
        options: &CompileOptions,
    ) -> Result<Box<dyn Program>, BackendError> {
        let (weights, kv) = bindings.downcast(graph, NAME)?;
        let options =
            CompileOptions { precision: self.info.resolve(options.precision), ..*options };
        let parts = (self.pool.clone(), self.isa);
        Ok(Box::new(CpuProgram::new(parts, graph, weights, kv, options)?))
    }
}
