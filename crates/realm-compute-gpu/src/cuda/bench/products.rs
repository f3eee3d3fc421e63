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
    kernels::{elementwise, matvec},
    program::AUTO,
    step::{Columns, Form, StepView},
    weights::CudaWeight,
};

/// Weights that are drawn and encoded; the rest of a matrix repeats them.
const DRAWN: usize = 1 << 15;

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
        let launch = |at: usize| -> Launch {
            let weight = |at: usize| &*weights[at % weights.len()];
            if gated {
                let (gate, up) = ((weight(2 * at), None), (weight(2 * at + 1), None));
                let silu = Activation::Silu;
                return matvec::gated(&input, cols, columns, count, gate, up, silu, target);
            }
            let segment = matvec::Segment { weight: weight(at), bias: None, target };
            matvec::linear(&input, cols, columns, count, &[segment])
        };
        let each = if gated { 2 } else { 1 };
        let launches = self.scale.launches.max(weights.len().div_ceil(each));
        let launches: Vec<Launch> = (0..launches).map(launch).collect();
        let seconds = self.replayed(&launches)? / launches.len() as f64;
        let bytes = dtype.row_bytes(cols).unwrap_or(0) * rows * each;
        Ok((seconds, bytes))
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
    fn blocks_of(&mut self, dtype: DType, bytes: usize) -> Vec<u8> {
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
