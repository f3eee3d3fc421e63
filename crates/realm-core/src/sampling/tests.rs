use super::*;

#[test]
fn philox_gives_the_published_vectors() {
    // Known answers of the authors' Random123 library (kat_vectors).
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(
        philox([u32::MAX; 4], [u32::MAX; 2]),
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
    );
}

#[test]
fn greedy_takes_the_first_of_equals_and_no_nan() {
    assert_eq!(argmax(&[f32::NAN, 1.0, 3.0, 3.0]), 2);
    let mut sampler = Sampler::default();
    assert_eq!(sampler.sample(&[0.0, 2.0, 2.0], &Sampling::GREEDY), 1);
    let hot = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], &hot), NO_TOKEN);
    assert_eq!(sampler.sample(&[f32::NAN; 3], &Sampling::GREEDY), NO_TOKEN);
}

#[test]
fn an_infinite_logit_is_a_breakdown_whatever_stands_beside_it() {
    let mut sampler = Sampler::default();
    let hot = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let all = [Sampling::GREEDY, hot, Sampling { top_k: 1, ..hot }, Sampling { top_p: 0.1, ..hot }];
    for logits in [[f32::INFINITY, 1.0, f32::NAN], [3.0, f32::NEG_INFINITY, f32::INFINITY]] {
        for how in all {
            assert_eq!(sampler.sample(&logits, &how), NO_TOKEN);
        }
    }
    // The greatest finite ones are numbers.
    assert_eq!(sampler.sample(&[f32::MIN, f32::MAX, 0.0], &hot), 1);
    assert_eq!(argmax(&[f32::MIN; 2]), 0);
}

#[test]
fn frequencies_follow_the_probabilities() {
    let logits = [0.0f32, 1.0, 2.0, -1.0];
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let mut sampler = Sampler::default();
    let mut counts = [0u32; 4];
    for position in 0..40_000 {
        let how = Sampling { temperature: 1.0, seed: 7, position, ..Sampling::GREEDY };
        counts[sampler.sample(&logits, &how) as usize] += 1;
    }
    for (count, logit) in counts.iter().zip(logits) {
        let expected = f64::from(logit).exp() / total;
        assert!((f64::from(*count) / 40_000.0 - expected).abs() < 0.01, "{counts:?}");
    }
}

#[test]
fn filters_keep_exactly_the_likeliest() {
    let mut sampler = Sampler::default();
    // Probabilities 0.5, 0.3, 0.15, 0.05, in mixed order.
    let logits = [0.15f32.ln(), 0.5f32.ln(), 0.05f32.ln(), 0.3f32.ln()];
    let mut seen = |how: Sampling| {
        let mut ids: Vec<u32> = (0..2_000)
            .map(|position| sampler.sample(&logits, &Sampling { position, ..how }))
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let all = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    assert_eq!(seen(all), [0, 1, 2, 3]);
    assert_eq!(seen(Sampling { top_k: 2, ..all }), [1, 3]);
    assert_eq!(seen(Sampling { top_p: 0.79, ..all }), [1, 3]);
    assert_eq!(seen(Sampling { top_p: 0.0, ..all }), [1]);
    assert_eq!(seen(Sampling { min_p: 0.25, ..all }), [0, 1, 3]);
}

#[test]
fn top_p_over_many_equals_sorting_everything() {
    let logits: Vec<f32> =
        (0..5_000u32).map(|at| (philox([at, 0, 0, 0], [3, 4])[0] % 1000) as f32 / 250.0).collect();
    for p in [0.1, 0.5, 0.9, 0.999] {
        let mut fast: Vec<Candidate> = logits.iter().copied().zip(0..).collect();
        let mut slow = fast.clone();
        top_p(&mut fast, p);
        slow.sort_by(by_rank);
        let weight = |c: &Candidate| f64::from(c.0 - slow[0].0).exp();
        let wanted = p * slow.iter().map(weight).sum::<f64>();
        let mut sum = 0.0;
        let count = slow
            .iter()
            .take_while(|c| {
                let go = sum < wanted;
                sum += weight(c);
                go
            })
            .count();
        assert_eq!(fast.len(), count);
        assert_eq!(fast, slow[..count]);
    }
}

#[test]
fn typical_keeps_what_carries_the_expected_information() {
    // Probabilities 0.5, 0.2, 0.2, 0.1: the entropy is 1.2206, the contents are 0.693, 1.609, 1.609 and
    // 2.303, hence 0.527, 0.389, 0.389 and 1.082 away from it.
    let logits = [0.1f32.ln(), 0.5f32.ln(), 0.2f32.ln(), 0.2f32.ln()];
    let mut sampler = Sampler::default();
    let mut seen = |typical_p: f32, top_k: u32| {
        let mut ids: Vec<u32> = (0..2_000)
            .map(|position| {
                let how = Sampling { temperature: 1.0, top_k, position, ..Sampling::GREEDY };
                sampler.sample_typical(&logits, &how, typical_p)
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(seen(1.0, 0), [0, 1, 2, 3]);
    assert_eq!(seen(0.0, 0), [2]);
    assert_eq!(seen(0.19, 0), [2]);
    assert_eq!(seen(0.39, 0), [2, 3]);
    assert_eq!(seen(0.6, 0), [1, 2, 3]);
    assert_eq!(seen(0.95, 0), [0, 1, 2, 3]);
    // Among the two likeliest, 0.714 and 0.286, the entropy is 0.598 and the likelier one is closer.
    assert_eq!(seen(0.5, 2), [1]);
}

#[test]
fn typical_of_one_keeps_the_choice_as_it_is() {
    let mut sampler = Sampler::default();
    let logits: Vec<f32> = (0..500u32).map(|at| philox([at; 4], [1, 2])[0] as f32 / 1e9).collect();
    for position in 0..200 {
        let how = Sampling { temperature: 0.9, top_p: 0.9, position, ..Sampling::GREEDY };
        let plain = sampler.sample(&logits, &how);
        assert_eq!(sampler.sample_typical(&logits, &how, 1.0), plain);
    }
}

#[test]
fn log_probabilities_are_those_of_the_softmax() {
    let logits = [0.5f32, f32::NAN, 2.0, f32::NEG_INFINITY, 2.0, -1.0];
    let total: f64 = [0.5f64, 2.0, 2.0, -1.0].map(f64::exp).iter().sum();
    let of = |logit: f64| (logit - total.ln()) as f32;
    let (chosen, top) = log_probabilities(&logits, 0, 3);
    assert!((chosen - of(0.5)).abs() < 1e-6);
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 4, 0]);
    assert!(top.iter().zip([2.0, 2.0, 0.5]).all(|((_, p), l)| (p - of(l)).abs() < 1e-6));
    assert_eq!(log_probabilities(&logits, 1, 0), (f32::NEG_INFINITY, vec![]));
    let (beyond, all) = log_probabilities(&logits, 99, 1_000);
    assert_eq!((beyond, all.len()), (f32::NEG_INFINITY, 6));
    assert_eq!(all[4].1, f32::NEG_INFINITY);
    let (sure, all) = log_probabilities(&[1.0, f32::INFINITY, -3.0], 1, 3);
    assert_eq!((sure, all[0]), (0.0, (1, 0.0)));
    assert!(all.iter().all(|(_, p)| !p.is_nan()), "{all:?}");
    assert_eq!(log_probabilities(&[f32::NAN; 2], 0, 1).0, f32::NEG_INFINITY);
}
