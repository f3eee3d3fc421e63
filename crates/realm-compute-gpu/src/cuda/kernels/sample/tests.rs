//! Against the host's sampler: the same token, always.

use std::sync::Arc;

use realm_conformance::random::Random;
use realm_core::sampling::{NO_TOKEN, Sampler, Sampling, uniform};

use super::*;
use crate::cuda::{
    gpu::{Buffer, Gpu},
    step, testing,
};

fn rig(name: &str) -> (Arc<dyn Gpu>, Random) {
    let seed = Random::fresh_seed();
    println!("REALM_SEED={seed} {name}");
    (testing::gpu(seed), Random::new(seed).named(name))
}

fn upload(gpu: &Arc<dyn Gpu>, bytes: &[u8]) -> Buffer {
    let buffer = Buffer::new(gpu, bytes.len(), "values").unwrap();
    buffer.write(0, bytes).unwrap();
    buffer
}

/// What the device samples for `rows` of logits, in a launch for one row more, which is to stay as it is.
fn sampled(gpu: &Arc<dyn Gpu>, rows: &[Vec<f32>], how: &[Sampling]) -> Vec<u32> {
    let vocabulary = rows[0].len();
    let logits = upload(gpu, rows.concat().as_bytes());
    let how: Vec<step::Sampling> = how.iter().map(step::Sampling::from).collect();
    let how = upload(gpu, how.as_bytes());
    let counts = step::Counts { outputs: rows.len() as u32, ..step::Counts::default() };
    let counts = upload(gpu, counts.as_bytes());
    let tokens = upload(gpu, vec![0xA5; (rows.len() + 1) * 4].as_slice());
    let view =
        StepView { counts: counts.address(), sampling: how.address(), ..StepView::default() };
    let launch = sample(logits.address(), vocabulary, rows.len() + 1, &view, tokens.address());
    gpu.launch(&launch).unwrap();
    let tokens = tokens.read(0..tokens.bytes()).unwrap();
    let mut tokens: Vec<u32> =
        tokens.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(tokens.pop(), Some(0xA5A5_A5A5), "a row beyond the count is written");
    tokens
}

/// Compares with the host, row by row.
fn check(gpu: &Arc<dyn Gpu>, what: &str, rows: &[Vec<f32>], how: &[Sampling]) {
    let mut sampler = Sampler::default();
    for ((row, how), found) in rows.iter().zip(how).zip(sampled(gpu, rows, how)) {
        let expected = sampler.sample(row, how);
        let vocabulary = row.len();
        assert_eq!(found, expected, "{what} logits of {vocabulary}, {how:?}");
    }
}

/// Logits of the kinds that differ for selection and for sums.
fn logits(random: &mut Random, kind: &str, vocabulary: usize) -> Vec<f32> {
    let mut draw =
        |scale: f32| -> Vec<f32> { (0..vocabulary).map(|_| random.normal() * scale).collect() };
    match kind {
        "flat" => vec![random.normal(); vocabulary],
        "even" => draw(0.01),
        "usual" => draw(3.0),
        "peaked" => draw(15.0),
        "wide" => draw(1e30),
        "equal" => draw(3.0).iter().map(|x| (x * 2.0).round() / 2.0).collect(),
        "holes" => {
            let mut row = draw(3.0);
            for _ in 0..vocabulary / 2 + 1 {
                let hole = random.pick(&[f32::NAN, -f32::NAN, f32::NEG_INFINITY, 0.0, -0.0]);
                row[random.below(vocabulary)] = hole;
            }
            row
        }
        // Nearly all are impossible: fewer candidates than top-k asks for, in few threads.
        "few" => {
            let mut row = vec![f32::NEG_INFINITY; vocabulary];
            for _ in 0..20 {
                row[random.below(vocabulary)] = random.normal();
            }
            row
        }
        // Neighbours are likely together, so that they are not one a thread.
        "runs" => {
            (0..vocabulary).map(|at| (at / 1024 * 1024) as f32 / 2e3 + random.normal()).collect()
        }
        "infinite" => {
            let mut row = draw(3.0);
            for _ in 0..1 + random.below(3) {
                row[random.below(vocabulary)] = f32::INFINITY;
            }
            row
        }
        _ => vec![random.pick(&[f32::NAN, f32::NEG_INFINITY]); vocabulary],
    }
}

const KINDS: [&str; 11] = [
    "flat", "even", "usual", "peaked", "wide", "equal", "holes", "few", "runs", "infinite", "none",
];

fn settings(random: &mut Random) -> Sampling {
    Sampling {
        temperature: random.pick(&[0.0, 0.3, 0.8, 1.0, 1.7, 50.0]),
        top_k: random.pick(&[0, 0, 0, 1, 2, 40, 40, 300, 1024, 1500, 4_000_000]),
        top_p: random.pick(&[0.0, 0.1, 0.5, 0.95, 0.95, 0.9999, 1.0, 1.0, f32::NAN]),
        min_p: random.pick(&[0.0, 0.0, 0.05, 0.5, 1.0, 1e-6, 2.0]),
        seed: u64::from(random.word()) << 32 | u64::from(random.word()),
        position: random.word() >> random.below(32),
    }
}

#[test]
fn greedy_takes_the_hosts_token() {
    let (gpu, mut random) = rig("greedy");
    for vocabulary in [1, 3, 7, 70, 257, 1000, 4096, 32_000, 128_256] {
        let rows: Vec<_> = KINDS.iter().map(|kind| logits(&mut random, kind, vocabulary)).collect();
        let how = vec![Sampling::GREEDY; rows.len()];
        check(&gpu, "greedy", &rows, &how);
    }
}

#[test]
fn settings_of_all_kinds_take_the_hosts_token() {
    let (gpu, mut random) = rig("settings");
    for (vocabulary, rounds) in [(1, 3), (7, 30), (70, 30), (1000, 20), (4099, 12), (32_000, 4)] {
        for kind in KINDS {
            let rows: Vec<_> = (0..rounds).map(|_| logits(&mut random, kind, vocabulary)).collect();
            let how: Vec<_> = rows.iter().map(|_| settings(&mut random)).collect();
            check(&gpu, kind, &rows, &how);
        }
    }
}

#[test]
fn every_random_number_takes_the_hosts_token() {
    let (gpu, mut random) = rig("numbers");
    for (vocabulary, kind) in [(7, "usual"), (70, "equal"), (5000, "usual"), (5000, "flat")] {
        let row = logits(&mut random, kind, vocabulary);
        let how = settings(&mut random);
        let how = Sampling { temperature: 0.9, top_k: how.top_k & !1, ..how };
        let rows = vec![row; 40];
        let how: Vec<_> = (0..40).map(|position| Sampling { position, ..how }).collect();
        check(&gpu, kind, &rows, &how);
    }
}

#[test]
fn zeros_of_both_signs_are_equals_to_the_greedy_and_ranked_for_the_rest() {
    let (gpu, _) = rig("zeros");
    let row = vec![-0.0, 0.0, -0.0, 0.0, -1.0];
    let rows = vec![row; 21];
    let base = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let mut how = vec![Sampling::GREEDY];
    for position in 0..5 {
        how.extend([
            Sampling { top_k: 2, position, ..base },
            Sampling { top_k: 3, position, ..base },
            Sampling { top_p: 0.5, position, ..base },
            Sampling { min_p: 1.0, position, ..base },
        ]);
    }
    check(&gpu, "zero", &rows, &how);
}

#[test]
fn nothing_to_choose_is_no_token() {
    let (gpu, _) = rig("none");
    let mut infinite = vec![1.0; 5000];
    infinite[4321] = f32::INFINITY;
    let rows = vec![vec![f32::NAN; 5000], vec![f32::NEG_INFINITY; 5000], infinite];
    let hot = Sampling { temperature: 1.0, top_k: 40, top_p: 0.9, ..Sampling::GREEDY };
    assert_eq!(sampled(&gpu, &rows, &[hot; 3]), [NO_TOKEN; 3]);
    assert_eq!(sampled(&gpu, &rows, &[Sampling::GREEDY; 3]), [NO_TOKEN; 3]);
}

/// A position at which the random number is so small that the first candidate is taken.
fn position_of_the_first(seed: u64) -> u32 {
    (0..).find(|&position| uniform(seed, position) < 1.0 / (1 << 20) as f32).unwrap_or(0)
}

#[test]
fn filters_end_at_the_hosts_candidate() {
    let (gpu, mut random) = rig("ends");
    let seed = u64::from(random.word());
    let base = Sampling { temperature: 1.0, seed, ..Sampling::GREEDY };
    let base = Sampling { position: position_of_the_first(seed), ..base };
    for (vocabulary, range) in [(300, 5.0), (5000, 0.5), (5000, 6.0), (100_000, 0.2)] {
        // Logits ascend, so that the first candidate is the least likely one that the filters keep.
        let mut row: Vec<f32> = (0..vocabulary).map(|_| random.normal() * range).collect();
        row.sort_by(f32::total_cmp);
        let mut how = Vec::new();
        for _ in 0..8 {
            let unit = |random: &mut Random| (random.word() >> 8) as f32 / (1 << 24) as f32;
            let top_k = 2 + random.below(vocabulary) as u32;
            let (top_p, min_p) = (unit(&mut random), unit(&mut random));
            how.push(Sampling { top_p, ..base });
            how.push(Sampling { top_k, ..base });
            how.push(Sampling { top_k, top_p, ..base });
            how.push(Sampling { min_p, ..base });
        }
        let rows = vec![row; how.len()];
        check(&gpu, "ascending", &rows, &how);
    }
}

#[test]
fn min_p_ends_at_the_hosts_number() {
    let (gpu, mut random) = rig("least");
    let seed = u64::from(random.word());
    let position = position_of_the_first(seed);
    let base = Sampling { temperature: 9.0, seed, position, ..Sampling::GREEDY };
    let (mut rows, mut how) = (Vec::new(), Vec::new());
    // A device's logarithm may differ from the host's in the last bit, which shows close to zero.
    let close_to_zero = gpu.facts().name == "cuda-emulated";
    for at in 0..200 {
        let min_p = ((random.word() >> 8) + 1) as f32 / (1 << 24) as f32;
        // Also thresholds close to zero, and of either sign.
        let best = if close_to_zero && at % 4 == 0 { -min_p.ln() } else { random.normal() * 5.0 };
        let least = (f64::from(best) + f64::from(min_p).ln()) as f32;
        rows.push(vec![least.next_down(), least, least.next_up(), best]);
        how.push(Sampling { min_p, ..base });
    }
    check(&gpu, "neighbouring", &rows, &how);
}
