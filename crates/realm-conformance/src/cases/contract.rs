//! What the backend contract promises beside the ops: a step may take the tokens that the step before
//! sampled, and cache blocks may be copied, taken out and put back.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use realm_core::{
    DType,
    backend::{
        Backend, BackendError, Bindings, BlockId, CompileOptions, Inputs, KvPool, KvSpec, KvType,
        Limits, Precision, Program, Role, SequenceRows, Step, Token,
    },
    graph::{GraphBuilder, WeightInfo},
    reference::ReferenceBackend,
    sampling::{NO_TOKEN, Sampling},
};

use crate::{cases::model, random::Random};

const PROMPT: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

/// A small model with a cache of six blocks.
struct Setup {
    program: Box<dyn Program>,
    kv: Arc<dyn KvPool>,
    block_tokens: usize,
}

impl Setup {
    fn new(backend: &dyn Backend, kv_type: KvType) -> Result<Self, BackendError> {
        let case = model::sampling_llama(&mut Random::new(11), DType::Q8_0);
        let weights = case.graph.weights().iter().zip(&case.weights);
        let weights = weights.map(|(info, data)| backend.load_weight(info, data.clone()));
        let block_tokens = backend.info().kv_block_tokens;
        let layers = case.graph.kv().to_vec();
        let kv = backend.kv_pool(&KvSpec { layers, kv_type, blocks: 6, block_tokens })?;
        let bindings = Bindings { weights: weights.collect::<Result<_, _>>()?, kv: kv.clone() };
        let limits = Limits { tokens: PROMPT.len(), outputs: 2, sequences: 2 };
        let options =
            CompileOptions { limits, precision: Precision::F32, invariant: true, poison: true };
        let program = backend.compile(&case.graph, &bindings, &options)?;
        Ok(Self { program, kv, block_tokens })
    }

    /// Runs rows of one sequence whose cache is `blocks`; the last row is sampled.
    fn step(
        &mut self,
        tokens: &[Token],
        cached: usize,
        blocks: &[BlockId],
        previous: Option<&dyn Step>,
    ) -> Result<Box<dyn Step>, BackendError> {
        let role = if cached == 0 { Role::Prefill } else { Role::Decode };
        let how = Sampling { temperature: 1.0, seed: 5, ..Sampling::GREEDY };
        self.program.enqueue(&Inputs {
            tokens,
            sequences: &[SequenceRows { rows: 0..tokens.len(), cached, role, blocks }],
            given: &[],
            outputs: &[tokens.len() as u32 - 1],
            sampling: &[Sampling { position: (cached + tokens.len()) as u32, ..how }],
            want_logits: true,
            want_times: false,
            previous,
        })
    }

    fn prefill(&mut self, blocks: &[BlockId]) -> Result<Box<dyn Step>, BackendError> {
        self.step(&PROMPT.map(Token::Id), 0, blocks, None)
    }
}

fn ensure(holds: bool, problem: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(problem().into()) }
}

fn line(error: BackendError) -> Failed {
    error.to_string().into()
}

/// Decoding by the previous step's token gives what the same token from the host gives.
fn previous_tokens(backend: &dyn Backend) -> Result<(), Failed> {
    let mut setup = Setup::new(backend, KvType::F32).map_err(line)?;
    let blocks: Vec<BlockId> = (0..6).map(BlockId).collect();
    let sampled = setup.prefill(&blocks).and_then(|step| step.read()).map_err(line)?.sampled;
    let by_host = setup.step(&[Token::Id(sampled[0])], PROMPT.len(), &blocks, None);
    let by_host = by_host.and_then(|step| step.read()).map_err(line)?;

    let first = setup.prefill(&blocks).map_err(line)?;
    let second = setup.step(&[Token::Previous(0)], PROMPT.len(), &blocks, Some(&*first));
    let second = second.and_then(|step| step.read()).map_err(line)?;
    ensure(second == by_host, || "the previous step's token gives other results".into())?;
    let again = first.read().map_err(line)?.sampled;
    ensure(again == sampled, || format!("sampled {again:?}, then {sampled:?}"))?;

    // The step that is meant need not be the last one.
    let first = setup.prefill(&blocks).map_err(line)?;
    let other = PROMPT.map(|id| Token::Id(id + 20));
    let other = setup.step(&other, 0, &blocks[3..], None).map_err(line)?;
    let second = setup.step(&[Token::Previous(0)], PROMPT.len(), &blocks, Some(&*first));
    let second = second.and_then(|step| step.read()).map_err(line)?;
    ensure(second == by_host, || "an earlier step's token gives other results".into())?;
    drop((first, other));

    for (row, previous) in [(0, None), (1, Some(setup.prefill(&blocks).map_err(line)?))] {
        let result =
            setup.step(&[Token::Previous(row)], PROMPT.len(), &blocks, previous.as_deref());
        let refused = matches!(result, Err(BackendError::Inputs { .. }));
        ensure(refused, || format!("a token of row {row} that no step sampled was accepted"))?;
    }
    Ok(())
}

/// Steps that are started before the last one is read give the tokens that steps one by one give, and
/// steps that are never read do no harm.
fn steps_ahead(backend: &dyn Backend) -> Result<(), Failed> {
    const STEPS: usize = 7;
    let mut setup = Setup::new(backend, KvType::F16).map_err(line)?;
    let blocks: Vec<BlockId> = (0..6).map(BlockId).collect();
    let first = |setup: &mut Setup| setup.prefill(&blocks).map_err(line);
    let mut one_by_one = Vec::new();
    let mut output = first(&mut setup)?.read().map_err(line)?;
    for at in 0..STEPS {
        let token = [Token::Id(output.sampled[0])];
        one_by_one.push(output);
        let step = setup.step(&token, PROMPT.len() + at, &blocks, None);
        output = step.and_then(|step| step.read()).map_err(line)?;
    }
    one_by_one.push(output);

    let mut ahead = Vec::new();
    let mut step = first(&mut setup)?;
    for at in 0..STEPS {
        let next = setup.step(&[Token::Previous(0)], PROMPT.len() + at, &blocks, Some(&*step));
        ahead.push(std::mem::replace(&mut step, next.map_err(line)?).read().map_err(line)?);
    }
    ahead.push(step.read().map_err(line)?);
    ensure(ahead == one_by_one, || "steps started ahead give other results".into())?;

    let mut step = first(&mut setup)?;
    for at in 0..STEPS {
        let next = setup.step(&[Token::Previous(0)], PROMPT.len() + at, &blocks, Some(&*step));
        step = next.map_err(line)?;
    }
    let last = step.read().map_err(line)?;
    ensure(Some(&last) == one_by_one.last(), || "after unread steps results differ".into())
}

/// Where no logit is a number, the step says so, and one that takes its token over neither fails nor
/// spoils what comes next.
fn no_token(backend: &dyn Backend) -> Result<(), Failed> {
    let mut graph = GraphBuilder::new();
    let table = WeightInfo { name: "x".into(), rows: 4, cols: 64, dtype: DType::F32 };
    let weight = graph.weight(table.clone());
    let embedded = graph.embed(weight);
    let rows = graph.gather_rows(embedded);
    let logits = graph.linear(rows, weight, None);
    graph.sample(logits);
    let graph = graph.finish(logits).map_err(|error| error.to_string())?;
    // Token 3 has no numbers; the others like themselves best.
    let value = |row: usize, col: usize| match row {
        3 => f32::NAN,
        row => f32::from(u8::from(row == col)),
    };
    let data = (0..4).flat_map(|row| (0..64).flat_map(move |col| value(row, col).to_le_bytes()));
    let weight = backend.load_weight(&table, data.collect::<Vec<u8>>().into()).map_err(line)?;
    let (block_tokens, layers) = (backend.info().kv_block_tokens, Vec::new());
    let spec = KvSpec { layers, kv_type: KvType::F32, blocks: 1, block_tokens };
    let bindings = Bindings { weights: vec![weight], kv: backend.kv_pool(&spec).map_err(line)? };
    let limits = Limits { tokens: 1, outputs: 1, sequences: 1 };
    let options =
        CompileOptions { limits, precision: Precision::F32, invariant: true, poison: true };
    let mut program = backend.compile(&graph, &bindings, &options).map_err(line)?;
    let mut step = |token: Token, previous: Option<&dyn Step>| {
        let (rows, blocks) = (0..1, [BlockId(0)]);
        program.enqueue(&Inputs {
            tokens: &[token],
            sequences: &[SequenceRows { rows, cached: 0, role: Role::Decode, blocks: &blocks }],
            given: &[],
            outputs: &[0],
            sampling: &[Sampling::GREEDY],
            want_logits: false,
            want_times: false,
            previous,
        })
    };
    let first = step(Token::Id(3), None).map_err(line)?;
    if let Ok(second) = step(Token::Previous(0), Some(&*first)) {
        second.read().map_err(line)?;
    }
    let sampled = first.read().map_err(line)?.sampled;
    ensure(sampled == [NO_TOKEN], || format!("sampled {sampled:?} where nothing is a number"))
}

/// A sequence goes on unchanged on copied blocks, and on blocks that were taken out, lost and put back
/// elsewhere.
fn moved_blocks(backend: &dyn Backend, kv_type: KvType) -> Result<(), Failed> {
    let mut setup = Setup::new(backend, kv_type).map_err(line)?;
    // Blocks may be small: the sequence takes as many as it needs.
    let needed = (PROMPT.len() + 1).div_ceil(setup.block_tokens);
    ensure(2 * needed <= 6, || "blocks of fewer than four tokens".into())?;
    let (first, second): (Vec<_>, Vec<_>) =
        (0..needed as u32).map(|at| (BlockId(2 * at + 1), BlockId(2 * at))).unzip();
    let decode = |setup: &mut Setup, blocks: &[BlockId]| {
        let step = setup.step(&[Token::Id(7)], PROMPT.len(), blocks, None);
        step.and_then(|step| step.read()).map_err(line)
    };
    setup.prefill(&first).and_then(|step| step.read()).map_err(line)?;
    for (&from, &to) in first.iter().zip(&second) {
        setup.kv.copy(from, to).map_err(line)?;
    }
    let expected = decode(&mut setup, &first)?;
    ensure(decode(&mut setup, &second)? == expected, || "copied blocks differ".into())?;

    let contents = setup.kv.swap_out(&first).map_err(line)?;
    // Another prompt overwrites both places.
    for blocks in [&first, &second] {
        let other = PROMPT.map(|id| Token::Id(id + 20));
        setup.step(&other, 0, blocks, None).and_then(|step| step.read()).map_err(line)?;
    }
    ensure(decode(&mut setup, &first)? != expected, || "the cache does not matter".into())?;
    setup.kv.swap_in(&contents, &second).map_err(line)?;
    ensure(decode(&mut setup, &second)? == expected, || "swapped blocks differ".into())?;

    let nowhere = [BlockId(6)];
    let refused = setup.kv.swap_out(&nowhere).is_err()
        && setup.kv.copy(BlockId(0), nowhere[0]).is_err()
        && setup.kv.swap_in(&contents[1..], &second).is_err();
    ensure(refused, || "blocks that are not there, or too few bytes, were accepted".into())
}

/// Weights of another backend are refused when a graph is compiled, and weights of a wrong length when
/// they are loaded.
fn foreign_weights(backend: &dyn Backend) -> Result<(), Failed> {
    let case = model::llama(&mut Random::new(12), DType::Q8_0);
    let theirs = ReferenceBackend::new(backend.info().kv_block_tokens);
    let load = |of: &dyn Backend| -> Result<Vec<_>, BackendError> {
        let weights = case.graph.weights().iter().zip(&case.weights);
        weights.map(|(info, data)| of.load_weight(info, data.clone())).collect()
    };
    let (ours, theirs) = (load(backend).map_err(line)?, load(&theirs).map_err(line)?);
    let block_tokens = backend.info().kv_block_tokens;
    let layers = case.graph.kv().to_vec();
    let spec = KvSpec { layers, kv_type: KvType::F32, blocks: 1, block_tokens };
    let kv = backend.kv_pool(&spec).map_err(line)?;
    let limits = Limits { tokens: 1, outputs: 1, sequences: 1 };
    let options =
        CompileOptions { limits, precision: Precision::F32, invariant: true, poison: false };
    let refused = |weights: Vec<_>| {
        let bindings = Bindings { weights, kv: kv.clone() };
        matches!(
            backend.compile(&case.graph, &bindings, &options),
            Err(BackendError::Foreign { .. })
        )
    };
    let is_reference = backend.info().name == "reference";
    ensure(is_reference || refused(theirs), || "another backend's weights were accepted".into())?;
    let mut swapped = ours.clone();
    swapped.swap(1, 2);
    ensure(refused(swapped), || "weights in another order were accepted".into())?;
    ensure(refused(ours[1..].to_vec()), || "too few weights were accepted".into())?;

    let (info, data) = (&case.graph.weights()[0], &case.weights[0]);
    let short = data[..data.len() - 1].to_vec().into();
    let result = backend.load_weight(info, short);
    let refused = matches!(result, Err(BackendError::WeightLength { .. }));
    ensure(refused, || "a weight that is too short was accepted".into())
}

/// Rows from the host are refused where they are too few, too many, or not taken at all.
fn given_rows(backend: &dyn Backend) -> Result<(), Failed> {
    let block_tokens = backend.info().kv_block_tokens;
    let limits = Limits { tokens: 3, outputs: 3, sequences: 1 };
    let options =
        CompileOptions { limits, precision: Precision::F32, invariant: true, poison: true };
    for takes in [false, true] {
        let mut graph = GraphBuilder::new();
        let table = WeightInfo { name: "x".into(), rows: 4, cols: 8, dtype: DType::F32 };
        let weight = graph.weight(table.clone());
        let mut value = graph.embed(weight);
        if takes {
            let given = graph.given("given", 8);
            value = graph.add(value, given);
        }
        let output = graph.gather_rows(value);
        let graph = graph.finish(output).map_err(|error| error.to_string())?;
        let (kv_type, layers) = (KvType::F32, Vec::new());
        let kv = backend.kv_pool(&KvSpec { layers, kv_type, blocks: 1, block_tokens });
        let weight = backend.load_weight(&table, vec![0; 4 * 8 * 4].into()).map_err(line)?;
        let bindings = Bindings { weights: vec![weight], kv: kv.map_err(line)? };
        let mut program = backend.compile(&graph, &bindings, &options).map_err(line)?;
        for (numbers, fits) in [(0, !takes), (2 * 8, takes), (2 * 8 - 1, false), (3 * 8, false)] {
            let blocks = [BlockId(0)];
            let result = program.enqueue(&Inputs {
                tokens: &[Token::Id(1); 2],
                sequences: &[SequenceRows {
                    rows: 0..2,
                    cached: 0,
                    role: Role::Prefill,
                    blocks: &blocks,
                }],
                given: &vec![1.0; numbers],
                outputs: &[0],
                sampling: &[],
                want_logits: true,
                want_times: false,
                previous: None,
            });
            let as_due = match result {
                Ok(step) => {
                    let expected = if takes { 1.0 } else { 0.0 };
                    fits && step.read().map_err(line)?.logits == [expected; 8]
                }
                Err(BackendError::Inputs { .. }) => !fits,
                Err(error) => return Err(line(error)),
            };
            ensure(as_due, || format!("{numbers} numbers given, the graph takes some: {takes}"))?;
        }
    }
    Ok(())
}

/// The trials for one device.
pub fn trials(variant: &str, backend: &Arc<dyn Backend>) -> Vec<Trial> {
    let mut trials = Vec::new();
    let device = backend.clone();
    let name = format!("{variant}/contract/previous-tokens");
    trials.push(Trial::test(name, move || previous_tokens(&*device)));
    let device = backend.clone();
    let name = format!("{variant}/contract/foreign-weights");
    trials.push(Trial::test(name, move || foreign_weights(&*device)));
    let device = backend.clone();
    let name = format!("{variant}/contract/given-rows");
    trials.push(Trial::test(name, move || given_rows(&*device)));
    let device = backend.clone();
    let name = format!("{variant}/contract/steps-ahead");
    trials.push(Trial::test(name, move || steps_ahead(&*device)));
    let device = backend.clone();
    let name = format!("{variant}/contract/no-token");
    trials.push(Trial::test(name, move || no_token(&*device)));
    for kv_type in [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0] {
        let device = backend.clone();
        let name = format!("{variant}/contract/moved-blocks/{kv_type}");
        trials.push(Trial::test(name, move || moved_blocks(&*device, kv_type)));
    }
    trials
}
