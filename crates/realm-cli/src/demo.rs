//! The model in the box: used where no file is named.

use realm_gguf::{GgufError, GgufFile};

/// What stands for the path of a file.
const NAME: &str = "built-in demo model";

/// Bytes at an address that suits vectors and tensors, as a mapped file has it.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);

/// A small Llama model of this project's own making; `tools/demo-model` trains it.
static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!("../demo/realm-demo.gguf"));

/// The built-in model's file.
///
/// # Errors
/// None, unless this binary is damaged.
pub(crate) fn file() -> Result<GgufFile, GgufError> {
    GgufFile::from_static(NAME, &BYTES.0)
}

#[cfg(test)]
mod tests {
    use realm_runtime::{
        EngineOptions, SamplingParams,
        device::DeviceOptions,
        text::{FinishReason, GenerateOptions, Llm},
    };
    use realm_tokenizer::chat;

    use super::*;

    #[test]
    fn the_built_in_model_can_chat() {
        let model = realm_runtime::Model::new(file().unwrap()).unwrap();
        assert_eq!(model.file().path().to_str(), Some(NAME));
        let bytes = model.file().file_bytes();
        assert!(bytes <= 10_000_000, "{bytes} bytes are more than a binary should carry");
        let device = DeviceOptions { name: "cpu".into(), ..DeviceOptions::default() };
        let mut llm = Llm::load(&model, &device, &EngineOptions::default()).unwrap();
        let greedy =
            GenerateOptions { sampling: SamplingParams::GREEDY, ..GenerateOptions::default() };
        let stream = llm.chat(&[chat::message("user", "Hello")], &greedy).unwrap();
        let pieces = stream.collect::<Result<Vec<_>, _>>().unwrap();
        let answer: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        assert!(answer.contains(char::is_alphabetic), "{answer:?}");
        assert_eq!(pieces.last().unwrap().finish, Some(FinishReason::End), "{answer:?}");
    }
}
