//! Models, KV cache, scheduler, sampler and engine.
