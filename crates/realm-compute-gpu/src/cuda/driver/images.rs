//! The compiled kernels in the program: one fatbin a unit of the manifest, for each architecture
//! that the build was asked for. One file rather than one linked fatbin, so that the driver loads
//! the units that a model needs and no others.

mod made {
    //! What the build script wrote: `ARCHS`, and `INDEX` with each unit's start and length.
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Fatbins are read in words: the file's images start at multiples of this.
#[repr(C, align(64))]
struct Aligned<Bytes: ?Sized>(Bytes);

static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.bin")));

/// Compiled kernels.
#[derive(Clone, Copy)]
pub(super) struct Images {
    /// (unit, start, length).
    index: &'static [(&'static str, usize, usize)],
    bytes: &'static [u8],
    /// What they were compiled for: compute capabilities without the dot (`80`, `90a`), and `ptx`.
    archs: &'static [&'static str],
}

impl Images {
    /// Those of this program.
    pub(super) fn embedded() -> Self {
        Self { index: made::INDEX, bytes: &BYTES.0, archs: made::ARCHS }
    }

    /// Made-up ones.
    #[cfg(test)]
    pub(super) fn fake(archs: &'static [&'static str], bytes: &'static [u8]) -> Self {
        Self { index: &[("one", 0, 8), ("two", 8, 8)], bytes, archs }
    }

    /// A unit's image.
    pub(super) fn find(&self, unit: &str) -> Option<&'static [u8]> {
        let (_, start, length) = self.index.iter().find(|(name, ..)| *name == unit)?;
        Some(&self.bytes[*start..][..*length])
    }

    /// What they were compiled for, for people.
    pub(super) fn archs(&self) -> String {
        self.archs.join(",")
    }

    /// Whether the kernels for Hopper alone are there: in its machine code they stand instead of others.
    pub(super) fn have_wgmma(&self) -> bool {
        self.archs.contains(&"90a")
    }

    /// Whether a device of this compute capability runs them. Machine code of a capability runs on
    /// later minor versions of the same major one; with an `f` the same, with an `a` on that very
    /// one; from PTX (of capability 9.0) the driver makes machine code for any later device.
    pub(super) fn run_on(&self, (major, minor): (u32, u32)) -> bool {
        self.archs.iter().any(|arch| {
            let number = arch.trim_end_matches(['a', 'f']);
            match number.parse::<u32>() {
                Ok(number) if arch.ends_with('a') => number == 10 * major + minor,
                Ok(number) => number / 10 == major && number % 10 <= minor,
                Err(_) => (major, minor) >= (9, 0),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_ones_are_whole() {
        let images = Images::embedded();
        assert!(!images.archs.is_empty());
        for (unit, start, length) in images.index {
            assert!(*length > 0 && start + length <= images.bytes.len(), "{unit}");
            assert_eq!(images.find(unit).unwrap().as_ptr() as usize % 64, 0, "{unit}");
        }
        assert_eq!(images.find("no such unit"), None);
    }

    #[test]
    fn devices_that_run_them() {
        let runs = |archs, capability| Images::fake(archs, &[]).run_on(capability);
        for (archs, capability, expected) in [
            (&["80", "90a", "ptx"][..], (8, 0), true),
            (&["80", "90a", "ptx"], (8, 9), true),
            (&["80", "90a", "ptx"], (9, 0), true),
            (&["80", "90a", "ptx"], (12, 0), true),
            (&["80", "90a"], (10, 0), false),
            (&["90a"], (9, 0), true),
            (&["90a"], (8, 0), false),
            (&["90a"], (9, 1), false),
            (&["89"], (8, 6), false),
            (&["100f"], (10, 3), true),
            (&["ptx"], (8, 6), false),
            (&["ptx"], (9, 0), true),
        ] {
            assert_eq!(runs(archs, capability), expected, "{archs:?} on {capability:?}");
        }
    }
}
