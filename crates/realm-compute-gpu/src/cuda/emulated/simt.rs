//! The shim of `kernels/cuda/simt`: memory with guards, and kernels run to their end.

#![expect(unsafe_code, reason = "calls into the shim")]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    ptr::NonNull,
};

use crate::{
    EmulatedKernel,
    cuda::gpu::{Launch, TensorMapSpec},
};

/// Device memory that kernels may touch.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Range {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Becomes 1 once a kernel has written to it.
    pub(super) written: usize,
}

unsafe extern "C" {
    fn realm_simt_launch(
        unit: *const c_char,
        kernel: *const c_char,
        grid: *const u32,
        threads: u32,
        shared: u32,
        parameters: *const u8,
        parameters_len: usize,
        seed: u64,
        ranges: *mut Range,
        range_count: usize,
        error: *mut c_char,
        error_len: usize,
    ) -> c_int;
    fn realm_simt_kernel(index: usize, unit: *mut *const c_char, name: *mut *const c_char)
    -> c_int;
    fn realm_simt_allocate(bytes: usize, fill: u8) -> *mut u8;
    fn realm_simt_release(start: *mut u8, bytes: usize);
    fn realm_simt_stray_write(start: *const u8, bytes: usize) -> c_int;
}

/// Runs a kernel. `ranges` is all device memory, sorted; an error is what went wrong.
pub(super) fn launch(launch: &Launch, seed: u64, ranges: &mut [Range]) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "a name with a 0 in it".to_owned());
    let (unit, kernel) = (text(&launch.unit)?, text(&launch.kernel)?);
    let mut error = [0; 512];
    // SAFETY: all pointers are to live memory of the lengths given. That the parameters' pointers
    // fit the kernel is the promise of whoever made the launch (see `gpu.rs`).
    let failed = unsafe {
        realm_simt_launch(
            unit.as_ptr(),
            kernel.as_ptr(),
            launch.grid.as_ptr(),
            launch.threads,
            launch.shared,
            launch.parameters.as_ptr(),
            launch.parameters.len(),
            seed,
            ranges.as_mut_ptr(),
            ranges.len(),
            error.as_mut_ptr(),
            error.len(),
        )
    };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: the shim ends the message with a 0 inside the array.
    let message = unsafe { CStr::from_ptr(error.as_ptr()) };
    Err(message.to_string_lossy().into_owned())
}

/// Every kernel, in no order.
pub(super) fn kernels() -> Vec<EmulatedKernel> {
    let mut kernels = Vec::new();
    let (mut unit, mut name) = (std::ptr::null(), std::ptr::null());
    // SAFETY: the pointers are to live pointers; an index that is too large is answered by -1.
    while let ran @ 0.. = unsafe { realm_simt_kernel(kernels.len(), &mut unit, &mut name) } {
        // SAFETY: the shim's names are constant and end in 0.
        let text = |text| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        kernels.push(EmulatedKernel { unit: text(unit), kernel: text(name), ran: ran != 0 });
    }
    kernels
}

/// The shim's `TensorMap`.
pub(super) fn tensor_map(map: &TensorMapSpec) -> [u8; 128] {
    const MAGIC: u64 = u64::from_le_bytes(*b"relm-map");
    let boxes = u64::from(map.box_cols) | u64::from(map.box_rows) << 32;
    let words = [MAGIC, map.address, map.cols, map.rows, map.row_bytes, boxes];
    let mut bytes = [0; 128];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Memory between two pages that nobody may touch.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory, like a Box.
unsafe impl Send for Memory {}

impl Memory {
    /// Memory filled with a byte, aligned to 256 bytes; `None` where there is not enough.
    pub(super) fn new(bytes: usize, fill: u8) -> Option<Self> {
        // SAFETY: no preconditions.
        let start = unsafe { realm_simt_allocate(bytes, fill) };
        Some(Self { start: NonNull::new(start)?, bytes })
    }

    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was written that does not belong to it: `before` or `behind`, if anything.
    pub(super) fn stray_write(&self) -> Option<&'static str> {
        // SAFETY: made by `realm_simt_allocate` with this length.
        match unsafe { realm_simt_stray_write(self.start.as_ptr(), self.bytes) } {
            0 => None,
            1 => Some("before"),
            _ => Some("behind"),
        }
    }

    /// Fills a range that lies inside.
    pub(super) fn fill(&mut self, offset: usize, byte: u8, bytes: usize) {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "out of range");
        // SAFETY: inside the allocation, which no kernel uses while the stream stands here.
        unsafe { self.start.add(offset).write_bytes(byte, bytes) }
    }

    /// Copies from another allocation, or from another place in this one: ranges that lie inside.
    pub(super) fn copy(&self, offset: usize, from: &Self, from_offset: usize, bytes: usize) {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "out of range");
        let end = from_offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= from.bytes), "out of range");
        // SAFETY: both inside their allocations, which no kernel uses while the stream stands here;
        // host memory is left alone by its owner, as `HostBuffer` says.
        unsafe {
            let from = from.start.add(from_offset).as_ptr();
            from.copy_to(self.start.add(offset).as_ptr(), bytes);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `realm_simt_allocate` with this length, released once.
        unsafe { realm_simt_release(self.start.as_ptr(), self.bytes) }
    }
}
