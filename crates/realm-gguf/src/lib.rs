//! GGUF files as metadata and named tensors: reading (mapped, bounds-checked) and writing.
//!
//! [`GgufFile::open`] maps a file, or all parts of a split one, and checks every length, count and
//! offset against the bytes that are there before it uses them; what it hands out afterwards are
//! typed metadata values ([`Metadata`]) and tensors whose bytes lie inside the file
//! ([`TensorInfo`]). [`GgufWriter`] writes such files, streaming the tensors' data; [`NewFile`] keeps
//! what it writes apart until it is whole.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Versions 2 and 3 are
//! read, little-endian only; version 3 is written.
//!
//! ```no_run
//! # fn main() -> Result<(), realm_gguf::GgufError> {
//! let file = realm_gguf::GgufFile::open("model.gguf")?;
//! let layers: u32 = file.metadata().get("llama.block_count")?;
//! let weight = file.require("token_embd.weight")?;
//! println!("{layers} layers, {} rows of {} {}", weight.rows(), weight.cols(), weight.type_name());
//! let bytes = weight.data()?; // owns a share of the mapping
//! # let _ = bytes; Ok(()) }
//! ```

mod cursor;
mod error;
mod file;
mod header;
mod metadata;
mod new_file;
mod source;
mod split;
mod strings;
mod tensor;
mod value;
mod writer;

pub use error::{GgufError, GgufErrorKind, Place};
pub use file::GgufFile;
pub use metadata::{FromValue, Metadata};
pub use new_file::NewFile;
pub use strings::Strings;
pub use tensor::TensorInfo;
pub use value::{Array, ElementType, Value, ValueType};
pub use writer::{GgufWriter, TensorPlan};

/// The key that holds the alignment of tensor data, a `u32`.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment of tensor data where a file says nothing, in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Longest metadata key, in bytes (the format's limit).
pub const MAX_KEY_BYTES: usize = 65_535;
/// Longest tensor name that is read, in bytes. The writer keeps to the shorter limit of other
/// readers, [`MAX_WRITTEN_NAME_BYTES`].
pub const MAX_NAME_BYTES: usize = 1_024;
/// Longest tensor name that is written, in bytes: llama.cpp refuses 64 and more.
pub const MAX_WRITTEN_NAME_BYTES: usize = 63;
/// Most bytes of a file's header (metadata and tensor descriptions); a vocabulary of 256 k tokens
/// takes about 10 MB.
pub const MAX_HEADER_BYTES: usize = 1 << 28;
/// Most dimensions of a tensor.
pub const MAX_DIMS: usize = 4;
/// How deep arrays may lie in arrays; an array of numbers has depth 1.
pub const MAX_ARRAY_DEPTH: usize = 4;

const MAGIC: [u8; 4] = *b"GGUF";

/// Whether `alignment` may stand under [`ALIGNMENT_KEY`]: a power of two from 8 (the format asks
/// for multiples of 8, other readers for powers of two) to 1 GiB.
fn alignment_is_valid(alignment: u64) -> bool {
    alignment.is_power_of_two() && (8..=1 << 30).contains(&alignment)
}
