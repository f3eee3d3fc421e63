//! The buffer plan: where each value lives in one arena, by lifetime.
//!
//! Two values share bytes only where no node needs both, so the memory that a graph's activations
//! need is known from the graph and the limits alone, before a model is loaded.

use crate::{
    backend::Limits,
    graph::{Graph, Rows},
};

/// Alignment of every buffer, in bytes: a cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// Offsets into an arena, a value each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferPlan {
    /// Byte offset of each value; `None` where no node writes it.
    pub offsets: Vec<Option<usize>>,
    /// Size of the arena in bytes.
    pub bytes: usize,
}

/// Bytes of a value's buffer under `limits`, four an element.
fn value_bytes(graph: &Graph, index: usize, limits: &Limits) -> usize {
    let info = &graph.values()[index];
    let rows = match info.rows {
        Rows::Tokens => limits.tokens,
        Rows::Outputs => limits.outputs,
    };
    (rows * info.cols * 4).next_multiple_of(ALIGNMENT)
}

/// First and last node that touch each value; `None` where it is never written.
fn lifetimes(graph: &Graph) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; graph.values().len()];
    for (at, node) in graph.nodes().iter().enumerate() {
        for value in node.op.outputs() {
            lives[value.index()] = Some((at, at));
        }
        for value in node.op.inputs() {
            if let Some((_, last)) = &mut lives[value.index()] {
                *last = at;
            }
        }
    }
    // Results are read after the last node.
    for value in std::iter::once(graph.logits()).chain(graph.sampled()) {
        if let Some((_, last)) = &mut lives[value.index()] {
            *last = graph.nodes().len();
        }
    }
    lives
}

/// Something that needs bytes from one point in time to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// When it is first written.
    pub first: usize,
    /// When it is last used.
    pub last: usize,
    /// Its size, a multiple of the alignment that it needs.
    pub bytes: usize,
}

/// Places items in one arena so that no two that live at the same time overlap: the largest first, each at
/// the lowest offset that is free. Gives the offsets and the arena's size.
pub fn pack(items: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(items[at].bytes), at));
    let mut offsets: Vec<Option<usize>> = vec![None; items.len()];
    let mut arena = 0;
    let mut taken: Vec<(usize, usize)> = Vec::new();
    for at in order {
        let Lifetime { first, last, bytes } = items[at];
        taken.clear();
        taken.extend(items.iter().zip(&offsets).filter_map(|(other, offset)| {
            let offset = (*offset)?;
            (other.first <= last && first <= other.last).then(|| (offset, offset + other.bytes))
        }));
        taken.sort_unstable();
        let mut offset = 0;
        for &(start, end) in &taken {
            if offset + bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        offsets[at] = Some(offset);
        arena = arena.max(offset + bytes);
    }
    (offsets.into_iter().flatten().collect(), arena)
}

impl BufferPlan {
    /// Plans `graph` for steps within `limits`, see [`pack`].
    pub fn new(graph: &Graph, limits: &Limits) -> Self {
        let lives = lifetimes(graph);
        let (values, items): (Vec<usize>, Vec<Lifetime>) = lives
            .iter()
            .enumerate()
            .filter_map(|(at, life)| {
                let (first, last) = (*life)?;
                Some((at, Lifetime { first, last, bytes: value_bytes(graph, at, limits) }))
            })
            .unzip();
        let (packed, bytes) = pack(&items);
        let mut offsets = vec![None; lives.len()];
        for (value, offset) in values.into_iter().zip(packed) {
            offsets[value] = Some(offset);
        }
        Self { offsets, bytes }
    }
}
