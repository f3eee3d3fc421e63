//! Comparisons with the plain way of doing the same work.

use std::time::Instant;

use realm_core::{
    Bytes, DType,
    backend::BackendError,
    formats::{Bf16, decode_row, encode_row},
    graph::{Rows, WeightInfo},
    with_format,
};
use zerocopy::{Immutable, IntoBytes};

use super::{lab::Lab, products::Room};
use crate::{
    claims::{Comparison, Limits, Pair, Timed},
    cuda::{
        gpu::{Launch, Mark},
        kernels::matvec,
        kv::KV_BLOCK_TOKENS,
        step::{Columns, Form},
        weights::planes_bytes,
    },
};

/// The manifest's unit.
const UNIT: &str = "baselines";
/// Rows that count as many.
const ROWS: usize = 512;
/// k of a tile of Q4_K.
const TILE_K: usize = 256;

/// `planes` of a Q4_K weight of `[rows, cols]` become the planes of a BF16 weight at `target`.
pub(super) fn dequantize(planes: u64, target: u64, [rows, cols]: [usize; 2]) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        planes: u64,
        target: u64,
        tiles: u32,
        row_tiles: u32,
    }
    let (tiles, row_tiles) = (cols.div_ceil(TILE_K), rows.div_ceil(16));
    let (all, each) = (row_tiles as u32, tiles as u32);
    let parameters = Params { planes, target, tiles: each, row_tiles: all };
    Launch::new(UNIT, "dequantize", [tiles, row_tiles.div_ceil(4)], 128, &parameters)
}

/// Scores of `tokens` rows become probabilities: bf16, causal.
pub(super) fn softmax(scores: u64, tokens: usize, scale: f32) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        scores: u64,
        cols: u32,
        scale: f32,
    }
    Launch::new(UNIT, "softmax", [tokens, 1], 256, &Params { scores, cols: tokens as u32, scale })
}

fn info(dtype: DType, [rows, cols]: [usize; 2]) -> WeightInfo {
    WeightInfo { name: "weight".into(), rows, cols, dtype }
}

impl Lab {
    /// The weight that is multiplied.
    fn shape(&self) -> [usize; 2] {
        [self.scale.feed_forward, self.scale.hidden]
    }

    pub(crate) fn size(&self, comparison: Comparison) -> String {
        let [rows, cols] = self.shape();
        let [heads, _, head] = self.scale.heads;
        match comparison {
            Comparison::FusedRow | Comparison::CopiedRow => format!("Q4_K {rows}x{cols}, 1 row"),
            Comparison::FusedRows => format!("Q4_K {rows}x{cols}, {ROWS} rows"),
            Comparison::Attention => {
                format!("{} tokens, {heads} heads of {head}, causal", self.scale.attended)
            }
            Comparison::Half => format!("BF16 {rows}x{cols}, {ROWS} rows"),
        }
    }

    pub(crate) fn limits(&mut self) -> Result<Limits, BackendError> {
        let bytes_per_second = self.copy_rate()?;
        Ok(Limits { bytes_per_second, ops_per_second: self.peak()? })
    }

    pub(crate) fn compare(&mut self, comparison: Comparison) -> Result<Pair, BackendError> {
        let [rows, cols] = self.shape();
        let pair = |ours: (&'static str, f64), plain: (&'static str, f64), least: f64, limit| {
            let timed = |(way, seconds)| Timed { way, seconds, fraction: least / seconds };
            Pair { ours: timed(ours), plain: timed(plain), limit }
        };
        const BANDWIDTH: &str = "the copy bandwidth";
        const PEAK: &str = "the peak of mma.sync";
        let bytes = DType::Q4_K.row_bytes(cols).unwrap_or(0) * rows;
        let by_bytes = bytes as f64 / self.copy_rate()?;
        let fused = "unpacked on the way to the tensor cores";
        match comparison {
            Comparison::FusedRow => {
                let (ours, _) = self.product(DType::Q4_K, self.shape(), 1, false)?;
                let plain = self.unpacked(1)?;
                let way = "unpacked to bf16 in memory, then multiplied";
                Ok(pair((fused, ours), (way, plain), by_bytes, BANDWIDTH))
            }
            Comparison::CopiedRow => {
                let (ours, _) = self.product(DType::Q4_K, self.shape(), 1, false)?;
                let way = "unpacked to bf16 on the CPU, copied, then multiplied";
                Ok(pair((fused, ours), (way, self.copied()?), by_bytes, BANDWIDTH))
            }
            Comparison::FusedRows => {
                let ours = self.gemm(DType::Q4_K, Form::BF16, self.shape(), ROWS)?;
                let plain = self.unpacked(ROWS)?;
                let least = (2 * rows * cols * ROWS) as f64 / self.peak()?;
                let way = "unpacked to bf16 in memory, then multiplied";
                Ok(pair((fused, ours), (way, plain), least, PEAK))
            }
            Comparison::Attention => {
                let (tokens, [heads, _, head]) = (self.scale.attended, self.scale.heads);
                let ours = self.prefill(tokens, head)?;
                let plain = self.materialised(tokens)?;
                // Half of the products are masked.
                let least = (2 * heads * tokens * tokens * head) as f64 / self.peak()?;
                let way = "scores in memory as bf16, softmax, then multiplied";
                Ok(pair(("a tile of scores at a time", ours), (way, plain), least, PEAK))
            }
            Comparison::Half => {
                let ours = self.gemm(DType::BF16, Form::BF16, self.shape(), ROWS)?;
                let plain = self.in_f32()?;
                let least = (2 * rows * cols * ROWS) as f64 / self.peak()?;
                Ok(pair(("bf16 inputs", ours), ("f32 inputs", plain), least, PEAK))
            }
        }
    }

    /// Operations a second of the tensor cores by mma.sync.
    fn peak(&mut self) -> Result<f64, BackendError> {
        #[derive(IntoBytes, Immutable)]
        #[repr(C)]
        struct Params {
            sink: u64,
            rounds: u32,
            unused: u32,
        }
        if let Some(rate) = self.peak_rate {
            return Ok(rate);
        }
        const WARPS: usize = 8;
        let rounds: u32 = self.scale.peak_rounds;
        let blocks = 2 * self.gpu.facts().multiprocessors.max(1) as usize;
        let sink = self.room(blocks * WARPS * 32 * 4)?;
        let parameters = Params { sink: sink.address(), rounds, unused: 0 };
        let one = Launch::new(UNIT, "peak", [blocks, 1], 32 * WARPS as u32, &parameters);
        let seconds = self.replayed(&[one])?;
        let products = blocks * WARPS * rounds as usize * 8;
        let rate = (products * 2 * 16 * 8 * 16) as f64 / seconds;
        self.peak_rate = Some(rate);
        Ok(rate)
    }

    /// Seconds in which a weight is unpacked to bf16 on the device and multiplied by so many rows: the sum
    /// of both, each timed alone, for products read weights before the kernel that precedes them has
    /// ended.
    fn unpacked(&mut self, count: usize) -> Result<f64, BackendError> {
        let shape = self.shape();
        let packed = self.weights(DType::Q4_K, shape)?;
        let target = self.room(planes_bytes(&info(DType::BF16, shape)))?;
        let rounds = self.scale.launches.max(packed.len());
        let one =
            |at: usize| dequantize(packed[at % packed.len()].planes(), target.address(), shape);
        let launches: Vec<Launch> = (0..rounds).map(one).collect();
        let unpacking = self.replayed(&launches)? / rounds as f64;
        drop((packed, target));
        let product = match count {
            1 => self.product(DType::BF16, shape, 1, false)?.0,
            _ => self.gemm(DType::BF16, Form::BF16, shape, count)?,
        };
        Ok(unpacking + product)
    }

    /// Seconds in which the CPU unpacks a weight to bf16, copies it to the device and multiplies it by a
    /// row: the median of three.
    fn copied(&mut self) -> Result<f64, BackendError> {
        let shape @ [n, k] = self.shape();
        let packed = self.blocks_of(DType::Q4_K, info(DType::Q4_K, shape).bytes().unwrap_or(0));
        let plain = info(DType::BF16, shape);
        let step = self.prompt(1, KV_BLOCK_TOKENS)?;
        let (input, _input) = self.columns(Form::BF16, k, 1, &step.view)?;
        let results = self.room(Form::F32.data_bytes(1, n))?;
        let target = Columns::f32(n, results.address());
        let mut times = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            let data = unpack(&packed, k);
            let weight = &self.loader.load(&plain, Bytes::from(data))?;
            let segment = matvec::Segment { weight, bias: None, target };
            let end = step.view.count(Rows::Tokens);
            self.gpu.launch(&matvec::product(&input, k, 1, end, &[segment], None))?;
            Mark::new(&self.gpu)?.wait()?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(times[1])
    }

    /// Seconds of causal attention with its scores in memory: for each head a product of queries and
    /// keys, softmax, and a product with the values, on the same tensor cores. Keys and values are laid
    /// out as the products want them, which is not counted.
    fn materialised(&mut self, tokens: usize) -> Result<f64, BackendError> {
        self.weights = None;
        let [heads, _, head] = self.scale.heads;
        let mut matrix = |shape: [usize; 2]| {
            let info = info(DType::BF16, shape);
            let data = self.blocks_of(DType::BF16, info.bytes().unwrap_or(0));
            self.loader.load(&info, Bytes::from(data))
        };
        let (keys, values) = (matrix([tokens, head])?, matrix([head, tokens])?);
        let step = self.prompt(tokens, KV_BLOCK_TOKENS)?;
        let end = step.view.count(Rows::Tokens);
        let (queries, _queries) = self.columns(Form::BF16, head, tokens, &step.view)?;
        let scores = self.room(Form::BF16.data_bytes(tokens, tokens))?;
        let results = self.room(Form::F32.data_bytes(tokens, head))?;
        let matrix = Columns::new(Form::BF16, tokens, scores.address(), 0);
        let room = Room::new(self)?;
        let scale = 1.0 / (head as f32).sqrt();
        let mut launches = Vec::new();
        for _ in 0..heads {
            launches.push(room.product((&queries, head, tokens), end, &keys, matrix)?);
            launches.push(softmax(scores.address(), tokens, scale));
            let target = Columns::f32(head, results.address());
            launches.push(room.product((&matrix, tokens, tokens), end, &values, target)?);
        }
        self.replayed(&launches)
    }

    /// Seconds of a product of many rows in f32.
    fn in_f32(&mut self) -> Result<f64, BackendError> {
        let shape @ [n, k] = self.shape();
        let weights = self.weights(DType::BF16, shape)?;
        let step = self.prompt(ROWS, KV_BLOCK_TOKENS)?;
        let (input, _input) = self.columns(Form::F32, k, ROWS, &step.view)?;
        let results = self.room(Form::F32.data_bytes(ROWS, n))?;
        let target = Columns::f32(n, results.address());
        let segment = matvec::Segment { weight: &weights[0], bias: None, target };
        let end = step.view.count(Rows::Tokens);
        self.replayed(&[matvec::product(&input, k, ROWS, end, &[segment], None)])
    }
}

/// Rows of `cols` Q4_K weights as bf16.
fn unpack(packed: &[u8], cols: usize) -> Vec<u8> {
    let row_bytes = DType::Q4_K.row_bytes(cols).unwrap_or(1);
    let mut plain = vec![0; packed.len() / row_bytes * cols * 2];
    let rows = packed.chunks_exact(row_bytes).zip(plain.chunks_exact_mut(2 * cols));
    let rows: Vec<_> = rows.collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(threads).max(1);
    let mut rows = rows.into_iter();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let part: Vec<_> = rows.by_ref().take(share).collect();
            scope.spawn(move || {
                let mut values = vec![0.0; cols];
                for (from, to) in part {
                    with_format!(DType::Q4_K, F => decode_row::<F>(from, &mut values));
                    encode_row::<Bf16>(&values, to);
                }
            });
        }
    });
    plain
}

#[cfg(test)]
mod tests;
