//! Measures the products: `cargo test --release -p realm-compute-cpu --lib -- --ignored --nocapture speed`.
//! `REALM_SPEED_FORMATS=Q4_K,F16` narrows the formats, `REALM_SPEED_ISA=avx2` the instruction sets,
//! `REALM_SPEED_ROWS=1,512` the inputs' rows, `REALM_SPEED_PRECISION=f32` changes the compute type.

use std::{env, str::FromStr, time::Instant};

use realm_core::{DType, backend::Precision};

use super::{
    Projection, Scratch, linear,
    tests::{Random, Weight, sets},
};
use crate::{elementwise::Cpu, pool::Pool};

fn list<T: FromStr>(name: &str, default: &str) -> Vec<T> {
    let text = env::var(name).unwrap_or_else(|_| default.to_owned());
    text.split(',').filter_map(|item| item.parse().ok()).collect()
}

/// Seconds: of this thread's own running where that can be known and no other thread helps, so that
/// other programs disturb less.
fn seconds(begin: Instant, threads: usize) -> f64 {
    let own = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        Some(text.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
    };
    own().filter(|_| threads == 1).unwrap_or_else(|| begin.elapsed().as_secs_f64())
}

#[test]
#[ignore = "measures speed"]
fn speed() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = Pool::new(list("REALM_SPEED_THREADS", "").first().copied().unwrap_or(threads));
    let names: Vec<String> = list("REALM_SPEED_FORMATS", "Q4_K,Q6_K,Q5_K,Q8_0,F16");
    let set = env::var("REALM_SPEED_ISA").unwrap_or_default();
    let precision = list("REALM_SPEED_PRECISION", "int8").first().copied().unwrap_or(Precision::Int8);
    let mut random = Random(1);
    println!("{} threads, {precision}: best of five runs of 0.2 s", pool.threads());
    for name in names {
        let Some(dtype) = DType::from_name(&name) else { continue };
        for m in list::<usize>("REALM_SPEED_ROWS", "1,4,512") {
            // A single row's weights must not fit into the cache.
            let (n, k) = if m < 16 { (16 * 1024, 5632) } else { (2048, 5632) };
            let weight = Weight::random(&mut random, dtype, n, k);
            let x = random.floats(m * k);
            for isa in sets() {
                if !isa.to_string().to_lowercase().replace('-', "").starts_with(&set) {
                    continue;
                }
                let cpu = Cpu { pool: &pool, isa };
                let mut output = vec![0.0; m * n];
                let mut scratch = Scratch::new(x.len(), precision);
                let mut round = || {
                    let input = scratch.prepare(cpu, &x, k, precision);
                    let weight = weight.matrix();
                    let projection = Projection { weight, bias: None, output: &mut output };
                    linear(cpu, &input, &mut [projection]);
                };
                round();
                let mut best = f64::INFINITY;
                for _ in 0..5 {
                    let begin = Instant::now();
                    let start = seconds(begin, pool.threads());
                    let mut rounds = 0;
                    while rounds == 0 || begin.elapsed().as_secs_f64() < 0.2 {
                        round();
                        rounds += 1;
                    }
                    best = best.min((seconds(begin, pool.threads()) - start) / f64::from(rounds));
                }
                println!(
                    "{name:7} m {m:4}  {isa:12}  {:7.2} ms  {:6.2} GB/s  {:8.1} GOP/s",
                    best * 1e3,
                    weight.bytes() as f64 / best / 1e9,
                    2.0 * (m * n * k) as f64 / best / 1e9
                );
            }
        }
    }
}
