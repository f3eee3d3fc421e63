//! A row's bits depend on its own sequence alone: run alone, batched with others, or its prompt cut
//! into chunks, a sequence gives the same logits to the last bit.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use realm_core::{
    DType,
    backend::{Backend, KvType, Precision},
};

use crate::{Case, case::Chunk, cases::model, random::Random, run};

/// Sequence 0: a prompt of 37 tokens, then four decoded ones.
fn alone() -> Vec<Vec<Chunk>> {
    let mut steps = vec![vec![Chunk::prefill(0, 37)]];
    steps.extend((0..4).map(|_| vec![Chunk::decode(0)]));
    steps
}

/// The same among others, its prompt cut in three, others prefilling while it decodes.
fn crowded() -> Vec<Vec<Chunk>> {
    vec![
        vec![Chunk::prefill(1, 9), Chunk::prefill(0, 11), Chunk::prefill(2, 40)],
        vec![Chunk::decode(1), Chunk::prefill(0, 1)],
        vec![Chunk::prefill(0, 25), Chunk::decode(2), Chunk::decode(1)],
        vec![Chunk::decode(0)],
        vec![Chunk::prefill(3, 70), Chunk::decode(0), Chunk::decode(1)],
        vec![Chunk::decode(1), Chunk::decode(2), Chunk::decode(0), Chunk::decode(3)],
        vec![Chunk::decode(0), Chunk::decode(2)],
    ]
}

/// The logits of sequence 0's rows, in order of their positions.
fn rows_of_first(case: &Case, backend: &dyn Backend, seed: u64) -> Result<Vec<u32>, String> {
    let outputs = run::run(case, backend, seed).map_err(|error| error.to_string())?;
    let mut bits = Vec::new();
    for (step, output) in case.steps.iter().zip(outputs) {
        let rows: usize = step.iter().map(|chunk| chunk.rows).sum();
        let cols = output.logits.len() / rows.max(1);
        let mut at = 0;
        for chunk in step {
            if chunk.sequence == 0 {
                let range = at * cols..(at + chunk.rows) * cols;
                bits.extend(output.logits[range].iter().map(|logit| logit.to_bits()));
            }
            at += chunk.rows;
        }
    }
    Ok(bits)
}

/// Runs a case's first sequence alone and among others.
pub(super) fn same_alone_and_batched(
    case: Case,
    backend: &dyn Backend,
    seed: u64,
) -> Result<(), Failed> {
    let case = case.steps(alone());
    let first = rows_of_first(&case, backend, seed)?;
    let case = case.steps(crowded());
    let second = rows_of_first(&case, backend, seed)?;
    let differing = first.iter().zip(&second).filter(|(a, b)| a != b).count();
    if first.len() == second.len() && differing == 0 {
        return Ok(());
    }
    Err(Failed::from(format!(
        "{differing} of {} logits differ between alone and batched (REALM_SEED={seed})",
        first.len()
    )))
}

/// The trials for one device.
pub fn trials(variant: &str, backend: &Arc<dyn Backend>, seed: u64) -> Vec<Trial> {
    let kinds = [
        (DType::Q4_K, Precision::Int8, KvType::F16),
        (DType::Q6_K, Precision::F32, KvType::F32),
        (DType::Q8_0, Precision::BF16, KvType::Q8_0),
        (DType::F16, Precision::F16, KvType::BF16),
    ];
    kinds
        .into_iter()
        .map(|(dtype, precision, kv_type)| {
            let backend = backend.clone();
            let name =
                format!("{variant}/invariance/{dtype}/{precision}/kv-{kv_type}").to_lowercase();
            Trial::test(name, move || {
                let mut random = Random::new(seed).named("invariance");
                let case = model::llama(&mut random, dtype).precision(precision).kv_type(kv_type);
                same_alone_and_batched(case, &*backend, seed)
            })
        })
        .collect()
}
