//! The engine: sequences side by side give what they give alone; bad requests are refused.

mod common;

use std::sync::Arc;

use common::{
    CONTEXT, VOCABULARY, ask, cpu, engine_on, finish, model, model_of, model_with,
    pretend::Pretend, wide_engine_on,
};
use realm_conformance::{random::Random, run::distance};
use realm_core::{
    DType,
    backend::{Backend, KvType, Precision},
    reference::ReferenceBackend,
};
use realm_runtime::{
    Engine, EngineOptions, Finish, Model, Request, RuntimeError, SamplingParams, SequenceId,
};

fn engine(model: &Model, sequences: usize, step_tokens: usize) -> Engine {
    engine_on(model, cpu(2), sequences, step_tokens)
}

fn request(random: &mut Random) -> Request {
    let prompt = (0..1 + random.below(60)).map(|_| random.below(VOCABULARY) as u32).collect();
    let seed = u64::from(random.word());
    let sampling = SamplingParams {
        temperature: 1.0,
        top_p: 0.95,
        min_p: 0.01,
        seed,
        ..SamplingParams::GREEDY
    };
    Request {
        prompt,
        max_tokens: 1 + random.below(20),
        sampling,
        stop_tokens: vec![7],
        logprobs: None,
    }
}

#[test]
fn sequences_give_the_same_alone_batched_and_chunked() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    let model = model(seed, DType::Q4_0);
    let requests: Vec<Request> = (0..9).map(|_| request(&mut random)).collect();
    let mut alone = engine(&model, 1, 512);
    let expected: Vec<_> = requests
        .iter()
        .map(|request| {
            let id = alone.submit(request.clone()).unwrap();
            finish(&mut alone).remove(&id).unwrap()
        })
        .collect();
    assert!(expected.iter().any(|(tokens, _)| tokens.len() > 3), "texts too short to tell");
    // More sequences than places, and steps that cut prompts anywhere.
    for (places, step_tokens) in [(4, 512), (3, 7), (9, 16), (1, 1)] {
        let mut engine = engine(&model, places, step_tokens);
        let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let texts = finish(&mut engine);
        for (id, expected) in ids.iter().zip(&expected) {
            assert_eq!(&texts[id], expected, "{places} places, {step_tokens} tokens a step");
        }
    }
}

#[test]
fn a_cancelled_sequence_gives_its_place_to_the_next() {
    let model = model(1, DType::F32);
    let mut engine = engine(&model, 1, 512);
    let long =
        Request { max_tokens: CONTEXT - 10, stop_tokens: vec![], ..request(&mut Random::new(1)) };
    let long = Request { prompt: vec![1, 2, 3], ..long };
    let first = engine.submit(long.clone()).unwrap();
    let second = engine.submit(Request { max_tokens: 2, ..long }).unwrap();
    assert_eq!(engine.step().unwrap()[0].sequence, first);
    assert!(engine.cancel(first));
    assert!(!engine.cancel(first));
    let texts = finish(&mut engine);
    assert_eq!(texts.len(), 1);
    assert_eq!((texts[&second].0.len(), texts[&second].1), (2, Some(Finish::Length)));
}

#[test]
fn stop_tokens_end_a_sequence() {
    let model = model(2, DType::F32);
    let mut engine = engine(&model, 1, 512);
    let base = ask(vec![5, 6], 30, SamplingParams::GREEDY);
    let id = engine.submit(base.clone()).unwrap();
    let (tokens, _) = finish(&mut engine).remove(&id).unwrap();
    let stop = tokens[4];
    let first = tokens.iter().position(|&token| token == stop).unwrap();
    let id = engine.submit(Request { stop_tokens: vec![stop], ..base }).unwrap();
    let (cut, end) = finish(&mut engine).remove(&id).unwrap();
    assert_eq!((&cut[..], end), (&tokens[..=first], Some(Finish::Stop)));
}

#[test]
fn logits_agree_with_the_reference_interpreter() {
    let prompt: Vec<u32> = (0..150).map(|at| at * 7 % VOCABULARY as u32).collect();
    for (dtype, precision, bound) in [
        (DType::F32, Precision::F32, 1e-5),
        (DType::Q8_0, Precision::F32, 1e-5),
        (DType::Q8_0, Precision::Auto, 5e-2),
    ] {
        let model = model(3, dtype);
        let logits = |backend: Arc<dyn Backend>| {
            let kv_type = Some(KvType::F32);
            let options = EngineOptions { precision, kv_type, ..EngineOptions::default() };
            let mut engine = Engine::new(&model, backend, &options).unwrap();
            let mut all = Vec::new();
            engine
                .logits(&prompt, |rows| {
                    all.extend_from_slice(rows);
                    Ok(())
                })
                .unwrap();
            let stop = |_: &[f32]| Err(RuntimeError::Request("enough".into()));
            assert_eq!(engine.logits(&prompt, stop).unwrap_err().to_string(), "enough");
            assert!(engine.is_idle() && engine.stats().used_blocks == 0);
            all
        };
        let expected = logits(Arc::new(ReferenceBackend::new(16)));
        assert_eq!(expected.len(), prompt.len() * VOCABULARY);
        let distance = distance(&logits(cpu(2)), &expected, 0.0);
        assert!(distance < bound, "{dtype} {precision}: {distance}");
    }
}

#[test]
fn bad_requests_are_refused_in_one_line() {
    let model = model(4, DType::F32);
    let mut engine = engine(&model, 1, 512);
    let good = ask(vec![1], 1, SamplingParams::GREEDY);
    let greedy = SamplingParams::GREEDY;
    let wrong = |sampling| Request { sampling, ..good.clone() };
    let bias = |id: usize, bias| SamplingParams {
        logit_bias: vec![(0, -1.0), (id as u32, bias)],
        ..SamplingParams::GREEDY
    };
    let biases = |count| SamplingParams { logit_bias: vec![(1, 0.5); count], ..greedy.clone() };
    let cases = [
        (Request { prompt: vec![], ..good.clone() }, "no tokens"),
        (Request { prompt: vec![VOCABULARY as u32], ..good.clone() }, "vocabulary"),
        (Request { prompt: vec![1; CONTEXT + 1], ..good.clone() }, "--ctx"),
        (Request { max_tokens: CONTEXT + 1, ..good.clone() }, "--ctx"),
        (Request { max_tokens: usize::MAX, ..good.clone() }, "--ctx"),
        (Request { max_tokens: 0, ..good.clone() }, "at least one"),
        (Request { stop_tokens: vec![1; VOCABULARY + 1], ..good.clone() }, "62 stop tokens"),
        (wrong(biases(VOCABULARY + 1)), "62 logit biases"),
        (wrong(SamplingParams { temperature: f32::NAN, ..greedy.clone() }), "temperature"),
        (wrong(SamplingParams { typical_p: 1.5, ..greedy.clone() }), "typical-p"),
        (wrong(SamplingParams { repetition_penalty: 0.0, ..greedy.clone() }), "repetition"),
        (wrong(SamplingParams { frequency_penalty: f32::NAN, ..greedy.clone() }), "frequency"),
        (wrong(SamplingParams { presence_penalty: f32::INFINITY, ..greedy.clone() }), "presence"),
        (wrong(bias(VOCABULARY, 1.0)), "vocabulary"),
        (wrong(bias(1, f32::NAN)), "token 1"),
        (wrong(bias(1, f32::INFINITY)), "token 1"),
        (wrong(bias(1, f32::MAX)), "token 1"),
    ];
    for (request, word) in cases {
        let error = engine.submit(request).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains('\n'), "{error}");
    }
    assert!(engine.is_idle());
    // As many as there are tokens are taken.
    let full = Request { stop_tokens: vec![1; VOCABULARY], ..wrong(biases(VOCABULARY)) };
    engine.submit(full).unwrap();
    engine.submit(Request { prompt: vec![1; CONTEXT], ..good }).unwrap();
    assert_eq!(finish(&mut engine).len(), 2);
}

#[test]
fn what_a_caller_may_change_has_errors_of_its_own() {
    let model = model(4, DType::F32);
    let options = EngineOptions { context: Some(100), kv_tokens: Some(100), ..Default::default() };
    let mut engine = Engine::new(&model, cpu(2), &options).unwrap();
    let of = |prompt, max_tokens| Request {
        prompt,
        max_tokens,
        sampling: SamplingParams::GREEDY,
        stop_tokens: vec![],
        logprobs: None,
    };
    let error = engine.submit(of(vec![1; 90], 12)).unwrap_err();
    let RuntimeError::TooManyTokens { prompt: 90, max_tokens: 12, context: 100 } = error else {
        panic!("{error}")
    };
    for error in [
        engine.submit(of(vec![1, 61, 62], 1)).unwrap_err(),
        engine.logits(&[61], |_| Ok(())).unwrap_err(),
    ] {
        let RuntimeError::UnknownToken { id: 61, vocabulary: VOCABULARY } = error else {
            panic!("{error}")
        };
    }
    // Two blocks of 64, one of which is taken until the sequence ends.
    engine.submit(of(vec![1; 10], 5)).unwrap();
    engine.step().unwrap();
    let error = engine.logits(&[1; 65], |_| Ok(())).unwrap_err();
    let RuntimeError::CacheFull { prompt: 65, free: 64 } = error else { panic!("{error}") };
    finish(&mut engine);
    engine.logits(&[1; 65], |_| Ok(())).unwrap();
}

#[test]
fn what_does_not_fit_is_said_before_loading() {
    let model = model(5, DType::F32);
    let options = EngineOptions { context: Some(usize::MAX / 64), ..EngineOptions::default() };
    let error = Engine::new(&model, cpu(1), &options).err().unwrap();
    assert!(matches!(error, RuntimeError::Memory(_)), "{error}");
    assert!(error.to_string().contains("--ctx"), "{error}");
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let model = model_with(6, DType::F32, f32::NAN);
    let mut engine = wide_engine_on(&model, cpu(2), 2, 512);
    let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::GREEDY };
    let request = ask(vec![1, 2], 3, sampling);
    engine.submit(request).unwrap();
    let error = engine.step().unwrap_err();
    assert!(matches!(error, RuntimeError::NotNumbers { .. }), "{error}");
    assert!(engine.is_idle());
}

#[test]
fn biases_that_ban_everything_end_their_sequence_alone() {
    let model = model(7, DType::Q8_0);
    let mut engine = engine(&model, 3, 512);
    let greedy = |prompt: Vec<u32>| ask(prompt, 5, SamplingParams::GREEDY);
    let id = engine.submit(greedy(vec![4, 5])).unwrap();
    let expected = finish(&mut engine).remove(&id).unwrap();
    let all = (0..VOCABULARY as u32).map(|id| (id, f32::NEG_INFINITY)).collect();
    let sampling = SamplingParams { logit_bias: all, ..SamplingParams::GREEDY };
    for cancelled in [true, false] {
        let request = Request { sampling: sampling.clone(), ..greedy(vec![1, 2, 3]) };
        let banned = engine.submit(request).unwrap();
        let other = engine.submit(greedy(vec![4, 5])).unwrap();
        let error = engine.step().unwrap_err();
        assert!(matches!(&error, RuntimeError::AllBanned { sequences } if *sequences == [banned]));
        assert!(!error.to_string().contains('\n') && !engine.cancel(banned));
        // The token that waits to be given goes with its sequence.
        assert_eq!(cancelled && engine.cancel(other), cancelled);
        let texts: Vec<_> = finish(&mut engine).into_iter().collect();
        assert_eq!(texts, if cancelled { vec![] } else { vec![(other, expected.clone())] });
    }
}

#[test]
fn a_bias_of_nothing_changes_nothing() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    let model = model(seed, DType::Q8_0);
    let mut engine = engine(&model, 1, 512);
    for _ in 0..5 {
        let request = Request { max_tokens: 30, stop_tokens: vec![], ..request(&mut random) };
        // The device chooses the tokens of the one, the host those of the other.
        let sampling = SamplingParams { logit_bias: vec![(3, 0.0)], ..request.sampling.clone() };
        let host = Request { sampling, ..request.clone() };
        let ids = [request, host].map(|request| engine.submit(request).unwrap());
        let mut texts = finish(&mut engine);
        let [device, host] = ids.map(|id| texts.remove(&id).unwrap());
        assert_eq!(device, host);
    }
}

#[test]
fn sizes_of_any_number_are_errors_or_run() {
    let model = model_of(12, DType::F32, 1);
    let run = |options: EngineOptions| -> Result<usize, RuntimeError> {
        let mut engine = Engine::new(&model, cpu(1), &options)?;
        let prompt = vec![1; engine.context()];
        let (sampling, logprobs) = (SamplingParams::GREEDY, Some(usize::MAX));
        engine.submit(Request {
            prompt,
            max_tokens: 1,
            sampling,
            stop_tokens: vec![],
            logprobs,
        })?;
        let mut found = 0;
        while !engine.is_idle() {
            let logprobs = engine.step()?.into_iter().filter_map(|event| event.logprobs);
            found += logprobs.map(|logprobs| logprobs.top.len()).sum::<usize>();
        }
        Ok(found)
    };
    let base = EngineOptions::default();
    for options in [
        EngineOptions { step_tokens: 0, ..base.clone() },
        EngineOptions { sequences: 0, queue: 0, ..base.clone() },
        EngineOptions { kv_tokens: Some(0), swap_bytes: u64::MAX, ..base.clone() },
        EngineOptions { context: Some(0), queue: usize::MAX, ..base.clone() },
        EngineOptions { context: Some(1), ..base.clone() },
    ] {
        assert!(matches!(run(options.clone()), Ok(VOCABULARY)), "{options:?}");
    }
    for size in [1 << 40, usize::MAX] {
        for options in [
            EngineOptions { step_tokens: size, ..base.clone() },
            EngineOptions { sequences: size, ..base.clone() },
            EngineOptions { kv_tokens: Some(size), ..base.clone() },
            EngineOptions { context: Some(size), ..base.clone() },
        ] {
            let error = run(options).unwrap_err();
            assert!(matches!(error, RuntimeError::Memory(_)), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}

#[test]
fn penalties_and_biases_change_the_text_as_they_should() {
    let model = model(8, DType::F32);
    let mut engine = engine(&model, 1, 512);
    let mut run = |sampling: SamplingParams| {
        let prompt = vec![3, 4, 5];
        let logprobs = Some(2);
        let id = engine
            .submit(Request { prompt, max_tokens: 40, sampling, stop_tokens: vec![], logprobs })
            .unwrap();
        let mut tokens = Vec::new();
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                assert_eq!(event.sequence, id);
                let logprobs = event.logprobs.unwrap();
                assert!(logprobs.chosen <= 0.0 && logprobs.top.len() == 2);
                assert!(logprobs.top[0].1 >= logprobs.top[1].1);
                assert!(logprobs.chosen <= logprobs.top[0].1);
                tokens.push(event.token);
            }
        }
        tokens
    };
    let plain = run(SamplingParams::GREEDY);
    let once = SamplingParams { presence_penalty: 100.0, ..SamplingParams::GREEDY };
    let mut distinct = run(once);
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 40, "a token came twice");
    let ban = SamplingParams {
        logit_bias: vec![(plain[0], f32::NEG_INFINITY)],
        ..SamplingParams::GREEDY
    };
    assert!(!run(ban).contains(&plain[0]));
    let wish = SamplingParams { logit_bias: vec![(11, 1e5)], ..SamplingParams::GREEDY };
    assert_eq!(run(wish), [11; 40]);
}

fn many(model: &Model, queue: usize) -> Engine {
    let context = Some(100);
    let (sequences, kv_tokens) = (32, Some(300));
    let options =
        EngineOptions { context, sequences, queue, kv_tokens, ..EngineOptions::default() };
    Engine::new(model, cpu(2), &options).unwrap()
}

fn short(at: u32) -> Request {
    let sampling = SamplingParams::GREEDY;
    let prompt = vec![at % VOCABULARY as u32, 7];
    ask(prompt, 2, sampling)
}

#[test]
fn ten_thousand_sequences_at_once_all_end() {
    let model = model_of(9, DType::Q8_0, 1);
    let mut engine = many(&model, 10_000);
    for at in 0..10_000 {
        engine.submit(short(at)).unwrap();
    }
    // Those in the middle of the queue can be taken out.
    for at in 3_000..4_000 {
        assert!(engine.cancel(SequenceId(at)));
    }
    let mut ended = 0;
    while !engine.is_idle() {
        let events = engine.step().unwrap();
        ended += events.iter().filter(|event| event.finish.is_some()).count();
    }
    assert_eq!(ended, 9_000);
    let stats = engine.stats();
    assert_eq!((stats.waiting, stats.used_blocks, stats.prompt_tokens), (0, 0, 18_000));
}

#[test]
fn more_sequences_than_may_wait_are_refused() {
    let model = model_of(9, DType::Q8_0, 1);
    let mut engine = many(&model, 100);
    for at in 0..132 {
        engine.submit(short(at)).unwrap();
    }
    for _ in 0..2 {
        let error = engine.submit(short(0)).unwrap_err();
        assert!(matches!(error, RuntimeError::QueueFull { waiting: 132, queue: 100 }), "{error}");
        assert!(error.to_string().contains("again") && !error.to_string().contains('\n'));
    }
    // As soon as some have ended there is room.
    while engine.step().unwrap().iter().all(|event| event.finish.is_none()) {}
    engine.submit(short(0)).unwrap();
    finish(&mut engine);
    assert_eq!(engine.stats().prompt_tokens, 2 * 133);
}

#[test]
fn cancelling_frees_what_a_sequence_has_wherever_it_is() {
    let model = model(10, DType::F32);
    let options = EngineOptions {
        context: Some(180),
        sequences: 3,
        kv_tokens: Some(180),
        prefix_cache: false,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(&model, cpu(2), &options).unwrap();
    let request = |prompt, max_tokens| Request {
        prompt: vec![5; prompt],
        max_tokens,
        sampling: SamplingParams::GREEDY,
        stop_tokens: vec![],
        logprobs: None,
    };
    // Three blocks of 64: the first one comes to need them all.
    let ids = [(60, 120), (20, 60), (20, 60)]
        .map(|(prompt, tokens)| engine.submit(request(prompt, tokens)).unwrap());
    while engine.stats().preempted == 0 {
        engine.step().unwrap();
    }
    let stats = engine.stats();
    assert!(stats.swapped_bytes > 0 && stats.preempted_by_swap == 1, "{stats:?}");
    assert_eq!((stats.running, stats.preempted, stats.waiting), (1, 1, 1));
    for (id, left) in ids.into_iter().zip([2, 1, 0]) {
        assert!(engine.cancel(id) && !engine.cancel(id));
        let stats = engine.stats();
        assert_eq!(stats.running + stats.preempted + stats.waiting, left);
    }
    let stats = engine.stats();
    assert_eq!((stats.swapped_bytes, stats.used_blocks, stats.free_blocks), (0, 0, 3));
    assert!(engine.is_idle() && engine.step().unwrap().is_empty());
}

#[test]
fn a_cache_is_as_large_as_asked_for_or_as_fits() {
    let model = model(11, DType::F32);
    let plan = |options: &EngineOptions, room: Option<u64>| {
        let device = Pretend::new(cpu(1), "gpu:0");
        let device = match room {
            Some(room) => device.room(room),
            None => device.silent(),
        };
        Engine::new(&model, Arc::new(device), options).map(|engine| {
            let plan = engine.memory();
            (plan.context, plan.kv.blocks, plan.kv_bytes(), plan.total_bytes())
        })
    };
    let base = EngineOptions { context: Some(150), sequences: 4, ..EngineOptions::default() };
    let (context, blocks, bytes, total) = plan(&base, None).unwrap();
    assert_eq!((context, blocks), (150, 4 * 3));
    let block = bytes / 12;
    // Room for five blocks: a context is held, four at once are not.
    let five = total - 7 * block;
    assert_eq!(plan(&base, Some(five)).unwrap().1, 5);
    let error = plan(&base, Some(total - 10 * block)).unwrap_err().to_string();
    assert!(error.contains("150 tokens") && error.contains("at most --ctx 128"), "{error}");
    let asked = EngineOptions { kv_tokens: Some(400), ..base.clone() };
    assert_eq!(plan(&asked, None).unwrap().1, 7);
    let error = plan(&asked, Some(five)).unwrap_err().to_string();
    assert!(error.contains("400 tokens") && error.contains("at most 320"), "{error}");
    let small = EngineOptions { kv_tokens: Some(120), ..base.clone() };
    let error = plan(&small, None).unwrap_err().to_string();
    assert!(error.contains("120 tokens") && error.contains("context of 150"), "{error}");
    let free = EngineOptions { context: None, ..small };
    assert_eq!(plan(&free, None).map(|plan| (plan.0, plan.1)).unwrap(), (128, 2));
}
