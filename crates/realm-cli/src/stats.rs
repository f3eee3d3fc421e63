//! Figures of a run, for stderr.

use std::{fmt, time::Duration};

use realm_core::{Graph, backend::Precision};
use realm_runtime::{
    Engine, EngineOptions,
    memory::{DevicePlan, MemoryPlan, human},
};

/// A number of tokens and the time they took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Speed {
    /// Tokens in all.
    pub(crate) tokens: usize,
    /// Those among them that the time is for.
    pub(crate) timed: usize,
    /// The time.
    pub(crate) time: Duration,
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tokens == 1 { "" } else { "s" };
        write!(f, "{} token{s}", self.tokens)?;
        let seconds = self.time.as_secs_f64();
        if self.timed > 0 && seconds > 0.0 {
            let rate = self.timed as f64 / seconds;
            write!(f, ", {rate:.1} tokens/s ({})", self::seconds(self.time))?;
        }
        Ok(())
    }
}

/// A time as people read it.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        short @ ..1.0 => format!("{:.1} ms", short * 1e3),
        long => format!("{long:.2} s"),
    }
}

/// The precision that a graph's products come to: f32 where int8 finds no quantized weight. Files
/// of both kinds count as int8.
pub(crate) fn in_effect(graph: &Graph, precision: Precision) -> Precision {
    let floats = || graph.weights().iter().all(|weight| weight.dtype.is_float());
    if precision == Precision::Int8 && floats() { Precision::F32 } else { precision }
}

/// Whether a plan is one of a device's own memory: then it is said before the model is loaded.
pub(crate) fn uploads(plan: &MemoryPlan) -> bool {
    plan.devices.iter().any(DevicePlan::uploads)
}

/// What a model takes, a line a device.
pub(crate) fn memory(plan: &MemoryPlan) -> Vec<String> {
    let several = plan.devices.len() > 1;
    let line = |device: &DevicePlan| {
        let of = match &device.layers {
            layers if several => format!(" on {} (layers from {})", device.device, layers.start),
            _ if device.uploads() => format!(" on {}", device.device),
            _ => String::new(),
        };
        let there = device.device_bytes.filter(|_| device.uploads());
        let there = there.map(|bytes| format!("; {} are free", human(bytes))).unwrap_or_default();
        format!(
            "memory     {}{of}: weights {}, KV cache {}, work {}{there}",
            human(device.total_bytes()),
            human(device.weight_bytes),
            human(device.kv_bytes),
            human(device.workspace_bytes)
        )
    };
    plan.devices.iter().map(line).collect()
}

/// The precision of a model on several devices, where they chose their own.
fn precisions(plan: &MemoryPlan) -> Option<String> {
    let first = plan.devices.first()?;
    let several = plan.devices.iter().any(|device| device.precision != first.precision);
    let said = plan.devices.iter().map(|part| format!("{} on {}", part.precision, part.device));
    several.then(|| said.collect::<Vec<_>>().join(", "))
}

/// How long loading took, and how fast weights went to a device's memory.
pub(crate) fn loading(engine: &Engine) -> String {
    let time = seconds(engine.load_time());
    let upload = engine.upload().map(|upload| {
        format!(", {} uploaded at {:.2} GB/s", human(upload.bytes), upload.rate() / 1e9)
    });
    format!("in {time}{}", upload.unwrap_or_default())
}

/// How a model was put on its device: what was chosen, and why. What it takes was said before it was
/// loaded where it has memory of its own.
pub(crate) fn setting(engine: &Engine, options: &EngineOptions) -> Vec<String> {
    let mut lines: Vec<String> = choices(engine, options).into();
    if !uploads(engine.memory()) {
        lines.extend(memory(engine.memory()));
    }
    lines
}

/// Device, precision and context.
pub(crate) fn choices(engine: &Engine, options: &EngineOptions) -> [String; 3] {
    let info = engine.backend().info();
    let threads = info.threads.map(|threads| format!(", {threads} threads")).unwrap_or_default();
    let memory = engine.memory();
    let why = match options.context {
        Some(_) => "--ctx".to_owned(),
        None if memory.context == memory.model_context => "the model's".into(),
        None => format!("what fits; the model's is {}", memory.model_context),
    };
    let auto = if options.precision == Precision::Auto { " (auto)" } else { "" };
    let effect = if in_effect(engine.graph(), engine.precision()) == engine.precision() {
        ""
    } else {
        ", in effect f32 as no weight is quantized"
    };
    let batch = if engine.invariant() { "" } else { "; by the batch (--invariant false)" };
    let precision = precisions(memory).unwrap_or_else(|| engine.precision().to_string());
    [
        format!("device     {}: {}{threads}", info.name, info.description),
        format!("precision  {precision}{auto}{effect}, KV cache {}{batch}", memory.kv.kv_type),
        format!("context    {} tokens ({why})", memory.context),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_said_where_there_are_any() {
        let speed = |tokens, timed, ms| {
            Speed { tokens, timed, time: Duration::from_millis(ms) }.to_string()
        };
        assert_eq!(speed(12, 12, 1500), "12 tokens, 8.0 tokens/s (1.50 s)");
        assert_eq!(speed(1, 0, 0), "1 token");
    }
}
