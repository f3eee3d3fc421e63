//! The crate's one error: which file, where in it, what is wrong, what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::ValueType;

/// Why a GGUF file could not be read or written.
///
/// Its text is one line: the file, the place in it, what is wrong and a way out. Names from the
/// file are escaped and shortened in it, so a hostile name can't break the line.
#[derive(Debug)]
pub struct GgufError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    place: Place,
    kind: GgufErrorKind,
}

impl GgufError {
    pub(crate) fn new(path: &Path, place: Place, kind: GgufErrorKind) -> Self {
        Self(Box::new(Inner { path: path.to_path_buf(), place, kind }))
    }

    pub(crate) fn io(path: &Path, action: &'static str, error: io::Error) -> Self {
        Self::new(path, Place::File, GgufErrorKind::Io { action, error })
    }

    /// The file, or `<memory>` for bytes that came from no file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Where in the file.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// What is wrong.
    pub fn kind(&self) -> &GgufErrorKind {
        &self.0.kind
    }
}

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { path, place, kind } = &*self.0;
        write!(f, "{}{place}: {kind}", shown(path))
    }
}

impl std::error::Error for GgufError {}

/// Where in a file an error lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A byte offset from the file's start.
    Byte(u64),
    /// A metadata key.
    Key(String),
    /// A tensor, by name.
    Tensor(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Byte(offset) => write!(f, ": byte {offset}"),
            Self::Key(key) => write!(f, ": key {}", Quoted(key)),
            Self::Tensor(name) => write!(f, ": tensor {}", Quoted(name)),
        }
    }
}

/// What is wrong with a GGUF file, or with what a writer was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufErrorKind {
    /// The operating system refused; `action` is what was tried.
    #[error("cannot {action}: {error}")]
    Io {
        /// What was tried, for example `open the file`.
        action: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// A folder, a pipe or a device, which can't be mapped.
    #[error("not a regular file; GGUF files are memory-mapped: give the path of a file on disk")]
    NotRegularFile,
    /// A folder, a pipe or a device where a file is to be written.
    #[error("is there and is no file; choose another name")]
    NoFile,
    /// The folder of a file that is to be written is not there.
    #[error("there is no folder {}; create it or choose another", Quoted(folder))]
    NoFolder {
        /// The folder.
        folder: String,
    },
    /// The operating system makes no file in a folder.
    #[error("cannot create a file in its folder: {error}; choose another folder")]
    FolderRefused {
        /// The system's answer.
        error: io::Error,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file (it starts with {found}){hint}")]
    NotGguf {
        /// The first bytes, escaped.
        found: String,
        /// What the file seems to be, with a way out, or nothing.
        hint: &'static str,
    },
    /// A big-endian file.
    #[error(
        "a big-endian GGUF file, and Realm reads little-endian ones only; \
         convert it (gguf-py's gguf_convert_endian) or download the little-endian file"
    )]
    BigEndian,
    /// A version other than 2 and 3.
    #[error("GGUF version {0} is not supported (2 and 3 are); convert the model again")]
    Version(u32),
    /// The file ends inside the header.
    #[error(
        "the file ends inside {what}: {needed} bytes needed, {present} present; \
         it is truncated or damaged: download or copy it again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes needed from the place on.
        needed: u64,
        /// Bytes present from the place on.
        present: u64,
    },
    /// A count that the rest of the file can't hold.
    #[error(
        "{what} is given as {count}, but the file has room for {limit} at most; \
         it is truncated or damaged: download or copy it again"
    )]
    Count {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
        /// The most that fit.
        limit: u64,
    },
    /// The header goes on after [`MAX_HEADER_BYTES`](crate::MAX_HEADER_BYTES).
    #[error(
        "{0} would end after the first {limit} bytes, the most that a header may take: \
         the file is damaged or hostile; download it again",
        limit = crate::MAX_HEADER_BYTES
    )]
    HeaderTooLarge(&'static str),
    /// A key or name that is empty or too long.
    #[error("{what} has {len} bytes; 1 to {limit} are allowed: the file is damaged, or no GGUF")]
    NameLength {
        /// `a key` or `a tensor name`.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
        /// The longest allowed.
        limit: usize,
    },
    /// A key or tensor name that is not UTF-8.
    #[error("{0} is not UTF-8: the file is damaged; download or copy it again")]
    NotUtf8(&'static str),
    /// A metadata key that stands twice.
    #[error("the key stands twice; write the file again with each key once")]
    DuplicateKey,
    /// A tensor name that stands twice.
    #[error("the tensor stands twice{0}; write the file again with each tensor once")]
    DuplicateTensor(String),
    /// A metadata value type that the format doesn't have.
    #[error("unknown metadata value type {0} (0 to 12 exist): the file is damaged or newer")]
    ValueTypeId(u32),
    /// A bool that is neither 0 nor 1.
    #[error("a bool holds {0}; only 0 and 1 are allowed: the file is damaged")]
    Bool(u8),
    /// Arrays nested too deep.
    #[error("arrays are nested deeper than {limit}: the file is damaged or hostile")]
    Depth {
        /// The deepest allowed.
        limit: usize,
    },
    /// A key that was asked for and isn't there.
    #[error("missing (wanted: {wanted}); convert the model again with current tools")]
    MissingKey {
        /// The type asked for.
        wanted: &'static str,
    },
    /// A key with a value of another type than asked for.
    #[error("holds {found}, wanted {wanted}; convert the model again with current tools")]
    WrongType {
        /// The type in the file.
        found: ValueType,
        /// The type asked for.
        wanted: &'static str,
    },
    /// An integer outside the type asked for.
    #[error("holds {value}, which {wanted} cannot hold; convert the model again")]
    OutOfRange {
        /// The value in the file.
        value: i128,
        /// The type asked for.
        wanted: &'static str,
    },
    /// An alignment that isn't a power of two from 8 to 2^30.
    #[error("the alignment {0} is not a power of two from 8 to 1073741824; write the file again")]
    Alignment(u64),
    /// A tensor that isn't there.
    #[error("missing from the file; it is no complete model, or one of another architecture")]
    MissingTensor,
    /// A shape with too many dimensions, an empty one, or too large a product.
    #[error("shape {shape}: {problem}")]
    Shape {
        /// The shape, or the number of dimensions.
        shape: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Rows that aren't whole blocks.
    #[error(
        "rows of {cols} values are no whole number of {dtype} blocks ({block} values each); \
         quantize this tensor to another type"
    )]
    RowLength {
        /// Values in a row.
        cols: u64,
        /// The tensor's type.
        dtype: &'static str,
        /// Values in a block of that type.
        block: usize,
    },
    /// A tensor offset that isn't a multiple of the alignment.
    #[error("offset {offset} is no multiple of the alignment {alignment}; write the file again")]
    Unaligned {
        /// The offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Tensor data that reaches past the end of the file.
    #[error(
        "its data takes bytes {start} to {end} of the file, which has {present}; \
         it is truncated: download or copy it again"
    )]
    TensorTruncated {
        /// First byte, from the file's start.
        start: u128,
        /// End, exclusive.
        end: u128,
        /// Bytes of the file.
        present: u64,
    },
    /// Two tensors that share bytes.
    #[error("its data overlaps that of tensor {}; write the file again", Quoted(other))]
    Overlap {
        /// The other tensor's name.
        other: String,
    },
    /// A tensor of a type that Realm doesn't decode, asked for as a weight.
    #[error("tensor type {name} (id {id}) is not supported; take a file quantized to another type")]
    TensorType {
        /// The type's id in the file.
        id: u32,
        /// Its name, `unknown` if it has none here.
        name: &'static str,
    },
    /// Something about a split file.
    #[error("{0}")]
    Split(String),
    /// Tensor data of another length than the shape asks for.
    #[error("the data written for it has {given} bytes; its shape and type need {needed}")]
    DataLength {
        /// Bytes given (for data that is too long: at least).
        given: u64,
        /// Bytes that shape and type need.
        needed: u64,
    },
}

/// Text from a file, quoted, escaped and shortened so that it keeps to one line.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 80;
        let mut rest = self.0.chars();
        let shown: String = rest.by_ref().take(SHOWN).collect();
        let more = if rest.next().is_some() { "…" } else { "" };
        write!(f, "\"{}{more}\"", shown.escape_debug())
    }
}

/// A path as text on one line: control characters are escaped.
pub(crate) fn shown(path: &Path) -> String {
    let mut line = String::new();
    for c in path.to_string_lossy().chars() {
        if c.is_control() {
            line.extend(c.escape_debug());
        } else {
            line.push(c);
        }
    }
    line
}
