//! Steps under way and what they leave on the host.

use std::sync::{Arc, Mutex, PoisonError};

use realm_core::backend::{BackendError, Step, StepOutput};

use crate::cuda::gpu::{Gpu, HostBuffer, Mark};

/// Host memory for steps' results: what no step holds, used again by later ones.
#[derive(Clone)]
pub(super) struct Slots {
    gpu: Arc<dyn Gpu>,
    free: Arc<Mutex<Vec<HostBuffer>>>,
}

impl Slots {
    pub(super) fn new(gpu: &Arc<dyn Gpu>) -> Self {
        Self { gpu: gpu.clone(), free: Arc::default() }
    }

    /// Memory of at least `bytes`.
    pub(super) fn take(&self, bytes: usize) -> Result<HostBuffer, BackendError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match free {
            Some(host) if host.bytes().len() >= bytes => Ok(host),
            Some(small) => {
                // A later step may still take its tokens from there.
                Mark::new(&self.gpu)?.wait()?;
                drop(small);
                HostBuffer::new(&self.gpu, bytes)
            }
            None => HostBuffer::new(&self.gpu, bytes),
        }
    }

    fn give_back(&self, host: HostBuffer) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(host);
    }
}

/// What a step will have computed once the stream has passed its last mark.
pub(super) struct CudaStep {
    pub(super) gpu: Arc<dyn Gpu>,
    pub(super) slots: Slots,
    /// The sampled tokens, then the logits; `None` once it is given back.
    pub(super) host: Option<HostBuffer>,
    /// Which of its program's steps it is, and which program that is.
    pub(super) number: (u64, Arc<()>),
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
    /// Where its tokens arrive on the host, where `of` is the same device.
    pub(super) fn tokens_on(&self, of: &Arc<dyn Gpu>) -> Option<&HostBuffer> {
        self.host.as_ref().filter(|_| Arc::ptr_eq(&self.gpu, of))
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
        let words = self.host.as_ref().map_or(&[][..], HostBuffer::bytes);
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
        // The stream may still write there; a device that failed writes no more.
        _ = self.done.wait();
        if let Some(host) = self.host.take() {
            self.slots.give_back(host);
        }
    }
}
