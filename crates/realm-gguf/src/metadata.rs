//! Metadata: keys with typed values, in the file's order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{Array, GgufError, GgufErrorKind, MAX_KEY_BYTES, Place, Strings, Value};

/// A file's metadata: values by key, in the order of the file.
///
/// Getters are generic over the type wanted: `get::<u32>(key)` takes any integer type whose value
/// fits, `get::<f32>` f32 or f64, `get::<Vec<i32>>` an array of any integer type, `get::<&str>`
/// text, `get::<&Strings>` an array of strings. A missing key, another type and a value out of
/// range are errors that name the key and both types.
#[derive(Debug, Clone)]
pub struct Metadata {
    path: PathBuf,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

/// By entries and their order; the file they came from doesn't count. As for floats, NaN differs
/// from itself.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// Metadata of the file at `path` (used in errors), still empty.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), entries: Vec::new(), index: HashMap::new() }
    }

    /// Appends a value; the key must be new and of 1 to [`MAX_KEY_BYTES`] bytes.
    pub(crate) fn insert(&mut self, key: String, value: Value) -> Result<(), GgufError> {
        if !(1..=MAX_KEY_BYTES).contains(&key.len()) {
            let (len, limit) = (key.len() as u64, MAX_KEY_BYTES);
            return Err(self.error(&key, GgufErrorKind::NameLength { what: "a key", len, limit }));
        }
        if self.index.contains_key(&key) {
            return Err(self.error(&key, GgufErrorKind::DuplicateKey));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        Ok(())
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value under `key`, whatever its type.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// The value under `key` as a `T`, or `None` where the key is missing.
    ///
    /// # Errors
    /// [`GgufErrorKind::WrongType`] and [`GgufErrorKind::OutOfRange`].
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, GgufError> {
        self.value(key)
            .map(|value| T::from_value(value).map_err(|kind| self.error(key, kind)))
            .transpose()
    }

    /// The value under `key` as a `T`.
    ///
    /// # Errors
    /// [`GgufErrorKind::MissingKey`], [`GgufErrorKind::WrongType`] and
    /// [`GgufErrorKind::OutOfRange`].
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, GgufError> {
        self.find(key)?
            .ok_or_else(|| self.error(key, GgufErrorKind::MissingKey { wanted: T::WANTED }))
    }

    fn error(&self, key: &str, kind: GgufErrorKind) -> GgufError {
        GgufError::new(&self.path, Place::Key(key.to_owned()), kind)
    }
}

/// A type that [`Metadata::get`] can hand out.
pub trait FromValue<'a>: Sized {
    /// The type's name in errors.
    const WANTED: &'static str;

    /// The value as this type; the error is [`GgufErrorKind::WrongType`] or
    /// [`GgufErrorKind::OutOfRange`].
    fn from_value(value: &'a Value) -> Result<Self, GgufErrorKind>;
}

fn wrong_type<'a, T: FromValue<'a>>(value: &Value) -> GgufErrorKind {
    GgufErrorKind::WrongType { found: value.value_type(), wanted: T::WANTED }
}

macro_rules! integers {
    ($($ty:ty, $list:literal;)+) => {$(
        impl FromValue<'_> for $ty {
            const WANTED: &'static str = stringify!($ty);

            fn from_value(value: &Value) -> Result<Self, GgufErrorKind> {
                let value = value.as_integer().ok_or_else(|| wrong_type::<Self>(value))?;
                let wanted = Self::WANTED;
                Self::try_from(value).map_err(|_| GgufErrorKind::OutOfRange { value, wanted })
            }
        }

        /// Any array of integers.
        impl FromValue<'_> for Vec<$ty> {
            const WANTED: &'static str = $list;

            fn from_value(value: &Value) -> Result<Self, GgufErrorKind> {
                fn all<S: Copy + Into<i128>>(list: &[S]) -> Result<Vec<$ty>, GgufErrorKind> {
                    let wanted = <Vec<$ty>>::WANTED;
                    list.iter()
                        .map(|&v| {
                            let value = v.into();
                            <$ty>::try_from(value)
                                .map_err(|_| GgufErrorKind::OutOfRange { value, wanted })
                        })
                        .collect()
                }
                match value {
                    Value::Array(Array::U8(v)) => all(v),
                    Value::Array(Array::I8(v)) => all(v),
                    Value::Array(Array::U16(v)) => all(v),
                    Value::Array(Array::I16(v)) => all(v),
                    Value::Array(Array::U32(v)) => all(v),
                    Value::Array(Array::I32(v)) => all(v),
                    Value::Array(Array::U64(v)) => all(v),
                    Value::Array(Array::I64(v)) => all(v),
                    other => Err(wrong_type::<Self>(other)),
                }
            }
        }
    )+};
}

integers! {
    u8, "array of u8";
    i8, "array of i8";
    u16, "array of u16";
    i16, "array of i16";
    u32, "array of u32";
    i32, "array of i32";
    u64, "array of u64";
    i64, "array of i64";
    usize, "array of usize";
}

/// From f64 it is rounded to the nearest.
impl FromValue<'_> for f32 {
    const WANTED: &'static str = "f32";

    fn from_value(value: &Value) -> Result<Self, GgufErrorKind> {
        match *value {
            Value::F32(v) => Ok(v),
            Value::F64(v) => Ok(v as Self),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

impl FromValue<'_> for f64 {
    const WANTED: &'static str = "f64";

    fn from_value(value: &Value) -> Result<Self, GgufErrorKind> {
        match *value {
            Value::F32(v) => Ok(v.into()),
            Value::F64(v) => Ok(v),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

impl FromValue<'_> for bool {
    const WANTED: &'static str = "bool";

    fn from_value(value: &Value) -> Result<Self, GgufErrorKind> {
        match *value {
            Value::Bool(v) => Ok(v),
            _ => Err(wrong_type::<Self>(value)),
        }
    }
}

macro_rules! borrowed {
    ($($ty:ty, $wanted:literal, $pattern:pat => $found:expr;)+) => {$(
        impl<'a> FromValue<'a> for $ty {
            const WANTED: &'static str = $wanted;

            fn from_value(value: &'a Value) -> Result<Self, GgufErrorKind> {
                match value {
                    $pattern => Ok($found),
                    _ => Err(wrong_type::<Self>(value)),
                }
            }
        }
    )+};
}

borrowed! {
    &'a str, "string", Value::String(v) => v;
    &'a Array, "array", Value::Array(v) => v;
    &'a Strings, "array of string", Value::Array(Array::String(v)) => v;
    &'a [f32], "array of f32", Value::Array(Array::F32(v)) => v;
    &'a [f64], "array of f64", Value::Array(Array::F64(v)) => v;
    &'a [bool], "array of bool", Value::Array(Array::Bool(v)) => v;
}
