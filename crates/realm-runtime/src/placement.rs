//! Putting a model on a device: which layers it takes, and what happens where they do not fit.

use std::sync::Arc;

use realm_core::{
    Graph,
    backend::{Backend, BackendError},
    fuse,
};

use crate::{
    Engine, EngineOptions, Model, RuntimeError,
    device::{self, Device},
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

/// What came of loading a model.
pub enum Loaded {
    /// The model on its device.
    Engine(Box<Engine>),
    /// The device failed. This is where the model goes in its place; nothing is loaded there yet. The
    /// first of its notes says why.
    Moved(Box<Placement>),
}

/// Where the layers go on one device.
enum Layers {
    /// Those from this one on to the GPU; and why not all.
    From(usize, Option<String>),
    /// All to the CPU, as was asked for.
    Unwanted(String),
    /// They do not fit: why, and what can be done.
    Full { cause: String, advice: &'static str, by_number: bool },
}

impl Device {
    /// Plans where a model's layers go. A GPU takes as many of the last ones as
    /// [`gpu_layers`](crate::device::DeviceOptions::gpu_layers) says or as fit, the CPU the others. Where
    /// none fits, or not as many as were asked for, the next GPU is tried; after the last one the device
    /// becomes the CPU where `auto` chose it.
    ///
    /// # Errors
    /// A model that does not fit, or not as it was asked for; no layer on a GPU that was named, or where
    /// one is required.
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
            first_on_gpu = self.choose(model, &graph, options, &mut notes)?;
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

    /// Goes on to the first device that takes layers, and gives the first of them.
    fn choose(
        &mut self,
        model: &Model,
        graph: &Graph,
        options: &EngineOptions,
        notes: &mut Vec<String>,
    ) -> Result<usize, RuntimeError> {
        let mut causes = Vec::new();
        loop {
            let name = self.backend().info().name.clone();
            let said = |cause: &String| format!("{name} is not used: {cause}");
            let (cause, advice, by_number) = match self.layers(model, graph, options)? {
                Layers::From(layer, note) => {
                    let info = self.backend().info();
                    if info.memory.is_none() && !device::is_emulated(&info.name) {
                        notes.push(format!(
                            "{name} does not tell its free memory: whether the model fits shows when it is loaded"
                        ));
                    }
                    notes.extend(note);
                    return Ok(layer);
                }
                Layers::Unwanted(cause) => {
                    notes.push(said(&cause));
                    self.fall_back();
                    return Ok(0);
                }
                Layers::Full { cause, advice, by_number } => (cause, advice, by_number),
            };
            notes.push(said(&cause));
            causes.push(cause);
            let mut passed = Vec::new();
            let found = self.take_next(&mut passed);
            notes.extend(passed.iter().map(|cause| format!("passed over: {cause}")));
            causes.extend(passed);
            if found {
                continue;
            }
            if self.may_fall_back() && !by_number {
                self.fall_back();
                return Ok(0);
            }
            let path = model.file().path().display();
            return Err(RuntimeError::Memory(format!("{path}: {}; {advice}", causes.join("; "))));
        }
    }

    /// The layers that go to this GPU.
    fn layers(
        &self,
        model: &Model,
        graph: &Graph,
        options: &EngineOptions,
    ) -> Result<Layers, RuntimeError> {
        let layers = graph.layers();
        let parts: [&dyn Backend; 2] = [&**self.cpu(), &**self.backend()];
        match self.options().gpu_layers {
            Some(0) if self.options().require_gpu => Err(RuntimeError::Device(
                "--require-gpu contradicts --gpu-layers 0; drop one".into(),
            )),
            Some(0) => Ok(Layers::Unwanted("--gpu-layers 0 leaves it no layer".into())),
            Some(wanted) => {
                let first = layers.saturating_sub(wanted);
                if let Some(cause) = memory::too_many(graph, first, parts, options)? {
                    let cause = format!("--gpu-layers {wanted}: {cause}");
                    let advice = "ask for fewer --gpu-layers, or leave the number out";
                    return Ok(Layers::Full { cause, advice, by_number: true });
                }
                let note = (first > 0).then(|| {
                    let s = if first == 1 { "s" } else { "" };
                    let on_cpu = layers_said(&(0..first));
                    format!("{on_cpu} of {layers} run{s} on the CPU: --gpu-layers is {wanted}")
                });
                Ok(Layers::From(first, note))
            }
            None => Ok(match memory::fit(model.context(), graph, parts, options)? {
                Fit::Whole => Layers::From(0, None),
                Fit::From(layer, cause) => Layers::From(layer, Some(cause)),
                Fit::Nothing(cause) => {
                    let advice = if self.options().require_gpu {
                        "use a smaller file or a smaller --ctx"
                    } else {
                        "use a smaller file, a smaller --ctx or --device auto"
                    };
                    Layers::Full { cause, advice, by_number: false }
                }
            }),
        }
    }

    /// Loads a model as it was placed. `progress` is told of each weight. Where the GPU fails, the model
    /// is placed on the next one, or on the CPU where `auto` chose the GPU.
    ///
    /// # Errors
    /// The device's failure, or too little memory although it was planned, where no other device may
    /// take the model.
    pub fn load(
        &mut self,
        model: &Model,
        placement: Placement,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Loaded, RuntimeError> {
        let Placement { graph, backend, plan, options, notes: _ } = placement;
        let error = match Engine::load(model, graph, backend, plan, &options, progress) {
            Ok(engine) => return Ok(Loaded::Engine(Box::new(engine))),
            Err(error) => error,
        };
        let Some(cause) = device_failure(&error).filter(|_| !self.is_cpu()) else {
            return Err(error);
        };
        let mut passed = Vec::new();
        if !self.take_next(&mut passed) {
            if !self.may_fall_back() {
                return Err(error);
            }
            self.fall_back();
        }
        let mut placement = self.place(model, &options).map_err(|later| match later {
            RuntimeError::Memory(later) => RuntimeError::Memory(format!("{cause}; then {later}")),
            later => later,
        })?;
        let to = match self.is_cpu() {
            true => "the model runs on the CPU".into(),
            false => format!("the model goes to {}", self.backend().info().name),
        };
        let passed = passed.iter().map(|cause| format!("passed over: {cause}"));
        let notes = [format!("{to}: {cause}")].into_iter().chain(passed);
        placement.notes = notes.chain(std::mem::take(&mut placement.notes)).collect();
        Ok(Loaded::Moved(Box::new(placement)))
    }
}

/// What a device failed of, where another one may do better. The advice of the error is left out: it is
/// for those who have no other.
fn device_failure(error: &RuntimeError) -> Option<String> {
    let RuntimeError::Backend(error) = error else { return None };
    match error {
        BackendError::OutOfMemory { device, what, needed, available } => {
            let free = available.map_or(String::new(), |n| format!(", {n} are free"));
            Some(format!("{device} is out of memory: {what} needs {needed} bytes{free}"))
        }
        BackendError::Failed { device, call, cause } => {
            Some(format!("{device} failed: {call}: {cause}"))
        }
        BackendError::Unsupported { device, op, why } => {
            Some(format!("{device} cannot run {op}: {why}"))
        }
        _ => None,
    }
}
