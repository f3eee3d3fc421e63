//! f16 that overflows: it is said, bf16 takes its place, and the texts are bf16's.

mod common;

use std::sync::Arc;

use common::{
    CONTEXT, LOUD, VOCABULARY, ask, cpu, finish, model_breaking_at, model_loud_in, pretend::Pretend,
};
use realm_conformance::random::Random;
use realm_core::{
    backend::{Backend, BackendError},
    reference::ReferenceBackend,
};
use realm_runtime::{
    Engine, EngineOptions, KvType, Model, Precision, Request, RuntimeError, SamplingParams,
};

/// The devices that compute in f16, and how many tokens they generate in reasonable time.
fn devices() -> Vec<(Arc<dyn Backend>, usize)> {
    let ahead = Arc::new(Pretend::new(cpu(2), "pretend").asynchronous());
    let emulated = realm_compute_gpu::open_cuda_emulated(7).unwrap();
    vec![(cpu(2), 20), (ahead, 20), (emulated, 4)]
}

fn engine(model: &Model, device: &Arc<dyn Backend>, precision: Precision, kv: KvType) -> Engine {
    let options = EngineOptions {
        sequences: 3,
        precision,
        kv_type: Some(kv),
        context: Some(100),
        ..EngineOptions::default()
    };
    Engine::new(model, device.clone(), &options).unwrap()
}

/// Tokens that are not loud.
fn quiet(random: &mut Random, count: usize) -> Vec<u32> {
    let mut token = |_| (LOUD + 1 + random.below(VOCABULARY - 1)) % VOCABULARY;
    (0..count).map(|at| token(at) as u32).collect()
}

/// A prompt with the loud token, and one after which it is the first that is generated.
fn requests(random: &mut Random, tokens: usize) -> [Request; 2] {
    let mut prompt = quiet(random, 20);
    prompt[13] = LOUD as u32;
    // Once, and never again.
    let forced = SamplingParams {
        logit_bias: vec![(LOUD as u32, 95.0)],
        repetition_penalty: 100.0,
        presence_penalty: 100.0,
        ..SamplingParams::GREEDY
    };
    [ask(prompt, tokens, SamplingParams::GREEDY), ask(quiet(random, 9), tokens, forced)]
}

/// The tokens of a request that runs alone.
fn alone(engine: &mut Engine, request: &Request) -> Vec<u32> {
    let id = engine.submit(request.clone()).unwrap();
    finish(engine).remove(&id).unwrap().0
}

#[test]
fn products_go_on_in_bf16() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    let model = model_loud_in(seed, "ffn_up");
    for (device, tokens) in devices() {
        for kv in [KvType::F16, KvType::F32] {
            for request in requests(&mut random, tokens) {
                let mut narrow = engine(&model, &device, Precision::F16, kv);
                let found = alone(&mut narrow, &request);
                let notes = narrow.take_notes();
                assert!(notes.len() == 1 && notes[0].contains("where products in f16 overflow:"));
                assert_eq!((narrow.precision(), narrow.memory().kv.kv_type), (Precision::BF16, kv));
                let mut wide = engine(&model, &device, Precision::BF16, kv);
                assert_eq!(found, alone(&mut wide, &request), "{}", device.info().name);
                let loud = |token: &&u32| **token == LOUD as u32;
                assert!(request.prompt.len() > 9 || found.iter().filter(loud).count() == 1);
                assert!(found.len() == tokens && wide.take_notes().is_empty());
                // It is said once, and other sequences are bf16's from the first token on.
                let next = ask(quiet(&mut random, 30), tokens, SamplingParams::GREEDY);
                assert_eq!(alone(&mut narrow, &next), alone(&mut wide, &next));
                assert!(narrow.take_notes().is_empty());
            }
        }
    }
}

#[test]
fn the_cache_goes_on_in_bf16() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    for tensor in ["attn_k", "attn_v"] {
        let model = model_loud_in(seed, tensor);
        for (device, tokens) in devices() {
            for precision in [Precision::F32, Precision::BF16, Precision::F16] {
                for request in requests(&mut random, tokens) {
                    let mut narrow = engine(&model, &device, precision, KvType::F16);
                    let found = alone(&mut narrow, &request);
                    let notes = narrow.take_notes();
                    // The cache is the last thing that is suspected.
                    let expected = 1 + usize::from(precision == Precision::F16);
                    assert_eq!(notes.len(), expected, "{notes:?}");
                    assert!(notes[expected - 1].contains("where a KV cache in f16 overflows"));
                    let wide = match precision {
                        Precision::F16 => Precision::BF16,
                        precision => precision,
                    };
                    let kv = narrow.memory().kv.kv_type;
                    assert_eq!((narrow.precision(), kv), (wide, KvType::BF16));
                    let mut wide = engine(&model, &device, wide, KvType::BF16);
                    assert_eq!(found, alone(&mut wide, &request), "{}", device.info().name);
                }
            }
        }
    }
}

#[test]
fn sequences_side_by_side_keep_their_tokens_and_go_on() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    let model = model_loud_in(seed, "ffn_up");
    for (device, tokens) in devices() {
        let mut narrow = engine(&model, &device, Precision::F16, KvType::F16);
        let shared = quiet(&mut random, 70);
        let first = ask(shared.clone(), tokens + 9, SamplingParams::GREEDY);
        let steady = narrow.submit(first.clone()).unwrap();
        let mut events = Vec::new();
        while events.len() < 3 {
            events.extend(narrow.step().unwrap());
        }
        // Its prompt begins with blocks that the first one filled in f16.
        let mut prompt = shared;
        prompt.push(LOUD as u32);
        let second = ask(prompt, tokens, SamplingParams::GREEDY);
        let loud = narrow.submit(second.clone()).unwrap();
        while !narrow.is_idle() {
            events.extend(narrow.step().unwrap());
        }
        let of = |id| {
            let own = events.iter().filter(|event| event.sequence == id);
            own.map(|event| event.token).collect::<Vec<_>>()
        };
        let (kept, found) = (of(steady), of(loud));
        assert_eq!((narrow.take_notes().len(), kept.len()), (1, tokens + 9));
        let mut wide = engine(&model, &device, Precision::BF16, KvType::F16);
        assert_eq!(found, alone(&mut wide, &second), "{}", device.info().name);
        // What had been chosen before is f16's, and stays.
        let mut calm = engine(&model, &device, Precision::F16, KvType::F16);
        assert_eq!(kept[..3], alone(&mut calm, &first)[..3]);
        assert_eq!(narrow.stats().swapped_bytes, 0);
        assert_eq!(narrow.stats().used_blocks, 0);
    }
}

#[test]
fn those_that_made_room_are_computed_anew() {
    let model = model_loud_in(5, "ffn_up");
    let mut random = Random::new(5);
    let block = cpu(1).info().kv_block_tokens;
    let options = EngineOptions {
        sequences: 4,
        precision: Precision::F16,
        context: Some(CONTEXT.min(3 * block)),
        kv_tokens: Some(4 * block),
        prefix_cache: false,
        ..EngineOptions::default()
    };
    let mut narrow = Engine::new(&model, cpu(1), &options).unwrap();
    let quiet: Vec<Request> =
        (0..3).map(|_| ask(quiet(&mut random, block), block + 5, SamplingParams::GREEDY)).collect();
    for request in &quiet {
        narrow.submit(request.clone()).unwrap();
    }
    while narrow.stats().preempted == 0 || narrow.stats().swapped_bytes == 0 {
        narrow.step().unwrap();
    }
    // The oldest come first: the loud one overflows when they are done or have room.
    narrow.submit(ask(vec![1, LOUD as u32, 2], 3, SamplingParams::GREEDY)).unwrap();
    finish_all(&mut narrow);
    assert_eq!(narrow.take_notes().len(), 1);
    let stats = narrow.stats();
    assert_eq!((stats.swapped_bytes, stats.used_blocks, stats.preempted), (0, 0, 0));
}

fn finish_all(engine: &mut Engine) {
    while !engine.is_idle() {
        engine.step().unwrap();
    }
}

#[test]
fn logits_are_f16s_up_to_the_overflow_and_bf16s_from_there_on() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    let model = model_loud_in(seed, "ffn_up");
    let logits = |engine: &mut Engine, prompt: &[u32]| {
        let mut all = Vec::new();
        engine
            .logits(prompt, |rows| {
                all.extend_from_slice(rows);
                Ok(())
            })
            .unwrap();
        all
    };
    for (device, _) in devices() {
        let mut prompt = quiet(&mut random, 75);
        // The first row of its step: on some devices an infinite value reaches the rows of its own step
        // that come before it, too.
        prompt[64] = LOUD as u32;
        let mut narrow = engine(&model, &device, Precision::F16, KvType::F16);
        let found = logits(&mut narrow, &prompt);
        assert!(narrow.take_notes()[0].contains("step 2 gave no numbers as logits of token 65,"));
        let mut wide = engine(&model, &device, Precision::BF16, KvType::F16);
        let wide = logits(&mut wide, &prompt);
        let mut calm = engine(&model, &device, Precision::F16, KvType::F16);
        let calm = logits(&mut calm, &prompt[..64]);
        let at = 64 * VOCABULARY;
        assert_eq!((found.len(), found[at..].to_vec()), (75 * VOCABULARY, wide[at..].to_vec()));
        assert_eq!(found[..at], calm, "{}", device.info().name);
        assert_ne!(found[..at], wide[..at]);
    }
}

#[test]
fn what_is_no_number_in_bf16_either_is_an_error() {
    let model = model_breaking_at(3, LOUD);
    for device in [cpu(1), Arc::new(ReferenceBackend::new(16)) as Arc<dyn Backend>] {
        let mut engine = engine(&model, &device, Precision::F16, KvType::F16);
        engine.submit(ask(vec![1, LOUD as u32], 5, SamplingParams::GREEDY)).unwrap();
        let error = loop {
            match engine.step() {
                Ok(events) => assert!(events.is_empty()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, RuntimeError::NotNumbers { .. }), "{error}");
        assert!(engine.is_idle() && engine.memory().kv.kv_type == KvType::BF16);
        assert_eq!(alone(&mut engine, &ask(vec![1, 2], 5, SamplingParams::GREEDY)).len(), 5);
    }
}

#[test]
fn where_bf16_cannot_be_had_each_step_says_so() {
    let model = model_loud_in(3, "ffn_up");
    let device: Arc<dyn Backend> = Arc::new(Pretend::new(cpu(1), "pretend").compiling(1));
    let mut engine = engine(&model, &device, Precision::F16, KvType::F16);
    let id = engine.submit(ask(vec![1, LOUD as u32], 5, SamplingParams::GREEDY)).unwrap();
    for _ in 0..3 {
        let error = engine.step().unwrap_err();
        assert!(matches!(error, RuntimeError::Backend(BackendError::Failed { .. })), "{error}");
    }
    assert!(engine.cancel(id) && engine.is_idle());
}
