//! Mixtures of experts (Shazeer et al. 2017, arXiv 1701.06538; Jiang et al. 2024, arXiv 2401.04088):
//! a router picks a few of many feed-forward networks for each row.
//!
//! A row's chosen experts stand side by side in *slots*, the best first: a value `[rows, used · n]`
//! holds `n` elements a slot. So a row's result depends on its own choice alone, however a backend
//! groups rows by expert. The experts' matrices lie one below the other in one weight, as GGUF files
//! store them: expert `e` has rows `e · n..(e + 1) · n`.

use super::{Activation, Value, Weight};

/// Picks for each row the `used` experts with the largest logits, largest first, ties to the lower
/// number; a logit that is no number comes after all that are.
///
/// The weights are the softmax over all logits of a row or, `normalized`, over those chosen: what the
/// former become where they are divided by their sum.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeRoute {
    /// `[rows, experts]`.
    pub logits: Value,
    /// Whether a row's weights add up to 1.
    pub normalized: bool,
    /// `[rows, used]`, numbers of experts, no two of a row alike.
    pub experts: Value,
    /// `[rows, used]`, a slot each.
    pub weights: Value,
}

/// `output[slot] = activation(input · gate[e]ᵀ) · (input · up[e]ᵀ)` for each slot of a row and its
/// expert `e`.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeGatedLinear {
    /// `[rows, k]`.
    pub input: Value,
    /// `[rows, used]`, of a [`MoeRoute`].
    pub experts: Value,
    /// `[experts · n, k]`.
    pub gate: Weight,
    /// `[experts · n, k]`.
    pub up: Weight,
    /// The non-linearity.
    pub activation: Activation,
    /// `[rows, used · n]`.
    pub output: Value,
}

/// `output[slot] = input[slot] · weight[e]ᵀ` for each slot of a row and its expert `e`.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeLinear {
    /// `[rows, used · k]`.
    pub input: Value,
    /// `[rows, used]`, of a [`MoeRoute`].
    pub experts: Value,
    /// `[experts · n, k]`.
    pub weight: Weight,
    /// `[rows, used · n]`.
    pub output: Value,
}

/// `output = Σ weights[slot] · input[slot]` a row, added in the order of the slots.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeSum {
    /// `[rows, used · n]`.
    pub input: Value,
    /// `[rows, used]`.
    pub weights: Value,
    /// `[rows, n]`.
    pub output: Value,
}
