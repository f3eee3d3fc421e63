//! Op cases that every backend must pass.
