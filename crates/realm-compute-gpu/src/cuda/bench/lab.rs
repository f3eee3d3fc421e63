//! A device, timed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use realm_core::{
    DType,
    backend::{BackendError, BlockId},
};
use zerocopy::IntoBytes;

use super::{Scale, Sizes};
use crate::cuda::{
    gpu::{Buffer, Gpu, Launch, Mark, Recording},
    step::{Counts, Row, Sampling, Sequence, StepView},
    weights::{CudaWeight, Loader},
};

/// A device, and what rows share.
pub(crate) struct Lab {
    pub(super) gpu: Arc<dyn Gpu>,
    pub(super) loader: Loader,
    pub(super) scale: Scale,
    random: u64,
    copy_rate: Option<f64>,
    pub(super) peak_rate: Option<f64>,
    /// The weights that the last product read: the next may want the same.
    pub(super) weights: Option<WeightSet>,
}

/// Weights of one format and shape, several of them.
pub(super) struct WeightSet {
    pub(super) dtype: DType,
    pub(super) shape: [usize; 2],
    pub(super) weights: Vec<Arc<CudaWeight>>,
}

/// A step's description on the device: rows of sequences that each generate a token.
pub(super) struct Described {
    _memory: Buffer,
    pub(super) view: StepView,
}

impl Lab {
    pub(crate) fn new(gpu: Arc<dyn Gpu>, sizes: Sizes) -> Self {
        Self {
            loader: Loader::new(gpu.clone()),
            gpu,
            scale: Scale::of(sizes),
            random: 0x9e37_79b9_7f4a_7c15,
            copy_rate: None,
            peak_rate: None,
            weights: None,
        }
    }

    /// A random word: SplitMix64 (Steele et al. 2014).
    pub(super) fn word(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Numbers of mean 0 and deviation 1: sums of four uniform ones.
    pub(super) fn numbers(&mut self, count: usize) -> Vec<f32> {
        let number = |_| {
            let word = self.word();
            let sum: u64 = (0..4).map(|part| (word >> (16 * part)) & 0xffff).sum();
            (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
        };
        (0..count).map(number).collect()
    }

    /// Device memory that holds some numbers.
    pub(super) fn floats(&mut self, count: usize) -> Result<Buffer, BackendError> {
        let numbers = self.numbers(count);
        self.upload(numbers.as_bytes())
    }

    /// Device memory that holds some bytes.
    pub(super) fn upload(&self, bytes: &[u8]) -> Result<Buffer, BackendError> {
        let buffer = Buffer::new(&self.gpu, bytes.len(), "a benchmark's input")?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    /// Device memory for results.
    pub(super) fn room(&self, bytes: usize) -> Result<Buffer, BackendError> {
        let buffer = Buffer::new(&self.gpu, bytes, "a benchmark's results")?;
        buffer.fill(0)?;
        Ok(buffer)
    }

    /// Seconds of a replay of the launches: the median.
    pub(super) fn replayed(&self, launches: &[Launch]) -> Result<f64, BackendError> {
        let recording = Recording::new(&self.gpu, launches)?;
        self.median(|| recording.replay())
    }

    /// The median of the seconds that the stream takes for what `start` puts on it.
    pub(super) fn median(
        &self,
        start: impl Fn() -> Result<(), BackendError>,
    ) -> Result<f64, BackendError> {
        let warm = Instant::now() + Duration::from_millis(self.scale.warm_up);
        while Instant::now() < warm {
            start()?;
            Mark::new(&self.gpu)?.wait()?;
        }
        let mut marks = vec![Mark::timed(&self.gpu)?];
        for _ in 0..self.scale.replays {
            start()?;
            marks.push(Mark::timed(&self.gpu)?);
        }
        let mut spans = Vec::with_capacity(self.scale.replays);
        for pair in marks.windows(2) {
            pair[1].wait()?;
            spans.push(pair[1].seconds_since(&pair[0])?);
        }
        spans.sort_by(f64::total_cmp);
        Ok(spans[spans.len() / 2])
    }

    /// How many sets of `bytes` rotate.
    pub(super) fn sets(&self, bytes: usize) -> usize {
        self.scale.rotated.div_ceil(bytes).max(2)
    }

    /// Bytes a second of a copy within the device, read and written; measured once.
    pub(super) fn copy_rate(&mut self) -> Result<f64, BackendError> {
        if let Some(rate) = self.copy_rate {
            return Ok(rate);
        }
        let bytes = self.scale.copied;
        let (from, to) = (self.room(bytes)?, self.room(bytes)?);
        from.fill(0x5a)?;
        let copy = || self.gpu.copy(to.address(), from.address(), bytes);
        let rate = 2.0 * bytes as f64 / self.median(copy)?;
        self.copy_rate = Some(rate);
        Ok(rate)
    }

    /// A step in which each of `sequences` sequences computes its token number `context`, out of
    /// blocks of `block_tokens` that stand in the cache in a scattered order.
    pub(super) fn step(
        &mut self,
        sequences: usize,
        context: usize,
        block_tokens: usize,
        top_k: u32,
    ) -> Result<Described, BackendError> {
        let position = context as u32 - 1;
        let row = |sequence| Row { token: 0, position, sequence, unused: 0 };
        let rows: Vec<_> = (0..sequences as u32).map(row).collect();
        self.describe(sequences, context, block_tokens, top_k, (&rows, sequences))
    }

    /// A step that computes the whole of one prompt of `context` tokens.
    pub(super) fn prompt(
        &mut self,
        context: usize,
        block_tokens: usize,
    ) -> Result<Described, BackendError> {
        let row = |position| Row { token: 0, position, sequence: 0, unused: 0 };
        let rows: Vec<_> = (0..context as u32).map(row).collect();
        self.describe(1, context, block_tokens, 0, (&rows, 0))
    }

    /// A step of such rows, the first `decoded` of them not of prompts.
    fn describe(
        &mut self,
        sequences: usize,
        context: usize,
        block_tokens: usize,
        top_k: u32,
        (rows, decoded): (&[Row], usize),
    ) -> Result<Described, BackendError> {
        let counts = Counts {
            rows: rows.len() as u32,
            outputs: sequences as u32,
            sequences: sequences as u32,
            decode_rows: decoded as u32,
        };
        let each = context.div_ceil(block_tokens);
        let mut tables: Vec<u32> = (0..(sequences * each) as u32).collect();
        for at in (1..tables.len()).rev() {
            let other = (self.word() % (at as u64 + 1)) as usize;
            tables.swap(at, other);
        }
        let indices = 0..sequences as u32;
        let of = |sequence| Sequence {
            length: context as u32,
            table: sequence * each as u32,
            first: sequence,
            prefill: (rows.len() - decoded) as u32,
        };
        let lengths: Vec<_> = indices.clone().map(of).collect();
        let how = realm_core::sampling::Sampling::GREEDY;
        let temperature = if top_k > 0 { 0.8 } else { 0.0 };
        let how = realm_core::sampling::Sampling { temperature, top_k, ..how };
        let sampling = vec![Sampling::from(&how); sequences];
        let outputs: Vec<u32> = indices.collect();

        let mut bytes = Vec::new();
        let mut put = |part: &[u8]| {
            let at = bytes.len();
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(16), 0);
            at as u64
        };
        let offsets = [
            put(counts.as_bytes()),
            put(rows.as_bytes()),
            put(lengths.as_bytes()),
            put(tables.as_bytes()),
            put(outputs.as_bytes()),
            put(sampling.as_bytes()),
            put(&vec![0; 4 * sequences]),
        ];
        let memory = self.upload(&bytes)?;
        let [counts, rows, sequences, tables, outputs, sampling, previous] =
            offsets.map(|offset| memory.address() + offset);
        let view = StepView { counts, rows, sequences, tables, outputs, sampling, previous };
        Ok(Described { _memory: memory, view })
    }

    /// The ids of a cache's blocks.
    pub(super) fn blocks(count: usize) -> Vec<BlockId> {
        (0..count as u32).map(BlockId).collect()
    }
}
