//! Weights in the device's memory, and how they get there.

use std::{
    num::NonZero,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use realm_core::{
    Bytes,
    backend::{BackendError, LoadedWeight},
    graph::WeightInfo,
};
use zerocopy::IntoBytes;

use super::{
    gpu::{Buffer, Facts, Gpu, HostBuffer, Mark},
    planes::{self, Layout},
};

/// Bytes of a staging buffer: enough that a slice's packing outweighs its overhead.
const STAGING_BYTES: usize = 16 << 20;
/// Staging buffers: one is filled while another is uploaded.
const STAGING_BUFFERS: usize = 2;

/// Bytes of device memory that a weight will take.
pub(crate) fn planes_bytes(info: &WeightInfo) -> usize {
    Layout::of(info).bytes().saturating_add(vector_bytes(info))
}

/// Bytes of a vector's f32 copy.
fn vector_bytes(info: &WeightInfo) -> usize {
    if info.rows == 1 { info.cols.saturating_mul(size_of::<f32>()) } else { 0 }
}

/// A weight as planes; a vector as f32, too.
#[derive(Debug)]
pub(crate) struct CudaWeight {
    info: WeightInfo,
    planes: Buffer,
    vector: Option<Buffer>,
}

impl CudaWeight {
    /// Where its planes lie.
    pub(crate) fn planes(&self) -> u64 {
        self.planes.address()
    }

    /// Where its elements lie as f32; 0 where it has several rows.
    pub(crate) fn vector(&self) -> u64 {
        self.vector.as_ref().map_or(0, Buffer::address)
    }

    /// The device that it is on.
    pub(crate) fn facts(&self) -> &Facts {
        self.planes.facts()
    }

    /// The same, for calls.
    pub(crate) fn gpu(&self) -> &Arc<dyn Gpu> {
        self.planes.gpu()
    }
}

impl LoadedWeight for CudaWeight {
    fn info(&self) -> &WeightInfo {
        &self.info
    }

    fn device_bytes(&self) -> usize {
        self.planes.bytes() + self.vector.as_ref().map_or(0, Buffer::bytes)
    }
}

/// Brings weights to the device. Slices of a weight are read and packed into page-locked memory while
/// the slice before, also another weight's, is being uploaded.
pub(crate) struct Loader {
    gpu: Arc<dyn Gpu>,
    threads: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    staging: Vec<Staging>,
    next: usize,
}

/// A staging buffer, and the end of its last upload.
struct Staging {
    host: HostBuffer,
    uploaded: Option<Mark>,
}

impl Staging {
    /// Waits until the stream has let go of it.
    fn wait(&mut self) -> Result<(), BackendError> {
        self.uploaded.take().map_or(Ok(()), |mark| mark.wait())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A device that failed copies no more.
        let _ = self.wait();
    }
}

impl State {
    /// The staging buffer that has been free for longest.
    fn staging(&mut self, gpu: &Arc<dyn Gpu>) -> Result<&mut Staging, BackendError> {
        if self.staging.len() < STAGING_BUFFERS {
            let host = HostBuffer::new(gpu, STAGING_BYTES)?;
            self.staging.push(Staging { host, uploaded: None });
            self.next = self.staging.len() - 1;
        }
        let at = self.next;
        self.next = (at + 1) % STAGING_BUFFERS;
        self.staging[at].wait()?;
        Ok(&mut self.staging[at])
    }

    /// Writes `bytes` bytes to a buffer, in slices of whole units of `unit` bytes that `write` makes.
    fn upload(
        &mut self,
        gpu: &Arc<dyn Gpu>,
        to: &Buffer,
        units: usize,
        unit: usize,
        write: impl Fn(Range<usize>, &mut [u8]),
    ) -> Result<(), BackendError> {
        let slice = (STAGING_BYTES / unit.max(1)).max(1);
        for first in (0..units).step_by(slice) {
            let slice = first..units.min(first + slice);
            let bytes = slice.len() * unit;
            let staging = self.staging(gpu)?;
            write(slice, &mut staging.host.bytes_mut()[..bytes]);
            staging.host.upload(0..bytes, to, first * unit)?;
            staging.uploaded = Some(Mark::new(gpu)?);
        }
        Ok(())
    }
}

impl Loader {
    /// A loader for a device. It takes page-locked memory when it loads its first weight.
    pub(crate) fn new(gpu: Arc<dyn Gpu>) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        Self { gpu, threads, state: Mutex::default() }
    }

    /// Brings a weight to the device; its last slices may still be under way on the stream.
    pub(crate) fn load(
        &self,
        info: &WeightInfo,
        data: Bytes,
    ) -> Result<Arc<CudaWeight>, BackendError> {
        info.check(&data)?;
        let buffer = |bytes| Buffer::new(&self.gpu, bytes, &format!("weight {}", info.name));
        let layout = Layout::of(info);
        let planes = buffer(layout.bytes())?;
        let vector = (info.rows == 1).then(|| buffer(vector_bytes(info))).transpose()?;

        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.upload(&self.gpu, &planes, layout.tiles(), layout.tile_bytes, |tiles, out| {
            planes::pack(info, &data, tiles, out, self.threads);
        })?;
        if let Some(vector) = &vector {
            let (len, bytes) = (info.dtype.block_len(), info.dtype.block_bytes());
            let write = |blocks: Range<usize>, out: &mut [u8]| {
                let blocks = data[blocks.start * bytes..blocks.end * bytes].chunks_exact(bytes);
                let mut values = vec![0.0; len];
                for (block, out) in blocks.zip(out.chunks_exact_mut(len * size_of::<f32>())) {
                    info.dtype.decode(block, &mut values);
                    out.copy_from_slice(values.as_bytes());
                }
            };
            state.upload(&self.gpu, vector, info.cols / len, len * size_of::<f32>(), write)?;
        }
        Ok(Arc::new(CudaWeight { info: info.clone(), planes, vector }))
    }
}

#[cfg(test)]
mod tests;
