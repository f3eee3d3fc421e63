//! Which type each tensor of a file gets: the choices that `llama-quantize` of llama.cpp makes for a
//! file type (`llama_tensor_get_type_impl` in `src/llama-quant.cpp`), for the Llama architecture,
//! without an importance matrix.

use realm_core::DType;

use super::shape::{Part, Shape};

/// What a file is quantized to: a base type and how tensors depart from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileType {
    /// As `--type` takes it.
    pub(crate) name: &'static str,
    /// The type of most matrices.
    pub(crate) base: DType,
    /// `general.file_type`; `None` where llama.cpp has no number for it.
    pub(crate) id: Option<u32>,
    rule: Rule,
}

/// How tensors depart from the base type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Not at all.
    Pure,
    /// The output matrix alone is finer.
    Plain,
    Q2K,
    Q2KS,
    Q3KM,
    Q3KL,
    Q4KS,
    /// Q4_K_M and Q5_K_M: half of the value and down projections are Q6_K.
    Medium,
    Iq4,
}

const fn row(name: &'static str, base: DType, id: u32, rule: Rule) -> FileType {
    FileType { name, base, id: Some(id), rule }
}

/// Every file type. The numbers are llama.cpp's `llama_ftype`.
pub(crate) const FILE_TYPES: &[FileType] = &[
    row("f32", DType::F32, 0, Rule::Pure),
    row("f16", DType::F16, 1, Rule::Pure),
    row("bf16", DType::BF16, 32, Rule::Pure),
    row("q4_0", DType::Q4_0, 2, Rule::Plain),
    row("q4_1", DType::Q4_1, 3, Rule::Plain),
    row("q5_0", DType::Q5_0, 8, Rule::Plain),
    row("q5_1", DType::Q5_1, 9, Rule::Plain),
    row("q8_0", DType::Q8_0, 7, Rule::Plain),
    row("q2_k", DType::Q2_K, 10, Rule::Q2K),
    row("q2_k_s", DType::Q2_K, 21, Rule::Q2KS),
    row("q3_k", DType::Q3_K, 11, Rule::Pure),
    row("q3_k_s", DType::Q3_K, 11, Rule::Plain),
    row("q3_k_m", DType::Q3_K, 12, Rule::Q3KM),
    row("q3_k_l", DType::Q3_K, 13, Rule::Q3KL),
    row("q4_k", DType::Q4_K, 14, Rule::Pure),
    row("q4_k_s", DType::Q4_K, 14, Rule::Q4KS),
    row("q4_k_m", DType::Q4_K, 15, Rule::Medium),
    row("q5_k", DType::Q5_K, 16, Rule::Pure),
    row("q5_k_s", DType::Q5_K, 16, Rule::Plain),
    row("q5_k_m", DType::Q5_K, 17, Rule::Medium),
    row("q6_k", DType::Q6_K, 18, Rule::Plain),
    FileType { name: "q8_k", base: DType::Q8_K, id: None, rule: Rule::Pure },
    row("iq4_nl", DType::IQ4_NL, 25, Rule::Iq4),
    row("iq4_xs", DType::IQ4_XS, 30, Rule::Iq4),
];

impl FileType {
    /// The file type of that name, in upper or lower case.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        FILE_TYPES.iter().copied().find(|known| known.name.eq_ignore_ascii_case(name))
    }

    /// Every matrix in the base type.
    pub(crate) fn pure(self) -> Self {
        Self { rule: Rule::Pure, ..self }
    }

    /// The type of a tensor with rows of `cols` weights.
    pub(crate) fn tensor(&self, shape: &Shape, part: Part, layer: usize, cols: usize) -> DType {
        let wanted = match part {
            Part::Vector => return DType::F32,
            _ if self.rule == Rule::Pure => self.base,
            Part::Output => self.output(cols),
            Part::Embedding if shape.tied => self.output(cols),
            Part::AttentionValue => self.attention_value(shape, layer),
            Part::FeedForwardDown => self.feed_forward_down(shape, layer),
            Part::AttentionOutput => match self.rule {
                Rule::Q2K => DType::Q3_K,
                Rule::Q3KM => DType::Q4_K,
                Rule::Q3KL => DType::Q5_K,
                _ => self.base,
            },
            _ => self.base,
        };
        fitting(wanted, cols)
    }

    /// The output matrix, or the embedding table that serves as one.
    fn output(&self, cols: usize) -> DType {
        if self.base == DType::Q8_0 || !cols.is_multiple_of(self.base.block_len()) {
            DType::Q8_0
        } else {
            DType::Q6_K
        }
    }

    fn attention_value(&self, shape: &Shape, layer: usize) -> DType {
        let grouped = shape.heads / shape.kv_heads >= 4;
        let dtype = match self.rule {
            Rule::Q2K if !grouped => DType::Q3_K,
            Rule::Q2K | Rule::Q2KS if grouped => DType::Q4_K,
            Rule::Q3KM if layer >= 2 => DType::Q4_K,
            Rule::Q3KM | Rule::Q3KL => DType::Q5_K,
            Rule::Q4KS if layer < 4 => DType::Q5_K,
            Rule::Medium if more_bits(layer, shape.layers) => DType::Q6_K,
            Rule::Iq4 if grouped => DType::Q5_K,
            _ => self.base,
        };
        // Llama 70B: eight heads share each value, so finer ones cost little.
        let is_70b = shape.layers == 80 && shape.heads != shape.kv_heads;
        match dtype {
            DType::Q3_K | DType::Q4_K if is_70b => DType::Q5_K,
            dtype => dtype,
        }
    }

    fn feed_forward_down(&self, shape: &Shape, layer: usize) -> DType {
        let (eighth, sixteenth) = (shape.layers / 8, shape.layers / 16);
        match self.rule {
            Rule::Q2K => DType::Q3_K,
            Rule::Q2KS if layer < eighth => DType::Q4_K,
            Rule::Q3KM if layer >= sixteenth => DType::Q4_K,
            Rule::Q3KM | Rule::Q3KL => DType::Q5_K,
            Rule::Q4KS | Rule::Iq4 if layer < eighth => DType::Q5_K,
            Rule::Medium if more_bits(layer, shape.layers) => DType::Q6_K,
            _ => self.base,
        }
    }
}

/// The layers whose sensitive tensors get more bits: the first and last eighth, and every third.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type, or what stands in for it where rows are no whole blocks.
fn fitting(dtype: DType, cols: usize) -> DType {
    let fits = |dtype: DType| cols.is_multiple_of(dtype.block_len());
    if fits(dtype) {
        return dtype;
    }
    let smaller = match dtype {
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::IQ4_XS => DType::IQ4_NL,
        _ => DType::Q8_0,
    };
    if fits(smaller) { smaller } else { DType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::shape::SHAPES;

    fn shape(name: &str) -> Shape {
        *SHAPES.iter().find(|shape| shape.name == name).unwrap()
    }

    fn types(file: &str, shape: &Shape, part: Part) -> Vec<DType> {
        let file = FileType::from_name(file).unwrap();
        (0..shape.layers).map(|layer| file.tensor(shape, part, layer, 4096)).collect()
    }

    #[test]
    fn every_type_has_a_name() {
        for dtype in DType::ALL {
            let file = FileType::from_name(dtype.name()).unwrap();
            assert_eq!(file.base, *dtype);
        }
        assert_eq!(FileType::from_name("Q4_K_M").unwrap().id, Some(15));
        assert!(FileType::from_name("q9").is_none());
    }

    #[test]
    fn half_of_the_sensitive_tensors_get_more_bits() {
        let tinyllama = shape("tinyllama-1.1b");
        for (file, base) in [("q4_k_m", DType::Q4_K), ("q5_k_m", DType::Q5_K)] {
            for part in [Part::AttentionValue, Part::FeedForwardDown] {
                let types = types(file, &tinyllama, part);
                let finer = [0, 1, 4, 7, 10, 13, 16, 19, 20, 21];
                let expected: Vec<DType> = (0..22)
                    .map(|layer| if finer.contains(&layer) { DType::Q6_K } else { base })
                    .collect();
                assert_eq!(types, expected, "{file} {part:?}");
            }
        }
    }

    #[test]
    fn seventy_billion_weights_have_finer_values() {
        let large = shape("llama-3.1-70b");
        let values = types("q4_k_m", &large, Part::AttentionValue);
        assert!(values.iter().all(|dtype| matches!(dtype, DType::Q5_K | DType::Q6_K)));
        let down = types("q4_k_m", &large, Part::FeedForwardDown);
        assert!(down.contains(&DType::Q4_K) && down.contains(&DType::Q6_K));
        assert!(types("q4_k", &large, Part::AttentionValue).iter().all(|d| *d == DType::Q4_K));
    }

    #[test]
    fn shared_tables_take_the_type_of_the_output() {
        let (tied, untied) = (shape("llama-3.2-1b"), shape("llama-3.1-8b"));
        let file = FileType::from_name("q4_k_m").unwrap();
        assert_eq!(file.tensor(&tied, Part::Embedding, 0, 2048), DType::Q6_K);
        assert_eq!(file.tensor(&untied, Part::Embedding, 0, 4096), DType::Q4_K);
        assert_eq!(file.tensor(&untied, Part::Output, 0, 4096), DType::Q6_K);
        assert_eq!(file.pure().tensor(&untied, Part::Output, 0, 4096), DType::Q4_K);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_fall_back() {
        let shape = shape("tiny");
        let choose = |file: &str, part, cols| {
            FileType::from_name(file).unwrap().tensor(&shape, part, 0, cols)
        };
        let gate = Part::FeedForwardGate;
        assert_eq!(choose("q4_k_m", gate, 96), DType::Q5_0);
        assert_eq!(choose("q5_k_m", gate, 96), DType::Q5_1);
        assert_eq!(choose("q3_k_m", gate, 96), DType::Q4_0);
        assert_eq!(choose("q6_k", gate, 96), DType::Q8_0);
        assert_eq!(choose("iq4_xs", gate, 96), DType::IQ4_NL);
        assert_eq!(choose("q4_k_m", Part::Output, 96), DType::Q8_0);
        assert_eq!(choose("q4_0", Part::Output, 96), DType::Q8_0);
        assert_eq!(choose("q4_0", gate, 33), DType::F16);
        assert_eq!(choose("f32", gate, 33), DType::F32);
        assert_eq!(choose("q4_0", Part::Vector, 33), DType::F32);
    }

    /// llama.cpp itself made these files.
    #[test]
    fn the_choices_are_those_of_llama_cpp() {
        let Some(root) = std::env::var_os("REALM_REFERENCE") else {
            println!("skipped: REALM_REFERENCE is not set");
            return;
        };
        let folder = std::path::Path::new(&root).join("models/llama-256/quant");
        let small = Shape { layers: 2, heads: 4, kv_heads: 2, tied: true, ..shape("tiny") };
        for name in ["q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "iq4_xs", "f16"]
        {
            let path = folder.join(format!("model-{}.gguf", name.to_uppercase()));
            let gguf = realm_gguf::GgufFile::open(&path).unwrap();
            let file = FileType::from_name(name).unwrap();
            assert_eq!(gguf.metadata().get::<u32>("general.file_type").ok(), file.id, "{name}");
            assert_eq!(gguf.tensors().len(), 20);
            for tensor in gguf.tensors() {
                let (part, layer) = Part::of(tensor.name()).unwrap();
                let chosen = file.tensor(&small, part, layer, tensor.cols());
                assert_eq!(Some(chosen), tensor.dtype(), "{name}: {}", tensor.name());
            }
        }
    }
}
