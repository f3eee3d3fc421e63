//! Metadata values and their types.

use std::fmt;

use crate::Strings;
use crate::error::Quoted;

/// Makes [`Value`], [`Array`] and [`ValueType`] from one list of the scalar types.
macro_rules! values {
    ($($variant:ident($ty:ty) = $id:literal, $name:literal;)+) => {
        /// One metadata value.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Value {
            $(#[doc = concat!("A `", $name, "`.")] $variant($ty),)+
            /// Text. Bytes that weren't UTF-8 in the file are U+FFFD here; in arrays of strings
            /// they are kept (see [`Strings`]).
            String(String),
            /// A list of values of one type.
            Array(Array),
        }

        /// A list of metadata values of one type, stored as that type.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Array {
            $(#[doc = concat!("Values of type `", $name, "`.")] $variant(Vec<$ty>),)+
            /// Strings, packed.
            String(Strings),
            /// Lists, each with a type of its own.
            Array(Vec<Array>),
        }

        /// The type of a [`Value`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ValueType {
            $(#[doc = concat!("`", $name, "`.")] $variant,)+
            /// Text.
            String,
            /// A list of values of the type with this id, or of lists.
            Array(ElementType),
        }

        /// The type of an [`Array`]'s elements.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ElementType {
            $(#[doc = concat!("`", $name, "`.")] $variant,)+
            /// Text.
            String,
            /// Lists.
            Array,
        }

        impl ElementType {
            /// The type with this id in files.
            pub(crate) fn from_id(id: u32) -> Option<Self> {
                Some(match id {
                    $($id => Self::$variant,)+
                    8 => Self::String,
                    9 => Self::Array,
                    _ => return None,
                })
            }

            /// The type's id in files.
            pub(crate) fn id(self) -> u32 {
                match self {
                    $(Self::$variant => $id,)+
                    Self::String => 8,
                    Self::Array => 9,
                }
            }

            /// The name used in messages, for example `u32`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                    Self::String => "string",
                    Self::Array => "array",
                }
            }

            /// The fewest bytes that a value of this type takes in a file.
            pub(crate) fn min_bytes(self) -> u64 {
                match self {
                    $(Self::$variant => size_of::<$ty>() as u64,)+
                    Self::String => 8,
                    Self::Array => 12,
                }
            }
        }

        impl Value {
            /// The value's type.
            pub fn value_type(&self) -> ValueType {
                match self {
                    $(Self::$variant(_) => ValueType::$variant,)+
                    Self::String(_) => ValueType::String,
                    Self::Array(array) => ValueType::Array(array.element_type()),
                }
            }

            pub(crate) fn type_id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)+
                    Self::String(_) => 8,
                    Self::Array(_) => 9,
                }
            }
        }

        impl Array {
            /// The type of the elements.
            pub fn element_type(&self) -> ElementType {
                match self {
                    $(Self::$variant(_) => ElementType::$variant,)+
                    Self::String(_) => ElementType::String,
                    Self::Array(_) => ElementType::Array,
                }
            }

            /// How many elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(v) => v.len(),)+
                    Self::String(v) => v.len(),
                    Self::Array(v) => v.len(),
                }
            }

            fn write_element(&self, f: &mut fmt::Formatter<'_>, i: usize) -> fmt::Result {
                match self {
                    $(Self::$variant(v) => write!(f, "{:?}", v[i]),)+
                    Self::String(v) => write!(f, "{}", Quoted(&v.get(i).unwrap_or_default())),
                    Self::Array(v) => write!(f, "{}", v[i]),
                }
            }
        }

        impl fmt::Display for Value {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant(v) => write!(f, "{v:?}"),)+
                    Self::String(v) => write!(f, "{}", Quoted(v)),
                    Self::Array(v) => write!(f, "{v}"),
                }
            }
        }

        impl fmt::Display for ValueType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($name),)+
                    Self::String => f.write_str("string"),
                    Self::Array(element) => write!(f, "array of {}", element.name()),
                }
            }
        }

        $(
            impl From<$ty> for Value {
                fn from(value: $ty) -> Self {
                    Self::$variant(value)
                }
            }

            impl From<Vec<$ty>> for Value {
                fn from(values: Vec<$ty>) -> Self {
                    Self::Array(Array::$variant(values))
                }
            }
        )+
    };
}

values! {
    U8(u8) = 0, "u8";
    I8(i8) = 1, "i8";
    U16(u16) = 2, "u16";
    I16(i16) = 3, "i16";
    U32(u32) = 4, "u32";
    I32(i32) = 5, "i32";
    F32(f32) = 6, "f32";
    Bool(bool) = 7, "bool";
    U64(u64) = 10, "u64";
    I64(i64) = 11, "i64";
    F64(f64) = 12, "f64";
}

impl Value {
    /// The value as an integer, whatever its width; `None` for other types.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl Array {
    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Levels of lists: 1 for a list of numbers or strings, 2 for a list of those, …
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::Array(inner) => 1 + inner.iter().map(Self::depth).max().unwrap_or(0),
            _ => 1,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<Strings> for Value {
    fn from(strings: Strings) -> Self {
        Self::Array(Array::String(strings))
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self::Array(array)
    }
}

/// The element type, the length and the first few elements, on one line.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        write!(f, "{} × {} [", self.len(), self.element_type().name())?;
        for i in 0..self.len().min(SHOWN) {
            if i > 0 {
                f.write_str(", ")?;
            }
            self.write_element(f, i)?;
        }
        f.write_str(if self.len() > SHOWN { ", …]" } else { "]" })
    }
}
