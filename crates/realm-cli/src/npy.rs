//! NumPy's `.npy` files, as far as they are needed: token ids in, matrices of f32 out.
//!
//! The format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
};

use realm_gguf::NewFile;

use crate::error::{CliError, Result};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Most ids that are read: beyond any model's context.
const MOST_IDS: u64 = 1 << 24;
/// Most bytes of a header; those of plain arrays take 128.
const MOST_HEADER: u32 = 1 << 16;
const WRITE: &str = "write the file";

/// What is wrong with a `.npy` file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NpyError {
    /// The system refused.
    #[error("cannot read the file: {0}")]
    Io(#[from] io::Error),
    /// Other first bytes than NumPy's.
    #[error("not a .npy file; write one with numpy.save(FILE, ids)")]
    NotNpy,
    /// A version of the format that is not known.
    #[error("format version {0}.{1} is not supported; write the file again with numpy.save")]
    Version(u8, u8),
    /// A header that cannot be understood.
    #[error("the header is damaged ({0}); write the file again with numpy.save")]
    Header(&'static str),
    /// An array of other elements or another shape.
    #[error("{found}; token ids must be {wanted}")]
    Kind {
        /// What the file holds.
        found: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Less data than the shape tells.
    #[error("the file ends after {found} of {expected} ids; write or copy it again")]
    Truncated {
        /// Ids that are there.
        found: u64,
        /// Ids of the shape.
        expected: u64,
    },
    /// More data than the shape tells.
    #[error("the file goes on after its {0} ids; write it again with numpy.save")]
    TooLong(u64),
    /// An element that is no token id.
    #[error("element {index} is {value}, which is no token id; ids are 0 to 4294967295")]
    NoId {
        /// Its position.
        index: usize,
        /// Its value.
        value: i64,
    },
}

/// Reads token ids: a one-dimensional array of little-endian int32, int64 or uint32.
///
/// # Errors
/// A file that cannot be read, is damaged, or holds anything else.
pub(crate) fn read_ids(path: &Path) -> Result<Vec<u32>> {
    let read = || parse_ids(BufReader::new(File::open(path)?));
    read().map_err(|source| CliError::Npy { path: path.to_path_buf(), source })
}

#[derive(Debug, Clone, Copy)]
enum Element {
    I32,
    I64,
    U32,
}

impl Element {
    fn new(descr: &str) -> Option<Self> {
        match descr {
            "<i4" => Some(Self::I32),
            "<i8" => Some(Self::I64),
            "<u4" => Some(Self::U32),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::I32 | Self::U32 => 4,
            Self::I64 => 8,
        }
    }

    /// The value of `bytes`, as many as [`Element::bytes`] says.
    fn value(self, bytes: &[u8]) -> i64 {
        let word = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        match self {
            Self::I32 => i64::from(word(0) as i32),
            Self::U32 => i64::from(word(0)),
            Self::I64 => (i64::from(word(4)) << 32) | i64::from(word(0)),
        }
    }
}

fn parse_ids(mut file: impl Read) -> Result<Vec<u32>, NpyError> {
    let header = read_header(&mut file)?;
    let Header { descr, fortran_order, shape } = Header::parse(&header)?;
    let wrong = |found, wanted| Err(NpyError::Kind { found, wanted });
    let Some(element) = Element::new(descr) else {
        let descr = descr.escape_debug();
        return wrong(
            format!("the elements are of type '{descr}'"),
            "int32, int64 or uint32, little-endian (numpy: ids.astype('<i4'))",
        );
    };
    let &[count] = &shape[..] else {
        return wrong(
            format!("the array has {} dimensions", shape.len()),
            "a one-dimensional array (numpy: ids.ravel())",
        );
    };
    if fortran_order {
        return wrong("the array is in Fortran order".into(), "in C order");
    }
    if count > MOST_IDS {
        return wrong(format!("the array has {count} elements"), "at most 16777216");
    }
    let mut bytes = Vec::new();
    file.by_ref().take(count * element.bytes() as u64).read_to_end(&mut bytes)?;
    let found = (bytes.len() / element.bytes()) as u64;
    if found < count {
        return Err(NpyError::Truncated { found, expected: count });
    }
    if file.read(&mut [0])? > 0 {
        return Err(NpyError::TooLong(count));
    }
    let ids = bytes.chunks_exact(element.bytes()).enumerate().map(|(index, bytes)| {
        let value = element.value(bytes);
        u32::try_from(value).map_err(|_| NpyError::NoId { index, value })
    });
    ids.collect()
}

/// The text between the magic bytes and the data.
fn read_header(file: &mut impl Read) -> Result<String, NpyError> {
    let ends = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => NpyError::NotNpy,
        _ => NpyError::Io(error),
    };
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(ends)?;
    let [magic @ .., major, minor] = start;
    if magic != *MAGIC {
        return Err(NpyError::NotNpy);
    }
    let len = match major {
        1 => {
            let mut len = [0; 2];
            file.read_exact(&mut len).map_err(ends)?;
            u32::from(u16::from_le_bytes(len))
        }
        // Version 3 differs in the header's encoding alone.
        2 | 3 => {
            let mut len = [0; 4];
            file.read_exact(&mut len).map_err(ends)?;
            u32::from_le_bytes(len)
        }
        _ => return Err(NpyError::Version(major, minor)),
    };
    if len > MOST_HEADER {
        return Err(NpyError::Header("it is too long"));
    }
    let mut header = Vec::new();
    file.take(len.into()).read_to_end(&mut header)?;
    if header.len() < len as usize {
        return Err(NpyError::Header("the file ends in it"));
    }
    String::from_utf8(header).map_err(|_| NpyError::Header("it is no text"))
}

/// A header: a Python dictionary with these three keys.
#[derive(Debug, PartialEq)]
struct Header<'a> {
    descr: &'a str,
    fortran_order: bool,
    shape: Vec<u64>,
}

impl<'a> Header<'a> {
    fn parse(text: &'a str) -> Result<Self, NpyError> {
        let bad = NpyError::Header;
        let inner = text.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let mut rest = inner.ok_or(bad("it is no dictionary"))?.trim();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, after) = quoted(rest).ok_or(bad("a key is missing"))?;
            let value = after.trim_start().strip_prefix(':').ok_or(bad("a colon is missing"))?;
            let value = value.trim_start();
            rest = match key {
                "descr" => {
                    // Arrays of records have a list here.
                    let (value, after) = quoted(value).ok_or(bad("'descr' is no text"))?;
                    descr = Some(value);
                    after
                }
                "fortran_order" => {
                    let (value, after) = boolean(value).ok_or(bad("'fortran_order' is no bool"))?;
                    fortran_order = Some(value);
                    after
                }
                "shape" => {
                    let (value, after) = tuple(value).ok_or(bad("'shape' is no tuple"))?;
                    shape = Some(value);
                    after
                }
                _ => return Err(bad("there is an unknown key")),
            }
            .trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more.trim_start(),
                None if rest.is_empty() => {}
                None => return Err(bad("a comma is missing")),
            }
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => {
                Ok(Self { descr, fortran_order, shape })
            }
            _ => Err(bad("a key is missing")),
        }
    }
}

/// A quoted text and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn boolean(text: &str) -> Option<(bool, &str)> {
    let of = |name, value| text.strip_prefix(name).map(|rest| (value, rest));
    of("True", true).or(of("False", false))
}

/// A tuple of numbers and what follows it.
fn tuple(text: &str) -> Option<(Vec<u64>, &str)> {
    let (inner, rest) = text.strip_prefix('(')?.split_once(')')?;
    let inner = inner.trim();
    let inner = inner.strip_suffix(',').unwrap_or(inner);
    if inner.is_empty() {
        return Some((Vec::new(), rest));
    }
    let numbers = inner.split(',').map(|number| number.trim().parse().ok());
    Some((numbers.collect::<Option<_>>()?, rest))
}

/// Writes a matrix of f32, row after row; under its path there is never half a file.
pub(crate) struct MatrixWriter {
    file: BufWriter<NewFile>,
    /// Elements still to come.
    left: u64,
}

impl MatrixWriter {
    /// Writes the header of a matrix of `[rows, cols]` to a file that has been begun.
    ///
    /// # Errors
    /// The system's refusal.
    pub(crate) fn new(file: NewFile, [rows, cols]: [usize; 2]) -> Result<Self> {
        let mut file = BufWriter::new(file);
        let write = file.write_all(&header(rows, cols));
        write.map_err(|source| CliError::io(file.get_ref().path(), WRITE, source))?;
        Ok(Self { file, left: rows as u64 * cols as u64 })
    }

    /// Appends elements.
    ///
    /// # Errors
    /// The system's refusal.
    pub(crate) fn write(&mut self, values: &[f32]) -> io::Result<()> {
        self.left = self.left.saturating_sub(values.len() as u64);
        values.iter().try_for_each(|value| self.file.write_all(&value.to_le_bytes()))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// The system's refusal, and fewer elements than announced.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { file, left } = self;
        let path = file.get_ref().path().to_path_buf();
        let whole = match left {
            0 => file.into_inner().map_err(|error| error.into_error()),
            _ => Err(io::Error::other(format!("{left} elements are missing"))),
        };
        Ok(whole.map_err(|source| CliError::io(path, WRITE, source))?.finish()?)
    }
}

/// Version 1.0, padded so that the data start at a multiple of 64 bytes.
fn header(rows: usize, cols: usize) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let start = MAGIC.len() + 4;
    let padded = (start + text.len() + 1).next_multiple_of(64) - start;
    text.extend(std::iter::repeat_n(' ', padded - text.len() - 1));
    text.push('\n');
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend((padded as u16).to_le_bytes());
    header.extend(text.bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([version, 0]);
        if version == 1 {
            bytes.extend((header.len() as u16).to_le_bytes());
        } else {
            bytes.extend((header.len() as u32).to_le_bytes());
        }
        bytes.extend(header.bytes());
        bytes.extend(data);
        bytes
    }

    fn array(descr: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}   \n")
    }

    fn error(bytes: &[u8]) -> String {
        parse_ids(bytes).unwrap_err().to_string()
    }

    #[test]
    fn all_three_types_in_all_versions() {
        for version in [1, 2, 3] {
            let bytes = file(version, &array("<i4", "(2,)"), &[7, 0, 0, 0, 0, 1, 0, 0]);
            assert_eq!(parse_ids(&bytes[..]).unwrap(), [7, 256]);
        }
        let u32s = file(1, &array("<u4", "(1,)"), &[0xff; 4]);
        assert_eq!(parse_ids(&u32s[..]).unwrap(), [u32::MAX]);
        let i64s =
            file(1, &array("<i8", "( 2, )"), &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse_ids(&i64s[..]).unwrap(), [1, 2]);
        assert!(parse_ids(&file(1, &array("<i4", "(0,)"), &[])[..]).unwrap().is_empty());
    }

    #[test]
    fn keys_in_any_order_and_with_either_quote() {
        let header = "{\"shape\": (3,), \"fortran_order\": True, \"descr\": \"<f4\"}\n";
        let expected = Header { descr: "<f4", fortran_order: true, shape: vec![3] };
        assert_eq!(Header::parse(header).unwrap(), expected);
    }

    #[test]
    fn what_is_no_list_of_ids_is_refused_in_one_line() {
        let two = [1, 0, 0, 0, 2, 0, 0, 0];
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![], "not a .npy file"),
            (b"\x93NUMPY".to_vec(), "not a .npy file"),
            (b"GGUF\x03\0\0\0\0\0".to_vec(), "not a .npy file"),
            (file(9, "", &[]), "version 9.0"),
            (file(1, "hello", &[]), "no dictionary"),
            (file(1, "{'descr': '<i4'}", &[]), "a key is missing"),
            (file(1, "{'descr': [('a', '<i4')]}", &[]), "'descr' is no text"),
            (file(1, "{'shape': (1 2)}", &[]), "'shape' is no tuple"),
            (file(1, "{'x': 1}", &[]), "unknown key"),
            (file(1, &array("<f4", "(2,)"), &two), "type '<f4'"),
            (file(1, &array(">i4", "(2,)"), &two), "little-endian"),
            (file(1, &array("<i4", "(1, 2)"), &two), "2 dimensions"),
            (file(1, &array("<i4", "()"), &two), "0 dimensions"),
            (file(1, &array("<i4", "(3,)"), &two), "2 of 3 ids"),
            (file(1, &array("<i4", "(1,)"), &two), "goes on"),
            (file(1, &array("<i4", "(99999999999,)"), &two), "99999999999 elements"),
            (file(1, &array("<i4", "(1,)"), &[0xff; 4]), "element 0 is -1"),
            (file(1, &array("<i8", "(1,)"), &[0, 0, 0, 0, 1, 0, 0, 0]), "element 0 is 4294967296"),
            (
                file(1, "{'descr': '<i4', 'fortran_order': True, 'shape': (2,), }", &two),
                "Fortran order",
            ),
        ];
        for (bytes, expected) in cases {
            let message = error(&bytes);
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
            assert!(!message.contains('\n'));
        }
    }

    #[test]
    fn headers_end_where_they_say() {
        let mut bytes = file(1, &array("<i4", "(0,)"), &[]);
        bytes.truncate(20);
        assert!(error(&bytes).contains("ends in it"));
        let mut long = MAGIC.to_vec();
        long.extend([2, 0, 0xff, 0xff, 0xff, 0xff]);
        assert!(error(&long).contains("too long"));
        for len in 0..bytes.len() {
            assert!(parse_ids(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_matrix_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.npy");
        let mut writer = MatrixWriter::new(NewFile::create(&path).unwrap(), [2, 3]).unwrap();
        writer.write(&[1.0, 2.0]).unwrap();
        assert!(!path.exists());
        writer.write(&[3.0, 4.0, 5.0, f32::NAN]).unwrap();
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 128 + 24);
        let header = read_header(&mut &bytes[..]).unwrap();
        let expected = Header { descr: "<f4", fortran_order: false, shape: vec![2, 3] };
        assert_eq!(Header::parse(&header).unwrap(), expected);
        assert_eq!(bytes[128..132], 1.0f32.to_le_bytes());
        let short = MatrixWriter::new(NewFile::create(&path).unwrap(), [2, 3]).unwrap();
        assert!(short.finish().is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
