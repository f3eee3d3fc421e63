//! A small file of any architecture in memory, whose settings and tensors a test may change.

use std::io::Write;

use realm_conformance::random::Random;
use realm_core::DType;
use realm_gguf::{GgufFile, GgufWriter, Value};
use realm_runtime::{Model, RuntimeError};

pub(crate) const VOCABULARY: usize = 61;
pub(crate) const LAYERS: usize = 7;
pub(crate) const HIDDEN: usize = 64;
pub(crate) const HEADS: usize = 4;
pub(crate) const HEAD_DIM: usize = 32;
const FEED_FORWARD: usize = 96;
const KV_HEADS: usize = 2;
pub(crate) const EXPERTS: usize = 6;
const EXPERT_FEED_FORWARD: usize = 32;

/// A tensor: name, shape with the contiguous dimension first, values.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    data: Vec<u8>,
}

/// The file.
pub(crate) struct Tiny {
    architecture: &'static str,
    settings: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

impl Tiny {
    /// A file with random weights, matrices of `dtype`.
    pub(crate) fn new(architecture: &'static str, seed: u64, dtype: DType) -> Self {
        Self::of_layers(architecture, seed, dtype, LAYERS)
    }

    /// The same with so many layers.
    pub(crate) fn of_layers(
        architecture: &'static str,
        seed: u64,
        dtype: DType,
        layers: usize,
    ) -> Self {
        let mut tiny = Self { architecture, settings: Vec::new(), tensors: Vec::new() };
        for (key, value) in [
            ("block_count", layers),
            ("context_length", 200),
            ("embedding_length", HIDDEN),
            ("feed_forward_length", FEED_FORWARD),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
            ("attention.key_length", HEAD_DIM),
            ("attention.value_length", HEAD_DIM),
        ] {
            tiny.set(key, value as u32);
        }
        if architecture == "qwen3moe" {
            tiny.set("expert_feed_forward_length", EXPERT_FEED_FORWARD as u32);
            tiny.set("expert_count", EXPERTS as u32).set("expert_used_count", 2u32);
        }
        let mut random = Random::new(seed);
        tiny.random(&mut random, "token_embd.weight", &[HIDDEN, VOCABULARY], dtype);
        for layer in 0..layers {
            for (part, shape) in parts(architecture) {
                let name = format!("blk.{layer}.{part}");
                tiny.random(&mut random, &name, &shape, dtype);
            }
        }
        tiny.random(&mut random, "output_norm.weight", &[HIDDEN], dtype);
        tiny
    }

    fn random(&mut self, random: &mut Random, name: &str, shape: &[usize], dtype: DType) {
        let (cols, rows) = (shape[0], shape[1..].iter().product());
        let (dtype, deviation) = match shape.len() {
            1 => (DType::F32, 1.0),
            _ if name.starts_with("token_embd") => (dtype, 0.3),
            _ if name.ends_with("ffn_gate_inp.weight") => (DType::F32, 1.5 / (cols as f32).sqrt()),
            _ => (dtype, 1.5 / (cols as f32).sqrt()),
        };
        let data = random.matrix(rows, cols, dtype, deviation);
        self.tensors.push(Tensor { name: name.into(), shape: shape.into(), dtype, data });
    }

    /// Changes a setting, under the architecture's name.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.set_general(&format!("{}.{key}", self.architecture), value)
    }

    /// Changes a setting of any file.
    pub(crate) fn set_general(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.into(), value.into()));
        self
    }

    /// Leaves a tensor out.
    pub(crate) fn without(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// Adds a tensor of numbers.
    pub(crate) fn vector(&mut self, name: &str, values: &[f32]) -> &mut Self {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (name, shape, dtype) = (name.into(), vec![values.len()], DType::F32);
        self.tensors.push(Tensor { name, shape, dtype, data });
        self
    }

    /// The file with random experts in place of each layer's feed-forward network.
    pub(crate) fn with_experts(mut self, seed: u64, dtype: DType) -> Self {
        self.set("expert_count", EXPERTS as u32).set("expert_used_count", 2u32);
        self.set("feed_forward_length", EXPERT_FEED_FORWARD as u32);
        let mut random = Random::new(seed).named("experts");
        for layer in 0..LAYERS {
            for part in ["gate", "up", "down"] {
                self.without(&format!("blk.{layer}.ffn_{part}.weight"));
            }
            for (part, shape) in expert_parts() {
                self.random(&mut random, &format!("blk.{layer}.{part}"), &shape, dtype);
            }
        }
        self
    }

    /// The same model as a Phi 3 file: in each layer Q, K and V in one tensor, gate and up in another.
    pub(crate) fn joined(mut self) -> Self {
        let renamed = |key: String| key.replacen(self.architecture, "phi3", 1);
        self.settings = self.settings.into_iter().map(|(key, v)| (renamed(key), v)).collect();
        self.architecture = "phi3";
        for layer in 0..LAYERS {
            self.join(layer, &["attn_q", "attn_k", "attn_v"], "attn_qkv");
            self.join(layer, &["ffn_gate", "ffn_up"], "ffn_up");
        }
        self
    }

    fn join(&mut self, layer: usize, parts: &[&str], whole: &str) {
        let mut joined: Option<Tensor> = None;
        for part in parts {
            let name = format!("blk.{layer}.{part}.weight");
            let at = self.tensors.iter().position(|tensor| tensor.name == name).unwrap();
            let part = self.tensors.remove(at);
            match &mut joined {
                None => joined = Some(part),
                Some(joined) => {
                    joined.shape[1] += part.shape[1];
                    joined.data.extend(part.data);
                }
            }
        }
        let joined = joined.unwrap();
        self.tensors.push(Tensor { name: format!("blk.{layer}.{whole}.weight"), ..joined });
    }

    /// Reads it.
    pub(crate) fn model(&self) -> Result<Model, RuntimeError> {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", self.architecture).unwrap();
        for (key, value) in &self.settings {
            writer.set(key, value.clone()).unwrap();
        }
        for tensor in &self.tensors {
            writer.tensor(&tensor.name, &tensor.shape, tensor.dtype).unwrap();
        }
        let bytes = writer.to_bytes(|plan, out: &mut dyn Write| {
            let tensor = self.tensors.iter().find(|tensor| tensor.name == plan.name());
            out.write_all(&tensor.unwrap().data)
        });
        Model::new(GgufFile::parse(bytes.unwrap()).unwrap())
    }
}

/// Names and shapes of a layer's tensors for a mixture of experts.
fn expert_parts() -> [(&'static str, Vec<usize>); 4] {
    [
        ("ffn_gate_inp.weight", vec![HIDDEN, EXPERTS]),
        ("ffn_gate_exps.weight", vec![HIDDEN, EXPERT_FEED_FORWARD, EXPERTS]),
        ("ffn_up_exps.weight", vec![HIDDEN, EXPERT_FEED_FORWARD, EXPERTS]),
        ("ffn_down_exps.weight", vec![EXPERT_FEED_FORWARD, HIDDEN, EXPERTS]),
    ]
}

/// Names and shapes of a layer's tensors.
fn parts(architecture: &str) -> Vec<(&'static str, Vec<usize>)> {
    let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut list = vec![
        ("attn_norm.weight", vec![HIDDEN]),
        ("attn_output.weight", vec![queries, HIDDEN]),
        ("ffn_norm.weight", vec![HIDDEN]),
    ];
    match architecture {
        "qwen3moe" => list.extend(expert_parts()),
        "phi3" => list.extend([
            ("ffn_down.weight", vec![FEED_FORWARD, HIDDEN]),
            ("attn_qkv.weight", vec![HIDDEN, queries + 2 * keys]),
            ("ffn_up.weight", vec![HIDDEN, 2 * FEED_FORWARD]),
        ]),
        _ => list.extend([
            ("ffn_down.weight", vec![FEED_FORWARD, HIDDEN]),
            ("ffn_gate.weight", vec![HIDDEN, FEED_FORWARD]),
            ("ffn_up.weight", vec![HIDDEN, FEED_FORWARD]),
        ]),
    }
    if architecture != "phi3" {
        list.extend([
            ("attn_q.weight", vec![HIDDEN, queries]),
            ("attn_k.weight", vec![HIDDEN, keys]),
            ("attn_v.weight", vec![HIDDEN, keys]),
        ]);
    }
    if architecture == "qwen2" {
        list.extend([
            ("attn_q.bias", vec![queries]),
            ("attn_k.bias", vec![keys]),
            ("attn_v.bias", vec![keys]),
        ]);
    }
    if ["qwen3", "qwen3moe", "gemma3"].contains(&architecture) {
        list.extend([
            ("attn_q_norm.weight", vec![HEAD_DIM]),
            ("attn_k_norm.weight", vec![HEAD_DIM]),
        ]);
    }
    if architecture.starts_with("gemma") {
        list.extend([
            ("post_attention_norm.weight", vec![HIDDEN]),
            ("post_ffw_norm.weight", vec![HIDDEN]),
        ]);
    }
    list
}
