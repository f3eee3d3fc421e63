//! `realm devices`: every device, what it can do, and why others cannot be used.

use realm_core::backend::DeviceInfo;
use realm_runtime::{
    device::{self, Report},
    memory::human,
};
use serde_json::{Value, json};

use crate::{args::DeviceArgs, console, console::Output, error::Result, precision};

/// Options of `realm devices`.
#[derive(Debug, clap::Args)]
pub(crate) struct DevicesArgs {
    /// Print a JSON object instead
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Lists the devices.
pub(crate) fn run(args: &DevicesArgs) -> Result<()> {
    args.device.check()?;
    let reports = device::list(&args.device.options());
    let chosen = device::open(&args.device.options());
    let chosen = chosen.as_ref().map(|device| device.backend().info());
    if args.json {
        let mut out = Output::new();
        out.line(json(&args.device.device, &reports, chosen.map_err(ToString::to_string)))?;
        return out.flush();
    }
    let width = reports.iter().map(|report| report.name.len()).max().unwrap_or(0);
    let mut out = Output::new();
    for report in &reports {
        let info = chosen.as_ref().ok().filter(|info| info.name == report.name);
        for line in describe(report, info.copied(), width) {
            out.line(console::one_line(&line))?;
        }
    }
    out.line("")?;
    precision::legend().iter().try_for_each(|line| out.line(line))?;
    let wanted = &args.device.device;
    match chosen {
        Ok(info) => out.line(format_args!("\n--device {wanted} takes {}", info.name))?,
        Err(error) => {
            let error = console::one_line(&error.to_string());
            out.line(format_args!("\n--device {wanted} cannot be had: {error}"))?;
        }
    }
    out.flush()
}

/// All devices as JSON, and which of them `wanted` takes.
fn json(wanted: &str, reports: &[Report], chosen: Result<&DeviceInfo, String>) -> Value {
    json!({
        "wanted": wanted,
        "chosen": chosen.as_ref().ok().map(|info| &info.name),
        "problem": chosen.as_ref().err(),
        "auto_precision": chosen.as_ref().ok().map(|info| info.auto_precision.to_string()),
        "devices": reports.iter().map(object).collect::<Vec<_>>(),
    })
}

/// A device as JSON.
pub(crate) fn object(report: &Report) -> Value {
    let Report { name, description, memory, obstacle } = report;
    json!({
        "name": name,
        "description": description,
        "memory_bytes": memory,
        "usable": obstacle.is_none(),
        "obstacle": obstacle,
    })
}

/// A device's lines: what it is and can do, or why it cannot be used. `info` is there for the one
/// that is open.
fn describe(report: &Report, info: Option<&DeviceInfo>, width: usize) -> Vec<String> {
    let Report { name, description, memory, obstacle } = report;
    let mut first = format!("{name:width$}  ");
    let indent = " ".repeat(first.len());
    if !description.is_empty() {
        first += description;
    }
    if let Some(bytes) = memory {
        first += &format!(", {} of memory", human(*bytes));
    }
    let mut lines = vec![first];
    if let Some(obstacle) = obstacle {
        let why = format!("cannot be used: {obstacle}");
        if description.is_empty() {
            lines[0] += &why;
        } else {
            lines.push(indent.clone() + &why);
        }
    }
    if let Some(info) = info {
        lines.push(format!(
            "{indent}precision f32, f16, bf16, int8 (auto: {}); KV cache f32, f16, bf16, q8_0 (auto: {})",
            info.auto_precision,
            "f32 with f32, else f16"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_used_says_why() {
        let report = |description: &str, obstacle: Option<&str>| Report {
            name: "cuda:0".into(),
            description: description.into(),
            memory: Some(2_000_000_000),
            obstacle: obstacle.map(String::from),
        };
        let missing = Report { memory: None, ..report("", Some("no driver")) };
        assert_eq!(describe(&missing, None, 6), ["cuda:0  cannot be used: no driver"]);
        assert_eq!(
            describe(&report("H100", Some("no kernels")), None, 7),
            ["cuda:0   H100, 2.00 GB of memory", "         cannot be used: no kernels"]
        );
        assert_eq!(describe(&report("H100", None), None, 6), ["cuda:0  H100, 2.00 GB of memory"]);
    }
}
