//! Launches of `kernels/cuda/embed.cu`.

use realm_core::backend::LoadedWeight as _;
use zerocopy::{Immutable, IntoBytes};

use crate::cuda::{
    gpu::Launch,
    step::{Columns, Form, StepView},
    weights::CudaWeight,
};

/// Threads a block.
const THREADS: usize = 128;
/// Columns that a thread decodes.
const THREAD_COLS: usize = 16;

/// Row `i` of the target is the table's row of token `i`, exactly; NaN where the table has no such row.
/// The target has any form but [`Form::Int8`].
pub(crate) fn embed(table: &CudaWeight, view: &StepView, rows: usize, target: Columns) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        planes: u64,
        view: StepView,
        target: Columns,
        vocabulary: u32,
        cols: u32,
    }
    debug_assert!(target.form() != Form::Int8, "an embedding to int8");
    let info = table.info();
    let parameters = Params {
        planes: table.planes(),
        view: *view,
        target,
        vocabulary: info.rows as u32,
        cols: info.cols as u32,
    };
    // Threads come in fours, which share 64 columns.
    let blocks = info.cols.next_multiple_of(4 * THREAD_COLS).div_ceil(THREADS * THREAD_COLS);
    let kernel = format!("embed_{}", info.dtype.name().to_lowercase());
    Launch::new("embed", kernel, [blocks.max(1), rows], THREADS as u32, &parameters)
}

#[cfg(test)]
mod tests;
