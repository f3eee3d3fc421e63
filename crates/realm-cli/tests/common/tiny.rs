//! A small Llama file whose text is known: a chain of tokens, each following from the one before.
//!
//! Attention and feed-forward parts have zero weights, so the embedding of a token reaches the
//! output matrix unchanged: token `chain[i]` is embedded as unit vector `i`, and only the row of
//! `chain[i + 1]` looks at it.

use std::{io, path::Path};

use realm_core::DType;
use realm_gguf::{GgufWriter, Strings, Value};

const HIDDEN: usize = 32;
const FEED_FORWARD: usize = 64;
/// Tokens: `<unk>`, `<s>`, `</s>`, the bytes, and [`A`], [`SPACE`] and a bare `a`.
pub(crate) const VOCABULARY: usize = 262;
/// Tokens that prompt and answer may have.
pub(crate) const CONTEXT: u32 = 64;
/// `<s>`.
pub(crate) const BOS: u32 = 1;
/// `</s>`.
pub(crate) const EOS: u32 = 2;
/// `▁a`: what the prompt `a` becomes, after `<s>`.
pub(crate) const A: u32 = 259;
/// `▁`.
pub(crate) const SPACE: u32 = 260;

/// The token of a byte.
pub(crate) fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

/// A file before it is written: everything may be changed to something wrong.
#[derive(Clone)]
pub(crate) struct Tiny {
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: Vec<(String, Vec<usize>)>,
    chain: Vec<u32>,
    /// The second token of the chain follows the last one.
    repeats: bool,
    /// Weights of the last norm.
    norm: f32,
}

/// A chat template that writes roles and contents and has the model answer.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}[{{ m['role'] }}: {{ m['content'] }}]\
     {% endfor %}{% if add_generation_prompt %} a{% endif %}";

impl Tiny {
    /// A file that answers the prompt `a` with the bytes of `text`, then ends.
    pub(crate) fn saying(text: &str) -> Self {
        let mut chain = vec![A];
        chain.extend(text.bytes().map(byte));
        chain.push(EOS);
        Self::of(chain)
    }

    /// A file that says the bytes of `text` over and over, and has room for `context` tokens.
    pub(crate) fn repeating(text: &str, context: u32) -> Self {
        let mut tiny = Self::saying(text);
        tiny.chain.pop();
        tiny.repeats = true;
        tiny.set("llama.context_length", context);
        tiny
    }

    /// Gives the file a chat template, after which it says what it says.
    pub(crate) fn chatting(mut self) -> Self {
        self.set("tokenizer.chat_template", TEMPLATE);
        self
    }

    /// The same, with so large a norm that the output matrix's input is infinite in f16, and in no other
    /// type.
    pub(crate) fn overflowing(mut self) -> Self {
        self.norm = 2e4;
        self
    }

    /// A file in which each token of `chain` follows the one before it; no token stands twice.
    pub(crate) fn of(chain: Vec<u32>) -> Self {
        assert!(chain.len() <= HIDDEN);
        let mut sorted = chain.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), chain.len(), "a token stands twice");
        let (metadata, tensors) = (Vec::new(), Vec::new());
        let mut tiny = Self { metadata, tensors, chain, repeats: false, norm: 1.0 };
        tiny.set("general.architecture", "llama");
        for (key, value) in [
            ("block_count", 1u32),
            ("context_length", CONTEXT),
            ("embedding_length", HIDDEN as u32),
            ("feed_forward_length", FEED_FORWARD as u32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            tiny.set(&format!("llama.{key}"), value);
        }
        tiny.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        tiny.set_vocabulary();
        for (name, shape) in [
            ("token_embd.weight", vec![HIDDEN, VOCABULARY]),
            ("output_norm.weight", vec![HIDDEN]),
            ("output.weight", vec![HIDDEN, VOCABULARY]),
            ("blk.0.attn_norm.weight", vec![HIDDEN]),
            ("blk.0.attn_q.weight", vec![HIDDEN, HIDDEN]),
            ("blk.0.attn_k.weight", vec![HIDDEN, HIDDEN / 2]),
            ("blk.0.attn_v.weight", vec![HIDDEN, HIDDEN / 2]),
            ("blk.0.attn_output.weight", vec![HIDDEN, HIDDEN]),
            ("blk.0.ffn_norm.weight", vec![HIDDEN]),
            ("blk.0.ffn_gate.weight", vec![HIDDEN, FEED_FORWARD]),
            ("blk.0.ffn_up.weight", vec![HIDDEN, FEED_FORWARD]),
            ("blk.0.ffn_down.weight", vec![FEED_FORWARD, HIDDEN]),
        ] {
            tiny.tensors.push((name.into(), shape));
        }
        tiny
    }

    fn set_vocabulary(&mut self) {
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
        tokens.extend(bytes);
        tokens.extend(["▁a", "▁", "a"].map(String::from));
        let mut types = vec![2i32, 3, 3];
        types.extend([6; 256]);
        types.extend([1; 3]);
        let mut scores = vec![0f32; 259];
        scores.extend([-1.0, -2.0, -3.0]);
        self.set("tokenizer.ggml.model", "llama");
        self.set("tokenizer.ggml.tokens", tokens.iter().collect::<Strings>());
        self.set("tokenizer.ggml.scores", scores);
        self.set("tokenizer.ggml.token_type", types);
        self.set("tokenizer.ggml.bos_token_id", BOS);
        self.set("tokenizer.ggml.eos_token_id", EOS);
    }

    /// Sets a metadata value, new or not.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let value = value.into();
        match self.metadata.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.into(), value)),
        }
        self
    }

    /// Takes a metadata value or a tensor out.
    pub(crate) fn remove(&mut self, name: &str) -> &mut Self {
        let before = self.metadata.len() + self.tensors.len();
        self.metadata.retain(|(key, _)| key != name);
        self.tensors.retain(|(tensor, _)| tensor != name);
        assert!(self.metadata.len() + self.tensors.len() < before, "{name} is not there");
        self
    }

    /// Gives a tensor another shape.
    pub(crate) fn reshape(&mut self, name: &str, shape: &[usize]) -> &mut Self {
        let tensor = self.tensors.iter_mut().find(|(tensor, _)| tensor == name);
        tensor.unwrap_or_else(|| panic!("{name} is not there")).1 = shape.to_vec();
        self
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        for (key, value) in &self.metadata {
            writer.set(key.clone(), value.clone()).unwrap();
        }
        for (name, shape) in &self.tensors {
            writer.tensor(name.clone(), shape, DType::F32).unwrap();
        }
        let bytes = writer.to_bytes(|plan, out| self.fill(plan.name(), plan.shape(), out));
        bytes.unwrap()
    }

    fn fill(&self, name: &str, shape: &[usize], out: &mut dyn io::Write) -> io::Result<()> {
        let mut values = vec![0f32; shape.iter().product()];
        // What follows is `chain[at + shift]`'s row with unit vector `at`.
        let mut units = |shift: usize, height: f32| {
            for (at, &token) in self.chain.iter().enumerate().skip(shift) {
                if let Some(value) = values.get_mut(token as usize * HIDDEN + at - shift) {
                    *value = height;
                }
            }
        };
        match name {
            "token_embd.weight" => units(0, 1.0),
            "output.weight" => {
                units(1, 10.0);
                let again = self.chain.get(1).filter(|_| self.repeats);
                let again = again.map(|&token| token as usize * HIDDEN + self.chain.len() - 1);
                if let Some(value) = again.and_then(|at| values.get_mut(at)) {
                    *value = 10.0;
                }
            }
            "output_norm.weight" => values.fill(self.norm),
            _ if name.ends_with("norm.weight") => values.fill(1.0),
            _ => {}
        }
        values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
    }

    /// Writes the file.
    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}
