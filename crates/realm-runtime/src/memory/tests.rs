use std::sync::Arc;

use realm_core::{
    Bytes, DType,
    backend::{BackendError, Bindings, DeviceInfo, KvPool, LoadedWeight, Program},
    graph::{GraphBuilder, WeightInfo},
    reference::ReferenceBackend,
};

use super::*;

/// The reference with little memory.
struct Small(ReferenceBackend, DeviceInfo);

impl Small {
    fn new(room: u64) -> Self {
        let inner = ReferenceBackend::new(16);
        let memory = Some((128 << 20) + room);
        let info = DeviceInfo { name: "gpu:0".into(), memory, ..inner.info().clone() };
        Self(inner, info)
    }
}

impl Backend for Small {
    fn info(&self) -> &DeviceInfo {
        &self.1
    }

    fn weight_bytes(&self, info: &WeightInfo) -> usize {
        self.0.weight_bytes(info)
    }

    fn load_weight(
        &self,
        info: &WeightInfo,
        data: Bytes,
    ) -> Result<Arc<dyn LoadedWeight>, BackendError> {
        self.0.load_weight(info, data)
    }

    fn kv_pool(&self, spec: &KvSpec) -> Result<Arc<dyn KvPool>, BackendError> {
        self.0.kv_pool(spec)
    }

    fn workspace_bytes(&self, _: &Graph, _: &CompileOptions) -> usize {
        0
    }

    fn compile(
        &self,
        graph: &Graph,
        bindings: &Bindings,
        options: &CompileOptions,
    ) -> Result<Box<dyn Program>, BackendError> {
        self.0.compile(graph, bindings, options)
    }
}

/// Three layers, the last of which reads what the first one read.
fn tangled() -> Graph {
    let mut graph = GraphBuilder::new();
    let weight = |graph: &mut GraphBuilder, name: &str| {
        graph.weight(WeightInfo { name: name.into(), rows: 64, cols: 64, dtype: DType::F32 })
    };
    let table = weight(&mut graph, "table");
    let first = graph.embed(table);
    let mut value = first;
    for layer in 0..3 {
        graph.layer(Some(layer));
        let weight = weight(&mut graph, &format!("weight.{layer}"));
        value = graph.linear(value, weight, None);
        if layer == 2 {
            value = graph.add(value, first);
        }
    }
    graph.layer(None);
    let output = graph.gather_rows(value);
    graph.finish(output).unwrap()
}

#[test]
fn a_graph_that_cannot_be_cut_goes_to_a_gpu_whole_or_not_at_all() {
    let (graph, options) = (tangled(), EngineOptions::default());
    let cpu = ReferenceBackend::new(16);
    let weights = 4 * 64 * 64 * 4;
    let fit = |room| fit(100, &graph, [&cpu, &Small::new(room)], &options).unwrap();
    assert!(matches!(fit(weights), Fit::Whole));
    let Fit::Nothing(cause) = fit(weights - 1) else { panic!("half of it fits") };
    assert!(cause.contains("no layer fits") && cause.contains("cannot be split"), "{cause}");
    assert!(!cause.contains('\n'), "{cause}");
}
