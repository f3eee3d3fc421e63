//! Launches: one function a kernel, which knows its parameter struct, its grid and its variants.

use realm_core::graph::ops::Activation;

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod embed;
pub(crate) mod flash;
pub(crate) mod matmul;
pub(crate) mod matvec;
pub(crate) mod moe;
pub(crate) mod rope;
pub(crate) mod sample;
#[cfg(test)]
mod testing;

/// What `activation.cuh` calls an activation.
fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 1,
        Activation::GeluTanh => 2,
        Activation::Gelu => 3,
    }
}
