//! What the targets share.

use std::fmt::Display;

/// Panics unless the error is one line of less than `longest` bytes.
pub(crate) fn one_line(error: &impl Display, longest: usize) {
    let text = error.to_string();
    assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
    assert!(text.len() < longest, "{} bytes: {text:?}", text.len());
}
