//! Tests of the reader and the writer.

mod build;
mod getters;
mod malformed;
mod mutations;
mod reference;
mod roundtrip;
mod split;
mod writer;
