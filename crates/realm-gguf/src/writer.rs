//! Writing GGUF files (version 3) of any size with little memory.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use realm_core::DType;

use crate::header::{checked_bytes, checked_dims};
use crate::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgufError, GgufErrorKind, MAGIC, MAX_ARRAY_DEPTH,
    MAX_DIMS, MAX_WRITTEN_NAME_BYTES, Metadata, NewFile, Place, Value, alignment_is_valid,
};

/// Stands for the path in errors of a file that has none yet.
const UNNAMED: &str = "<new GGUF file>";
/// Bytes gathered before they go to the file.
const BUFFER: usize = 1 << 20;

/// Builds a GGUF file: metadata in order, tensors in order, then all of it in one pass, in which
/// the tensors' data come from a callback one after the other.
///
/// ```
/// # fn main() -> Result<(), realm_gguf::GgufError> {
/// use realm_core::DType;
/// let mut writer = realm_gguf::GgufWriter::new();
/// writer.set("general.architecture", "llama")?.set("llama.block_count", 1u32)?;
/// writer.tensor("output_norm.weight", &[4], DType::F32)?;
/// let bytes = writer.to_bytes(|_tensor, out| out.write_all(&[0; 16]))?;
/// let file = realm_gguf::GgufFile::parse(bytes)?;
/// assert_eq!(file.require("output_norm.weight")?.shape(), [4]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct GgufWriter {
    metadata: Metadata,
    tensors: Vec<TensorPlan>,
    names: HashSet<String>,
}

/// A tensor that a writer is going to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    bytes: usize,
}

impl TensorPlan {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape in GGUF order: the contiguous dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How the values are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of data that have to be written for it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// A file without metadata and tensors.
    pub fn new() -> Self {
        let metadata = Metadata::new(Path::new(UNNAMED));
        Self { metadata, tensors: Vec::new(), names: HashSet::new() }
    }

    /// Appends a metadata value. [`ALIGNMENT_KEY`] also sets the file's alignment.
    ///
    /// # Errors
    /// A key that is there already, empty or too long; arrays nested deeper than
    /// [`MAX_ARRAY_DEPTH`]; an alignment that is no `u32` power of two from 8 to 2^30.
    pub fn set(
        &mut self,
        key: impl Into<String>,
        value: impl Into<Value>,
    ) -> Result<&mut Self, GgufError> {
        let (key, value) = (key.into(), value.into());
        let problem = match &value {
            Value::Array(array) if array.depth() > MAX_ARRAY_DEPTH => {
                Some(GgufErrorKind::Depth { limit: MAX_ARRAY_DEPTH })
            }
            Value::U32(v) if key == ALIGNMENT_KEY => {
                (!alignment_is_valid((*v).into())).then(|| GgufErrorKind::Alignment((*v).into()))
            }
            other if key == ALIGNMENT_KEY => {
                Some(GgufErrorKind::WrongType { found: other.value_type(), wanted: "u32" })
            }
            _ => None,
        };
        if let Some(kind) = problem {
            return Err(GgufError::new(Path::new(UNNAMED), Place::Key(key), kind));
        }
        self.metadata.insert(key, value)?;
        Ok(self)
    }

    /// Appends a tensor; its data follow when the file is written. `shape` is in GGUF order, the
    /// contiguous dimension first.
    ///
    /// # Errors
    /// A name that is there already, empty or longer than [`MAX_WRITTEN_NAME_BYTES`]; more than
    /// [`MAX_DIMS`] dimensions, one of 0, a product too large, rows that are no whole blocks.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        dtype: DType,
    ) -> Result<&mut Self, GgufError> {
        let name = name.into();
        let bytes = plan_bytes(&name, shape, dtype)
            .map_err(|kind| tensor_error(Path::new(UNNAMED), &name, kind))?;
        if !self.names.insert(name.clone()) {
            let kind = GgufErrorKind::DuplicateTensor(String::new());
            return Err(tensor_error(Path::new(UNNAMED), &name, kind));
        }
        self.tensors.push(TensorPlan { name, shape: shape.to_vec(), dtype, bytes });
        Ok(self)
    }

    /// The metadata so far.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors so far, in the order in which their data will be asked for.
    pub fn tensors(&self) -> &[TensorPlan] {
        &self.tensors
    }

    /// Writes the file to `path` and returns its length in bytes. `fill` is called for each tensor
    /// in order and writes exactly [`TensorPlan::bytes`] bytes.
    ///
    /// Under `path` there is never half a file: see [`NewFile`].
    ///
    /// # Errors
    /// Those of [`NewFile`], the system's (disk full, no permission), those of `fill`, data of the
    /// wrong length.
    pub fn write_file(
        &self,
        path: impl AsRef<Path>,
        fill: impl FnMut(&TensorPlan, &mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, GgufError> {
        self.write_new(NewFile::create(path)?, fill)
    }

    /// Writes and finishes a file that has been begun; see [`write_file`](Self::write_file).
    ///
    /// # Errors
    /// As [`write_file`](Self::write_file).
    pub fn write_new(
        &self,
        mut file: NewFile,
        fill: impl FnMut(&TensorPlan, &mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, GgufError> {
        let path = file.path().to_path_buf();
        let written = self.write(&mut file, &path, fill)?;
        file.finish()?;
        Ok(written)
    }

    /// Writes the file to `out` and returns its length in bytes; see
    /// [`write_file`](Self::write_file).
    ///
    /// # Errors
    /// Those of `out` and of `fill`, data of the wrong length.
    pub fn write_to(
        &self,
        out: impl Write,
        fill: impl FnMut(&TensorPlan, &mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, GgufError> {
        self.write(out, Path::new(UNNAMED), fill)
    }

    /// The file as bytes; see [`write_file`](Self::write_file).
    ///
    /// # Errors
    /// Those of `fill`, data of the wrong length.
    pub fn to_bytes(
        &self,
        fill: impl FnMut(&TensorPlan, &mut dyn Write) -> io::Result<()>,
    ) -> Result<Vec<u8>, GgufError> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes, fill)?;
        Ok(bytes)
    }

    fn write(
        &self,
        out: impl Write,
        path: &Path,
        mut fill: impl FnMut(&TensorPlan, &mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, GgufError> {
        let io = |action| move |error| GgufError::io(path, action, error);
        let alignment = self.alignment()?;
        let mut out = Counted { inner: BufWriter::with_capacity(BUFFER, out), written: 0 };
        self.write_header(&mut out, path, alignment)?;
        for plan in &self.tensors {
            out.pad(alignment).map_err(io("write the file"))?;
            let needed = plan.bytes as u64;
            let mut data = Limited { inner: &mut out, left: needed, refused: 0 };
            let result = fill(plan, &mut data);
            let Limited { left, refused, .. } = data;
            if refused > 0 {
                let given = needed - left + refused;
                return Err(tensor_error(
                    path,
                    &plan.name,
                    GgufErrorKind::DataLength { given, needed },
                ));
            }
            result.map_err(|error| {
                let action = "write the tensor's data";
                tensor_error(path, &plan.name, GgufErrorKind::Io { action, error })
            })?;
            if left > 0 {
                let kind = GgufErrorKind::DataLength { given: needed - left, needed };
                return Err(tensor_error(path, &plan.name, kind));
            }
        }
        if !self.tensors.is_empty() {
            // The last tensor is padded like the others: other tools read whole padded tensors.
            out.pad(alignment).map_err(io("write the file"))?;
        }
        out.flush().map_err(io("write the file"))?;
        Ok(out.written)
    }

    fn alignment(&self) -> Result<u64, GgufError> {
        Ok(self.metadata.find::<u64>(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT))
    }

    fn write_header(
        &self,
        out: &mut impl Write,
        path: &Path,
        alignment: u64,
    ) -> Result<(), GgufError> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_bytes(&mut header, key.as_bytes());
            header.extend(value.type_id().to_le_bytes());
            put_value(&mut header, value);
        }
        let mut offset = 0u64;
        for plan in &self.tensors {
            put_bytes(&mut header, plan.name.as_bytes());
            header.extend((plan.shape.len() as u32).to_le_bytes());
            for &dim in &plan.shape {
                header.extend((dim as u64).to_le_bytes());
            }
            header.extend(plan.dtype.gguf_id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = offset
                .checked_add(plan.bytes as u64)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(|| {
                    let shape = format!("{:?}", plan.shape);
                    let problem = "the file would be larger than 2^64 bytes";
                    tensor_error(path, &plan.name, GgufErrorKind::Shape { shape, problem })
                })?;
        }
        out.write_all(&header).map_err(|error| GgufError::io(path, "write the file", error))
    }
}

fn tensor_error(path: &Path, name: &str, kind: GgufErrorKind) -> GgufError {
    GgufError::new(path, Place::Tensor(name.to_owned()), kind)
}

/// The bytes that a new tensor's data take, its name and shape checked.
fn plan_bytes(name: &str, shape: &[usize], dtype: DType) -> Result<usize, GgufErrorKind> {
    if !(1..=MAX_WRITTEN_NAME_BYTES).contains(&name.len()) {
        let (len, limit) = (name.len() as u64, MAX_WRITTEN_NAME_BYTES);
        return Err(GgufErrorKind::NameLength { what: "a tensor name", len, limit });
    }
    let shape_error = |problem| GgufErrorKind::Shape { shape: format!("{shape:?}"), problem };
    if shape.len() > MAX_DIMS {
        return Err(shape_error("at most 4 dimensions are allowed"));
    }
    let mut raw = [1; MAX_DIMS];
    for (raw, &dim) in raw.iter_mut().zip(shape) {
        *raw = dim as u64;
    }
    let dims = checked_dims(raw).map_err(shape_error)?;
    checked_bytes(&dims, dtype)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => put_bytes(out, v.as_bytes()),
        Value::Array(v) => put_array(out, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.element_type().id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::String(v) => v.iter_bytes().for_each(|v| put_bytes(out, v)),
        Array::Array(v) => v.iter().for_each(|v| put_array(out, v)),
    }
}

/// Counts what goes through.
struct Counted<W> {
    inner: W,
    written: u64,
}

impl<W: Write> Counted<W> {
    /// Writes zeros up to the next multiple of `alignment`.
    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = self.written.next_multiple_of(alignment) - self.written;
        while left > 0 {
            let some = left.min(ZEROS.len() as u64);
            self.write_all(&ZEROS[..some as usize])?;
            left -= some;
        }
        Ok(())
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Lets one tensor's bytes through and no more.
struct Limited<'a> {
    inner: &'a mut dyn Write,
    left: u64,
    /// Length of the first write that was too much.
    refused: u64,
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            self.refused = self.refused.max(bytes.len() as u64);
            return Err(io::Error::other("more data than the tensor's shape and type need"));
        }
        let written = self.inner.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        // The whole file is flushed once, at its end.
        Ok(())
    }
}
