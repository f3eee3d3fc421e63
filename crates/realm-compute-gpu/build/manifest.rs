//! The list of all kernel variants: what is compiled, and under which names it is found.

use realm_core::DType;

/// Most units that the list may hold: each is an nvcc run, and bytes in every binary.
const CAP: usize = 32;

/// One compilation: a source file with definitions.
pub(crate) struct Unit {
    /// What [`Launch::unit`](../src/cuda/gpu.rs) names.
    pub(crate) name: String,
    /// A file of `kernels/cuda`.
    pub(crate) source: &'static str,
    /// Preprocessor definitions, `NAME=VALUE`.
    pub(crate) defines: Vec<String>,
}

/// Every unit.
pub(crate) fn units() -> Vec<Unit> {
    let mut units: Vec<Unit> = DType::ALL
        .iter()
        .map(|dtype| {
            let lower = dtype.name().to_lowercase();
            Unit {
                name: format!("matvec_{lower}"),
                source: "matvec.cu",
                defines: vec![format!("FORMAT_{}=1", dtype.name()), format!("FORMAT={lower}")],
            }
        })
        .collect();
    units.extend(["f32", "f16", "bf16", "q8_0"].map(|kv| Unit {
        name: format!("attention_{kv}"),
        source: "attention.cu",
        defines: vec![format!("KV_{}=1", kv.to_uppercase()), format!("KV={kv}")],
    }));
    units.extend(["embed", "rope", "elementwise", "sample"].map(|name| Unit {
        name: name.into(),
        source: match name {
            "embed" => "embed.cu",
            "rope" => "rope.cu",
            "elementwise" => "elementwise.cu",
            _ => "sample.cu",
        },
        defines: vec![],
    }));
    assert!(units.len() <= CAP, "{} kernel units exceed the cap of {CAP}", units.len());
    units
}
