//! Putting a model on a device: which layers it takes, and what happens where they do not fit.

use std::sync::Arc;

use realm_core::{
    Graph,
    backend::{Backend, BackendError},
    fuse,
};

use crate::{
    Engine, EngineOptions, Model, RuntimeError,
    device::Device,
    engine::Progress,
    memory::{self, Fit, MemoryPlan},
    split::{SplitBackend, layers_said},
};

/// Where a model's layers go and what they take there: planned, nothing loaded yet.
pub struct Placement {
    graph: Graph,
    backend: Arc<dyn Backend>,
    plan: MemoryPlan,
    options: EngineOptions,
    notes: Vec<String>,
}

impl Placement {
    /// The graph that is to run: the model's, fused.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What each device takes.
    pub fn memory(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Why layers stay on the CPU, a line each; to be shown to the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// A model that runs.
pub struct Loaded {
    /// The model on its device.
    pub engine: Engine,
    /// Why it is on the CPU although it was to be on a GPU; to be shown to the user.
    pub note: Option<String>,
}

impl Device {
    /// Plans where a model's layers go. A GPU takes as many of the last ones as
    /// [`gpu_layers`](crate::device::DeviceOptions::gpu_layers) says or as fit, the CPU the others; where
    /// none fits, the device becomes the CPU.
    ///
    /// # Errors
    /// A model that does not fit, or not as it was asked for; no layer on the GPU where one is required.
    pub fn place(
        &mut self,
        model: &Model,
        options: &EngineOptions,
    ) -> Result<Placement, RuntimeError> {
        let mut graph = model.graph().clone();
        fuse::fuse(&mut graph);
        let (mut first_on_gpu, mut notes) = (0, Vec::new());
        if self.is_cpu() {
            let wanted = self.options().gpu_layers.filter(|_| self.options().name == "cpu");
            notes.extend(wanted.map(|n| format!("--gpu-layers {n} means nothing on the CPU")));
        } else {
            match self.first_layer(model, &graph, options)? {
                (Some(layer), note) => (first_on_gpu, notes) = (layer, note),
                (None, note) => {
                    notes = note;
                    self.fall_back();
                }
            }
        }
        let gpu = self.backend().clone();
        let (backend, plan) = if first_on_gpu > 0 {
            let cpu: Arc<dyn Backend> = self.cpu().clone();
            let parts = [&*cpu, &*gpu];
            let plan = MemoryPlan::split(model, &graph, first_on_gpu, parts, options)?;
            let split = SplitBackend::new(&graph, first_on_gpu, cpu, gpu)?;
            (Arc::new(split) as Arc<dyn Backend>, plan)
        } else {
            let plan = MemoryPlan::new(model, &graph, &*gpu, options)?;
            (gpu, plan)
        };
        Ok(Placement { graph, backend, plan, options: options.clone(), notes })
    }

    /// The first layer that goes to this GPU, `None` where none does, and why not all.
    fn first_layer(
        &self,
        model: &Model,
        graph: &Graph,
        options: &EngineOptions,
    ) -> Result<(Option<usize>, Vec<String>), RuntimeError> {
        let layers = graph.layers();
        let name = &self.backend().info().name;
        let require_gpu = self.options().require_gpu;
        let path = || model.file().path().display().to_string();
        match self.options().gpu_layers {
            Some(0) if require_gpu => Err(RuntimeError::Device(
                "--require-gpu contradicts --gpu-layers 0; drop one".into(),
            )),
            Some(0) => {
                Ok((None, vec![format!("{name} is not used: --gpu-layers 0 leaves it no layer")]))
            }
            Some(wanted) if wanted < layers => {
                let on_cpu = layers_said(&(0..layers - wanted));
                let s = if layers - wanted == 1 { "s" } else { "" };
                let note =
                    format!("{on_cpu} of {layers} run{s} on the CPU: --gpu-layers is {wanted}");
                Ok((Some(layers - wanted), vec![note]))
            }
            Some(_) => Ok((Some(0), Vec::new())),
            None => match memory::fit(model, graph, &**self.cpu(), &**self.backend(), options)? {
                Fit::Whole => Ok((Some(0), Vec::new())),
                Fit::From(layer, cause) => Ok((Some(layer), vec![cause])),
                Fit::Nothing(cause) if require_gpu => Err(RuntimeError::Memory(format!(
                    "{}: {cause}; use a smaller file or a smaller --ctx",
                    path()
                ))),
                Fit::Nothing(cause) => Ok((None, vec![format!("{name} is not used: {cause}")])),
            },
        }
    }

    /// Loads a model as it was placed. `progress` is told of each weight. Where `auto` chose a GPU that
    /// now fails, the device becomes the CPU.
    ///
    /// # Errors
    /// The device's failure, or too little memory although it was planned.
    pub fn load(
        &mut self,
        model: &Model,
        placement: Placement,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Loaded, RuntimeError> {
        let Placement { graph, backend, plan, options, notes: _ } = placement;
        let error = match Engine::load(model, graph, backend, plan, &options, progress) {
            Ok(engine) => return Ok(Loaded { engine, note: None }),
            Err(error) => error,
        };
        let fails = matches!(
            error,
            RuntimeError::Backend(
                BackendError::OutOfMemory { .. }
                    | BackendError::Failed { .. }
                    | BackendError::Unsupported { .. }
            )
        );
        let chosen = self.options().name == "auto" && !self.options().require_gpu;
        if !fails || !chosen || self.is_cpu() {
            return Err(error);
        }
        self.fall_back();
        let Placement { graph, backend, plan, .. } = self.place(model, &options)?;
        let engine = Engine::load(model, graph, backend, plan, &options, progress)?;
        Ok(Loaded { engine, note: Some(format!("the model runs on the CPU: {error}")) })
    }
}
