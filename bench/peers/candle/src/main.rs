//! Times candle's quantized Llama on the CPU the way `realm bench` times Realm, so that the two can
//! be set side by side: the same file, the same threads, the same tests.
//!
//! One JSON object a line goes to stdout, everything else to stderr. See the README beside this
//! crate for the build flags without which the comparison is unfair.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Result, Tensor, bail};
use candle_transformers::models::quantized_llama::{MAX_SEQ_LEN, ModelWeights};
use clap::Parser;
use serde_json::{Value, json};

/// The largest number of tokens given to one forward pass while the context before a test is
/// filled. The timed prefill itself is a single pass, as candle's own examples do it.
const CONTEXT_CHUNK: usize = 512;

#[derive(Parser)]
#[command(about = "Times candle's quantized Llama on the CPU; one JSON object a line.")]
struct Args {
    /// The GGUF file (architecture "llama")
    #[arg(short, long)]
    model: PathBuf,
    /// Tokens of the prefill test; 0 leaves the test out
    #[arg(short = 'p', long, default_value_t = 512)]
    n_prompt: usize,
    /// Tokens of the decode test; 0 leaves the test out
    #[arg(short = 'n', long, default_value_t = 128)]
    n_gen: usize,
    /// Tokens of context in the KV cache before either test
    #[arg(short = 'd', long, default_value_t = 0)]
    depth: usize,
    /// Timed repetitions of each test, after one that is not counted
    #[arg(short = 'r', long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    reps: u32,
    /// Threads
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Instead of timing: the greedy continuation of these comma-separated token ids, `-n` long
    #[arg(long, value_delimiter = ',')]
    ids: Vec<u32>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: no thread has been started yet, so nothing reads the environment meanwhile.
        // candle reads both variables once, when its pools are first used.
        unsafe { std::env::set_var(name, args.threads.to_string()) };
    }
    warn_about_build_flags();
    // candle's own way to keep a whole pipeline inside its thread pool.
    match Device::Cpu.with_context(|| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // candle appends a backtrace where one was captured: the first line says it all.
            eprintln!("error: {}", error.to_string().lines().next().unwrap_or("unknown"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let longest = args.depth + args.n_prompt.max(args.ids.len() + args.n_gen);
    if longest > MAX_SEQ_LEN {
        bail!(
            "{longest} tokens asked for, candle's quantized_llama holds {MAX_SEQ_LEN}: lower -d, -p or -n"
        );
    }
    let start = Instant::now();
    let (model, vocab) = load(&args.model)?;
    let load_seconds = start.elapsed().as_secs_f64();
    if !args.ids.is_empty() {
        return greedy(model, &args.ids, args.n_gen, vocab);
    }

    let mut bench = Bench { model, vocab, seed: 1, position: 0 };
    // The first pass of each kind repacks weights: it is reported, and counted in no test.
    let first_decode_seconds = bench.timed(&[1])?;
    bench.restart();
    let common = json!({
        "engine": engine(),
        "built_for": built_for(),
        "model": args.model.file_name().map(|name| name.to_string_lossy()),
        "device": "cpu",
        "threads": args.threads,
        "repetitions": args.reps,
        "depth": args.depth,
        "load_seconds": load_seconds,
        "first_decode_seconds": first_decode_seconds,
    });
    if args.n_prompt > 0 {
        let rates = bench.repeat(args, &[args.n_prompt])?;
        report(&common, &name("pp", args.n_prompt, args.depth), rates);
    }
    if args.n_gen > 0 {
        let rates = bench.repeat(args, &vec![1; args.n_gen])?;
        report(&common, &name("tg", args.n_gen, args.depth), rates);
    }
    Ok(())
}

/// Reads the model and the size of its vocabulary.
fn load(path: &Path) -> Result<(ModelWeights, u32)> {
    let file = File::open(path)
        .map_err(|error| candle_core::Error::msg(format!("{}: {error}", path.display())))?;
    let mut reader = BufReader::new(file);
    let content = gguf_file::Content::read(&mut reader)?;
    // candle lists dimensions outermost first: [vocabulary, width].
    let vocab = match content.tensor_infos.get("token_embd.weight").map(|t| t.shape.dims()) {
        Some(&[vocab, _]) => vocab as u32,
        _ => bail!("{}: no matrix named token_embd.weight", path.display()),
    };
    let model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
    Ok((model, vocab))
}

/// A model and how far its KV cache is filled.
struct Bench {
    model: ModelWeights,
    vocab: u32,
    seed: u64,
    position: usize,
}

impl Bench {
    /// Runs passes of the given numbers of tokens, one after another; returns the seconds taken.
    fn timed(&mut self, passes: &[usize]) -> Result<f64> {
        let ids: Vec<Vec<u32>> = passes.iter().map(|&tokens| self.random_ids(tokens)).collect();
        let start = Instant::now();
        for ids in &ids {
            let input = Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
            std::hint::black_box(self.model.forward(&input, self.position)?);
            self.position += ids.len();
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// One uncounted run of `passes` at the depth asked for, then the timed ones; tokens a second.
    fn repeat(&mut self, args: &Args, passes: &[usize]) -> Result<Vec<f64>> {
        self.restart();
        let mut left = args.depth;
        while left > 0 {
            let chunk = left.min(CONTEXT_CHUNK);
            self.timed(&[chunk])?;
            left -= chunk;
        }
        // Weights and caches are shared on clone, so each repetition starts from the same context.
        let filled = self.model.clone();
        let tokens: usize = passes.iter().sum();
        let mut rates = Vec::with_capacity(args.reps as usize);
        for repetition in 0..=args.reps {
            self.model = filled.clone();
            self.position = args.depth;
            let seconds = self.timed(passes)?;
            if repetition > 0 {
                rates.push(tokens as f64 / seconds);
            }
        }
        Ok(rates)
    }

    fn restart(&mut self) {
        self.model.clear_kv_cache();
        self.position = 0;
    }

    /// Token ids from a splitmix64 stream: the work does not depend on them.
    fn random_ids(&mut self, count: usize) -> Vec<u32> {
        let mut next = || {
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as u32 % self.vocab
        };
        (0..count).map(|_| next()).collect()
    }
}

/// Prints the `count` most likely tokens after `ids`, to show that the model computed is the right
/// one before its speed is believed.
fn greedy(mut model: ModelWeights, ids: &[u32], count: usize, vocab: u32) -> Result<()> {
    if let Some(bad) = ids.iter().find(|&&id| id >= vocab) {
        bail!("token id {bad} is outside the vocabulary of {vocab}");
    }
    let mut input = ids.to_vec();
    let mut position = 0;
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        let tensor = Tensor::new(input.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let logits = model.forward(&tensor, position)?.squeeze(0)?;
        position += input.len();
        let next = logits.argmax(0)?.to_scalar::<u32>()?;
        out.push(next);
        input = vec![next];
    }
    println!("{}", json!({ "engine": engine(), "greedy": out }));
    Ok(())
}

/// The name `realm bench` and `llama-bench` give a test, with the depth where there is one.
fn name(kind: &str, tokens: usize, depth: usize) -> String {
    if depth == 0 { format!("{kind}{tokens}") } else { format!("{kind}{tokens}@d{depth}") }
}

fn report(common: &Value, test: &str, mut rates: Vec<f64>) {
    rates.sort_by(f64::total_cmp);
    let middle = rates.len() / 2;
    let median = if rates.len() % 2 == 1 {
        rates[middle]
    } else {
        (rates[middle - 1] + rates[middle]) / 2.0
    };
    let mut line = common.clone();
    line["test"] = json!(test);
    line["tokens_per_second"] =
        json!({ "median": median, "min": rates[0], "max": rates[rates.len() - 1] });
    line["peak_rss_bytes"] = json!(peak_rss_bytes());
    println!("{line}");
}

/// The most memory the process has held so far; `None` where /proc does not say.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// `candle-transformers` with the version that the lock file pins.
fn engine() -> String {
    let lock = include_str!("../Cargo.lock");
    let version = lock
        .split("[[package]]")
        .find(|package| package.contains("name = \"candle-transformers\""))
        .and_then(|package| package.lines().find_map(|line| line.strip_prefix("version = ")));
    format!("candle-transformers {}", version.map_or("(unknown)", |v| v.trim_matches('"')))
}

/// The widest vector extension the compiler was allowed to use.
fn built_for() -> &'static str {
    if cfg!(target_feature = "avx512f") {
        "avx512"
    } else if cfg!(target_feature = "avx2") {
        "avx2"
    } else {
        "baseline"
    }
}

fn warn_about_build_flags() {
    #[cfg(all(target_arch = "x86_64", not(target_feature = "avx2")))]
    if std::is_x86_feature_detected!("avx2") {
        eprintln!(
            "warning: built without AVX2, which this CPU has: the figures are unfair to candle; \
             build with RUSTFLAGS=\"-C target-cpu=native\""
        );
    }
}
