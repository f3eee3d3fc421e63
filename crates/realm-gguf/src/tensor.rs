//! A tensor of a file: name, shape, type and bytes.

use std::ops::Range;
use std::path::Path;

use realm_core::{Bytes, DType};

use crate::source::Source;
use crate::{GgufError, GgufErrorKind, MAX_DIMS, Place};

/// One tensor of an open file. It keeps the file's bytes alive, and cloning it copies no data.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    pub(crate) name: String,
    pub(crate) dims: [usize; MAX_DIMS],
    pub(crate) n_dims: usize,
    pub(crate) type_id: u32,
    pub(crate) dtype: Option<DType>,
    pub(crate) part: usize,
    pub(crate) range: Range<usize>,
    pub(crate) source: Source,
}

impl TensorInfo {
    /// The name, for example `blk.0.attn_q.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape in GGUF order: the contiguous dimension first, at most [`MAX_DIMS`]; empty for a
    /// single value.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.n_dims]
    }

    /// Values in a row, the contiguous dimension: a weight's inputs.
    pub fn cols(&self) -> usize {
        self.dims[0]
    }

    /// Rows: the product of all dimensions but the first; a matrix weight's outputs.
    pub fn rows(&self) -> usize {
        // The product of all dimensions was checked when the file was opened.
        self.dims[1..].iter().product()
    }

    /// Values in all.
    pub fn elements(&self) -> usize {
        self.rows() * self.cols()
    }

    /// How the values are stored; `None` for a type that Realm doesn't decode.
    pub fn dtype(&self) -> Option<DType> {
        self.dtype
    }

    /// The type's id in the file.
    pub fn type_id(&self) -> u32 {
        self.type_id
    }

    /// The type's name; `unknown` for ids that have none here.
    pub fn type_name(&self) -> &'static str {
        self.dtype.map_or_else(|| foreign_type_name(self.type_id), |dtype| dtype.name())
    }

    /// Which file of a split one holds the data, from 0.
    pub fn part(&self) -> usize {
        self.part
    }

    /// The file that holds the data.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// The data's bytes, from the start of the file that holds it. For types that Realm doesn't
    /// decode, whose sizes it doesn't know, they reach to the next tensor or the file's end.
    pub fn byte_range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The data as a weight: rows × cols values of type [`dtype`](Self::dtype), row after row. In
    /// a mapped file it is aligned to the file's alignment (at least 8 bytes).
    ///
    /// # Errors
    /// [`GgufErrorKind::TensorType`] for a type that Realm doesn't decode.
    pub fn data(&self) -> Result<Bytes, GgufError> {
        if self.dtype.is_none() {
            let kind = GgufErrorKind::TensorType { id: self.type_id, name: self.type_name() };
            return Err(self.error(kind));
        }
        self.raw_data()
    }

    /// The bytes of [`byte_range`](Self::byte_range), whatever the type.
    ///
    /// # Errors
    /// [`GgufErrorKind::TensorTruncated`] where the owner that was given to
    /// [`GgufFile::parse`](crate::GgufFile::parse) has shrunk since; never for a mapped file.
    pub fn raw_data(&self) -> Result<Bytes, GgufError> {
        Bytes::new(self.source.owner.clone(), self.range.clone()).ok_or_else(|| {
            self.error(GgufErrorKind::TensorTruncated {
                start: self.range.start as u128,
                end: self.range.end as u128,
                present: self.source.bytes().len() as u64,
            })
        })
    }

    fn error(&self, kind: GgufErrorKind) -> GgufError {
        self.source.error(Place::Tensor(self.name.clone()), kind)
    }
}

/// Names of tensor types that stand in files and that Realm may not decode, by ggml's numbering.
fn foreign_type_name(id: u32) -> &'static str {
    match id {
        9 => "Q8_1",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => "unknown",
    }
}
