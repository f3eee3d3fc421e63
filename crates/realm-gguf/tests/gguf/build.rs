//! GGUF files made by hand, byte by byte, apart from the writer under test.

use std::fmt::Write as _;
use std::hint::black_box;

use realm_gguf::{GgufError, GgufFile, GgufWriter, Strings};

/// Ids of value types in files.
pub(crate) mod id {
    pub(crate) const U8: u32 = 0;
    pub(crate) const U32: u32 = 4;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
}

/// Ids of tensor types in files.
pub(crate) const F32: u32 = 0;
pub(crate) const Q4_0: u32 = 2;
/// No such type.
pub(crate) const NO_TYPE: u32 = 12345;

/// A file being put together; counts are given up front so that they can lie.
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Raw {
    pub(crate) fn new(version: u32, tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A length and as many bytes.
    pub(crate) fn string(self, bytes: impl AsRef<[u8]>) -> Self {
        self.u64(bytes.as_ref().len() as u64).bytes(bytes.as_ref())
    }

    /// A key and its value's type; the value follows.
    pub(crate) fn key(self, key: impl AsRef<[u8]>, type_id: u32) -> Self {
        self.string(key).u32(type_id)
    }

    pub(crate) fn tensor(self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        let described = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(described, |raw, &dim| raw.u64(dim)).u32(type_id).u64(offset)
    }

    /// Pads the header to `alignment` and appends `len` bytes of data, numbered.
    pub(crate) fn data(mut self, alignment: usize, len: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self.0.extend((0..len).map(|i| i as u8));
        self
    }

    pub(crate) fn parse(self) -> Result<GgufFile, GgufError> {
        GgufFile::parse(self.0)
    }

    /// The error's text; it has to be there, on one line, and name the file.
    #[track_caller]
    pub(crate) fn error(self) -> String {
        error_text(&self.parse().expect_err("the file should be refused"))
    }
}

/// The text of an error, which has to be one line.
#[track_caller]
pub(crate) fn error_text(error: &GgufError) -> String {
    let text = error.to_string();
    assert!(!text.contains(|c: char| c.is_control()), "not one line: {text:?}");
    assert!(text.len() < 1000, "too long: {text}");
    text
}

/// Asserts that `text` holds all of `parts`.
#[track_caller]
pub(crate) fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

/// A small valid file with every kind of metadata and three tensors, the last of which ends the
/// file.
pub(crate) fn small_file() -> Vec<u8> {
    let mut writer = GgufWriter::new();
    let strings: Strings = ["a", "", "ü", "tok\u{2581}"].into_iter().collect();
    let add = |writer: &mut GgufWriter| -> Result<(), GgufError> {
        writer.set("general.architecture", "llama")?.set("u8", 1u8)?.set("i8", -1i8)?;
        writer.set("u16", 2u16)?.set("i16", -2i16)?.set("u32", 3u32)?.set("i32", -3i32)?;
        writer.set("u64", u64::MAX)?.set("i64", i64::MIN)?.set("bool", true)?;
        writer.set("f32", 0.5f32)?.set("f64", -0.25f64)?.set("strings", strings)?;
        writer.set("numbers", vec![1u32, 2, 3])?.set("flags", vec![true, false])?;
        writer.set("nested", realm_gguf::Array::Array(vec![vec![1u8, 2].into_array()]))?;
        writer.tensor("a.weight", &[4, 3], realm_core::DType::F32)?;
        writer.tensor("b.weight", &[64], realm_core::DType::Q4_0)?;
        writer.tensor("c.weight", &[2, 2, 2], realm_core::DType::F32)?;
        Ok(())
    };
    add(&mut writer).expect("valid");
    writer.to_bytes(|plan, out| out.write_all(&vec![7; plan.bytes()])).expect("written")
}

trait IntoArray {
    fn into_array(self) -> realm_gguf::Array;
}

impl IntoArray for Vec<u8> {
    fn into_array(self) -> realm_gguf::Array {
        realm_gguf::Array::U8(self)
    }
}

/// Uses all that an open file offers; nothing of it may panic.
pub(crate) fn touch(file: &GgufFile) {
    let mut text = String::new();
    let meta = file.metadata();
    for (key, value) in meta.iter() {
        write!(text, "{key} {value} {value:?} {}", value.value_type()).expect("to a string");
        let errors = [
            meta.get::<u8>(key).err(),
            meta.get::<i8>(key).err(),
            meta.get::<u32>(key).err(),
            meta.get::<u64>(key).err(),
            meta.get::<usize>(key).err(),
            meta.get::<f32>(key).err(),
            meta.get::<f64>(key).err(),
            meta.get::<bool>(key).err(),
            meta.get::<&str>(key).err(),
            meta.get::<&Strings>(key).err(),
            meta.get::<&[f32]>(key).err(),
            meta.get::<Vec<i32>>(key).err(),
            meta.get::<Vec<u64>>(key).err(),
        ];
        errors.iter().flatten().for_each(|e| assert!(!e.to_string().contains('\n')));
        if let Ok(strings) = meta.get::<&Strings>(key) {
            assert_eq!(strings.iter().count(), strings.len());
            assert!(strings.get(strings.len()).is_none());
        }
    }
    let mut ranges: Vec<_> = Vec::new();
    for tensor in file.tensors() {
        assert_eq!(tensor.elements(), tensor.shape().iter().product::<usize>());
        write!(text, "{tensor:?}").expect("to a string");
        let raw = tensor.raw_data().expect("checked at open");
        black_box(raw.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
        match tensor.data() {
            Ok(data) => {
                let row = tensor.dtype().and_then(|dtype| dtype.row_bytes(tensor.cols()));
                assert_eq!(Some(data.len()), row.map(|row| row * tensor.rows()));
            }
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
        assert!(file.require(tensor.name()).is_ok());
        ranges.push((tensor.part(), tensor.byte_range()));
    }
    ranges.sort_by_key(|(part, range)| (*part, range.start));
    for pair in ranges.windows(2) {
        let ((part, range), (next_part, next)) = (&pair[0], &pair[1]);
        assert!(part != next_part || range.end <= next.start, "{pair:?}");
    }
    black_box((text, file.file_bytes(), file.alignment(), file.version(), file.parts().count()));
}
