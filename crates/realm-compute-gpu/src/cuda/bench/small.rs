//! Rows of launches whose own time matters, not the memory's.

use realm_core::{DType, backend::BackendError, graph::Rows};

use super::lab::Lab;
use crate::cuda::{
    gpu::Launch,
    kernels::{elementwise, embed, sample},
    step::{Columns, Form},
};

impl Lab {
    /// Seconds of one of many launches alike, replayed.
    fn repeated(&self, launch: Launch) -> Result<f64, BackendError> {
        let launches = vec![launch; self.short_launches()];
        Ok(self.replayed(&launches)? / launches.len() as f64)
    }

    /// Short launches of a graph: so many that the device is not done before the host has started the
    /// next replay.
    pub(super) fn short_launches(&self) -> usize {
        8 * self.scale.launches
    }

    /// Seconds of a launch whose blocks end at once: the step has no rows.
    pub(super) fn launch(&mut self, recorded: bool) -> Result<f64, BackendError> {
        let (hidden, count) = (self.scale.hidden, self.upload(&[0; 4])?);
        let rows = self.floats(hidden)?;
        let launch = elementwise::scale(
            &elementwise::Map {
                input: rows.address(),
                cols: hidden,
                rows: 1,
                count: count.address(),
                target: Columns::f32(hidden, rows.address()),
            },
            1.0,
        );
        if recorded {
            return self.repeated(launch);
        }
        let launches = self.scale.launches;
        let seconds = self.median(|| (0..launches).try_for_each(|_| self.gpu.launch(&launch)))?;
        Ok(seconds / launches as f64)
    }

    /// Seconds of a row's norm after a residual addition.
    pub(super) fn norm(&mut self) -> Result<f64, BackendError> {
        let hidden = self.scale.hidden;
        let step = self.step(1, 1, 1, 0)?;
        let [input, addend, weight] = [(); 3].map(|()| self.floats(hidden));
        let (input, addend, weight) = (input?, addend?, weight?);
        let sum = self.room(4 * hidden)?;
        let room = self.room(Form::BF16.data_bytes(1, hidden))?;
        self.repeated(elementwise::rms_norm(&elementwise::RmsNorm {
            map: elementwise::Map {
                input: input.address(),
                cols: hidden,
                rows: 1,
                count: step.view.count(Rows::Tokens),
                target: Columns::new(Form::BF16, hidden, room.address(), 0),
            },
            second: None,
            residual: Some(elementwise::Residual { addend: addend.address(), sum: sum.address() }),
            weight: weight.address(),
            epsilon: 1e-5,
            group: hidden,
        }))
    }

    /// Seconds of a row's embedding.
    pub(super) fn embed(&mut self) -> Result<f64, BackendError> {
        let hidden = self.scale.hidden;
        let weights = self.weights(DType::Q4_K, [hidden, hidden])?;
        let step = self.step(1, 1, 1, 0)?;
        let room = self.room(4 * hidden)?;
        let target = Columns::f32(hidden, room.address());
        self.repeated(embed::embed(&weights[0], &step.view, 1, target))
    }

    /// Seconds in which a row's next token is chosen.
    pub(super) fn sample(&mut self, top_k: u32) -> Result<f64, BackendError> {
        let vocabulary = self.scale.vocabulary;
        let step = self.step(1, 1, 1, top_k)?;
        let (logits, sampled) = (self.floats(vocabulary)?, self.room(4)?);
        let (logits, sampled) = (logits.address(), sampled.address());
        self.repeated(sample::sample(logits, vocabulary, 1, &step.view, sampled))
    }
}
