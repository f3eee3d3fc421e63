//! Going on in bf16 where f16 overflows.
//!
//! f16 ends at 65 504. What exceeds it becomes infinite, and NaN by the next norm or softmax, so that it
//! shows in the logits: devices give [`NO_TOKEN`](realm_core::sampling::NO_TOKEN) for a row without a
//! number or with an infinite one, and nothing has to be read back to see it. Then the engine leaves f16
//! for bf16, whose range is that of f32 and whose size is that of f16, so that the memory plan holds:
//! first for products, and for the KV cache where logits are no numbers without f16 products either.
//!
//! Keys and values that overflowed, or that were computed from what did, are in the cache, and perhaps in
//! blocks that prompts share. So all of it is forgotten, and every sequence computes its tokens again, in
//! bf16. Tokens that were chosen stay: their logits were numbers.

use std::fmt;

use realm_core::backend::{
    BackendError, CompileOptions, Inputs, KvSpec, KvType, Limits, Precision, Program, ProgramInfo,
    Step,
};

use crate::{Engine, RuntimeError, SequenceId};

/// What is in f16 and can be left for bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Narrow {
    /// The products' inputs.
    Products,
    /// Keys and values.
    Cache,
}

impl fmt::Display for Narrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Products => "products in f16",
            Self::Cache => "a KV cache in f16",
        })
    }
}

/// Stands where a program was given up and no other could be made.
struct Gone {
    info: ProgramInfo,
    error: BackendError,
}

impl Program for Gone {
    fn info(&self) -> &ProgramInfo {
        &self.info
    }

    fn enqueue(&mut self, _: &Inputs<'_>) -> Result<Box<dyn Step>, BackendError> {
        Err(self.error.clone())
    }
}

impl Engine {
    /// What may have overflowed where logits are no numbers; `None` where nothing is in f16.
    pub(crate) fn narrow(&self) -> Option<Narrow> {
        match (self.precision(), self.plan.kv.kv_type) {
            (Precision::F16, _) => Some(Narrow::Products),
            (_, KvType::F16) => Some(Narrow::Cache),
            _ => None,
        }
    }

    /// What a program of this engine is compiled with.
    pub(crate) fn compile_options(&self, limits: Limits) -> CompileOptions {
        let (precision, invariant) = (self.precision, self.invariant);
        CompileOptions { limits, precision, invariant, poison: false }
    }

    /// Leaves f16 for bf16. No step is under way afterwards, and every sequence computes its tokens again.
    /// `token` is the number of the token whose logits showed it, from 1 on, in its sequence.
    ///
    /// # Errors
    /// The device's: then no step can be run any more, each gives that error.
    pub(crate) fn widen(
        &mut self,
        narrow: Narrow,
        (sequence, token): (Option<SequenceId>, usize),
    ) -> Result<(), RuntimeError> {
        self.drop_next();
        self.scheduler.restart();
        let of = sequence.map(|id| format!(" of sequence {}", id.0)).unwrap_or_default();
        let step = self.steps;
        let s = if narrow == Narrow::Cache { "s" } else { "" };
        let note = format!(
            "step {step} gave no numbers as logits of token {token}{of}, as happens where {narrow} overflow{s}: bf16 takes its place, and what the cache held is computed again"
        );
        tracing::warn!("{note}");
        self.notes.push(note);
        match narrow {
            Narrow::Products => {
                self.precision = Precision::BF16;
                self.plan.devices.iter_mut().for_each(|part| part.precision = Precision::BF16);
            }
            Narrow::Cache => self.plan.kv.kv_type = KvType::BF16,
        }
        // The old ones give their memory back before the new ones take theirs, of the same size.
        let error = BackendError::Failed {
            device: self.backend.info().name.clone(),
            call: "going on in bf16".into(),
            cause: "its memory could not be had again".into(),
        };
        self.program = Box::new(Gone { info: self.program.info().clone(), error });
        if narrow == Narrow::Cache {
            let spec = &self.plan.kv;
            self.bindings.kv = self.backend.kv_pool(&KvSpec { blocks: 1, ..spec.clone() })?;
            self.bindings.kv = self.backend.kv_pool(spec)?;
        }
        let options = self.compile_options(self.plan.limits);
        self.program = self.backend.compile(&self.graph, &self.bindings, &options)?;
        Ok(())
    }

    /// What changed since the last call that the user should know, a line each: that f16 overflowed and
    /// what takes its place.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}
