//! What the types of products and of the KV cache are called, and what they mean.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use realm_core::backend::{KvType, Precision};

/// The values of `--precision`, and what each means.
const PRECISIONS: [(&str, &str); 5] = [
    ("auto", "the device's choice, which the output tells: int8 on the CPU, bf16 on CUDA"),
    ("f32", "single precision, the measure of the others; the slowest"),
    (
        "f16",
        "rounded to 11 bits, up to 65504; where that overflows Realm says so and goes on in bf16",
    ),
    ("bf16", "rounded to 8 bits, with the range of f32"),
    (
        "int8",
        "quantized weights as they are, activations of 8 bits with a scale for 32; other weights as f32",
    ),
];

/// The values of `--kv-type`, and what each means.
const KV_TYPES: [(&str, &str); 5] = [
    ("auto", "f32 with --precision f32, else f16"),
    ("f32", "4 bytes an element, nothing is lost"),
    (
        "f16",
        "2 bytes, rounded to 11 bits, up to 65504; where that overflows Realm says so and goes on in bf16",
    ),
    ("bf16", "2 bytes, rounded to 8 bits, with the range of f32"),
    ("q8_0", "1.06 bytes: 8 bits with a scale for 32; head sizes must be multiples of 32"),
];

/// The type of the KV cache that is asked for; `None` leaves it to the precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvChoice(pub(crate) Option<KvType>);

fn values(list: &[(&'static str, &'static str)]) -> PossibleValuesParser {
    let value =
        |&(name, meaning): &(&'static str, &'static str)| PossibleValue::new(name).help(meaning);
    list.iter().map(value).collect::<Vec<_>>().into()
}

/// Reads `--precision`.
pub(crate) fn precisions() -> impl TypedValueParser<Value = Precision> {
    values(&PRECISIONS).try_map(|name| name.parse())
}

/// Reads `--kv-type`.
pub(crate) fn kv_types() -> impl TypedValueParser<Value = KvChoice> {
    values(&KV_TYPES).try_map(|name| match name.as_str() {
        "auto" => Ok(KvChoice(None)),
        name => name.parse().map(|kv_type| KvChoice(Some(kv_type))),
    })
}

/// What a name stands for.
fn meaning(list: &[(&'static str, &'static str)], name: &str) -> &'static str {
    list.iter().find(|(known, _)| *known == name).map_or("", |(_, meaning)| meaning)
}

/// A precision and what it means; `asked` is what the command line says.
pub(crate) fn precision_said(precision: Precision, asked: Precision) -> String {
    let auto = if asked == Precision::Auto { " (auto)" } else { "" };
    format!("{precision}{auto}: {}", meaning(&PRECISIONS, &precision.to_string()))
}

/// A KV type and what it means.
pub(crate) fn kv_said(kv_type: KvType, asked: KvChoice) -> String {
    let auto = if asked.0.is_none() { " (auto)" } else { "" };
    format!("{kv_type}{auto}: {}", meaning(&KV_TYPES, &kv_type.to_string()))
}

/// All of them for `realm devices`, a line each.
pub(crate) fn legend() -> Vec<String> {
    let list = |title: &str, list: &[(&str, &str)]| {
        let lines = list.iter().map(|(name, meaning)| format!("  {name:4}  {meaning}"));
        [title.to_owned()].into_iter().chain(lines).collect::<Vec<_>>()
    };
    [
        list("--precision, the type of the products' inputs (sums are f32):", &PRECISIONS),
        list("--kv-type, the type of keys and values:", &KV_TYPES),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_meaning() {
        for (name, _) in PRECISIONS {
            let precision: Precision = name.parse().unwrap();
            assert!(precision_said(precision, precision).len() > name.len() + 12);
        }
        for (name, _) in &KV_TYPES[1..] {
            let kv_type: KvType = name.parse().unwrap();
            let said = kv_said(kv_type, KvChoice(None));
            assert!(said.starts_with(&format!("{name} (auto): ")) && said.len() > 20, "{said}");
        }
        assert_eq!(legend().len(), 12);
    }
}
