//! What `bench` prints.

use std::{fmt::Write, path::Path};

use realm_core::{Graph, backend::Precision, cost::Cost};
use realm_runtime::{Engine, memory::human};
use serde_json::{Value, json};

use super::{
    measure::{Measured, Spread},
    ops,
};
use crate::{console, stats};

/// What the machine can do at most.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ceilings {
    pub(super) bytes_per_second: f64,
    /// In the precision in effect.
    pub(super) ops_per_second: f64,
    /// In f32; `None` where it was not measured.
    pub(super) f32_ops_per_second: Option<f64>,
    /// The instruction whose peak `ops_per_second` is.
    pub(super) path: String,
}

impl Ceilings {
    /// `None` where one of them could not be measured.
    pub(super) fn new(bytes_per_second: f64, ops_per_second: f64, path: String) -> Option<Self> {
        let measured = |rate: f64| rate.is_finite() && rate > 0.0;
        (measured(bytes_per_second) && measured(ops_per_second)).then_some(Self {
            bytes_per_second,
            ops_per_second,
            f32_ops_per_second: None,
            path,
        })
    }

    /// Seconds that work in a node's precision takes at the limits; `None` where its peak was not
    /// measured.
    pub(super) fn seconds(&self, cost: Cost, precision: Precision) -> Option<f64> {
        let peak = match precision {
            Precision::Int8 => Some(self.ops_per_second),
            _ => self.f32_ops_per_second,
        };
        Some(cost.seconds(self.bytes_per_second, peak?))
    }

    /// The higher of two measurements: what else runs on the machine only ever lowers them.
    pub(super) fn best(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let (Some(one), Some(other)) = (&one, &other) else { return one.or(other) };
        Some(Self {
            bytes_per_second: one.bytes_per_second.max(other.bytes_per_second),
            ops_per_second: one.ops_per_second.max(other.ops_per_second),
            f32_ops_per_second: [one.f32_ops_per_second, other.f32_ops_per_second]
                .into_iter()
                .flatten()
                .reduce(f64::max),
            path: one.path.clone(),
        })
    }
}

/// What holds for all tests.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) model: String,
    /// What the file says it is called.
    pub(super) name: Option<String>,
    pub(super) device: String,
    pub(super) description: String,
    pub(super) threads: Option<usize>,
    /// The one in effect.
    pub(super) precision: Precision,
    pub(super) kv_type: String,
    invariant: bool,
    repetitions: u32,
    load_seconds: f64,
    /// How fast weights went to a device's memory, in bytes a second; `None` where none did.
    upload_rate: Option<f64>,
    pub(super) peak_rss_bytes: Option<u64>,
    pub(super) ceilings: Option<Ceilings>,
}

impl Setting {
    pub(super) fn new(model: &Path, engine: &Engine, repetitions: u32) -> Self {
        let info = engine.backend().info();
        Self {
            model: model.display().to_string(),
            name: None,
            device: info.name.clone(),
            description: info.description.clone(),
            threads: info.threads,
            precision: stats::in_effect(engine.graph(), engine.precision()),
            kv_type: engine.memory().kv.kv_type.to_string(),
            invariant: engine.invariant(),
            repetitions,
            load_seconds: engine.load_time().as_secs_f64(),
            upload_rate: engine.upload().map(|upload| upload.rate()),
            peak_rss_bytes: None,
            ceilings: None,
        }
    }

    /// A line about memory and loading.
    pub(super) fn summary(&self) -> String {
        let peak = self.peak_rss_bytes.map_or("unknown".into(), human);
        let upload = self.upload_rate.map(|rate| format!(" at {:.2} GB/s", rate / 1e9));
        let upload = upload.unwrap_or_default();
        format!("loaded in {:.2} s{upload}, peak memory {peak}", self.load_seconds)
    }
}

/// The most memory that this process has had since it started, or since the mark was reset.
pub(super) struct PeakMemory {
    known: bool,
}

impl PeakMemory {
    /// Forgets what was used until now.
    pub(super) fn reset() -> Self {
        // 5 resets the mark: `man 5 proc_pid_clear_refs`.
        Self { known: std::fs::write("/proc/self/clear_refs", "5").is_ok() }
    }

    /// Bytes; `None` where the system does not say.
    pub(super) fn bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok().filter(|_| self.known)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    }
}

/// The parts of bandwidth and peak that a test's median repetition reached.
pub(super) fn fractions(ceilings: &Ceilings, measured: &Measured) -> (f64, f64) {
    let seconds = measured.test.tokens() as f64 / measured.rates().median;
    let cost = measured.cost();
    (
        cost.bytes() as f64 / seconds / ceilings.bytes_per_second,
        cost.ops as f64 / seconds / ceilings.ops_per_second,
    )
}

/// A part as people read it.
pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// The table of all tests.
pub(super) fn table(setting: &Setting, results: &[Measured]) -> String {
    let names: Vec<String> = results.iter().map(|result| result.test.to_string()).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{:<width$} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
        "test", "tokens/s", "min", "max", "bandwidth", "peak"
    );
    for (name, result) in names.iter().zip(results) {
        let rates = result.rates();
        let (bandwidth, peak) =
            setting.ceilings.as_ref().map_or(("–".into(), "–".into()), |c| {
                let (bandwidth, peak) = fractions(c, result);
                (percent(bandwidth), percent(peak))
            });
        _ = writeln!(
            text,
            "{name:<width$} {:>10.2} {:>10.2} {:>10.2} {bandwidth:>10} {peak:>10}",
            rates.median, rates.min, rates.max
        );
    }
    let threads = setting.threads.map(|threads| format!(", {threads} threads"));
    let threads = threads.unwrap_or_default();
    _ = match &setting.ceilings {
        Some(ceilings) => {
            let Ceilings { bytes_per_second, ops_per_second, path, .. } = ceilings;
            let float =
                ceilings.f32_ops_per_second.filter(|_| setting.precision == Precision::Int8);
            let float = float.map(|peak| format!(", f32 {:.0} GOP/s", peak / 1e9));
            writeln!(
                text,
                "{}{threads}: reads {:.1} GB/s, {path} {:.0} GOP/s{}",
                setting.device,
                bytes_per_second / 1e9,
                ops_per_second / 1e9,
                float.unwrap_or_default()
            )
        }
        None => writeln!(text, "{}{threads}: its limits could not be measured", setting.device),
    };
    text
}

/// All tests as a JSON list.
pub(super) fn json(setting: &Setting, graph: &Graph, results: &[Measured]) -> String {
    let list: Vec<Value> = results.iter().map(|result| object(setting, graph, result)).collect();
    // Indented: a list that people read as well as programs.
    serde_json::to_string_pretty(&list).unwrap_or_default()
}

fn object(setting: &Setting, graph: &Graph, result: &Measured) -> Value {
    let rates = result.rates();
    let ceilings = setting.ceilings.as_ref();
    let parts = ceilings.map(|ceilings| fractions(ceilings, result));
    let spread = |it: Spread| json!({ "median": it.median, "min": it.min, "max": it.max });
    let mut object = json!({
        "test": result.test.to_string(),
        "tokens": result.test.tokens(),
        "tokens_per_second": spread(rates),
        "seconds": spread(Spread::of(result.seconds.clone())),
        "fraction_of_bandwidth": parts.map(|(bandwidth, _)| bandwidth),
        "fraction_of_peak": parts.map(|(_, peak)| peak),
        "threads": setting.threads,
        "device": setting.device,
        "device_description": setting.description,
        "model": console::one_line(&setting.model),
        "precision": setting.precision.to_string(),
        "kv_type": setting.kv_type,
        "invariant": setting.invariant,
        "repetitions": setting.repetitions,
        "read_bytes_per_second": ceilings.map(|ceilings| ceilings.bytes_per_second),
        "ops_per_second": ceilings.map(|ceilings| ceilings.ops_per_second),
        "f32_ops_per_second": ceilings.and_then(|ceilings| ceilings.f32_ops_per_second),
        "path": ceilings.map(|ceilings| ceilings.path.clone()),
        "peak_rss_bytes": setting.peak_rss_bytes,
        "load_seconds": setting.load_seconds,
        "upload_bytes_per_second": setting.upload_rate,
        "realm_version": env!("CARGO_PKG_VERSION"),
    });
    if result.node_seconds.iter().any(|&seconds| seconds > 0.0) {
        object["ops"] = ops::json(setting, graph, result);
    }
    object
}
