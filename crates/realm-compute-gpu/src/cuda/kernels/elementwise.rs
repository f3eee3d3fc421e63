//! Launches of `kernels/cuda/elementwise.cu`: norms, gated activations, sums, scalings, gathers and the
//! conversion to what products read.

use realm_core::graph::ops::Activation;
use zerocopy::{Immutable, IntoBytes};

use crate::cuda::{
    gpu::Launch,
    step::{Columns, Form, StepView},
};

/// The manifest's unit.
const UNIT: &str = "elementwise";
/// Threads a block, but for whole rows' norms.
pub(super) const THREADS: u32 = 256;
/// Threads that norm a row.
const NORM_THREADS: u32 = 512;
/// Columns that a block takes where columns do not depend on each other.
pub(super) const SHARE: usize = 4 * THREADS as usize;

/// From f32 rows to a target. Addresses of f32 are aligned to 16 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Map {
    /// f32 rows of `cols` elements, one after the other.
    pub(crate) input: u64,
    pub(crate) cols: usize,
    /// Rows that the launch is made for.
    pub(crate) rows: usize,
    /// Address of the number of rows that a step has, a `u32`: the rest of the target stays as it is.
    pub(crate) count: u64,
    /// Rows of `cols` elements: of any form but [`Form::Int8`], which only [`prepare`] writes.
    pub(crate) target: Columns,
}

/// What the kernel knows of a [`Map`].
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct MapParams {
    input: u64,
    count: u64,
    target: Columns,
    cols: u32,
    slots: u32,
}

impl From<&Map> for MapParams {
    fn from(map: &Map) -> Self {
        let Map { input, cols, count, target, .. } = *map;
        Self { input, count, target, cols: cols as u32, slots: 1 }
    }
}

/// A launch over rows and shares of their columns, pads included.
fn map_launch(kernel: &str, map: &Map, parameters: &(impl IntoBytes + Immutable)) -> Launch {
    debug_assert!(kernel == "prepare" || map.target.form() != Form::Int8, "{kernel} to int8");
    let cols = map.cols.max(map.target.stride as usize);
    Launch::new(UNIT, kernel, [map.rows, cols.div_ceil(SHARE)], THREADS, parameters)
}

/// `target = input`, in any form: integers of [`Form::Int8`] are the CPU backend's, and a block of 32
/// columns that holds NaN or an infinity has the scale NaN.
pub(crate) fn prepare(map: &Map) -> Launch {
    prepare_slots(map, 1)
}

/// The same where each of a step's rows is `slots` rows of the map, and `map.rows` counts the map's.
pub(crate) fn prepare_slots(map: &Map, slots: usize) -> Launch {
    map_launch("prepare", map, &MapParams { slots: slots as u32, ..map.into() })
}

/// `target = activation(input) · up`, where `up` is the address of f32 rows.
pub(crate) fn glu(map: &Map, up: u64, activation: Activation) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        map: MapParams,
        up: u64,
        activation: u32,
        unused: u32,
    }
    let activation = super::activation_number(activation);
    map_launch("glu", map, &Params { map: map.into(), up, activation, unused: 0 })
}

/// A map with one more address.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct WithAddress {
    map: MapParams,
    address: u64,
}

/// `target = input + right`, where `right` is the address of f32 rows.
pub(crate) fn add(map: &Map, right: u64) -> Launch {
    map_launch("add", map, &WithAddress { map: map.into(), address: right })
}

/// A map with a number.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct WithFactor {
    map: MapParams,
    factor: f32,
    unused: u32,
}

/// `target = factor · input`.
pub(crate) fn scale(map: &Map, factor: f32) -> Launch {
    map_launch("scale", map, &WithFactor { map: map.into(), factor, unused: 0 })
}

/// `target = cap · tanh(input / cap)`.
pub(crate) fn soft_cap(map: &Map, cap: f32) -> Launch {
    map_launch("soft_cap", map, &WithFactor { map: map.into(), factor: cap, unused: 0 })
}

/// Row `i` of the target is row `outputs[i]` of the input.
pub(crate) fn gather_rows(map: &Map, view: &StepView) -> Launch {
    map_launch("gather_rows", map, &WithAddress { map: map.into(), address: view.outputs })
}

/// The addition before a norm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Residual {
    /// f32 rows, added to the input.
    pub(crate) addend: u64,
    /// f32 rows that get the sums: the same as the input or the addend, or apart from both.
    pub(crate) sum: u64,
}

/// `target = x / √(mean(x²) + epsilon) · weight`, where `x` is the input or its sum with an addend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RmsNorm {
    pub(crate) map: Map,
    /// Gets the same as the target.
    pub(crate) second: Option<Columns>,
    pub(crate) residual: Option<Residual>,
    /// `group` f32.
    pub(crate) weight: u64,
    pub(crate) epsilon: f32,
    /// Elements normed together, of which `cols` is a multiple.
    pub(crate) group: usize,
}

/// The norm of rows or of their groups.
pub(crate) fn rms_norm(op: &RmsNorm) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        map: MapParams,
        second: Columns,
        addend: u64,
        sum: u64,
        weight: u64,
        epsilon: f32,
        group: u32,
    }
    let RmsNorm { map, second, residual, weight, epsilon, group } = *op;
    let int8 = |to: Columns| to.form() == Form::Int8;
    debug_assert!(!int8(map.target) && !second.is_some_and(int8), "a norm to int8");
    let parameters = Params {
        map: (&map).into(),
        second: second.unwrap_or_default(),
        addend: residual.map_or(0, |residual| residual.addend),
        sum: residual.map_or(0, |residual| residual.sum),
        weight,
        epsilon,
        group: group as u32,
    };
    if group == map.cols {
        return Launch::new(UNIT, "rms_norm", [map.rows, 1], NORM_THREADS, &parameters);
    }
    let blocks = (map.cols / group.max(1)).div_ceil(THREADS as usize / 32);
    Launch::new(UNIT, "rms_norm_groups", [map.rows, blocks], THREADS, &parameters)
}

/// `target = (x − mean) / √(variance + epsilon) · weight + bias`; `weight` and `bias` are addresses of
/// `cols` f32.
pub(crate) fn layer_norm(map: &Map, weight: u64, bias: Option<u64>, epsilon: f32) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        map: MapParams,
        weight: u64,
        bias: u64,
        epsilon: f32,
        unused: u32,
    }
    debug_assert!(map.target.form() != Form::Int8, "a norm to int8");
    let bias = bias.unwrap_or(0);
    let parameters = Params { map: map.into(), weight, bias, epsilon, unused: 0 };
    Launch::new(UNIT, "layer_norm", [map.rows, 1], NORM_THREADS, &parameters)
}

#[cfg(test)]
mod tests;
