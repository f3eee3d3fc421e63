//! How fast the kernels are on a device, one by one.
//!
//! A figure is the median over replays of a CUDA graph, divided by the number of launches in it: at
//! least fifty, over so many sets of weights or caches that they exceed the L2 cache several times.
//! What a launch reads comes from memory, therefore, as it does in a model. Memory-bound kernels are
//! held against a copy within the device, measured in the same run, bytes read and written.

use std::fmt::Write as _;

use realm_core::{
    DType,
    backend::{BackendError, KvType},
};

pub(crate) use self::lab::Lab;
use super::step::Form;
use crate::Reason;

mod caches;
mod claims;
mod lab;
mod products;
mod small;
#[cfg(test)]
mod tests;

/// What is measured.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only the rows whose names start so.
    pub only: String,
    /// How large, and how often.
    pub sizes: Sizes,
}

/// Sizes of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sizes {
    /// Those of Llama-3.1-8B. Takes up to 4 GiB of device memory and a few minutes.
    #[default]
    Full,
    /// The same sizes with fewer replays.
    Quick,
    /// Sizes that an emulated device can do. The figures mean nothing.
    Toy,
}

/// A figure. `docs/benchmarks/README.md` describes the JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `matvec/Q4_K/14336x4096/m1`.
    pub bench: String,
    /// The median of the replays.
    pub median: f64,
    /// `GB/s` (10⁹ bytes of weights or cache), `TFLOP/s` (10¹² operations, an addition and a product
    /// counted as two), or `µs` a launch.
    pub unit: &'static str,
    /// A part of another row's median, and that row's name.
    pub ratio: Option<(f64, &'static str)>,
}

impl Row {
    /// The row as a JSON object on one line.
    pub fn json(&self) -> String {
        let Self { bench, median, unit, ratio } = self;
        let mut text =
            format!("{{\"bench\": \"{bench}\", \"median\": {median:.6}, \"unit\": \"{unit}\"");
        _ = match ratio {
            Some((part, of)) => {
                write!(text, ", \"ratio\": {part:.6}, \"ratio_to\": \"{of}\"}}")
            }
            None => write!(text, ", \"ratio\": null, \"ratio_to\": null}}"),
        };
        text
    }
}

/// Measures on the CUDA device that [`probe_cuda`](crate::probe_cuda) lists as `cuda:{ordinal}`, and
/// reports each row as it is there, or why it is not. A row that fails does not stop the next.
///
/// # Errors
/// The [`Reason`] why the device cannot be used.
pub fn bench_cuda(ordinal: u32, options: &Options, report: Report<'_>) -> Result<(), Reason> {
    Lab::new(super::driver::open(ordinal)?, options.sizes).run(options, report);
    Ok(())
}

/// The same on the emulated device, to see that it runs: choose [`Sizes::Toy`].
///
/// # Errors
/// [`Reason::NotBuiltIn`] without the feature `cuda-emulated`.
pub fn bench_cuda_emulated(seed: u64, options: &Options, report: Report<'_>) -> Result<(), Reason> {
    Lab::new(super::emulated::open(seed)?, options.sizes).run(options, report);
    Ok(())
}

/// Gets a row's name, and the row or what went wrong.
pub type Report<'a> = &'a mut dyn FnMut(&str, Result<Row, BackendError>);

/// The names of the rows that [`bench_cuda`] measures, in its order.
pub fn bench_names(options: &Options) -> Vec<String> {
    chosen(options).map(|(name, _)| name).collect()
}

/// From so many rows on products are measured by their operations, below by their weights' bytes.
const MANY_ROWS: usize = 256;

/// A row that is measured by its operations.
fn operations(name: &str, count: usize, seconds: f64) -> Row {
    let median = count as f64 / seconds / 1e12;
    Row { bench: name.into(), median, unit: "TFLOP/s", ratio: None }
}

/// What a row measures.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bench {
    /// A copy within the device.
    Copy,
    /// A launch that finds nothing to do: in a graph, or by a call of its own.
    Launch { recorded: bool },
    /// A weight of `[rows, cols]` times so many columns; with `gated`, two of them and an activation.
    Product { dtype: DType, shape: [usize; 2], columns: usize, gated: bool },
    /// The same of many rows, in that form.
    Gemm { dtype: DType, form: Form, shape: [usize; 2], rows: usize },
    /// A prompt, causal.
    Prefill { context: usize, head_dim: usize },
    /// One token a sequence.
    Attention { kv: KvType, context: usize, sequences: usize },
    /// The norm of a row after a residual addition.
    Norm,
    /// Rotation of queries and keys of a row, and the cache's write.
    Rope,
    /// A row of the embedding table.
    Embed,
    /// A row's next token: the likeliest, or one of the likeliest 40.
    Sample { top_k: u32 },
}

/// What the sizes are.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Elements of a token, and of it in the gated product.
    hidden: usize,
    feed_forward: usize,
    /// Query heads, KV heads, elements of a head.
    heads: [usize; 3],
    vocabulary: usize,
    contexts: [usize; 2],
    /// Rows of products of many, and tokens of a prompt whose attention is measured.
    many: [usize; 4],
    prompt: usize,
    /// Tokens of the prompt whose attention is compared with the plain way, and how often the arithmetic's
    /// peak is drawn from the registers.
    attended: usize,
    peak_rounds: u32,
    /// Bytes of the copy.
    copied: usize,
    /// Bytes that weights or caches take at least until the first is read again.
    rotated: usize,
    /// Launches of a graph, at least.
    launches: usize,
    replays: usize,
    /// Milliseconds of work before the first replay that counts: an idle device's clocks need a moment
    /// to rise.
    warm_up: u64,
}

impl Scale {
    const fn of(sizes: Sizes) -> Self {
        let full = Self {
            hidden: 4096,
            feed_forward: 14336,
            heads: [32, 8, 128],
            vocabulary: 128_256,
            contexts: [4096, 32768],
            many: [16, 64, 512, 4096],
            prompt: 16384,
            attended: 4096,
            peak_rounds: 20_000,
            copied: 2 << 30,
            // The largest L2 caches of today have 126 MB.
            rotated: 768 << 20,
            launches: 50,
            replays: 25,
            warm_up: 50,
        };
        match sizes {
            Sizes::Full => full,
            Sizes::Quick => Self { replays: 7, ..full },
            Sizes::Toy => Self {
                hidden: 256,
                feed_forward: 512,
                heads: [4, 2, 64],
                vocabulary: 1024,
                contexts: [64, 1024],
                many: [16, 64, 80, 200],
                prompt: 128,
                attended: 128,
                peak_rounds: 4,
                copied: 1 << 16,
                rotated: 1 << 18,
                launches: 2,
                replays: 1,
                warm_up: 0,
            },
        }
    }
}

/// Formats of products that have rows: those of the ledger, then the other floats.
pub(super) const FORMATS: [DType; 9] = [
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::Q8_K,
    DType::Q8_0,
    DType::Q4_0,
    DType::F16,
    DType::BF16,
    DType::F32,
];

/// Formats and inputs of products of many rows.
const GEMMS: [(DType, Form); 7] = [
    (DType::Q4_K, Form::BF16),
    (DType::Q4_K, Form::F16),
    (DType::Q5_K, Form::BF16),
    (DType::Q6_K, Form::BF16),
    (DType::Q8_0, Form::BF16),
    (DType::Q4_0, Form::BF16),
    (DType::BF16, Form::BF16),
];

/// A number of tokens.
fn thousands(tokens: usize) -> String {
    match tokens {
        1024.. => format!("{}k", tokens / 1024),
        _ => tokens.to_string(),
    }
}

/// Every row, the copy first.
fn benches(scale: &Scale) -> Vec<(String, Bench)> {
    let Scale { hidden, feed_forward, vocabulary, heads: [_, _, head], .. } = *scale;
    let mut list = vec![
        ("copy".to_owned(), Bench::Copy),
        ("launch/graph".to_owned(), Bench::Launch { recorded: true }),
        ("launch/stream".to_owned(), Bench::Launch { recorded: false }),
        (format!("norm/{hidden}/m1"), Bench::Norm),
        (format!("rope-kv/d{head}/m1"), Bench::Rope),
        (format!("embed/Q4_K/{hidden}/m1"), Bench::Embed),
        (format!("sample/greedy/{vocabulary}/m1"), Bench::Sample { top_k: 0 }),
        (format!("sample/top40/{vocabulary}/m1"), Bench::Sample { top_k: 40 }),
    ];
    let mut product = |dtype: DType, shape: [usize; 2], columns: usize, gated: bool| {
        let kind = if gated { "gated" } else { "matvec" };
        let name = format!("{kind}/{dtype}/{}x{}/m{columns}", shape[0], shape[1]);
        list.push((name, Bench::Product { dtype, shape, columns, gated }));
    };
    for dtype in FORMATS {
        for shape in [[feed_forward, hidden], [hidden, feed_forward]] {
            for columns in [1, 8] {
                product(dtype, shape, columns, false);
            }
        }
    }
    // The other products of a step: small ones show what a launch costs, the last one is the largest.
    product(DType::Q4_K, [hidden, hidden], 1, false);
    product(DType::Q6_K, [vocabulary, hidden], 1, false);
    product(DType::Q4_K, [feed_forward, hidden], 1, true);
    for (dtype, form) in GEMMS {
        for rows in scale.many {
            let shape = [feed_forward, hidden];
            let kind = if form == Form::F16 { "f16" } else { "bf16" };
            let name = format!("gemm/{dtype}/{kind}/{feed_forward}x{hidden}/m{rows}");
            list.push((name, Bench::Gemm { dtype, form, shape, rows }));
        }
    }
    for head_dim in [64, 128, 256] {
        let name = format!("attention/prefill/causal/{}/d{head_dim}", thousands(scale.prompt));
        list.push((name, Bench::Prefill { context: scale.prompt, head_dim }));
    }
    for (kv, suffix) in [(KvType::F16, ""), (KvType::Q8_0, "/q8_0")] {
        for context in scale.contexts {
            for sequences in [1, 8] {
                let length = thousands(context);
                let name = format!("attention/decode/d{head}/{length}/b{sequences}{suffix}");
                list.push((name, Bench::Attention { kv, context, sequences }));
            }
        }
    }
    list
}

/// The rows that were asked for.
fn chosen(options: &Options) -> impl Iterator<Item = (String, Bench)> {
    let all = benches(&Scale::of(options.sizes));
    all.into_iter().filter(|(name, _)| name.starts_with(&options.only))
}

impl Lab {
    fn run(mut self, options: &Options, report: Report<'_>) {
        for (name, bench) in chosen(options) {
            let row = self.row(&name, bench);
            report(&name, row);
        }
    }

    fn row(&mut self, name: &str, bench: Bench) -> Result<Row, BackendError> {
        // Bytes that a launch reads, where these are what it is measured by.
        let (seconds, bytes) = match bench {
            Bench::Copy => {
                let rate = self.copy_rate()? / 1e9;
                return Ok(Row { bench: name.into(), median: rate, unit: "GB/s", ratio: None });
            }
            Bench::Launch { recorded } => (self.launch(recorded)?, None),
            Bench::Norm => (self.norm()?, None),
            Bench::Rope => (self.rope()?, None),
            Bench::Embed => (self.embed()?, None),
            Bench::Sample { top_k } => (self.sample(top_k)?, None),
            Bench::Product { dtype, shape, columns, gated } => {
                let (seconds, bytes) = self.product(dtype, shape, columns, gated)?;
                (seconds, Some(bytes))
            }
            Bench::Gemm { dtype, form, shape: [n, k], rows } => {
                let seconds = self.gemm(dtype, form, [n, k], rows)?;
                if rows >= MANY_ROWS {
                    return Ok(operations(name, 2 * n * k * rows, seconds));
                }
                (seconds, dtype.row_bytes(k).map(|bytes| bytes * n))
            }
            Bench::Prefill { context, head_dim } => {
                let seconds = self.prefill(context, head_dim)?;
                let [heads, ..] = self.scale.heads;
                // Half of the products are masked.
                return Ok(operations(name, 2 * heads * context * context * head_dim, seconds));
            }
            Bench::Attention { kv, context, sequences } => {
                let (seconds, bytes) = self.attention(kv, context, sequences)?;
                (seconds, Some(bytes))
            }
        };
        let (median, unit, ratio) = match bytes {
            Some(bytes) => {
                let rate = bytes as f64 / seconds;
                (rate / 1e9, "GB/s", Some((rate / self.copy_rate()?, "copy")))
            }
            None => (seconds * 1e6, "µs", None),
        };
        Ok(Row { bench: name.into(), median, unit, ratio })
    }
}
