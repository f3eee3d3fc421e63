//! The findings as JSON.

use realm_runtime::device;
use serde_json::{Value, json};

use super::{
    Findings, Verdict,
    model::{FileFacts, Placed, Subject},
};
use crate::{devices, inspect};

/// One object; what there is nothing to say about is null.
pub(super) fn describe(findings: &Findings) -> Value {
    let Findings { reports, subject, environment, verdict, asked: _ } = findings;
    let variables = environment
        .iter()
        .map(|it| json!({ "name": it.name, "value": it.value, "known": it.known }));
    let (runs, used) = match verdict {
        Verdict::Runs { devices, .. } => (true, devices.clone()),
        Verdict::Nothing { .. } => (false, Vec::new()),
    };
    json!({
        "realm_version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "features": device::features(),
        "granted_threads": std::thread::available_parallelism().map_or(1, usize::from),
        "devices": reports.iter().map(devices::object).collect::<Vec<_>>(),
        "model": model(subject),
        "environment": variables.collect::<Vec<_>>(),
        "runs": runs,
        "used_devices": used,
        "verdict": verdict.said(),
    })
}

fn model(subject: &Subject) -> Value {
    let mut object = json!({
        "path": subject.path.display().to_string(),
        "built_in": subject.built_in,
        "problem": subject.problem,
        "layers": subject.layers,
        "notes": subject.notes,
        "file": subject.file.as_ref().map(file),
        "memory": null,
        "bytes_per_token": null,
        "read_bytes_per_second": null,
        "most_tokens_per_second": null,
    });
    if let Some(placed) = &subject.placed {
        let Placed { memory, bytes_per_token, read_bytes_per_second } = placed;
        let device = memory.devices.last().map_or("", |part| &part.device);
        object["memory"] = inspect::json::memory(memory, device, 1);
        object["bytes_per_token"] = json!(bytes_per_token);
        object["read_bytes_per_second"] = json!(read_bytes_per_second);
        object["most_tokens_per_second"] = json!(placed.most_tokens_per_second());
    }
    object
}

fn file(file: &FileFacts) -> Value {
    let types = file.types.iter();
    let types = types.map(|(name, part)| json!({ "type": name, "fraction_of_bytes": part }));
    json!({
        "architecture": file.architecture,
        "name": file.name,
        "bytes": file.bytes,
        "weights": file.weights,
        "types": types.collect::<Vec<_>>(),
        "tokenizer": file.tokenizer.as_ref().ok().map(|it| &it.kind),
        "tokenizer_tokens": file.tokenizer.as_ref().ok().map(|it| it.tokens),
        "tokenizer_problem": file.tokenizer.as_ref().err(),
        "chat_template": file.chat_template.as_ref().ok(),
        "chat_template_problem": file.chat_template.as_ref().err(),
    })
}
