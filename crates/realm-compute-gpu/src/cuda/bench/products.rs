//! Rows of products.

use std::sync::Arc;

use realm_core::{
    Bytes, DType,
    backend::BackendError,
    formats::encode_row,
    graph::{Rows, WeightInfo, ops::Activation},
    with_format,
};

use super::lab::{Lab, WeightSet};
use crate::cuda::{
    gpu::{Buffer, Launch},
    kernels::{elementwise, matmul, matvec},
    kv::KV_BLOCK_TOKENS,
    program::AUTO,
    step::{Columns, Form, StepView},
    weights::CudaWeight,
};

/// Weights that are drawn and encoded; the rest of a matrix repeats them.
const DRAWN: usize = 1 << 15;

/// Memory that products of many rows share.
pub(super) struct Room {
    partials: Buffer,
    counters: Buffer,
}

impl Room {
    pub(super) fn new(lab: &Lab) -> Result<Self, BackendError> {
        let partials = lab.room(matmul::SCRATCH_BYTES)?;
        Ok(Self { partials, counters: lab.room(4 * matmul::COUNTERS)? })
    }

    /// A product of `rows` rows with one weight; `end` is the address of their number.
    pub(super) fn product(
        &self,
        (input, k, rows): (&Columns, usize, usize),
        end: u64,
        weight: &Arc<CudaWeight>,
        target: Columns,
    ) -> Result<Launch, BackendError> {
        matmul::launch(&matmul::Matmul {
            input,
            input_rows: rows,
            k,
            rows,
            first: 0,
            end,
            segments: &[matvec::Segment { weight, bias: None, target }],
            activation: None,
            invariant: false,
            scratch: matmul::Scratch {
                partials: self.partials.address(),
                bytes: self.partials.bytes(),
                counters: self.counters.address(),
            },
        })
    }
}

impl Lab {
    /// Seconds of a product, and the bytes of its weights.
    pub(super) fn product(
        &mut self,
        dtype: DType,
        shape: [usize; 2],
        columns: usize,
        gated: bool,
    ) -> Result<(f64, usize), BackendError> {
        let weights = self.weights(dtype, shape)?;
        let [rows, cols] = shape;
        let step = self.step(columns, 1, 1, 0)?;
        let (input, _input) =
            self.columns(matvec::input_form(dtype, AUTO), cols, columns, &step.view)?;
        // What a product writes in a model: gated ones the next product's input, others f32 rows.
        let form = if gated { matvec::input_form(dtype, AUTO) } else { Form::F32 };
        let room = self.room(form.data_bytes(columns, rows))?;
        let target = Columns::new(form, rows, room.address(), 0);
        let count = step.view.count(Rows::Tokens);
        let each = if gated { 2 } else { 1 };
        let launch = |at: usize| -> Launch {
            let segment = |at: usize| matvec::Segment {
                weight: &weights[at % weights.len()],
                bias: None,
                target,
            };
            let segments: Vec<_> = (each * at..each * at + each).map(segment).collect();
            let activation = gated.then_some(Activation::Silu);
            matvec::product(&input, cols, columns, count, &segments, activation)
        };
        let launches = self.scale.launches.max(weights.len().div_ceil(each));
        let launches: Vec<Launch> = (0..launches).map(launch).collect();
        let seconds = self.replayed(&launches)? / launches.len() as f64;
        let bytes = dtype.row_bytes(cols).unwrap_or(0) * rows * each;
        Ok((seconds, bytes))
    }

    /// Seconds of a product of many rows, whose input is in that form.
    pub(super) fn gemm(
        &mut self,
        dtype: DType,
        form: Form,
        shape: [usize; 2],
        count: usize,
    ) -> Result<f64, BackendError> {
        let weights = self.weights(dtype, shape)?;
        let [n, k] = shape;
        let step = self.prompt(count, KV_BLOCK_TOKENS)?;
        let (input, _input) = self.columns(form, k, count, &step.view)?;
        let room = self.room(Form::F32.data_bytes(count, n))?;
        let target = Columns::f32(n, room.address());
        let (memory, end) = (Room::new(self)?, step.view.count(Rows::Tokens));
        let launch = |at: usize| {
            memory.product((&input, k, count), end, &weights[at % weights.len()], target)
        };
        let launches = (0..self.scale.launches.max(weights.len())).map(launch);
        let launches: Vec<Launch> = launches.collect::<Result<_, _>>()?;
        Ok(self.replayed(&launches)? / launches.len() as f64)
    }

    /// So many weights that they exceed the caches.
    pub(super) fn weights(
        &mut self,
        dtype: DType,
        shape: [usize; 2],
    ) -> Result<Vec<Arc<CudaWeight>>, BackendError> {
        if let Some(set) = &self.weights
            && (set.dtype, set.shape) == (dtype, shape)
        {
            return Ok(set.weights.clone());
        }
        // Before the next are allocated.
        self.weights = None;
        let [rows, cols] = shape;
        let info = WeightInfo { name: "weight".into(), rows, cols, dtype };
        let bytes = info.bytes().unwrap_or(0);
        let data = Bytes::from(self.blocks_of(dtype, bytes));
        // An even number: gated products take two.
        let count = self.sets(bytes.max(1)).next_multiple_of(2);
        let load = |_| self.loader.load(&info, data.clone());
        let weights = (0..count).map(load).collect::<Result<Vec<_>, _>>()?;
        self.weights = Some(WeightSet { dtype, shape, weights: weights.clone() });
        Ok(weights)
    }

    /// Random blocks of a format.
    pub(super) fn blocks_of(&mut self, dtype: DType, bytes: usize) -> Vec<u8> {
        let values = self.numbers(DRAWN.next_multiple_of(dtype.block_len()));
        let mut drawn = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
        with_format!(dtype, F => encode_row::<F>(&values, &mut drawn));
        let mut repeated = Vec::with_capacity(bytes);
        while repeated.len() < bytes {
            let more = drawn.len().min(bytes - repeated.len());
            repeated.extend_from_slice(&drawn[..more]);
        }
        repeated
    }

    /// Random rows in a product's form, and the memory that holds them.
    pub(super) fn columns(
        &mut self,
        form: Form,
        cols: usize,
        rows: usize,
        view: &StepView,
    ) -> Result<(Columns, [Buffer; 2]), BackendError> {
        let plain = self.floats(rows * cols)?;
        if form == Form::F32 {
            return Ok((Columns::f32(cols, plain.address()), [plain, self.room(1)?]));
        }
        let data = form.data_bytes(rows, cols);
        let room = self.room(data + form.scale_bytes(rows, cols))?;
        let target = Columns::new(form, cols, room.address(), room.address() + data as u64);
        let (input, count) = (plain.address(), view.count(Rows::Tokens));
        self.gpu.launch(&elementwise::prepare(&elementwise::Map {
            input,
            cols,
            rows,
            count,
            target,
        }))?;
        Ok((target, [plain, room]))
    }
}
