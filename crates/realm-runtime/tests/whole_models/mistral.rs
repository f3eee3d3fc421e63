//! A GGUF file made from the safetensors of `models/mistral`, with the window that they were trained for.

use std::{collections::HashMap, fs, ops::Range, path::Path};

use libtest_mimic::Failed;
use realm_core::DType;
use realm_gguf::{GgufFile, GgufWriter};
use realm_runtime::Model;
use serde_json::Value;

use super::line;

/// The model under the architecture's name that is given.
pub(super) fn windowed(folder: &Path, architecture: &str) -> Result<Model, Failed> {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
    let bytes = fs::read(folder.join("model.safetensors"))?;
    let tensors = tensors(&bytes)?;
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", architecture).map_err(line)?;
    for (key, of) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        ("attention.sliding_window", "sliding_window"),
    ] {
        writer.set(format!("{architecture}.{key}"), integer(&config, of)? as u32).map_err(line)?;
    }
    for (key, value) in [
        ("attention.layer_norm_rms_epsilon", &config["rms_norm_eps"]),
        ("rope.freq_base", &config["rope_parameters"]["rope_theta"]),
    ] {
        let value = value.as_f64().ok_or_else(|| format!("no {key} in config.json"))?;
        writer.set(format!("{architecture}.{key}"), value as f32).map_err(line)?;
    }
    // GGUF's name of each tensor, and its rows as they go there.
    let mut data = HashMap::new();
    for (name, tensor) in &tensors {
        let to = renamed(name).ok_or_else(|| format!("{name} has no name in GGUF files"))?;
        let mut shape = tensor.shape.clone();
        shape.reverse();
        writer.tensor(&to, &shape, DType::F32).map_err(line)?;
        let values = &bytes[tensor.bytes.clone()];
        let rotates = to.ends_with("attn_q.weight") || to.ends_with("attn_k.weight");
        let head_dim = integer(&config, "head_dim")?;
        data.insert(
            to,
            if rotates { interleaved(values, shape[0], head_dim) } else { values.into() },
        );
    }
    let bytes = writer.to_bytes(|plan, out| out.write_all(&data[plan.name()])).map_err(line)?;
    Model::new(GgufFile::parse(bytes).map_err(line)?).map_err(line)
}

fn integer(config: &Value, key: &str) -> Result<usize, Failed> {
    let value = config[key].as_u64();
    Ok(value.ok_or_else(|| format!("no {key} in config.json"))? as usize)
}

struct Tensor {
    /// Rows first.
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The tensors of a safetensors file: 8 bytes with the length of a JSON header, the header, the data.
fn tensors(file: &[u8]) -> Result<Vec<(String, Tensor)>, Failed> {
    let (length, rest) = file.split_first_chunk().ok_or("the file is cut")?;
    let length = u64::from_le_bytes(*length) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&rest[..length])?;
    let integers = |value: &Value| -> Vec<usize> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|item| item.as_u64()).map(|item| item as usize).collect()
    };
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    let read = tensors.map(|(name, info)| {
        let offsets = integers(&info["data_offsets"]);
        let (&[start, end], Some("F32")) = (&offsets[..], info["dtype"].as_str()) else {
            return Err(format!("{name}: {info}").into());
        };
        let bytes = 8 + length + start..8 + length + end;
        Ok((name.clone(), Tensor { shape: integers(&info["shape"]), bytes }))
    });
    read.collect()
}

/// GGUF's name of a tensor.
fn renamed(name: &str) -> Option<String> {
    let whole = [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ];
    let parts = [
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    if let Some((_, to)) = whole.iter().find(|(from, _)| *from == name) {
        return Some((*to).into());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let part = part.strip_suffix(".weight")?;
    let (_, to) = parts.iter().find(|(from, _)| *from == part)?;
    Some(format!("blk.{layer}.{to}.weight"))
}

/// The rows of a projection whose heads rotate in halves, in the order in which neighbours rotate.
fn interleaved(values: &[u8], cols: usize, head_dim: usize) -> Vec<u8> {
    let rows: Vec<&[u8]> = values.chunks_exact(4 * cols).collect();
    let heads = rows.chunks_exact(head_dim);
    let pairs = heads.flat_map(|head| {
        let (first, second) = head.split_at(head_dim / 2);
        first.iter().zip(second).flat_map(|(first, second)| [*first, *second])
    });
    pairs.collect::<Vec<_>>().concat()
}
