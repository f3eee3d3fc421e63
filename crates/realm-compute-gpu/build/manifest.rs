//! The list of all kernel variants: what is compiled, and under which names it is found.

use realm_core::DType;

/// Most units that the list may hold: each is an nvcc run, and bytes in every binary.
const CAP: usize = 48;

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
    let formats = |kind: &'static str, source| {
        DType::ALL.iter().map(move |dtype| {
            let lower = dtype.name().to_lowercase();
            Unit {
                name: format!("{kind}_{lower}"),
                source,
                defines: vec![format!("FORMAT_{}=1", dtype.name()), format!("FORMAT={lower}")],
            }
        })
    };
    let mut units: Vec<Unit> = formats("matvec", "matvec.cu").collect();
    units.extend(formats("matmul", "matmul.cu"));
    for (kind, source) in [("attention", "attention.cu"), ("flash", "flash.cu")] {
        units.extend(["f32", "f16", "bf16", "q8_0"].map(|kv| Unit {
            name: format!("{kind}_{kv}"),
            source,
            defines: vec![format!("KV_{}=1", kv.to_uppercase()), format!("KV={kv}")],
        }));
    }
    units.extend(["embed", "rope", "elementwise", "moe", "sample"].map(|name| Unit {
        name: name.into(),
        source: match name {
            "embed" => "embed.cu",
            "rope" => "rope.cu",
            "elementwise" => "elementwise.cu",
            "moe" => "moe.cu",
            _ => "sample.cu",
        },
        defines: vec![],
    }));
    // What `realm bench --claims` compares with: of the one format that it measures.
    units.push(Unit {
        name: "baselines".into(),
        source: "baselines.cu",
        defines: vec!["FORMAT_Q4_K=1".into(), "FORMAT=q4_k".into()],
    });
    assert!(units.len() <= CAP, "{} kernel units exceed the cap of {CAP}", units.len());
    units
}
