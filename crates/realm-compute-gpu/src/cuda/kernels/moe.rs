//! Launches of `kernels/cuda/moe.cu`: the choice of experts, the order of slots by expert, and the sum of
//! what the chosen experts say.

use zerocopy::{Immutable, IntoBytes};

use super::elementwise::{Map, MapParams, SHARE, THREADS};
use crate::cuda::{
    gpu::Launch,
    step::{Columns, Form},
};

/// The manifest's unit.
const UNIT: &str = "moe";
/// Threads that choose for a row.
const ROUTE_THREADS: u32 = 128;
/// Threads that collect an expert's slots.
const GROUP_THREADS: u32 = 1024;
/// Threads that copy a row.
const COPY_THREADS: u32 = 128;

/// The choice of experts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    /// Address of f32 rows of `all` logits.
    pub(crate) logits: u64,
    /// Rows that the launch is made for, and the address of the number that there are.
    pub(crate) rows: usize,
    pub(crate) count: u64,
    /// Address of rows of `used` numbers of experts, `u32`.
    pub(crate) experts: u64,
    /// Address of rows of `used` weights, f32.
    pub(crate) weights: u64,
    pub(crate) all: usize,
    pub(crate) used: usize,
    /// Whether a row's weights add up to 1.
    pub(crate) normalized: bool,
}

/// Each row's experts and weights, as [`MoeRoute`](realm_core::graph::ops::MoeRoute) says.
pub(crate) fn route(route: &Route) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        logits: u64,
        count: u64,
        experts: u64,
        weights: u64,
        all: u32,
        used: u32,
        normalized: u32,
        unused: u32,
    }
    let &Route { logits, rows, count, experts, weights, all, used, normalized } = route;
    let parameters = Params {
        logits,
        count,
        experts,
        weights,
        all: all as u32,
        used: used as u32,
        normalized: normalized.into(),
        unused: 0,
    };
    let shared = 4 * (all.next_multiple_of(4) + used) as u32;
    Launch { shared, ..Launch::new(UNIT, "route", [rows, 1], ROUTE_THREADS, &parameters) }
}

/// Slots of some rows of a step, ordered by expert.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups {
    /// Address of the first row's number, a `u32`; 0 where it is 0.
    pub(crate) first: u64,
    /// Address of the last row's number plus one.
    pub(crate) end: u64,
    /// Slots of a row.
    pub(crate) used: usize,
    /// How many experts there are.
    pub(crate) experts: usize,
    /// Address of `experts + 1` `u32`: where each expert's slots start in the order, and where the last
    /// one's end.
    pub(crate) starts: u64,
    /// Address of the slots' numbers, `u32`: those of one expert in the order of rows.
    pub(crate) order: u64,
}

/// Orders slots, whose experts' numbers, `u32`, lie at `chosen`.
pub(crate) fn group(groups: &Groups, chosen: u64) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        chosen: u64,
        first: u64,
        end: u64,
        starts: u64,
        order: u64,
        used: u32,
        unused: u32,
    }
    let &Groups { first, end, used, experts, starts, order } = groups;
    let parameters = Params { chosen, first, end, starts, order, used: used as u32, unused: 0 };
    Launch::new(UNIT, "group", [experts, 1], GROUP_THREADS, &parameters)
}

/// Copies rows of a product's input to the order of slots, for up to `rows` rows of the step: `input` has a
/// row a slot, where `own_input`, else one for all slots of a row. `k` columns, [`Form::BF16`] or
/// [`Form::F16`].
pub(crate) fn gather(
    groups: &Groups,
    rows: usize,
    input: &Columns,
    own_input: bool,
    output: &Columns,
) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        input: u64,
        output: u64,
        first: u64,
        end: u64,
        order: u64,
        used: u32,
        input_slots: u32,
        units: u32,
        unused: u32,
    }
    debug_assert!(matches!(input.form(), Form::BF16 | Form::F16), "{:?}", input.form());
    debug_assert!(input.stride == output.stride && input.form() == output.form(), "other rows");
    let used = groups.used as u32;
    let parameters = Params {
        input: input.data,
        output: output.data,
        first: groups.first,
        end: groups.end,
        order: groups.order,
        used,
        input_slots: if own_input { 1 } else { used },
        units: input.stride / 8,
        unused: 0,
    };
    Launch::new(UNIT, "gather", [rows * groups.used, 1], COPY_THREADS, &parameters)
}

/// `target = Σ weight · slot` of a row's `used` slots: `map.input` has rows of `used · map.cols` elements,
/// `weights` is the address of rows of `used` f32.
pub(crate) fn sum(map: &Map, weights: u64, used: usize) -> Launch {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Params {
        map: MapParams,
        weights: u64,
        used: u32,
        unused: u32,
    }
    debug_assert!(map.target.form() != Form::Int8, "a sum to int8");
    let cols = map.cols.max(map.target.stride as usize);
    let parameters = Params { map: map.into(), weights, used: used as u32, unused: 0 };
    Launch::new(UNIT, "sum", [map.rows, cols.div_ceil(SHARE)], THREADS, &parameters)
}

#[cfg(test)]
mod tests;
