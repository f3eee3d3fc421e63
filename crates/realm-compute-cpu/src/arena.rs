//! The work memory of a program: every value's buffer at its planned offset.

use std::ops::Range;

/// A cache line of floats; gives the arena its alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

const _: () = assert!(size_of::<Line>() == realm_core::plan::ALIGNMENT);

/// Aligned floats, lent out as disjoint ranges.
pub(crate) struct Arena {
    lines: Vec<Line>,
}

impl Arena {
    /// An arena of at least `bytes` bytes; `None` where the system has no memory for it.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        let count = bytes.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).ok()?;
        lines.resize(count, Line([0.0; 16]));
        Some(Self { lines })
    }

    /// Fills everything with NaN, so that reading what was never written shows.
    pub(crate) fn poison(&mut self) {
        self.lines.fill(Line([f32::NAN; 16]));
    }

    /// Lends ranges of floats to read and ranges to write.
    ///
    /// # Panics
    /// Where a range to write meets another range, or any leaves the arena: a broken buffer plan.
    pub(crate) fn lend<const R: usize>(
        &mut self,
        reads: [Range<usize>; R],
        writes: &[Range<usize>],
    ) -> ([&[f32]; R], Vec<&mut [f32]>) {
        let len = self.lines.len() * 16;
        let apart = |a: &Range<usize>, b: &Range<usize>| a.end <= b.start || b.end <= a.start;
        for (at, write) in writes.iter().enumerate() {
            let alone = reads.iter().chain(&writes[..at]).all(|other| apart(write, other));
            assert!(alone && write.start <= write.end && write.end <= len, "buffers overlap");
        }
        assert!(reads.iter().all(|read| read.start <= read.end && read.end <= len));
        let start: *mut f32 = self.lines.as_mut_ptr().cast();
        let reads = reads.map(|range| {
            // SAFETY: in bounds, and apart from every range to write, by the checks above; `Line` is
            // sixteen floats without padding; the borrow of self lasts as long as the slices.
            unsafe { std::slice::from_raw_parts(start.add(range.start).cast_const(), range.len()) }
        });
        let writes = writes.iter().map(|range| {
            // SAFETY: as above, and apart from every other range.
            unsafe { std::slice::from_raw_parts_mut(start.add(range.start), range.len()) }
        });
        (reads, writes.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lends_what_was_written() {
        let mut arena = Arena::new(1000).unwrap();
        arena.poison();
        let ([], mut writes) = arena.lend([], &[16..20, 0..3]);
        writes[0].fill(1.0);
        writes[1].fill(2.0);
        let ([a, b], writes) = arena.lend([0..3, 16..20], &[32..40, 64..70]);
        assert_eq!((a, b), (&[2.0; 3][..], &[1.0; 4][..]));
        assert!(writes[0].iter().all(|x| x.is_nan()));
    }

    #[test]
    #[should_panic = "buffers overlap"]
    fn refuses_to_lend_twice() {
        let mut arena = Arena::new(1000).unwrap();
        arena.lend([0..17, 0..1], &[16..20, 32..40]);
    }
}
