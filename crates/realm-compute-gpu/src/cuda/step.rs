//! What kernels read: twins of the structs in `kernels/cuda/step.cuh`.

use zerocopy::{Immutable, IntoBytes};

/// How many rows of each kind a step has. Rows of prompts come last.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Counts {
    pub(crate) rows: u32,
    pub(crate) outputs: u32,
    pub(crate) sequences: u32,
    pub(crate) decode_rows: u32,
}

/// A token of the batch.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Row {
    /// An id, or [`PREVIOUS`] and the output row of the step before that sampled it.
    pub(crate) token: u32,
    pub(crate) position: u32,
    /// Index of its [`Sequence`].
    pub(crate) sequence: u32,
    pub(crate) unused: u32,
}

/// The bit of [`Row::token`] that makes the rest an output row of the step before.
pub(crate) const PREVIOUS: u32 = 1 << 31;

/// A sequence's cache.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Sequence {
    /// Tokens, this step's own included.
    pub(crate) length: u32,
    /// Where its blocks' ids start in the tables.
    pub(crate) table: u32,
    /// Its first row of the step.
    pub(crate) first: u32,
    /// Its rows, where they are a prompt's; else 0.
    pub(crate) prefill: u32,
}

/// How an output row's token is sampled.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Sampling {
    pub(crate) temperature: f32,
    pub(crate) top_k: u32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) seed_low: u32,
    pub(crate) seed_high: u32,
    pub(crate) position: u32,
    pub(crate) unused: u32,
}

impl From<&realm_core::sampling::Sampling> for Sampling {
    fn from(how: &realm_core::sampling::Sampling) -> Self {
        Self {
            temperature: how.temperature,
            top_k: how.top_k,
            top_p: how.top_p,
            min_p: how.min_p,
            seed_low: how.seed as u32,
            seed_high: (how.seed >> 32) as u32,
            position: how.position,
            unused: 0,
        }
    }
}

/// Addresses of a step's description.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct StepView {
    /// [`Counts`].
    pub(crate) counts: u64,
    /// A [`Row`] a token.
    pub(crate) rows: u64,
    /// A [`Sequence`] a sequence.
    pub(crate) sequences: u64,
    /// Block ids, `u32`.
    pub(crate) tables: u64,
    /// The row of each output, `u32`.
    pub(crate) outputs: u64,
    /// A [`Sampling`] an output.
    pub(crate) sampling: u64,
    /// What the step before sampled, `u32` an output.
    pub(crate) previous: u64,
}

impl StepView {
    /// Address of the number of decode rows: where the rows of prompts begin.
    pub(crate) fn decode_rows(&self) -> u64 {
        self.counts + 12
    }

    /// Address of the number of rows: of tokens, or of outputs.
    pub(crate) fn count(&self, rows: realm_core::graph::Rows) -> u64 {
        match rows {
            realm_core::graph::Rows::Tokens => self.counts,
            realm_core::graph::Rows::Outputs => self.counts + 4,
        }
    }
}

/// How rows of activations are stored; see `step.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum Form {
    F32 = 0,
    BF16 = 1,
    F16 = 2,
    BF16x3 = 3,
    Int8 = 4,
}

impl Form {
    /// Elements from one row to the next (of one column to the next, where a row has three).
    pub(crate) fn stride(self, cols: usize) -> usize {
        if self == Self::F32 { cols } else { cols.next_multiple_of(256) }
    }

    /// Columns of a product that a row takes.
    pub(crate) fn columns(self) -> usize {
        if self == Self::BF16x3 { 3 } else { 1 }
    }

    /// Bytes of `rows` rows, without scales.
    pub(crate) fn data_bytes(self, rows: usize, cols: usize) -> usize {
        let element = if self == Self::F32 { 4 } else { 2 };
        rows * self.columns() * self.stride(cols) * element
    }

    /// Bytes of the scales of `rows` rows.
    pub(crate) fn scale_bytes(self, rows: usize, cols: usize) -> usize {
        if self == Self::Int8 { rows * self.stride(cols) / 32 * 4 } else { 0 }
    }
}

/// Activations in memory.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Columns {
    pub(crate) data: u64,
    /// [`Form::Int8`]: an f32 for each 32 elements.
    pub(crate) scales: u64,
    form: u32,
    pub(crate) stride: u32,
}

impl Columns {
    /// Rows of `cols` elements at `data`; [`Form::Int8`] has its scales at `scales`.
    pub(crate) fn new(form: Form, cols: usize, data: u64, scales: u64) -> Self {
        Self { data, scales, form: form as u32, stride: form.stride(cols) as u32 }
    }

    /// Plain f32 rows.
    pub(crate) fn f32(cols: usize, data: u64) -> Self {
        Self::new(Form::F32, cols, data, 0)
    }

    /// How the rows are stored.
    pub(crate) fn form(&self) -> Form {
        match self.form {
            1 => Form::BF16,
            2 => Form::F16,
            3 => Form::BF16x3,
            4 => Form::Int8,
            _ => Form::F32,
        }
    }
}
