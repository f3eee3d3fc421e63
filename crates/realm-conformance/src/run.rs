//! Running a case on a backend and holding it to the reference interpreter.

use std::sync::Arc;

use realm_core::{
    Graph,
    backend::{
        Backend, BackendError, Bindings, BlockId, CompileOptions, Inputs, KvSpec, Limits,
        Precision, Program, SequenceRows, StepOutput, Token,
    },
    reference::ReferenceBackend,
    sampling::Sampling,
};

use crate::{Case, case::Chunk, random::Random};

/// The token of a sequence at a position: the same whatever step computes it.
fn token(case: &Case, seed: u64, sequence: usize, position: usize) -> u32 {
    let mut random = Random::new(seed).named(&format!("{sequence}/{position}"));
    random.below(case.vocabulary) as u32
}

/// What the host hands over for that token, `cols` numbers.
fn given(seed: u64, sequence: usize, position: usize, cols: usize) -> Vec<f32> {
    let mut random = Random::new(seed).named(&format!("given/{sequence}/{position}"));
    (0..cols).map(|_| random.normal()).collect()
}

/// Runs the steps of a case and gives each step's results.
///
/// # Errors
/// What the backend refuses or fails at.
pub fn run(case: &Case, backend: &dyn Backend, seed: u64) -> Result<Vec<StepOutput>, BackendError> {
    let mut prepared = Prepared::new(case, backend, seed)?;
    case.steps.iter().map(|step| prepared.step(step, false)).collect()
}

/// Runs the steps of a case several times over and gives the seconds of each node in every run of the
/// last step.
///
/// # Errors
/// What the backend refuses or fails at.
pub fn run_timed(
    case: &Case,
    backend: &dyn Backend,
    seed: u64,
    repetitions: usize,
) -> Result<Vec<Vec<f64>>, BackendError> {
    let mut prepared = Prepared::new(case, backend, seed)?;
    let Some((last, before)) = case.steps.split_last() else { return Ok(Vec::new()) };
    for step in before {
        prepared.step(step, false)?;
    }
    let cached = prepared.cached.clone();
    let timed = |_| {
        prepared.cached.clone_from(&cached);
        Ok(prepared.step(last, true)?.node_seconds)
    };
    (0..repetitions).map(timed).collect()
}

/// A case on a backend.
struct Prepared<'a> {
    case: &'a Case,
    seed: u64,
    program: Box<dyn Program>,
    tables: Vec<Vec<BlockId>>,
    cached: Vec<usize>,
}

impl<'a> Prepared<'a> {
    fn new(case: &'a Case, backend: &dyn Backend, seed: u64) -> Result<Self, BackendError> {
        let block_tokens = backend.info().kv_block_tokens;
        let chunks = || case.steps.iter().flatten();
        let sequences = chunks().map(|chunk| chunk.sequence + 1).max().unwrap_or(0);
        let length = |sequence: usize| -> usize {
            chunks().filter(|c| c.sequence == sequence).map(|c| c.rows).sum()
        };
        // Every sequence's blocks lie scattered over the pool.
        let needed: Vec<usize> = (0..sequences).map(|s| length(s).div_ceil(block_tokens)).collect();
        let blocks = needed.iter().sum::<usize>() + 2;
        let mut order = Random::new(seed).permutation(blocks).into_iter().map(BlockId);
        let tables = needed.iter().map(|&n| order.by_ref().take(n).collect()).collect();

        let layers = case.graph.kv().to_vec();
        let spec = KvSpec { layers, kv_type: case.kv_type, blocks, block_tokens };
        let weights = load(&case.graph, case, backend)?;
        let bindings = Bindings { weights, kv: backend.kv_pool(&spec)? };
        let rows = |step: &Vec<Chunk>| step.iter().map(|chunk| chunk.rows).sum::<usize>();
        let tokens = case.steps.iter().map(rows).max().unwrap_or(0);
        let limits = Limits { tokens, outputs: tokens, sequences };
        let options = CompileOptions {
            limits,
            precision: case.precision,
            invariant: case.invariant,
            poison: true,
        };
        let program = backend.compile(&case.graph, &bindings, &options)?;
        Ok(Self { case, seed, program, tables, cached: vec![0; sequences] })
    }

    fn step(&mut self, step: &[Chunk], want_times: bool) -> Result<StepOutput, BackendError> {
        let Self { case, seed, program, tables, cached } = self;
        let (mut tokens, mut rows_given, mut batch) = (Vec::new(), Vec::new(), Vec::new());
        let cols = case.graph.given().map_or(0, |value| case.graph.value(value).cols);
        for chunk in step {
            let start = tokens.len();
            let positions = cached[chunk.sequence]..cached[chunk.sequence] + chunk.rows;
            if cols > 0 {
                let rows = positions.clone();
                rows_given.extend(rows.flat_map(|at| given(*seed, chunk.sequence, at, cols)));
            }
            tokens.extend(positions.map(|at| Token::Id(token(case, *seed, chunk.sequence, at))));
            batch.push(SequenceRows {
                rows: start..tokens.len(),
                cached: cached[chunk.sequence],
                role: chunk.role,
                blocks: &tables[chunk.sequence],
            });
            cached[chunk.sequence] += chunk.rows;
        }
        let rows: Vec<u32> = (0..tokens.len() as u32).collect();
        let sampling: Vec<Sampling> = case
            .sampling
            .iter()
            .flat_map(|how| rows.iter().map(|&position| Sampling { position, ..*how }))
            .collect();
        let inputs = Inputs {
            tokens: &tokens,
            sequences: &batch,
            given: &rows_given,
            outputs: &rows,
            sampling: &sampling,
            want_logits: !want_times,
            want_times,
            previous: None,
        };
        program.enqueue(&inputs)?.read()
    }
}

fn load(
    graph: &Graph,
    case: &Case,
    backend: &dyn Backend,
) -> Result<Vec<Arc<dyn realm_core::backend::LoadedWeight>>, BackendError> {
    let pairs = graph.weights().iter().zip(&case.weights);
    pairs.map(|(info, data)| backend.load_weight(info, data.clone())).collect()
}

/// ‖out − reference‖ / ‖reference‖; infinite where anything is not a number or missing. The divisor is
/// at least that of outputs of root mean square `typical`.
pub fn distance(out: &[f32], reference: &[f32], typical: f64) -> f64 {
    if out.len() != reference.len() {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let pairs = out.iter().zip(reference);
    let error: f64 = pairs.map(|(&o, &r)| square(f64::from(o) - f64::from(r))).sum();
    let norm: f64 = reference.iter().map(|&r| square(f64::from(r))).sum();
    let norm = norm.max(square(typical) * out.len() as f64);
    let distance = if error == 0.0 { 0.0 } else { (error / norm).sqrt() };
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// The bound for a number of outputs. Rounding errors of narrow types are random: over few outputs
/// their root mean square scatters, most of all over a single one.
fn bound(case: &Case, outputs: usize) -> f64 {
    match case.precision {
        Precision::F32 => case.tolerance,
        _ => case.tolerance * (1.0 + 2.5 / (outputs.max(1) as f64).sqrt()),
    }
}

/// Runs a case on both and compares.
///
/// # Errors
/// One line that says what differs, and by how much.
pub fn check(case: &Case, backend: &dyn Backend, seed: u64) -> Result<(), String> {
    let line = |error: BackendError| format!("{}: {error} (REALM_SEED={seed})", case.name);
    let reference = ReferenceBackend::new(backend.info().kv_block_tokens);
    let expected = run(case, &reference, seed).map_err(line)?;
    let found = run(case, backend, seed).map_err(line)?;
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let distance = distance(&found.logits, &expected.logits, case.typical);
        let bound = bound(case, expected.logits.len());
        if distance.is_infinite() || distance > bound {
            return Err(format!(
                "{}: step {step} is {distance:.2e} off, {bound:.1e} is allowed (REALM_SEED={seed})",
                case.name
            ));
        }
        if found.sampled != expected.sampled {
            return Err(format!(
                "{}: step {step} sampled {:?}, not {:?} (REALM_SEED={seed})",
                case.name, found.sampled, expected.sampled
            ));
        }
    }
    Ok(())
}
