//! Steps started ahead, on a device that claims to compute on its own: the same texts, no block given
//! away too early, no step too many where the end is known.

mod common;

use std::sync::{Arc, atomic::Ordering::Relaxed};

use common::{
    VOCABULARY, ask, cpu, engine_on, finish, finish_with, model, model_breaking_at, model_with,
    pretend::Pretend, wide_engine_on,
};
use realm_conformance::random::Random;
use realm_core::{DType, backend::Backend, reference::ReferenceBackend};
use realm_runtime::{Finish, Request, RuntimeError, SamplingParams};

fn request(random: &mut Random) -> Request {
    let prompt = (0..1 + random.below(60)).map(|_| random.below(VOCABULARY) as u32).collect();
    let seed = u64::from(random.word());
    let sampling = match random.below(2) {
        0 => SamplingParams::GREEDY,
        _ => SamplingParams {
            temperature: 1.0,
            top_p: 0.95,
            min_p: 0.01,
            seed,
            ..SamplingParams::GREEDY
        },
    };
    let stop_tokens = (0..random.below(4)).map(|_| random.below(VOCABULARY) as u32).collect();
    Request { prompt, max_tokens: 1 + random.below(30), sampling, stop_tokens, logprobs: None }
}

#[test]
fn texts_are_the_same() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    let model = model(seed, DType::Q4_0);
    let requests: Vec<Request> = (0..12).map(|_| request(&mut random)).collect();
    for reference in [false, true] {
        let device = || match reference {
            true => Arc::new(ReferenceBackend::new(16)) as Arc<dyn Backend>,
            false => cpu(2),
        };
        let mut plain = engine_on(&model, device(), 1, 512);
        for request in &requests {
            plain.submit(request.clone()).unwrap();
        }
        let expected = finish(&mut plain);
        for (places, step_tokens) in [(1, 512), (4, 512), (3, 7), (12, 16), (1, 1)] {
            let pretend = Arc::new(Pretend::new(device(), "pretend").asynchronous());
            let mut engine = engine_on(&model, pretend.clone(), places, step_tokens);
            for request in &requests {
                engine.submit(request.clone()).unwrap();
            }
            let found = finish(&mut engine);
            assert_eq!(found, expected, "{places} places, {step_tokens} tokens a step");
            assert!(pretend.watch.ahead.load(Relaxed) > 10, "nothing was started ahead");
            // All blocks are free again: as many sequences as at first can run.
            for request in &requests[..places.min(requests.len())] {
                engine.submit(request.clone()).unwrap();
            }
            assert_eq!(finish(&mut engine).len(), places.min(requests.len()));
        }
    }
}

#[test]
fn requests_that_come_and_go_leave_the_others_as_they_are() {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let mut random = Random::new(seed);
    let model = model(seed, DType::Q8_0);
    let requests: Vec<Request> = (0..30).map(|_| request(&mut random)).collect();
    let mut plain = engine_on(&model, cpu(2), 1, 512);
    let mut expected = Vec::new();
    for request in &requests {
        let id = plain.submit(request.clone()).unwrap();
        expected.push(finish(&mut plain).remove(&id).unwrap());
    }
    let pretend = Arc::new(Pretend::new(cpu(2), "pretend").asynchronous());
    let mut engine = engine_on(&model, pretend, 3, 24);
    let mut ids = vec![engine.submit(requests[0].clone()).unwrap()];
    let mut cancelled = Vec::new();
    let texts = finish_with(&mut engine, |engine, _| {
        while ids.len() < requests.len() && random.below(2) == 0 {
            ids.push(engine.submit(requests[ids.len()].clone()).unwrap());
        }
        if random.below(8) == 0 {
            let victim = ids[random.below(ids.len())];
            if engine.cancel(victim) {
                cancelled.push(victim);
                assert!(!engine.cancel(victim));
            }
        }
    });
    for (id, (tokens, end)) in &texts {
        let (whole, whole_end) = &expected[id.0 as usize];
        let cut = cancelled.contains(id);
        assert!(cut || end == whole_end, "{id:?}");
        assert!(whole.starts_with(tokens) && (cut || tokens == whole), "{id:?}");
    }
    assert!(ids.iter().all(|id| texts.contains_key(id) || cancelled.contains(id)));
}

#[test]
fn no_step_is_wasted_where_the_end_is_known() {
    let model = model(3, DType::F32);
    for asynchronous in [false, true] {
        let pretend = Pretend::new(cpu(2), "pretend");
        let pretend = Arc::new(if asynchronous { pretend.asynchronous() } else { pretend });
        let mut engine = engine_on(&model, pretend.clone(), 2, 512);
        for max_tokens in [1, 2, 9] {
            let sampling = SamplingParams::GREEDY;
            let request = Request {
                prompt: vec![1, 2],
                max_tokens,
                sampling,
                stop_tokens: vec![],
                logprobs: None,
            };
            engine.submit(request).unwrap();
            finish(&mut engine);
        }
        let [steps, ahead, read] =
            [&pretend.watch.steps, &pretend.watch.ahead, &pretend.watch.read]
                .map(|n| n.load(Relaxed));
        assert_eq!((steps, read), (1 + 2 + 9, 1 + 2 + 9));
        assert_eq!(ahead, if asynchronous { 1 + 8 } else { 0 });
    }
}

#[test]
fn a_stop_token_costs_one_step_whose_blocks_are_free_afterwards() {
    let model = model(2, DType::F32);
    let pretend = Arc::new(Pretend::new(cpu(2), "pretend").asynchronous());
    let mut engine = engine_on(&model, pretend.clone(), 1, 512);
    let sampling = SamplingParams::GREEDY;
    let base = ask(vec![5, 6], 30, sampling);
    let id = engine.submit(base.clone()).unwrap();
    let (tokens, _) = finish(&mut engine).remove(&id).unwrap();
    let stop = tokens[4];
    let first = tokens.iter().position(|&token| token == stop).unwrap();
    let steps = pretend.watch.steps.load(Relaxed);
    let id = engine.submit(Request { stop_tokens: vec![stop], ..base.clone() }).unwrap();
    let (cut, end) = finish(&mut engine).remove(&id).unwrap();
    assert_eq!((&cut[..], end), (&tokens[..=first], Some(Finish::Stop)));
    let taken = pretend.watch.steps.load(Relaxed) - steps;
    assert_eq!(taken, first + 2);
    // The surplus step is not read yet; whoever comes next, and logits too, has all blocks.
    let mut rows = 0;
    let prompt: Vec<u32> = (0..common::CONTEXT as u32).map(|at| at % 50).collect();
    engine
        .logits(&prompt, |logits| {
            rows += logits.len() / VOCABULARY;
            Ok(())
        })
        .unwrap();
    assert_eq!(rows, prompt.len());
    let id = engine.submit(base).unwrap();
    assert_eq!(finish(&mut engine).remove(&id).unwrap().0, tokens);
}

#[test]
fn logits_that_are_no_numbers_end_their_sequences() {
    let model = model_with(6, DType::F32, f32::NAN);
    let pretend = Arc::new(Pretend::new(cpu(2), "pretend").asynchronous());
    let mut engine = wide_engine_on(&model, pretend, 2, 512);
    for _ in 0..2 {
        let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::GREEDY };
        let request = ask(vec![1, 2], 3, sampling);
        engine.submit(request).unwrap();
        let error = engine.step().unwrap_err();
        assert!(matches!(error, RuntimeError::NotNumbers { .. }), "{error}");
        assert!(engine.is_idle());
    }
}

/// A fails in a step with B while the next one, with C's prompt in it, is under way already.
#[test]
fn a_sequence_without_a_token_ends_alone() {
    const BROKEN: u32 = 17;
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed}");
    let model = model_breaking_at(seed, BROKEN as usize);
    let sampled = SamplingParams { temperature: 1.0, top_p: 0.9, seed, ..SamplingParams::GREEDY };
    let request = |prompt: &[u32], sampling| {
        let prompt = prompt.to_vec();
        ask(prompt, 9, sampling)
    };
    let a = request(&[3, BROKEN, 4], SamplingParams::GREEDY);
    let b = request(&[5, 6, 7], SamplingParams::GREEDY);
    let c = request(&[9, 8, 7, 6], sampled);
    let mut plain = wide_engine_on(&model, cpu(2), 1, 512);
    let alone = [&b, &c].map(|request| {
        let id = plain.submit(request.clone()).unwrap();
        finish(&mut plain).remove(&id).unwrap()
    });
    // Refused as the CPU does it, computed as a GPU does it, and not started ahead at all.
    for (asynchronous, stand_in) in
        [(true, None), (true, Some(BROKEN)), (true, Some(1)), (false, None)]
    {
        let mut pretend = Pretend::new(cpu(2), "pretend");
        pretend.stand_in = stand_in;
        let pretend = Arc::new(if asynchronous { pretend.asynchronous() } else { pretend });
        let mut engine = wide_engine_on(&model, pretend.clone(), 3, 6);
        let [of_a, of_b, of_c] =
            [&a, &b, &c].map(|request| engine.submit(request.clone()).unwrap());
        let error = engine.step().unwrap_err();
        let RuntimeError::NotNumbers { sequences, .. } = &error else { panic!("{error}") };
        assert_eq!(sequences[..], [of_a]);
        let both = if stand_in.is_some() { 2 } else { 1 };
        assert_eq!(pretend.watch.steps.load(Relaxed), both, "the next step was under way or not");
        assert!(!engine.cancel(of_a), "it has ended");
        let mut texts = finish(&mut engine);
        assert_eq!([of_b, of_c].map(|id| texts.remove(&id).unwrap()), alone);
        assert!(texts.is_empty(), "{texts:?}");
        // What A left in its blocks harms nobody.
        let ids = [&c, &b, &b].map(|request| engine.submit(request.clone()).unwrap());
        let mut texts = finish(&mut engine);
        let [of_b, of_c] = &alone;
        assert_eq!(ids.map(|id| texts.remove(&id).unwrap()), [of_c, of_b, of_b].map(Clone::clone));
    }
}

#[test]
fn a_failed_step_can_be_tried_again() {
    let model = model(8, DType::F32);
    let sampling = SamplingParams::GREEDY;
    let request = ask(vec![9; 20], 12, sampling);
    let mut plain = engine_on(&model, cpu(2), 1, 8);
    plain.submit(request.clone()).unwrap();
    let expected: Vec<_> = finish(&mut plain).into_values().collect();
    for lost_after in 0..14 {
        let mut pretend = Pretend::new(cpu(2), "pretend").asynchronous();
        pretend.lost_after = Some(lost_after);
        let mut engine = engine_on(&model, Arc::new(pretend), 1, 8);
        engine.submit(request.clone()).unwrap();
        let (mut tokens, mut end, mut failures) = (Vec::new(), None, 0);
        while !engine.is_idle() {
            match engine.step() {
                Ok(events) => {
                    tokens.extend(events.iter().map(|event| event.token));
                    end = events.last().map_or(end, |event| event.finish);
                }
                Err(error) => {
                    failures += 1;
                    assert!(error.to_string().contains("lost"), "{error}");
                }
            }
        }
        assert_eq!((vec![(tokens, end)], failures), (expected.clone(), 1), "{lost_after}");
    }
}
