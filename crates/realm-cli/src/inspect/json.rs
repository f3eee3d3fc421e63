//! The same as JSON.

use realm_gguf::{GgufFile, TensorInfo, Value};
use realm_runtime::memory::{DevicePlan, MemoryPlan};
use serde_json::{Map, Number, json};

use super::Prospect;
use crate::error::Result;

/// One object with `path`, `parts`, `version`, `bytes`, `metadata`, `tensors` and `memory`; where
/// there is no memory plan, `problem` says why.
pub(super) fn describe(
    file: &GgufFile,
    prospect: &Result<Prospect>,
    batch: u16,
) -> serde_json::Value {
    let metadata: Map<_, _> =
        file.metadata().iter().map(|(key, value)| (key.to_owned(), scalar(value))).collect();
    let mut object = json!({
        "path": file.path().display().to_string(),
        "parts": file.parts().map(|part| part.display().to_string()).collect::<Vec<_>>(),
        "version": file.version(),
        "bytes": file.file_bytes(),
        "metadata": metadata,
        "tensors": file.tensors().iter().map(tensor).collect::<Vec<_>>(),
    });
    match prospect {
        Ok(Prospect { device, placement }) => {
            let info = device.backend().info();
            object["memory"] = memory(placement.memory(), &info.name, batch);
        }
        Err(error) => object["problem"] = error.to_string().into(),
    }
    object
}

/// What a model takes on `device`, and where it is split on the CPU.
pub(crate) fn memory(plan: &MemoryPlan, device: &str, sequences: u16) -> serde_json::Value {
    json!({
        "device": device,
        "device_bytes": plan.devices.last().and_then(|part| part.device_bytes),
        "sequences": sequences,
        "context": plan.context,
        "model_context": plan.model_context,
        "kv_type": plan.kv.kv_type.to_string(),
        "weight_bytes": plan.weight_bytes(),
        "kv_bytes": plan.kv_bytes(),
        "workspace_bytes": plan.workspace_bytes(),
        "total_bytes": plan.total_bytes(),
        "devices": plan.devices.iter().map(part).collect::<Vec<_>>(),
    })
}

/// What a part of the model takes on its device.
fn part(part: &DevicePlan) -> serde_json::Value {
    json!({
        "device": part.device,
        "device_bytes": part.device_bytes,
        "first_layer": part.layers.start,
        "layers": part.layers.len(),
        "precision": part.precision.to_string(),
        "weight_bytes": part.weight_bytes,
        "kv_bytes": part.kv_bytes,
        "workspace_bytes": part.workspace_bytes,
        "total_bytes": part.total_bytes(),
    })
}

fn tensor(tensor: &TensorInfo) -> serde_json::Value {
    json!({
        "name": tensor.name(),
        "type": tensor.type_name(),
        "type_id": tensor.type_id(),
        "shape": tensor.shape(),
        "bytes": tensor.byte_range().len(),
        "part": tensor.part() + 1,
    })
}

/// A number, bool or text as such; a list, and a number that JSON cannot hold, as the text that
/// people get.
fn scalar(value: &Value) -> serde_json::Value {
    let number = |value: f64| Number::from_f64(value).map(serde_json::Value::Number);
    match value {
        Value::Bool(value) => (*value).into(),
        Value::String(text) => text.as_str().into(),
        Value::F32(value) => {
            // Through the shortest text that means the same f32: 0.00001, not 0.0000099999997.
            let short = value.to_string().parse().ok().and_then(number);
            short.unwrap_or_else(|| value.to_string().into())
        }
        Value::F64(value) => number(*value).unwrap_or_else(|| value.to_string().into()),
        other => match other.as_integer() {
            Some(value) => i64::try_from(value)
                .map(serde_json::Value::from)
                .or_else(|_| u64::try_from(value).map(serde_json::Value::from))
                .unwrap_or_else(|_| value.to_string().into()),
            None => other.to_string().into(),
        },
    }
}
