//! The findings for people: rows of a name and what there is to say, eighty columns wide.

use realm_runtime::{
    device::{self, Report},
    memory::{DevicePlan, human},
    models,
};

use super::{
    Findings,
    model::{FileFacts, Placed},
};
use crate::{console::one_line, inspect::count, precision};

/// Columns of a terminal.
const WIDTH: usize = 80;
/// Columns of a row's name.
const NAME: usize = 12;

/// The rows.
struct Rows(String);

impl Rows {
    /// A row; lines that are too long go on under their beginning.
    fn row(&mut self, name: &str, text: &str) {
        let mut name = name;
        for line in wrap(&one_line(text), WIDTH - NAME) {
            self.0 += format!("{name:<NAME$}{line}").trim_end();
            self.0.push('\n');
            name = "";
        }
    }

    fn gap(&mut self) {
        self.0.push('\n');
    }
}

/// Lines of at most `width` characters, broken at spaces; a word that is longer has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        let line = lines.last_mut().filter(|_| used == 0 || used + 1 + length <= width);
        match line {
            Some(line) => {
                if used > 0 {
                    line.push(' ');
                    used += 1;
                }
                line.push_str(word);
                used += length;
            }
            None => {
                lines.push(word.to_owned());
                used = length;
            }
        }
    }
    lines
}

/// All that was found; `measured`: the memory's speed was asked for.
pub(super) fn describe(findings: &Findings, measured: bool) -> String {
    let mut rows = Rows(String::new());
    let features = device::features();
    let features = match features[..] {
        [] => "without a GPU backend".into(),
        _ => format!("with {}", features.join(", ")),
    };
    let (version, os, arch) =
        (env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    rows.row("realm", &format!("{version} for {os} on {arch}, built {features}"));
    if findings.subject.built_in {
        let names: Vec<&str> = models::names().collect();
        rows.row("models", &format!("architectures: {}", names.join(", ")));
    }
    rows.gap();
    for report in &findings.reports {
        rows.row(&report.name, &device_text(report));
    }
    rows.gap();
    model(&mut rows, findings, measured);
    rows.gap();
    rows.row("environment", &environment(findings));
    rows.row("verdict", &findings.verdict.said());
    rows.0
}

/// What a device is, how much memory it has, and why it cannot be used.
fn device_text(report: &Report) -> String {
    let mut parts = Vec::new();
    if !report.description.is_empty() {
        parts.push(report.description.clone());
    }
    if report.name == "cpu" {
        let granted = std::thread::available_parallelism().map_or(1, usize::from);
        if !report.description.ends_with(&format!(" {granted} threads")) {
            parts.push(format!("the system grants {granted}"));
        }
    }
    let free = if report.name == "cpu" { "free for programs" } else { "of memory" };
    parts.extend(report.memory.map(|bytes| format!("{} {free}", human(bytes))));
    let what = parts.join("; ");
    match &report.obstacle {
        Some(obstacle) if what.is_empty() => format!("cannot be used: {obstacle}"),
        Some(obstacle) => format!("{what}; cannot be used: {obstacle}"),
        None => what,
    }
}

fn model(rows: &mut Rows, findings: &Findings, measured: bool) {
    let subject = &findings.subject;
    let path = subject.path.display();
    let Some(file) = &subject.file else {
        rows.row("model", &format!("{path}: cannot be read"));
        return;
    };
    let unnamed = if subject.built_in { " (no -m)" } else { "" };
    rows.row("model", &format!("{path}{unnamed}: {}", file_text(file)));
    let architecture = file.architecture.as_deref().unwrap_or("not named");
    let known = match subject.layers {
        Some(layers) => format!("supported, {}", layers_said(layers)),
        None => "cannot be run".into(),
    };
    rows.row("", &format!("architecture {architecture}: {known}"));
    rows.row("text", &text_text(file));
    if let Some(placed) = &subject.placed {
        for part in &placed.memory.devices {
            rows.row("memory", &memory(part, placed, subject.layers.unwrap_or(0)));
        }
        rows.row("precision", &precisions(placed, findings));
        rows.row("speed", &speed(placed, measured));
    }
}

fn layers_said(layers: usize) -> String {
    format!("{layers} layer{}", if layers == 1 { "" } else { "s" })
}

fn file_text(file: &FileFacts) -> String {
    let name = file.name.as_deref().map(|name| format!("{name:?}, ")).unwrap_or_default();
    let types = file.types.iter().filter(|(_, part)| *part >= 0.005).take(3);
    let types: Vec<String> =
        types.map(|(name, part)| format!("{name} {:.0} %", part * 100.0)).collect();
    format!("{name}{} weights in {} ({})", count(file.weights), human(file.bytes), types.join(", "))
}

fn text_text(file: &FileFacts) -> String {
    let tokenizer = match &file.tokenizer {
        Ok(facts) => format!("tokenizer {} with {} tokens", facts.kind, facts.tokens),
        Err(problem) => format!("no tokenizer that can be used, only token ids: {problem}"),
    };
    let template = match &file.chat_template {
        Ok(true) => "has a chat template".to_owned(),
        Ok(false) => "no chat template: `realm chat` needs --chat-template FILE".into(),
        Err(problem) => format!("its chat template cannot be used: {problem}"),
    };
    format!("{tokenizer}; {template}")
}

fn memory(part: &DevicePlan, placed: &Placed, layers: usize) -> String {
    let plan = &placed.memory;
    let which = match &part.layers {
        all if all.len() == layers && layers != 1 => format!("all {layers} layers"),
        all if all.len() == layers => "its one layer".into(),
        some => format!("layers {} to {} of {layers}", some.start, some.end.saturating_sub(1)),
    };
    let free = part.device_bytes.map(|bytes| format!(" of {} free", human(bytes)));
    format!(
        "{} takes {which}: {}{}, of which weights {}, KV cache {} ({} tokens, {}), work {}",
        part.device,
        human(part.total_bytes()),
        free.unwrap_or_default(),
        human(part.weight_bytes),
        human(part.kv_bytes),
        plan.context,
        plan.kv.kv_type,
        human(part.workspace_bytes)
    )
}

/// What products are computed in and what keys and values are kept in.
fn precisions(placed: &Placed, findings: &Findings) -> String {
    let (asked, kv_asked) = findings.asked;
    let mut all: Vec<String> = Vec::new();
    for part in &placed.memory.devices {
        let several = placed.memory.devices.len() > 1;
        let on = if several { format!("on {} ", part.device) } else { String::new() };
        all.push(format!("products {on}{}", precision::precision_said(part.precision, asked)));
    }
    all.push(format!("KV cache {}", precision::kv_said(placed.memory.kv.kv_type, kv_asked)));
    all.join("; ")
}

fn speed(placed: &Placed, measured: bool) -> String {
    let bytes = format!("each generated token reads {}", human(placed.bytes_per_token));
    match (placed.read_bytes_per_second, placed.most_tokens_per_second()) {
        (Some(rate), Some(most)) => {
            let rate = rate / 1e9;
            format!("{bytes}; at {rate:.1} GB/s, as measured, at most {most:.1} tokens/s")
        }
        _ if measured => format!("{bytes}; this device's memory speed could not be measured"),
        _ => format!("{bytes}; --measure says how many a second that allows"),
    }
}

fn environment(findings: &Findings) -> String {
    let one = |it: &super::Variable| {
        let shown: String = it.value.chars().take(60).collect();
        let unknown = if it.known { "" } else { " (not a setting of realm: misspelt?)" };
        format!("{}={shown}{unknown}", it.name)
    };
    let all: Vec<String> = findings.environment.iter().map(one).collect();
    if all.is_empty() { "no settings of realm".into() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("one twothree", 7), ["one", "twothree"]);
        assert_eq!(wrap("a-very-long-word b", 4), ["a-very-long-word", "b"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn a_device_tells_its_obstacle() {
        let report = |description: &str, obstacle: Option<&str>| Report {
            name: "cuda:0".into(),
            description: description.into(),
            memory: None,
            obstacle: obstacle.map(String::from),
        };
        assert_eq!(device_text(&report("", Some("no driver"))), "cannot be used: no driver");
        assert_eq!(device_text(&report("H100", Some("too old"))), "H100; cannot be used: too old");
        assert_eq!(device_text(&report("H100", None)), "H100");
    }
}
