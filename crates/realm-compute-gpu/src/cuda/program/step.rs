//! Steps under way and what they leave on the host.

use std::sync::{Arc, Mutex, PoisonError};

use realm_core::backend::{BackendError, Step, StepOutput};

use crate::cuda::gpu::{Buffer, Gpu, HostBuffer, Mark};

/// Memory for one step's results, used again by later steps.
pub(super) struct Slot {
    /// The sampled tokens, where a later step may take them from.
    pub(super) sampled: Buffer,
    /// The sampled tokens, then the logits.
    pub(super) host: HostBuffer,
}

/// Slots that no step holds.
#[derive(Clone)]
pub(super) struct Slots {
    gpu: Arc<dyn Gpu>,
    outputs: usize,
    free: Arc<Mutex<Vec<Slot>>>,
}

impl Slots {
    pub(super) fn new(gpu: &Arc<dyn Gpu>, outputs: usize) -> Self {
        Self { gpu: gpu.clone(), outputs, free: Arc::default() }
    }

    /// A slot whose host memory holds at least `bytes`.
    pub(super) fn take(&self, bytes: usize) -> Result<Slot, BackendError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut slot = match free {
            Some(slot) => slot,
            None => Slot {
                sampled: Buffer::new(&self.gpu, self.outputs * 4, "the sampled tokens")?,
                host: HostBuffer::new(&self.gpu, bytes)?,
            },
        };
        if slot.host.bytes().len() < bytes {
            slot.host = HostBuffer::new(&self.gpu, bytes)?;
        }
        Ok(slot)
    }

    fn give_back(&self, slot: Slot) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }
}

/// What a step will have computed once the stream has passed its last mark.
pub(super) struct CudaStep {
    pub(super) gpu: Arc<dyn Gpu>,
    pub(super) slots: Slots,
    /// `None` once it is given back.
    pub(super) slot: Option<Slot>,
    /// Sampled tokens; 0 where none were wanted.
    pub(super) sampled: usize,
    /// Logits on the host; 0 where none were wanted.
    pub(super) logits: usize,
    /// The last of all.
    pub(super) done: Mark,
    /// Before the first node, and after each launch with its node; empty where times are not wanted.
    pub(super) times: Vec<(usize, Mark)>,
    /// Nodes of the graph.
    pub(super) nodes: usize,
}

impl CudaStep {
    /// The tokens on the device, where `of` is the same one.
    pub(super) fn sampled_on(&self, of: &Arc<dyn Gpu>) -> Option<(&Buffer, usize)> {
        let slot = self.slot.as_ref().filter(|_| Arc::ptr_eq(&self.gpu, of))?;
        Some((&slot.sampled, self.sampled))
    }

    fn node_seconds(&self) -> Result<Vec<f64>, BackendError> {
        let mut seconds = vec![0.0; if self.times.is_empty() { 0 } else { self.nodes }];
        for pair in self.times.windows(2) {
            let [(_, before), (node, after)] = pair else { continue };
            seconds[*node] += after.seconds_since(before)?;
        }
        Ok(seconds)
    }
}

impl Step for CudaStep {
    fn read(self: Box<Self>) -> Result<StepOutput, BackendError> {
        self.done.wait()?;
        let node_seconds = self.node_seconds()?;
        let words = self.slot.as_ref().map_or(&[][..], |slot| slot.host.bytes());
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let (sampled, rest) = words.split_at(self.sampled * 4);
        Ok(StepOutput {
            sampled: sampled.chunks_exact(4).map(word).collect(),
            logits: rest[..self.logits * 4]
                .chunks_exact(4)
                .map(|bytes| f32::from_bits(word(bytes)))
                .collect(),
            node_seconds,
        })
    }
}

impl Drop for CudaStep {
    fn drop(&mut self) {
        // The stream may still write to the slot; a device that failed writes no more.
        _ = self.done.wait();
        if let Some(slot) = self.slot.take() {
            self.slots.give_back(slot);
        }
    }
}
