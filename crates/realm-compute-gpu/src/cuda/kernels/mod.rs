//! Launches: one function a kernel, which knows its parameter struct, its grid and its variants.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod embed;
pub(crate) mod matvec;
pub(crate) mod rope;
pub(crate) mod sample;
