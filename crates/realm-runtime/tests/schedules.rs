//! Random schedules: sequences that come, go, make room, come back and share blocks, each of which gives
//! what it gives alone, to the last bit of its log-probabilities.
//!
//! `REALM_SEED` repeats a run, `REALM_SCHEDULES` says how many schedules a test tries.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use common::{VOCABULARY, cpu, model, model_with_heads, pretend::Pretend};
use realm_conformance::{random::Random, required};
use realm_core::{DType, backend::Backend, reference::ReferenceBackend};
use realm_runtime::{
    Engine, EngineOptions, EngineStats, Event, Finish, Model, Request, SamplingParams, SequenceId,
};

/// What a sequence gave: tokens with the bits of their log-probabilities, and why it ended.
type Text = (Vec<(u32, Vec<(u32, u32)>)>, Option<Finish>);

fn seed() -> u64 {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    seed
}

fn schedules(default: usize) -> usize {
    env::var("REALM_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn add(text: &mut Text, event: &Event) {
    assert_eq!(text.1, None, "a token after the last one");
    let bits = event.logprobs.iter().flat_map(|logprobs| {
        let chosen = (event.token, logprobs.chosen.to_bits());
        let top = logprobs.top.iter().map(|(id, p)| (*id, p.to_bits()));
        [chosen].into_iter().chain(top).collect::<Vec<_>>()
    });
    text.0.push((event.token, bits.collect()));
    text.1 = event.finish;
}

/// The request alone in a fresh engine with room for everything.
fn alone(model: &Model, backend: Arc<dyn Backend>, request: &Request) -> Text {
    let context = Some(3 * common::CONTEXT);
    let options = EngineOptions { context, prefix_cache: false, ..EngineOptions::default() };
    let mut engine = Engine::new(model, backend, &options).unwrap();
    engine.submit(request.clone()).unwrap();
    let mut text = Text::default();
    while !engine.is_idle() {
        engine.step().unwrap().iter().for_each(|event| add(&mut text, event));
    }
    text
}

/// Any mixture of what can be asked for.
fn sampling(random: &mut Random) -> SamplingParams {
    let mut params = SamplingParams { seed: u64::from(random.word()), ..SamplingParams::GREEDY };
    if random.below(3) > 0 {
        params.temperature = random.pick(&[0.5, 1.0, 2.0]);
        params.top_k = random.pick(&[0, 0, 5, 20]);
        params.top_p = random.pick(&[1.0, 0.95, 0.5]);
        params.min_p = random.pick(&[0.0, 0.01, 0.2]);
    }
    if random.below(2) == 0 {
        return params;
    }
    if random.below(2) == 0 {
        params.typical_p = random.pick(&[0.3, 0.8]);
    }
    if random.below(2) == 0 {
        params.repetition_penalty = random.pick(&[0.8, 1.1, 3.0]);
        params.frequency_penalty = random.pick(&[0.0, 0.5, -0.3]);
        params.presence_penalty = random.pick(&[0.0, 0.7]);
    }
    let biases = random.below(4);
    let bias = |random: &mut Random| random.pick(&[f32::NEG_INFINITY, -2.0, 1.5, 4.0]);
    params.logit_bias =
        (0..biases).map(|_| (random.below(VOCABULARY) as u32, bias(random))).collect();
    params
}

/// A request and what it gives alone.
type Expected = (Request, Text);

/// Requests of which many begin alike, some with another one's prompt and the text that followed it,
/// none longer than `context`.
fn requests(
    random: &mut Random,
    count: usize,
    context: usize,
    alone: impl Fn(&Request) -> Text,
) -> Vec<Expected> {
    let tokens = |random: &mut Random, count: usize| -> Vec<u32> {
        (0..count).map(|_| random.below(VOCABULARY) as u32).collect()
    };
    let stems: Vec<Vec<u32>> = (0..3).map(|_| tokens(random, context / 3)).collect();
    let mut all: Vec<Expected> = Vec::new();
    for _ in 0..count {
        let stem = match random.below(5) {
            0 => Vec::new(),
            1 if !all.is_empty() => {
                let (request, (text, _)) = &all[random.below(all.len())];
                let said = text.iter().map(|(token, _)| *token);
                request.prompt.iter().copied().chain(said).take(context * 3 / 4).collect()
            }
            2 => stems[random.below(stems.len())][..random.below(context / 3)].to_vec(),
            _ => stems[random.below(stems.len())].clone(),
        };
        let part = random.pick(&[2, 8, 8]);
        let own = 1 + random.below((context / part).min(context - stem.len()));
        let mut prompt = [stem, tokens(random, own)].concat();
        // Some are the beginning of another one and nothing more, often of whole blocks.
        if !all.is_empty() && random.below(6) == 0 {
            prompt.clone_from(&all[random.below(all.len())].0.prompt);
            let whole = prompt.len() / 64 * 64;
            prompt.truncate(if whole > 0 { whole } else { prompt.len() });
        }
        let most = context + 1 - prompt.len();
        // Few end early: long ones get into one another's way.
        let stops = random.pick(&[0, 0, 0, 1]);
        let stop_tokens = tokens(random, stops);
        let request = Request {
            max_tokens: 1 + random.below(most.min(context * 2 / 3)),
            prompt,
            sampling: sampling(random),
            stop_tokens,
            logprobs: random.pick(&[None, Some(0), Some(1), Some(4)]),
        };
        let text = alone(&request);
        all.push((request, text));
    }
    all
}

/// How a schedule is run.
#[derive(Debug)]
struct Schedule {
    options: EngineOptions,
    /// Of a hundred steps, those before which a sequence is cancelled.
    cancels: usize,
    /// Those before which another one is submitted.
    arrivals: usize,
    /// Those before which the logits of a prompt are asked for.
    logits: usize,
    /// Steps that may fail.
    failures: usize,
}

fn schedule(random: &mut Random, context: usize, block_bytes: u64) -> Schedule {
    let kv_tokens = context + random.pick(&[0, 0, context / 2, context, 2 * context]);
    let options = EngineOptions {
        context: Some(context),
        sequences: random.pick(&[1, 3, 6, 12]),
        step_tokens: random.pick(&[1, 3, 17, 40, 512]),
        kv_tokens: Some(kv_tokens),
        swap_bytes: block_bytes * random.pick(&[0, 5, 1000]),
        prefix_cache: random.below(4) > 0,
        ..EngineOptions::default()
    };
    Schedule {
        options,
        cancels: random.pick(&[0, 0, 3]),
        arrivals: random.pick(&[10, 60, 95]),
        logits: random.pick(&[0, 2]),
        failures: 0,
    }
}

/// Runs all requests; the texts, and which were cancelled.
fn run(
    engine: &mut Engine,
    requests: &[Expected],
    schedule: &Schedule,
    random: &mut Random,
) -> (BTreeMap<usize, Text>, BTreeSet<usize>) {
    let (mut texts, mut cancelled) = (BTreeMap::new(), BTreeSet::new());
    let (mut next, mut failures) = (0, 0);
    for step in 0.. {
        assert!(step < 20_000, "the engine does not come to an end");
        while next < requests.len() && (engine.is_idle() || random.below(100) < schedule.arrivals) {
            let id = engine.submit(requests[next].0.clone()).unwrap();
            assert_eq!(id, SequenceId(next as u64));
            next += 1;
        }
        if random.below(100) < schedule.cancels {
            // One of the last: few others are on their way.
            let victim = next - 1 - random.below(next.min(4));
            if engine.cancel(SequenceId(victim as u64)) {
                cancelled.insert(victim);
            }
        }
        if random.below(100) < schedule.logits {
            // Where running sequences leave too few blocks this is an error, and changes nothing.
            _ = engine.logits(&requests[0].0.prompt, |_| Ok(()));
        }
        if engine.is_idle() && next == requests.len() {
            break;
        }
        match engine.step() {
            Ok(events) => {
                for event in &events {
                    let at = event.sequence.0 as usize;
                    assert!(!cancelled.contains(&at), "a token of a cancelled sequence");
                    add(texts.entry(at).or_default(), event);
                }
            }
            Err(error) => {
                failures += 1;
                assert!(failures <= schedule.failures, "{error}");
            }
        }
        let EngineStats { running, swapped_bytes, .. } = engine.stats();
        assert!(running <= schedule.options.sequences);
        assert!(swapped_bytes <= schedule.options.swap_bytes);
    }
    // A step that was started ahead for sequences that have ended is waited for.
    _ = engine.step();
    (texts, cancelled)
}

/// What happened in all schedules of a test.
#[derive(Debug, Default)]
struct Sums {
    /// Sequences swapped out, computed again, and prompt tokens found in blocks.
    stats: [u64; 3],
    /// Sequences cancelled on their way.
    cancelled: usize,
    /// Steps with rows of both roles, and steps started ahead with a token of the one before, where the
    /// device watches.
    mixed: usize,
    ahead: usize,
}

impl Sums {
    fn cached_blocks_moved(&self) -> bool {
        self.stats.iter().all(|&sum| sum > 0)
    }

    /// Whether everything happened that a schedule may come to.
    fn everything(&self, asynchronous: bool) -> bool {
        let ahead = !asynchronous || self.ahead > 0;
        self.cached_blocks_moved() && self.cancelled > 0 && self.mixed > 0 && ahead
    }
}

/// Compares a schedule with each request alone, and adds up what happened.
fn compare(
    model: &Model,
    backend: Arc<dyn Backend>,
    requests: &[Expected],
    schedule: &Schedule,
    random: &mut Random,
    sums: &mut Sums,
) {
    let mut engine = Engine::new(model, backend, &schedule.options).unwrap();
    let (texts, cancelled) = run(&mut engine, requests, schedule, random);
    for (at, (request, expected)) in requests.iter().enumerate() {
        let found = texts.get(&at).cloned().unwrap_or_default();
        if cancelled.contains(&at) {
            sums.cancelled += usize::from(!found.0.is_empty());
            assert!(expected.0.starts_with(&found.0), "{at} of {schedule:?}: {request:?}");
        } else {
            assert_eq!(&found, expected, "{at} of {schedule:?}: {request:?}");
        }
    }
    let stats = engine.stats();
    assert_eq!((stats.used_blocks, stats.swapped_bytes), (0, 0), "{schedule:?}");
    assert_eq!((stats.running, stats.waiting, stats.preempted), (0, 0, 0));
    // Otherwise nobody would see that swapping does nothing.
    assert_eq!(stats.failed_swaps, 0, "{schedule:?}");
    let found = [stats.preempted_by_swap, stats.preempted_by_replay, stats.cached_prompt_tokens];
    sums.stats.iter_mut().zip(found).for_each(|(sum, found)| *sum += found);
}

/// Tries schedules on devices.
fn try_schedules(
    count: usize,
    context: usize,
    device: impl Fn(&mut Random) -> Arc<dyn Backend>,
    asynchronous: bool,
) {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut sums = Sums::default();
    let count = schedules(count);
    // A few more where by chance nothing has happened yet.
    for at in 0..10 * count {
        if at >= count && sums.everything(asynchronous) {
            break;
        }
        let dtype = random.pick(&[DType::F32, DType::Q4_0, DType::Q8_0]);
        let model = model(seed + at as u64, dtype);
        let inner = device(&mut random);
        let block_bytes = (2 * 2 * 2 * 16 * 2 * inner.info().kv_block_tokens) as u64;
        let mut schedule = schedule(&mut random, context, block_bytes);
        // Most devices give the same for a row in either role, to the last bit: then nobody would see it
        // computed in the wrong one.
        let pretend = || {
            let mut pretend = Pretend::new(inner.clone(), "pretend");
            pretend.by_role = Some(VOCABULARY as u32);
            pretend
        };
        let mut watched = pretend();
        let watch = watched.watch.clone();
        let (plain, tried): (Arc<dyn Backend>, Arc<dyn Backend>) = if asynchronous {
            watched = watched.asynchronous();
            watched.lost_after = (random.below(2) == 0).then(|| random.below(60));
            schedule.failures = usize::from(watched.lost_after.is_some());
            (Arc::new(pretend()), Arc::new(watched))
        } else if random.below(2) == 0 {
            (Arc::new(pretend()), Arc::new(watched))
        } else {
            (inner.clone(), inner)
        };
        let count = 3 + random.below(12);
        let alone = |request: &Request| alone(&model, plain.clone(), request);
        let requests = requests(&mut random, count, context, alone);
        compare(&model, tried, &requests, &schedule, &mut random, &mut sums);
        sums.mixed += watch.mixed.load(Relaxed);
        sums.ahead += watch.ahead.load(Relaxed);
    }
    println!("{sums:?}");
    assert!(sums.everything(asynchronous), "{sums:?}");
}

#[test]
fn on_the_cpu_each_sequence_gives_what_it_gives_alone() {
    try_schedules(20, 2 * common::CONTEXT, |random| cpu(1 + random.below(2)), false);
}

#[test]
fn with_small_blocks_each_sequence_gives_what_it_gives_alone() {
    let device =
        |random: &mut Random| Arc::new(ReferenceBackend::new(random.pick(&[1, 3, 8]))) as Arc<_>;
    try_schedules(15, 60, device, false);
}

#[test]
fn steps_started_ahead_give_what_each_sequence_gives_alone() {
    try_schedules(15, 2 * common::CONTEXT, |_| cpu(2), true);
    let device =
        |random: &mut Random| Arc::new(ReferenceBackend::new(random.pick(&[2, 5]))) as Arc<_>;
    try_schedules(15, 60, device, true);
}

/// The CUDA kernels, each thread imitated on the CPU: few tokens, and room for less.
#[test]
fn on_the_emulated_gpu_each_sequence_gives_what_it_gives_alone() {
    let seed = seed();
    let backend = match realm_compute_gpu::open_cuda_emulated(seed) {
        Ok(backend) => backend,
        Err(reason) => {
            assert!(!required("cuda-emulated"), "REALM_REQUIRE names cuda-emulated, but: {reason}");
            println!("skipped: cuda-emulated: {reason}");
            return;
        }
    };
    let mut random = Random::new(seed);
    let model = model_with_heads(seed, DType::Q4_0, 64);
    let block = backend.info().kv_block_tokens;
    let context = 3 * block;
    let mut sums = Sums::default();
    let stem: Vec<u32> = (0..2 * block + 3).map(|_| random.below(VOCABULARY) as u32).collect();
    let request = |prompt: &[u32], max_tokens, sampling| Request {
        prompt: prompt.to_vec(),
        max_tokens,
        sampling,
        stop_tokens: vec![],
        logprobs: Some(2),
    };
    let greedy = SamplingParams::GREEDY;
    let penalized = SamplingParams { presence_penalty: 2.0, ..SamplingParams::GREEDY };
    let sampled = SamplingParams { temperature: 1.0, seed, ..SamplingParams::GREEDY };
    // The second one takes the last block, the first one needs it soon after; the others begin like it.
    let requests = [
        request(&stem[..2 * block - 4], 8, greedy.clone()),
        request(&stem[1..block], 8, penalized),
        request(&stem, 3, sampled),
        request(&stem[..block + 1], 3, greedy),
    ];
    let requests = requests.map(|request| {
        let text = alone(&model, backend.clone(), &request);
        (request, text)
    });
    for swap_bytes in [0, u64::MAX] {
        let options = EngineOptions {
            context: Some(context),
            sequences: 2,
            kv_tokens: Some(4 * block),
            swap_bytes,
            ..EngineOptions::default()
        };
        let schedule = Schedule { options, cancels: 0, arrivals: 100, logits: 0, failures: 0 };
        compare(&model, backend.clone(), &requests, &schedule, &mut random, &mut sums);
    }
    assert!(sums.cached_blocks_moved(), "{sums:?}");
}
