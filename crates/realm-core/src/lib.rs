//! Types, block formats, the graph, the backend contract and the reference interpreter of Realm.
#![forbid(unsafe_code)]

pub mod backend;
mod bytes;
pub mod cost;
pub mod cut;
pub mod formats;
pub mod fuse;
pub mod graph;
pub mod plan;
pub mod reference;
pub mod rope;
pub mod sampling;

pub use bytes::Bytes;
pub use formats::{BlockFormat, DType};
pub use graph::Graph;
