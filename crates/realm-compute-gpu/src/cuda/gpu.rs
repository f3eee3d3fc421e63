//! What the backend asks of a CUDA device: memory, launches, recordings, marks. The driver and the
//! emulation of the kernels on the CPU are the two that answer.
//!
//! Everything runs in order on one stream a device. Calls that only put work on the stream return at
//! once; [`Mark::wait`] waits. Addresses are plain numbers: whoever makes a [`Launch`] vouches that its
//! parameters fit the kernel and that the memory they point to lives until the launch has run.

use std::{fmt, ops::Range, sync::Arc};

use realm_core::backend::BackendError;
use zerocopy::{Immutable, IntoBytes};

/// What a device is, as far as kernels and plans depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// As `--device` takes it: `cuda:0`, `cuda-emulated`.
    pub(crate) name: String,
    /// For people, on one line.
    pub(crate) description: String,
    /// Bytes of its memory that were free when it was opened; `None` on the emulated device.
    pub(crate) memory: Option<u64>,
    /// Bytes of shared memory that one block may ask for.
    pub(crate) shared_memory: u32,
    /// Multiprocessors.
    pub(crate) multiprocessors: u32,
    /// Bytes of shared memory of a multiprocessor, for all its blocks.
    pub(crate) multiprocessor_shared_memory: u32,
    /// Whether it runs the kernels for Hopper: wgmma and tensor copies. Of real devices, those of
    /// compute capability 9.0 do.
    pub(crate) wgmma: bool,
}

/// One kernel's launch. The kernel takes one parameter: the struct whose bytes `parameters` holds.
#[derive(Clone)]
pub(crate) struct Launch {
    /// The unit of the manifest that holds the kernel: `matvec_q4_k`.
    pub(crate) unit: String,
    /// The kernel's name, an `extern "C"` symbol of the unit.
    pub(crate) kernel: String,
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads a block, a multiple of 32.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: u32,
    /// The parameter struct.
    pub(crate) parameters: Vec<u8>,
}

/// A matrix of 16-bit elements in device memory, of which kernels copy boxes into shared memory, their
/// rows of 128 bytes swizzled (`copy_tensor` in `kernels/cuda/hopper.cuh`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorMapSpec {
    /// Where it starts: a multiple of 16.
    pub(crate) address: u64,
    /// Elements of a row; copies take what is beyond as zeros.
    pub(crate) cols: u64,
    /// Rows; copies take what is beyond as zeros.
    pub(crate) rows: u64,
    /// Bytes from a row to the next: a multiple of 16.
    pub(crate) row_bytes: u64,
    /// Elements of a box's row: 8, 16, 32 or 64.
    pub(crate) box_cols: u32,
    /// Rows of a box, at most 256.
    pub(crate) box_rows: u32,
}

impl TensorMapSpec {
    /// Bytes from the first element to the end of the last, or what the hardware refuses in it.
    pub(crate) fn bytes(&self) -> Result<usize, String> {
        let Self { address, cols, rows, row_bytes, box_cols, box_rows } = *self;
        let ends = cols.checked_mul(2).filter(|&bytes| bytes <= row_bytes);
        let last = rows.checked_sub(1).and_then(|last| last.checked_mul(row_bytes));
        let problem = if !address.is_multiple_of(16) {
            "its address is no multiple of 16"
        } else if !row_bytes.is_multiple_of(16) || row_bytes >= 1 << 40 {
            "its rows are no multiple of 16 bytes apart, below 2^40"
        } else if ends.is_none_or(|bytes| bytes == 0) || rows == 0 || rows.max(cols) > 1 << 32 {
            "it has no rows or columns, too many, or rows that overlap"
        } else if ![8, 16, 32, 64].contains(&box_cols) || box_rows == 0 || box_rows > 256 {
            "its boxes are not 8, 16, 32 or 64 columns of 1 to 256 rows"
        } else if let (Some(ends), Some(last)) = (ends, last)
            && let Some(bytes) = last.checked_add(ends)
            && let Ok(bytes) = bytes.try_into()
        {
            return Ok(bytes);
        } else {
            "it is too large"
        };
        Err(format!(
            "a matrix of {rows} rows of {cols} elements, {row_bytes} bytes apart, at {address:#x}, in \
             boxes of {box_rows} × {box_cols}: {problem}"
        ))
    }
}

impl Launch {
    /// A launch without dynamic shared memory, over a grid of two axes.
    pub(crate) fn new(
        unit: &str,
        kernel: impl Into<String>,
        [x, y]: [usize; 2],
        threads: u32,
        parameters: &(impl IntoBytes + Immutable),
    ) -> Self {
        Self {
            unit: unit.into(),
            kernel: kernel.into(),
            grid: [x as u32, y as u32, 1],
            threads,
            shared: 0,
            parameters: parameters.as_bytes().to_vec(),
        }
    }
}

/// A device. Implemented by the driver and by the emulation; used through [`Buffer`], [`HostBuffer`],
/// [`Mark`] and [`Recording`], which release what they hold.
pub(crate) trait Gpu: Send + Sync {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// Device memory, aligned to 256 bytes, its contents undefined. `what` names it in the error.
    fn allocate(&self, bytes: usize, what: &str) -> Result<u64, BackendError>;
    /// Gives device memory back, once the work on the stream is done with it.
    fn release(&self, address: u64);
    /// Page-locked host memory, zeroed: its address in this process.
    fn allocate_host(&self, bytes: usize) -> Result<u64, BackendError>;
    /// Gives host memory back.
    fn release_host(&self, address: u64);

    /// Fills device memory with a byte, on the stream.
    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), BackendError>;
    /// Copies device memory, on the stream; the ranges do not overlap.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError>;
    /// Copies page-locked host memory to the device, on the stream.
    fn upload(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError>;
    /// Copies device memory to page-locked host memory, on the stream.
    fn download(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError>;

    /// The `TensorMap` of `kernels/cuda/intrinsics.cuh` for a matrix in device memory that stays
    /// where it is: a part of a kernel's parameters, at a multiple of 64 bytes.
    fn tensor_map(&self, map: &TensorMapSpec) -> Result<[u8; 128], BackendError>;

    /// Starts a kernel, on the stream.
    fn launch(&self, launch: &Launch) -> Result<(), BackendError>;
    /// Makes a CUDA graph of launches that run one after the other.
    fn record(&self, launches: &[Launch]) -> Result<u64, BackendError>;
    /// Starts a recording, on the stream.
    fn replay(&self, recording: u64) -> Result<(), BackendError>;
    /// Gives a recording back.
    fn release_recording(&self, recording: u64);

    /// Marks the point that the stream has come to; `timed` for [`Gpu::seconds`].
    fn mark(&self, timed: bool) -> Result<u64, BackendError>;
    /// Waits until the stream has passed a mark.
    fn wait(&self, mark: u64) -> Result<(), BackendError>;
    /// Seconds between two timed marks that were passed.
    fn seconds(&self, from: u64, to: u64) -> Result<f64, BackendError>;
    /// Gives a mark back.
    fn release_mark(&self, mark: u64);
}

/// Device memory.
pub(crate) struct Buffer {
    gpu: Arc<dyn Gpu>,
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// Memory whose contents are undefined. `what` names it in the error.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, bytes: usize, what: &str) -> Result<Self, BackendError> {
        let address = gpu.allocate(bytes.max(1), what)?;
        Ok(Self { gpu: gpu.clone(), address, bytes })
    }

    /// Where it starts.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device that it is on.
    pub(crate) fn facts(&self) -> &Facts {
        self.gpu.facts()
    }

    /// The same, for calls.
    pub(crate) fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }

    /// Fills it with a byte, on the stream.
    pub(crate) fn fill(&self, byte: u8) -> Result<(), BackendError> {
        self.gpu.fill(self.address, byte, self.bytes)
    }

    /// Copies bytes to `offset`, on the stream, through page-locked memory; waits. For small things.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result<(), BackendError> {
        assert!(
            offset.checked_add(data.len()).is_some_and(|end| end <= self.bytes),
            "out of range"
        );
        let mut host = HostBuffer::new(&self.gpu, data.len())?;
        host.bytes_mut()[..data.len()].copy_from_slice(data);
        host.upload(0..data.len(), self, offset)?;
        Mark::new(&self.gpu)?.wait()
    }

    /// Copies bytes from `range` to the host, after what the stream holds; waits.
    #[cfg(test)]
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Vec<u8>, BackendError> {
        let mut host = HostBuffer::new(&self.gpu, range.len())?;
        host.download(0, self, range.clone())?;
        Mark::new(&self.gpu)?.wait()?;
        Ok(host.bytes()[..range.len()].to_vec())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gpu.release(self.address);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.bytes, self.gpu.facts().name)
    }
}

/// Page-locked host memory. While the stream copies from or to it, the owner leaves it alone: it
/// waits for a [`Mark`] set after the copy before it touches the bytes or drops them.
pub(crate) struct HostBuffer {
    gpu: Arc<dyn Gpu>,
    address: u64,
    bytes: usize,
}

impl HostBuffer {
    /// Zeroed memory.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, bytes: usize) -> Result<Self, BackendError> {
        let address = gpu.allocate_host(bytes.max(1))?;
        Ok(Self { gpu: gpu.clone(), address, bytes })
    }

    /// Copies a range of it into a device buffer, on the stream.
    pub(crate) fn upload(
        &self,
        range: Range<usize>,
        to: &Buffer,
        offset: usize,
    ) -> Result<(), BackendError> {
        assert!(range.end <= self.bytes && offset + range.len() <= to.bytes, "out of range");
        self.gpu.upload(to.address + offset as u64, self.address + range.start as u64, range.len())
    }

    /// Copies a range of a device buffer to `offset`, on the stream.
    pub(crate) fn download(
        &mut self,
        offset: usize,
        from: &Buffer,
        range: Range<usize>,
    ) -> Result<(), BackendError> {
        assert!(offset + range.len() <= self.bytes && range.end <= from.bytes, "out of range");
        let (to, from) = (self.address + offset as u64, from.address + range.start as u64);
        self.gpu.download(to, from, range.len())
    }

    /// Its bytes.
    #[expect(unsafe_code, reason = "memory that the device's driver allocated")]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the device gave `bytes` initialised bytes at this address, for us alone, until
        // `release_host`; the owner keeps the stream off them, as the type's contract says.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes) }
    }

    /// Its bytes.
    #[expect(unsafe_code, reason = "memory that the device's driver allocated")]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the exclusive borrow makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        self.gpu.release_host(self.address);
    }
}

/// A point of the stream.
pub(crate) struct Mark {
    gpu: Arc<dyn Gpu>,
    handle: u64,
}

impl Mark {
    /// Where the stream is now.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>) -> Result<Self, BackendError> {
        Ok(Self { gpu: gpu.clone(), handle: gpu.mark(false)? })
    }

    /// Where the stream is now, and when it comes there.
    pub(crate) fn timed(gpu: &Arc<dyn Gpu>) -> Result<Self, BackendError> {
        Ok(Self { gpu: gpu.clone(), handle: gpu.mark(true)? })
    }

    /// Waits until the stream has passed it.
    pub(crate) fn wait(&self) -> Result<(), BackendError> {
        self.gpu.wait(self.handle)
    }

    /// Seconds since an earlier mark; both are timed and were passed.
    pub(crate) fn seconds_since(&self, earlier: &Self) -> Result<f64, BackendError> {
        self.gpu.seconds(earlier.handle, self.handle)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.gpu.release_mark(self.handle);
    }
}

/// Launches that start with one call.
pub(crate) struct Recording {
    gpu: Arc<dyn Gpu>,
    handle: u64,
}

impl Recording {
    /// Records launches that run one after the other.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, launches: &[Launch]) -> Result<Self, BackendError> {
        Ok(Self { gpu: gpu.clone(), handle: gpu.record(launches)? })
    }

    /// Starts them, on the stream.
    pub(crate) fn replay(&self) -> Result<(), BackendError> {
        self.gpu.replay(self.handle)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.gpu.release_recording(self.handle);
    }
}
