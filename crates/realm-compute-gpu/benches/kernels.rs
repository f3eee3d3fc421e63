//! Times each CUDA kernel by itself:
//!
//! `cargo bench -p realm-compute-gpu --features cuda --bench kernels -- [--device D] [--only PREFIX]`
//!
//! A row a line on stdout, as JSON; what fails on stderr. `--device cuda:1` takes another GPU than the
//! first, `--device cuda-emulated` the test device, at sizes that mean nothing. `--quick` has fewer
//! replays, `--list` lists the rows. Exit codes: 0 all rows are there, 1 some are not, 2 wrong use, 3 no
//! such device.

use std::process::ExitCode;

use realm_compute_gpu::bench::{Options, Row, Sizes, bench_cuda, bench_cuda_emulated, bench_names};

const USAGE: &str =
    "kernels [--device cuda|cuda:N|cuda-emulated] [--only PREFIX] [--quick] [--list]";

/// What the command line asks for.
struct Arguments {
    device: String,
    options: Options,
    list: bool,
}

fn arguments() -> Option<Arguments> {
    let mut found = Arguments { device: "cuda".into(), options: Options::default(), list: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--device" => found.device = words.next()?,
            "--only" => found.options.only = words.next()?,
            "--quick" => found.options.sizes = Sizes::Quick,
            "--list" => found.list = true,
            // Cargo's.
            "--bench" => {}
            _ => return None,
        }
    }
    if found.device == "cuda-emulated" {
        found.options.sizes = Sizes::Toy;
    }
    Some(found)
}

fn main() -> ExitCode {
    let Some(Arguments { device, options, list }) = arguments() else {
        eprintln!("usage: {USAGE}");
        return ExitCode::from(2);
    };
    if list {
        bench_names(&options).iter().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    let report = &mut |name: &str, row: Result<Row, _>| match row {
        Ok(row) => println!("{}", row.json()),
        Err(error) => {
            failed += 1;
            eprintln!("{name}: {error}");
        }
    };
    let ordinal = match device.as_str() {
        "cuda" | "cuda-emulated" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|digits| digits.parse().ok()),
    };
    let outcome = match ordinal {
        Some(_) if device == "cuda-emulated" => bench_cuda_emulated(0, &options, report),
        Some(ordinal) => bench_cuda(ordinal, &options, report),
        None => {
            eprintln!("{device:?} is no device; usage: {USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Err(reason) => {
            eprintln!("no {device}: {reason}");
            ExitCode::from(3)
        }
        Ok(()) if failed > 0 => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
    }
}
