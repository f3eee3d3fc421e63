//! Shared, immutable bytes: a range of something that outlives it, such as a mapped file.

use std::{fmt, ops::Deref, ops::Range, sync::Arc};

/// A cheaply cloned view of bytes that keeps their owner alive.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// The given range of `owner`; `None` where the range leaves it.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }

    /// A part of these bytes, with the same owner; `None` where the range leaves them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start.checked_add(range.start)?;
        Some(Self { owner: self.owner.clone(), range: start..start.checked_add(range.len())? })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // An owner that shrank since `new` shows as empty rather than as a panic.
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_inside() {
        let all = Bytes::from((0..10).collect::<Vec<u8>>());
        let middle = all.slice(2..8).unwrap();
        let inner = middle.slice(1..3).unwrap();
        drop(all);
        assert_eq!((&middle[..], &inner[..]), (&[2, 3, 4, 5, 6, 7][..], &[3, 4][..]));
        assert!(middle.slice(6..6).unwrap().is_empty());
        #[expect(clippy::reversed_empty_ranges, reason = "what a caller may get wrong")]
        let wrong = [0..7, 5..4, 7..7, usize::MAX..usize::MAX, 0..usize::MAX];
        for range in wrong {
            assert!(middle.slice(range.clone()).is_none(), "{range:?}");
        }
    }
}
