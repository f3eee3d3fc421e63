//! All cases, an op each file.

pub mod attention;
pub mod contract;
pub mod elementwise;
pub mod invariance;
pub mod linear;
pub mod model;
pub mod moe;

use crate::{Case, random::Random};

/// Every case, drawn from `seed`.
pub fn all(seed: &Random) -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(elementwise::cases(&mut seed.named("elementwise")));
    cases.extend(linear::cases(&mut seed.named("linear")));
    cases.extend(attention::cases(&mut seed.named("attention")));
    cases.extend(moe::cases(&mut seed.named("moe")));
    cases.extend(model::cases(&mut seed.named("model")));
    cases
}
