//! Figures of a run, for stderr.

use std::{fmt, time::Duration};

use realm_core::{Graph, backend::Precision};
use realm_runtime::{Engine, EngineOptions, memory::human};

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

/// How a model was put on its device: what was chosen, and why.
pub(crate) fn setting(engine: &Engine, options: &EngineOptions) -> [String; 4] {
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
    [
        format!("device     {}: {}{threads}", info.name, info.description),
        format!("precision  {}{auto}{effect}, KV cache {}", engine.precision(), memory.kv.kv_type),
        format!("context    {} tokens ({why})", memory.context),
        format!(
            "memory     {}: weights {}, KV cache {}, work {}",
            human(memory.total_bytes()),
            human(memory.weight_bytes),
            human(memory.kv_bytes),
            human(memory.workspace_bytes)
        ),
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
