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

impl BufferPlan {
    /// Plans `graph` for steps within `limits`: largest values first, each at the lowest offset
    /// where it meets no value alive at the same time.
    pub fn new(graph: &Graph, limits: &Limits) -> Self {
        let lives = lifetimes(graph);
        let mut order: Vec<usize> = (0..lives.len()).filter(|&at| lives[at].is_some()).collect();
        order.sort_by_key(|&at| (std::cmp::Reverse(value_bytes(graph, at, limits)), at));
        let mut offsets: Vec<Option<usize>> = vec![None; lives.len()];
        let mut bytes = 0;
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for at in order {
            let (Some((first, last)), size) = (lives[at], value_bytes(graph, at, limits)) else {
                continue;
            };
            taken.clear();
            taken.extend(offsets.iter().enumerate().filter_map(|(other, offset)| {
                let ((start, end), offset) = (lives[other]?, (*offset)?);
                (start <= last && first <= end)
                    .then(|| (offset, offset + value_bytes(graph, other, limits)))
            }));
            taken.sort_unstable();
            let mut offset = 0;
            for &(start, end) in &taken {
                if offset + size <= start {
                    break;
                }
                offset = offset.max(end);
            }
            offsets[at] = Some(offset);
            bytes = bytes.max(offset + size);
        }
        Self { offsets, bytes }
    }
}
