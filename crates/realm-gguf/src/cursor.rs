//! Reading little-endian fields from bytes that may end anywhere.

use std::path::Path;

use crate::value::ElementType;
use crate::{
    Array, GgufError, GgufErrorKind, MAX_ARRAY_DEPTH, MAX_HEADER_BYTES, Place, Strings, Value,
};

/// A position in a file's header. No read goes past the file's end or [`MAX_HEADER_BYTES`], and no
/// count from the file leads to an allocation before it is known that so many elements can follow.
pub(crate) struct Cursor<'a> {
    path: &'a Path,
    /// The file up to [`MAX_HEADER_BYTES`].
    bytes: &'a [u8],
    position: usize,
    /// Whether the file goes on after `bytes`.
    goes_on: bool,
}

/// A type that lies in the file as its little-endian bytes.
trait Scalar: Sized {
    const BYTES: usize = size_of::<Self>();
    /// `bytes.len() == Self::BYTES`.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! scalars {
    ($($ty:ty)+) => {$(
        impl Scalar for $ty {
            fn read(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$ty>()];
                raw.copy_from_slice(bytes);
                Self::from_le_bytes(raw)
            }
        }
    )+};
}

scalars! { u8 i8 u16 i16 u32 i32 f32 u64 i64 f64 }

impl<'a> Cursor<'a> {
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        let (bytes, goes_on) = match bytes.get(..MAX_HEADER_BYTES) {
            Some(start) => (start, bytes.len() > start.len()),
            None => (bytes, false),
        };
        Self { path, bytes, position: 0, goes_on }
    }

    /// Bytes from the file's start.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// An error at the byte `position`.
    pub(crate) fn error_at(&self, position: usize, kind: GgufErrorKind) -> GgufError {
        GgufError::new(self.path, Place::Byte(position as u64), kind)
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let present = self.remaining();
        if count > present {
            let kind = if self.goes_on {
                GgufErrorKind::HeaderTooLarge(what)
            } else {
                GgufErrorKind::Truncated { what, needed: count, present }
            };
            return Err(self.error_at(self.position, kind));
        }
        // `count` is at most the length of a slice, so it fits a usize.
        let end = self.position + count as usize;
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn scalar<T: Scalar>(&mut self, what: &'static str) -> Result<T, GgufError> {
        self.take(T::BYTES as u64, what).map(T::read)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.scalar(what)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.scalar(what)
    }

    /// A count of things that take at least `min_bytes` each, bounded by what is left of the file.
    pub(crate) fn count(&mut self, what: &'static str, min_bytes: u64) -> Result<usize, GgufError> {
        let position = self.position;
        let count = self.u64(what)?;
        self.check_count(position, what, count, min_bytes)?;
        Ok(count as usize)
    }

    /// That `count` things of at least `min_bytes` each can follow; `position` is the count's own.
    pub(crate) fn check_count(
        &self,
        position: usize,
        what: &'static str,
        count: u64,
        min_bytes: u64,
    ) -> Result<(), GgufError> {
        let limit = self.remaining() / min_bytes;
        if count > limit {
            let kind = if self.goes_on {
                GgufErrorKind::HeaderTooLarge(what)
            } else {
                GgufErrorKind::Count { what, count, limit }
            };
            return Err(self.error_at(position, kind));
        }
        Ok(())
    }

    /// A key or tensor name: UTF-8 of 1 to `limit` bytes.
    pub(crate) fn name(&mut self, what: &'static str, limit: usize) -> Result<String, GgufError> {
        let position = self.position;
        let len = self.u64(what)?;
        if len == 0 || len > limit as u64 {
            let kind = GgufErrorKind::NameLength { what, len, limit };
            return Err(self.error_at(position, kind));
        }
        // Copied before it is checked: a mapped file may be changed by others in between.
        String::from_utf8(self.take(len, what)?.to_vec())
            .map_err(|_| self.error_at(position, GgufErrorKind::NotUtf8(what)))
    }

    fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], GgufError> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    fn bool(&mut self, what: &'static str) -> Result<bool, GgufError> {
        let position = self.position;
        match self.scalar::<u8>(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error_at(position, GgufErrorKind::Bool(other))),
        }
    }

    fn element_type(&mut self, what: &'static str) -> Result<ElementType, GgufError> {
        let position = self.position;
        let id = self.u32(what)?;
        ElementType::from_id(id)
            .ok_or_else(|| self.error_at(position, GgufErrorKind::ValueTypeId(id)))
    }

    /// A value with its type before it.
    pub(crate) fn value(&mut self) -> Result<Value, GgufError> {
        const WHAT: &str = "a metadata value";
        Ok(match self.element_type("a value type")? {
            ElementType::U8 => Value::U8(self.scalar(WHAT)?),
            ElementType::I8 => Value::I8(self.scalar(WHAT)?),
            ElementType::U16 => Value::U16(self.scalar(WHAT)?),
            ElementType::I16 => Value::I16(self.scalar(WHAT)?),
            ElementType::U32 => Value::U32(self.scalar(WHAT)?),
            ElementType::I32 => Value::I32(self.scalar(WHAT)?),
            ElementType::F32 => Value::F32(self.scalar(WHAT)?),
            ElementType::Bool => Value::Bool(self.bool(WHAT)?),
            ElementType::U64 => Value::U64(self.scalar(WHAT)?),
            ElementType::I64 => Value::I64(self.scalar(WHAT)?),
            ElementType::F64 => Value::F64(self.scalar(WHAT)?),
            ElementType::String => {
                Value::String(String::from_utf8_lossy(self.bytes("a string")?).into_owned())
            }
            ElementType::Array => Value::Array(self.array(1)?),
        })
    }

    /// An array: element type, length, elements. `depth` counts from 1.
    fn array(&mut self, depth: usize) -> Result<Array, GgufError> {
        if depth > MAX_ARRAY_DEPTH {
            let kind = GgufErrorKind::Depth { limit: MAX_ARRAY_DEPTH };
            return Err(self.error_at(self.position, kind));
        }
        let element = self.element_type("an array's element type")?;
        let count = self.count("an array's length", element.min_bytes())?;
        Ok(match element {
            ElementType::U8 => Array::U8(self.scalars(count)?),
            ElementType::I8 => Array::I8(self.scalars(count)?),
            ElementType::U16 => Array::U16(self.scalars(count)?),
            ElementType::I16 => Array::I16(self.scalars(count)?),
            ElementType::U32 => Array::U32(self.scalars(count)?),
            ElementType::I32 => Array::I32(self.scalars(count)?),
            ElementType::F32 => Array::F32(self.scalars(count)?),
            ElementType::U64 => Array::U64(self.scalars(count)?),
            ElementType::I64 => Array::I64(self.scalars(count)?),
            ElementType::F64 => Array::F64(self.scalars(count)?),
            ElementType::Bool => {
                Array::Bool((0..count).map(|_| self.bool("an array")).collect::<Result<_, _>>()?)
            }
            ElementType::String => {
                let mut strings = Strings::new();
                for _ in 0..count {
                    strings.push(self.bytes("an array of strings")?);
                }
                Array::String(strings)
            }
            ElementType::Array => {
                Array::Array((0..count).map(|_| self.array(depth + 1)).collect::<Result<_, _>>()?)
            }
        })
    }

    /// `count` scalars, known to be no more than fit.
    fn scalars<T: Scalar>(&mut self, count: usize) -> Result<Vec<T>, GgufError> {
        let bytes = self.take((count * T::BYTES) as u64, "an array")?;
        Ok(bytes.chunks_exact(T::BYTES).map(T::read).collect())
    }
}
