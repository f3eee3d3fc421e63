//! The header of one file: version, metadata, tensor descriptions, and where their data lies.

use realm_core::DType;

use crate::cursor::Cursor;
use crate::source::Source;
use crate::tensor::TensorInfo;
use crate::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgufError, GgufErrorKind, MAGIC, MAX_DIMS, MAX_KEY_BYTES,
    MAX_NAME_BYTES, Metadata, Place, alignment_is_valid,
};

/// One file's header, checked against the file. Tensor names may still stand twice.
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) alignment: u64,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<TensorInfo>,
}

/// Fewest bytes of a key and its value: length, one byte, type, one byte.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Fewest bytes of a tensor's description: name, dimension count, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// A tensor as described in the header, its data not yet placed.
struct Described {
    name: String,
    dims: [usize; MAX_DIMS],
    n_dims: usize,
    type_id: u32,
    dtype: Option<DType>,
    /// Bytes of the data; `None` for types of unknown size.
    size: Option<usize>,
    /// From the start of the data section.
    offset: u64,
}

/// Reads the header of `source`, which is file number `part` of its model.
pub(crate) fn parse(source: &Source, part: usize) -> Result<Header, GgufError> {
    let bytes = source.bytes();
    let mut cursor = Cursor::new(&source.path, bytes);
    let version = magic_and_version(&mut cursor, source)?;

    let counts_at = cursor.position();
    let tensor_count = cursor.u64("the tensor count")?;
    let entry_count = cursor.count("the number of metadata keys", MIN_ENTRY_BYTES)?;
    cursor.check_count(counts_at, "the tensor count", tensor_count, MIN_TENSOR_BYTES)?;

    let mut metadata = Metadata::new(&source.path);
    for _ in 0..entry_count {
        let key = cursor.name("a key", MAX_KEY_BYTES)?;
        metadata.insert(key, cursor.value()?)?;
    }
    let alignment = metadata.find::<u64>(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment_is_valid(alignment) {
        let place = Place::Key(ALIGNMENT_KEY.to_owned());
        return Err(source.error(place, GgufErrorKind::Alignment(alignment)));
    }

    // Metadata took its share of the file: bound the count again before it is used.
    cursor.check_count(counts_at, "the tensor count", tensor_count, MIN_TENSOR_BYTES)?;
    let mut described = Vec::new();
    for _ in 0..tensor_count {
        described.push(describe(&mut cursor, source, alignment)?);
    }
    let data_start = (cursor.position() as u64).next_multiple_of(alignment);
    let tensors = place(described, data_start, source, part)?;
    Ok(Header { version, alignment, metadata, tensors })
}

fn magic_and_version(cursor: &mut Cursor<'_>, source: &Source) -> Result<u32, GgufError> {
    let magic = cursor.take(4, "the magic number")?;
    if magic != MAGIC {
        let kind = GgufErrorKind::NotGguf {
            found: format!("\"{}\"", magic.escape_ascii()),
            hint: hint(source.bytes()),
        };
        return Err(source.error(Place::File, kind));
    }
    let at = cursor.position();
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        // The same small number with its bytes the other way round.
        version if (1..1 << 16).contains(&version.swap_bytes()) => {
            Err(source.error(Place::File, GgufErrorKind::BigEndian))
        }
        version => Err(cursor.error_at(at, GgufErrorKind::Version(version))),
    }
}

/// What a file that isn't GGUF may be, from its first bytes.
fn hint(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'v', b'e', b'r', b's', ..] => {
            ": this looks like a Git LFS pointer; fetch the file itself with `git lfs pull`"
        }
        [b'l' | b't' | b'f', b'm' | b'j', b'g', b'g', ..] => {
            ": this looks like a file older than GGUF; download the model as GGUF"
        }
        [_, _, _, _, _, _, _, _, b'{', ..] => ": this looks like safetensors; convert it to GGUF",
        [b'P', b'K', 3, 4, ..] => ": this looks like a PyTorch or zip file; convert it to GGUF",
        [b'<', ..] => ": this looks like a web page; download the file itself",
        _ => "; give the path of a .gguf file",
    }
}

/// Reads one tensor's description and computes its size.
fn describe(
    cursor: &mut Cursor<'_>,
    source: &Source,
    alignment: u64,
) -> Result<Described, GgufError> {
    let name = cursor.name("a tensor name", MAX_NAME_BYTES)?;
    let error = |kind| source.error(Place::Tensor(name.clone()), kind);
    let shape_error = |shape, problem| error(GgufErrorKind::Shape { shape, problem });

    let n_dims = cursor.u32("a tensor's dimension count")? as usize;
    if n_dims > MAX_DIMS {
        return Err(shape_error(format!("of {n_dims} dimensions"), "at most 4 are allowed"));
    }
    let mut raw = [1u64; MAX_DIMS];
    for dim in &mut raw[..n_dims] {
        *dim = cursor.u64("a tensor's dimensions")?;
    }
    let type_id = cursor.u32("a tensor's type")?;
    let offset = cursor.u64("a tensor's offset")?;

    let dtype = DType::from_gguf_id(type_id);
    let dims = checked_dims(raw)
        .map_err(|problem| shape_error(format!("{:?}", &raw[..n_dims]), problem))?;
    let size = dtype.map(|dtype| checked_bytes(&dims, dtype)).transpose().map_err(error)?;
    if !offset.is_multiple_of(alignment) {
        return Err(error(GgufErrorKind::Unaligned { offset, alignment }));
    }
    Ok(Described { name, dims, n_dims, type_id, dtype, size, offset })
}

const TOO_LARGE: &str = "too large for this machine";

/// The dimensions as `usize`, none of them 0, their product at most `isize::MAX`; the error says
/// what is wrong.
pub(crate) fn checked_dims(raw: [u64; MAX_DIMS]) -> Result<[usize; MAX_DIMS], &'static str> {
    let mut dims = [1usize; MAX_DIMS];
    let mut elements = 1usize;
    for (dim, raw) in dims.iter_mut().zip(raw) {
        if raw == 0 {
            return Err("a dimension is 0");
        }
        *dim = usize::try_from(raw).map_err(|_| TOO_LARGE)?;
        elements = elements.checked_mul(*dim).ok_or(TOO_LARGE)?;
    }
    isize::try_from(elements).map_err(|_| TOO_LARGE)?;
    Ok(dims)
}

/// The bytes that a tensor of these (checked) dimensions takes.
pub(crate) fn checked_bytes(
    dims: &[usize; MAX_DIMS],
    dtype: DType,
) -> Result<usize, GgufErrorKind> {
    let (cols, block) = (dims[0], dtype.block_len());
    if !cols.is_multiple_of(block) {
        let cols = cols as u64;
        return Err(GgufErrorKind::RowLength { cols, dtype: dtype.name(), block });
    }
    let rows: usize = dims[1..].iter().product();
    dtype
        .row_bytes(cols)
        .and_then(|row| row.checked_mul(rows))
        .ok_or_else(|| GgufErrorKind::Shape { shape: format!("{dims:?}"), problem: TOO_LARGE })
}

/// Turns offsets into byte ranges of the file and checks that they are inside it and apart.
fn place(
    described: Vec<Described>,
    data_start: u64,
    source: &Source,
    part: usize,
) -> Result<Vec<TensorInfo>, GgufError> {
    let present = source.bytes().len();
    let mut tensors = Vec::with_capacity(described.len());
    for tensor in described {
        // 128 bits hold these sums whatever the file says.
        let start = u128::from(data_start) + u128::from(tensor.offset);
        let end = start + tensor.size.unwrap_or(1) as u128;
        if end > present as u128 {
            let kind = GgufErrorKind::TensorTruncated { start, end, present: present as u64 };
            return Err(source.error(Place::Tensor(tensor.name), kind));
        }
        let end = if tensor.size.is_some() { end as usize } else { present };
        let Described { name, dims, n_dims, type_id, dtype, .. } = tensor;
        let range = start as usize..end;
        let source = source.clone();
        tensors.push(TensorInfo { name, dims, n_dims, type_id, dtype, part, range, source });
    }
    keep_apart(&mut tensors)?;
    Ok(tensors)
}

/// Checks that no tensors share bytes; those of unknown size are cut at the next tensor's start.
fn keep_apart(tensors: &mut [TensorInfo]) -> Result<(), GgufError> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| tensors[i].range.start);
    for pair in order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        let next = tensors[second].range.start;
        let before = &mut tensors[first];
        if before.dtype.is_none() && before.range.start < next {
            before.range.end = next;
        }
        if before.range.end > next {
            let kind = GgufErrorKind::Overlap { other: before.name.clone() };
            let later = &tensors[second];
            return Err(later.source.error(Place::Tensor(later.name.clone()), kind));
        }
    }
    Ok(())
}
