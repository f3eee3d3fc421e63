//! The backend: weights as planes, a paged cache, programs.

use std::sync::Arc;

use realm_core::{
    Bytes, Graph,
    backend::{
        Backend, BackendError, Bindings, CompileOptions, DeviceInfo, KvPool, KvSpec, LoadedWeight,
        Program,
    },
    graph::WeightInfo,
};

use super::{
    gpu::Gpu,
    kv::{CudaKvPool, KV_BLOCK_TOKENS},
    program::{self, CudaProgram},
    weights::{Loader, planes_bytes},
};

/// CUDA, or its emulation.
pub(crate) struct CudaBackend {
    gpu: Arc<dyn Gpu>,
    info: DeviceInfo,
    loader: Loader,
}

impl CudaBackend {
    /// A backend on a device.
    pub(crate) fn new(gpu: Arc<dyn Gpu>) -> Self {
        let facts = gpu.facts();
        let info = DeviceInfo {
            name: facts.name.clone(),
            description: facts.description.clone(),
            memory: facts.memory,
            threads: None,
            kv_block_tokens: KV_BLOCK_TOKENS,
            auto_precision: program::AUTO,
            asynchronous: true,
        };
        Self { loader: Loader::new(gpu.clone()), gpu, info }
    }
}

impl Backend for CudaBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn weight_bytes(&self, info: &WeightInfo) -> usize {
        planes_bytes(info)
    }

    fn load_weight(
        &self,
        info: &WeightInfo,
        data: Bytes,
    ) -> Result<Arc<dyn LoadedWeight>, BackendError> {
        Ok(self.loader.load(info, data)?)
    }

    fn kv_pool(&self, spec: &KvSpec) -> Result<Arc<dyn KvPool>, BackendError> {
        Ok(CudaKvPool::new(&self.gpu, spec)?)
    }

    fn workspace_bytes(&self, graph: &Graph, options: &CompileOptions) -> usize {
        let precision = self.info.resolve(options.precision);
        CudaProgram::workspace_bytes(graph, &CompileOptions { precision, ..*options })
    }

    fn compile(
        &self,
        graph: &Graph,
        bindings: &Bindings,
        options: &CompileOptions,
    ) -> Result<Box<dyn Program>, BackendError> {
        let (weights, kv) = bindings.downcast(graph, &self.info.name)?;
        let precision = self.info.resolve(options.precision);
        let options = CompileOptions { precision, ..*options };
        Ok(Box::new(CudaProgram::new(&self.gpu, graph, weights, kv, options)?))
    }
}
