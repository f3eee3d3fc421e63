//! A list of strings in one block of memory.

use std::borrow::Cow;
use std::fmt;

/// A list of byte strings, packed: one allocation for the bytes, one for their ends. A vocabulary
/// of 256 k tokens takes its text plus 2 MB.
///
/// GGUF strings should be UTF-8, but vocabularies with stray bytes exist and work elsewhere, so the
/// bytes are kept as they are: [`bytes`](Self::bytes) is exact, [`get`](Self::get) puts U+FFFD where
/// they are not UTF-8.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Strings {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a string.
    pub fn push(&mut self, string: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(string.as_ref());
        self.ends.push(self.bytes.len());
    }

    /// How many strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The exact bytes of string `index`, `None` past the end.
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..end])
    }

    /// String `index` as text, U+FFFD where it isn't UTF-8; `None` past the end.
    pub fn get(&self, index: usize) -> Option<Cow<'_, str>> {
        self.bytes(index).map(String::from_utf8_lossy)
    }

    /// The strings as text, in order, U+FFFD where they aren't UTF-8.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Cow<'_, str>> + '_ {
        self.iter_bytes().map(String::from_utf8_lossy)
    }

    /// The strings' exact bytes, in order.
    pub fn iter_bytes(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        (0..self.len()).map(|i| {
            let start = if i == 0 { 0 } else { self.ends[i - 1] };
            &self.bytes[start..self.ends[i]]
        })
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(iter: I) -> Self {
        let mut strings = Self::new();
        iter.into_iter().for_each(|s| strings.push(s));
        strings
    }
}
