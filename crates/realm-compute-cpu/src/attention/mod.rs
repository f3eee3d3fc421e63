//! Attention over the paged cache, without ever holding the scores of more than a tile.
//!
//! Work is split into tasks of one KV head × some query rows × a range of the cache. Prompt rows go
//! through all that they see in one task; for generated rows the cache is split at multiples of
//! [`SPAN`] tokens, so that a single long sequence keeps all threads busy, and the spans' results
//! are merged in order. A row's bits depend on its sequence, its position and its role alone.

mod load;
mod math;
mod merge;
mod product;
mod scratch;
pub(crate) mod simd;
#[cfg(test)]
mod tests;
mod tile;

use crate::{
    isa::Isa,
    kv::{CpuKvPool, KvRead},
    pool::Pool,
    shared::SharedMut,
};
use merge::{Partial, finish};
use realm_core::{
    backend::{Role, SequenceRows},
    graph::ops::AttentionSpec,
};
use scratch::Scratch;
use simd::{Kernel, Simd, dispatch};
use std::{cell::RefCell, ops::Range};
use tile::QueryTile;

/// Tokens of the cache that one task of generated rows goes through: a whole number of KV blocks.
const SPAN: usize = 512;

/// Query rows (positions × heads of a group) that share a pass over keys and values, unless a group
/// has more.
const TILE_ROWS: usize = 96;

/// An attention op with a step's sequences.
pub(crate) struct Attend<'a> {
    /// Keys and values; the step's own are already there.
    pub(crate) kv: &'a CpuKvPool,
    /// Layer of the cache.
    pub(crate) layer: usize,
    /// Heads, scale and mask. Its `sinks` are not looked at.
    pub(crate) spec: &'a AttentionSpec,
    /// `[heads]`: logits that take part in the softmax's sum and carry no value.
    pub(crate) sinks: Option<&'a [f32]>,
    /// The sequences, covering the rows in order.
    pub(crate) sequences: &'a [SequenceRows<'a>],
}

/// One sequence's tasks.
struct Work {
    sequence: usize,
    /// Spans of the cache that its rows see, counted from the cache's start; one where the cache is
    /// not split.
    spans: Range<usize>,
    first: Counts,
}

/// Numbers of things, or the first of each.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// KV heads × tiles of query rows × spans.
    tasks: usize,
    /// Partial results: rows × heads × spans, of the sequences with more than one span.
    slots: usize,
    /// Rows × KV heads of these sequences.
    merges: usize,
}

thread_local! {
    /// The calling thread's tasks and partial results, kept between calls.
    static CALL: RefCell<(Vec<Work>, Vec<f32>)> = RefCell::default();
}

impl Attend<'_> {
    /// Computes `out`, `[tokens, heads · head_dim]`, from `query`, of the same shape. A row that sees
    /// nothing gets zeros.
    ///
    /// # Panics
    /// If shapes do not fit each other or the cache, or the sequences do not cover the rows in
    /// order.
    pub(crate) fn run(&self, pool: &Pool, isa: Isa, query: &[f32], out: &mut [f32]) {
        let cache = self.kv.read();
        let AttentionSpec { heads, head_dim, .. } = *self.spec;
        let kv_heads = cache.heads(self.layer);
        let mut tokens = 0;
        for sequence in self.sequences {
            assert_eq!(sequence.rows.start, tokens, "rows in order");
            tokens = sequence.rows.end;
        }
        let elements = tokens * heads * head_dim;
        assert!(query.len() == elements && out.len() == elements, "{elements} elements");
        assert!(self.sinks.is_none_or(|sinks| sinks.len() == heads), "a sink for each head");
        assert_eq!(head_dim, cache.head_dim(self.layer), "the cache's head size");
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "heads in groups");
        let group = heads / kv_heads;
        if elements == 0 {
            return;
        }
        CALL.with_borrow_mut(|(works, partials)| {
            let positions = (TILE_ROWS / group).max(1);
            let slot = Partial::len(head_dim);
            let counts = self.plan(works, kv_heads, positions);
            if partials.len() < counts.slots * slot {
                partials.resize(counts.slots * slot, 0.0);
            }
            let (partials, out) = (SharedMut::new(partials), SharedMut::new(out));
            let call = Call {
                attend: self,
                cache: &cache,
                works,
                kv_heads,
                group,
                positions,
                slot,
                query,
                partials: &partials,
                out: &out,
            };
            pool.run(counts.tasks, |task| {
                let task = &Task::new(&call, task);
                scratch::with(task.tile.rows.len() * group, head_dim, |scratch| {
                    dispatch(isa, Tile { call: &call, task, scratch });
                });
            });
            pool.run(counts.merges, |merge| dispatch(isa, Merge::new(&call, merge)));
        });
    }

    /// Lists the tasks, prompts first; gives their numbers.
    fn plan(&self, works: &mut Vec<Work>, kv_heads: usize, positions: usize) -> Counts {
        let mut next = Counts::default();
        works.clear();
        for role in [Role::Prefill, Role::Decode] {
            for (at, sequence) in self.sequences.iter().enumerate() {
                if sequence.role != role || sequence.rows.is_empty() {
                    continue;
                }
                let (spans, rows) = (self.spans(sequence), sequence.rows.len());
                let count = spans.len();
                works.push(Work { sequence: at, spans, first: next });
                next.tasks += rows.div_ceil(positions) * count * kv_heads;
                if count > 1 {
                    next.slots += rows * self.spec.heads * count;
                    next.merges += rows * kv_heads;
                }
            }
        }
        next
    }

    fn spans(&self, sequence: &SequenceRows<'_>) -> Range<usize> {
        let keys = self.keys(sequence, 0..sequence.rows.len());
        match sequence.role {
            Role::Prefill => 0..1,
            Role::Decode => {
                let first = keys.start / SPAN;
                first..keys.end.div_ceil(SPAN).max(first + 1)
            }
        }
    }

    /// Positions that some of the sequence's rows see.
    fn keys(&self, sequence: &SequenceRows<'_>, rows: Range<usize>) -> Range<usize> {
        let visible = |row| self.spec.mask.visible(sequence.cached + row, sequence.length());
        // Both ends grow with the position.
        visible(rows.start).start..visible(rows.end - 1).end
    }
}

/// A call's constants.
struct Call<'a> {
    attend: &'a Attend<'a>,
    cache: &'a KvRead<'a>,
    works: &'a [Work],
    kv_heads: usize,
    /// Query heads a KV head.
    group: usize,
    /// Positions a tile of query rows.
    positions: usize,
    /// Numbers a partial result.
    slot: usize,
    query: &'a [f32],
    partials: &'a SharedMut<'a, f32>,
    out: &'a SharedMut<'a, f32>,
}

impl Call<'_> {
    /// Numbers of `out` for a head of a sequence's row.
    fn place(&self, sequence: &SequenceRows<'_>, row: usize, head: usize) -> Range<usize> {
        let AttentionSpec { heads, head_dim, .. } = *self.attend.spec;
        let start = ((sequence.rows.start + row) * heads + head) * head_dim;
        start..start + head_dim
    }

    /// Numbers of `partials` for a head of a sequence's row, over a range of spans.
    fn slots(&self, work: &Work, row: usize, head: usize, spans: Range<usize>) -> Range<usize> {
        let first = work.first.slots + (row * self.attend.spec.heads + head) * work.spans.len();
        (first + spans.start - work.spans.start) * self.slot
            ..(first + spans.end - work.spans.start) * self.slot
    }

    fn sink(&self, head: usize) -> Option<f32> {
        self.attend.sinks.map(|sinks| sinks[head])
    }
}

/// A KV head × a tile of query rows × a span of the cache.
struct Task<'a> {
    work: &'a Work,
    span: usize,
    /// Positions that its rows see of the span.
    keys: Range<usize>,
    tile: QueryTile<'a>,
}

impl<'a> Task<'a> {
    fn new(call: &Call<'a>, task: usize) -> Self {
        let attend = call.attend;
        let work = call.works.partition_point(|work| work.first.tasks <= task) - 1;
        let work = &call.works[work];
        let sequence = &attend.sequences[work.sequence];
        let (spans, local) = (work.spans.len(), task - work.first.tasks);
        let (kv_head, local) = (local % call.kv_heads, local / call.kv_heads);
        let (span, local) = (work.spans.start + local % spans, local / spans);
        // The last tile sees most: big tasks first.
        let tile = sequence.rows.len().div_ceil(call.positions) - 1 - local;
        let start = tile * call.positions;
        let rows = start..(start + call.positions).min(sequence.rows.len());
        let mut keys = attend.keys(sequence, rows.clone());
        if sequence.role == Role::Decode {
            keys = keys.start.max(span * SPAN)..keys.end.min((span + 1) * SPAN);
        }
        let tile = QueryTile {
            cache: call.cache,
            layer: attend.layer,
            kv_head,
            group: call.group,
            spec: attend.spec,
            sequence,
            rows,
            query: call.query,
        };
        Self { work, span, keys, tile }
    }
}

/// A task with the memory it needs. The memory is fetched outside of the kernel: what runs in the
/// closures of others is not compiled for the kernel's instructions.
struct Tile<'a, 's> {
    call: &'a Call<'a>,
    task: &'a Task<'a>,
    scratch: &'a mut Scratch<'s>,
}

impl Kernel for Tile<'_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { work, span, keys, tile } = self.task;
        tile.attend(simd, keys.clone(), self.scratch);
        deliver(simd, self.call, work, *span, tile, self.scratch);
    }
}

/// Writes a tile's results to the output, or where they wait for the merge.
#[inline(always)]
fn deliver<S: Simd>(
    simd: S,
    call: &Call<'_>,
    work: &Work,
    span: usize,
    tile: &QueryTile<'_>,
    scratch: &Scratch<'_>,
) {
    let stride = scratch.stride;
    for at in 0..scratch.peaks.len() {
        let (row, head) = (tile.rows.start + at / call.group, at % call.group);
        let head = tile.kv_head * call.group + head;
        let total = simd.reduce_sum(simd.load(&scratch.totals[at * 16..][..16]));
        let sums = &scratch.sums[at * stride..][..stride];
        if work.spans.len() > 1 {
            let place = call.slots(work, row, head, span..span + 1);
            // SAFETY: a row's head in a span is part of one task.
            let slot = unsafe { call.partials.range(place) };
            Partial::write(slot, scratch.peaks[at], total, sums);
        } else {
            let place = call.place(tile.sequence, row, head);
            // SAFETY: a row's head is part of one task; sequences have their rows to themselves.
            let out = unsafe { call.out.range(place) };
            finish(simd, (scratch.peaks[at], total, sums), call.sink(head), out);
        }
    }
}

/// Merges the spans of one row and KV head.
struct Merge<'a> {
    call: &'a Call<'a>,
    work: &'a Work,
    row: usize,
    kv_head: usize,
}

impl<'a> Merge<'a> {
    fn new(call: &'a Call<'a>, merge: usize) -> Self {
        let work = call.works.partition_point(|work| work.first.merges <= merge) - 1;
        let work = &call.works[work];
        let local = merge - work.first.merges;
        Self { call, work, row: local / call.kv_heads, kv_head: local % call.kv_heads }
    }
}

impl Kernel for Merge<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { call, work, row, kv_head } = self;
        let sequence = &call.attend.sequences[work.sequence];
        let keys = call.attend.keys(sequence, row..row + 1);
        let spans = keys.start / SPAN..keys.end.div_ceil(SPAN);
        for head in kv_head * call.group..(kv_head + 1) * call.group {
            // SAFETY: each row and head is merged by one task, after those that wrote the parts.
            let out = unsafe { call.out.range(call.place(sequence, row, head)) };
            if keys.is_empty() {
                out.fill(0.0);
                continue;
            }
            let place = call.slots(work, row, head, spans.clone());
            // SAFETY: as above.
            let parts = unsafe { call.partials.range(place) };
            merge::merge(simd, parts, call.slot);
            let first = Partial::read(&parts[..call.slot]);
            finish(simd, first, call.sink(head), out);
        }
    }
}
