//! Op cases that every backend must pass: fresh random inputs from a printed seed, odd shapes,
//! poisoned outputs, held to the reference interpreter.
//!
//! A backend's crate has a test without harness that calls [`main`] with its devices. A device that
//! is missing shows as ignored, with the reason; `REALM_REQUIRE=cpu,cuda` makes that a failure.

pub mod case;
pub mod cases;
mod harness;
pub mod random;
pub mod run;

pub use case::Case;
pub use harness::{Device, main, main_and, required};
