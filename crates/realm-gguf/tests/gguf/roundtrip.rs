//! What is written is read back the same.

use proptest::prelude::*;
use realm_core::DType;
use realm_gguf::{Array, GgufFile, GgufWriter, Strings, Value};

use crate::build::touch;

fn strings() -> impl Strategy<Value = Strings> {
    let string = prop_oneof![
        any::<String>().prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(string, 0..8).prop_map(|list| list.into_iter().collect())
}

fn array() -> impl Strategy<Value = Array> {
    fn list<T: Arbitrary + 'static>() -> impl Strategy<Value = Vec<T>> {
        prop::collection::vec(any::<T>(), 0..9)
    }
    let leaf = prop_oneof![
        list().prop_map(Array::U8),
        list().prop_map(Array::I8),
        list().prop_map(Array::U16),
        list().prop_map(Array::I16),
        list().prop_map(Array::U32),
        list().prop_map(Array::I32),
        list().prop_map(Array::U64),
        list().prop_map(Array::I64),
        list().prop_map(Array::F32),
        list().prop_map(Array::F64),
        list().prop_map(Array::Bool),
        strings().prop_map(Array::String),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        // Any bits, NaNs included.
        any::<u32>().prop_map(|bits| Value::F32(f32::from_bits(bits))),
        any::<u64>().prop_map(|bits| Value::F64(f64::from_bits(bits))),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        array().prop_map(Value::Array),
    ]
}

/// Name, shape and type of a tensor whose rows are whole blocks.
fn tensor() -> impl Strategy<Value = (String, Vec<usize>, DType)> {
    let types = [DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0, DType::Q6_K];
    let shape = prop::collection::vec(1usize..4, 0..=4);
    ("[a-zé.]{1,20}", shape, prop::sample::select(types.to_vec())).prop_map(
        |(name, mut shape, dtype)| {
            if dtype.block_len() > 1 && shape.is_empty() {
                shape.push(1);
            }
            if let Some(cols) = shape.first_mut() {
                *cols *= dtype.block_len();
            }
            (name, shape, dtype)
        },
    )
}

/// The data of a tensor: a byte stream that depends on its name.
fn data(name: &str, len: usize) -> Vec<u8> {
    let seed = name.bytes().fold(1u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    (0..len).map(|i| seed.wrapping_add((i * 7) as u8)).collect()
}

proptest! {
    #[test]
    fn read_of_write_is_the_same(
        entries in prop::collection::hash_map("[a-z._ü\n]{1,12}", value(), 0..12),
        tensors in prop::collection::vec(tensor(), 0..8),
        alignment in prop::option::of(3u32..12),
    ) {
        let mut writer = GgufWriter::new();
        if let Some(bits) = alignment {
            writer.set("general.alignment", 1u32 << bits)?;
        }
        for (key, value) in &entries {
            writer.set(key, value.clone())?;
        }
        for (name, shape, dtype) in tensors {
            if !writer.tensors().iter().any(|plan| plan.name() == name) {
                writer.tensor(name, &shape, dtype)?;
            }
        }
        let bytes = writer.to_bytes(|plan, out| out.write_all(&data(plan.name(), plan.bytes())))?;
        let file = GgufFile::parse(bytes.clone())?;
        touch(&file);

        prop_assert_eq!(file.version(), 3);
        prop_assert_eq!(file.alignment(), alignment.map_or(32, |bits| 1 << bits));
        prop_assert_eq!(file.metadata().len(), writer.metadata().len());
        // By their text: NaN is not equal to itself, but its text is.
        let pairs = file.metadata().iter().zip(writer.metadata().iter());
        for ((key, value), (wanted_key, wanted)) in pairs {
            prop_assert_eq!(key, wanted_key);
            prop_assert_eq!(format!("{value:?}"), format!("{wanted:?}"));
        }
        prop_assert_eq!(file.tensors().len(), writer.tensors().len());
        for (tensor, plan) in file.tensors().iter().zip(writer.tensors()) {
            prop_assert_eq!(tensor.name(), plan.name());
            prop_assert_eq!(tensor.shape(), plan.shape());
            prop_assert_eq!(tensor.dtype(), Some(plan.dtype()));
            prop_assert_eq!(tensor.byte_range().start % file.alignment() as usize, 0);
            prop_assert_eq!(&tensor.data()?[..], &data(plan.name(), plan.bytes())[..]);
        }

        // Writing what was read gives the same bytes: NaN payloads and stray bytes included.
        let mut again = GgufWriter::new();
        for (key, value) in file.metadata().iter() {
            again.set(key, value.clone())?;
        }
        for tensor in file.tensors() {
            again.tensor(tensor.name(), tensor.shape(), tensor.dtype().expect("known"))?;
        }
        let mut next = file.tensors().iter();
        let copy = again.to_bytes(|_, out| {
            out.write_all(&next.next().expect("as many").data().expect("known"))
        })?;
        prop_assert!(copy == bytes);
    }
}
