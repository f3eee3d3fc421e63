//! A CUDA device: its primary context, and one stream on which everything runs in order.
#![expect(unsafe_code, reason = "calls into the driver's C API")]

use std::{
    collections::HashMap,
    ffi::{c_int, c_void},
    ptr,
    sync::{Mutex, OnceLock},
};

use cudarc::driver::sys;
use realm_core::backend::BackendError;

use super::{
    api::{self, Driver, Properties},
    calls::{Calls, Raw},
    images::Images,
    launch::Module,
};
use crate::{
    Reason,
    cuda::gpu::{Facts, Gpu, Launch, TensorMapSpec},
};

pub(super) const OUT_OF_MEMORY: c_int = sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as c_int;

/// Set to anything, it keeps launches from overlapping: where that changes results, a kernel does not
/// wait where it must.
const SERIAL: &str = "REALM_CUDA_SERIAL";

/// A handle that goes from thread to thread.
#[derive(Clone, Copy)]
pub(super) struct Handle(pub(super) Raw);

impl Handle {
    const NONE: Self = Self(ptr::null_mut());
}

// SAFETY: only the driver looks behind a handle, and its functions may be called with it from any
// thread, from several at once, too.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// A device that was opened. Each call makes the context current first, so that every thread may
/// make it.
pub(super) struct Device {
    driver: Driver,
    pub(super) calls: Calls,
    facts: Facts,
    /// Bytes of memory in all.
    memory: u64,
    device: sys::CUdevice,
    context: Handle,
    pub(super) stream: Handle,
    /// A stream on which nothing runs: launches are captured there, apart from what other threads
    /// put on `stream` meanwhile.
    pub(super) recorder: Mutex<Handle>,
    /// Whether a kernel may be told to start before its predecessor has ended: the kernels wait
    /// for it themselves, from compute capability 9.0 on.
    pub(super) overlaps: bool,
    pub(super) images: Images,
    /// The units loaded so far, by name.
    pub(super) modules: Mutex<HashMap<String, Module>>,
    /// What lost the device: every later call fails alike.
    lost: OnceLock<BackendError>,
}

impl Device {
    /// Opens device `ordinal`, whose properties these are and whose description is `description`.
    pub(super) fn open(
        driver: Driver,
        calls: Calls,
        images: Images,
        ordinal: u32,
        properties: &Properties,
        description: String,
    ) -> Result<Self, Reason> {
        let mut device = Self {
            driver,
            calls,
            facts: Facts {
                name: format!("cuda:{ordinal}"),
                description,
                memory: None,
                shared_memory: properties.shared_memory,
                multiprocessors: properties.multiprocessors,
                multiprocessor_shared_memory: properties.multiprocessor_shared_memory,
                wgmma: properties.compute_capability == (9, 0) && images.have_wgmma(),
            },
            memory: properties.memory,
            device: properties.device,
            context: Handle::NONE,
            stream: Handle::NONE,
            recorder: Mutex::new(Handle::NONE),
            overlaps: properties.compute_capability >= (9, 0) && std::env::var_os(SERIAL).is_none(),
            images,
            modules: Mutex::default(),
            lost: OnceLock::new(),
        };
        let mut context = ptr::null_mut();
        // SAFETY: the pointer is to a live handle, the device from cuDeviceGet.
        let code = unsafe { (device.calls.device_primary_ctx_retain)(&mut context, device.device) };
        device.opening("cuDevicePrimaryCtxRetain", code)?;
        device.context = Handle(context);
        // SAFETY: the context was just retained.
        let code = unsafe { (device.calls.ctx_set_current)(context) };
        device.opening("cuCtxSetCurrent", code)?;
        device.stream = device.new_stream()?;
        device.recorder = Mutex::new(device.new_stream()?);
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to live numbers.
        let code = unsafe { (device.calls.mem_get_info)(&mut free, &mut total) };
        device.opening("cuMemGetInfo", code)?;
        device.facts.memory = Some(free as u64);
        Ok(device)
    }

    /// What a call came to while the device was opened.
    fn opening(&self, call: &'static str, code: c_int) -> Result<(), Reason> {
        match code {
            OUT_OF_MEMORY => Err(Reason::Full { call, cause: self.driver.words(code) }),
            _ => self.driver.check(call, code),
        }
    }

    fn new_stream(&self) -> Result<Handle, Reason> {
        const NON_BLOCKING: u32 = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut stream = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        let code = unsafe { (self.calls.stream_create)(&mut stream, NON_BLOCKING) };
        self.opening("cuStreamCreate", code)?;
        Ok(Handle(stream))
    }

    /// Makes the context current; fails at once where the device is lost.
    pub(super) fn enter(&self) -> Result<(), BackendError> {
        if let Some(lost) = self.lost.get() {
            return Err(lost.clone());
        }
        // SAFETY: the context is retained as long as `self` lives.
        let code = unsafe { (self.calls.ctx_set_current)(self.context.0) };
        self.check("cuCtxSetCurrent", code)
    }

    /// What a call came to.
    pub(super) fn check(&self, call: &str, code: c_int) -> Result<(), BackendError> {
        if code == api::SUCCESS {
            return Ok(());
        }
        let words = self.driver.words(code);
        if !loses_the_device(code) {
            return Err(self.failed(call, words));
        }
        let error = self.failed(call, format!("{words}; the device is lost to this process"));
        Err(self.lost.get_or_init(|| error).clone())
    }

    /// As [`Self::check`], for calls that need memory: `needed` bytes for `what`.
    pub(super) fn check_memory(
        &self,
        call: &str,
        code: c_int,
        needed: usize,
        what: &str,
    ) -> Result<(), BackendError> {
        match code {
            OUT_OF_MEMORY => Err(self.out_of_memory(needed, what, self.free_memory())),
            _ => self.check(call, code),
        }
    }

    pub(super) fn failed(&self, call: &str, cause: String) -> BackendError {
        BackendError::Failed { device: self.facts.name.clone(), call: call.to_owned(), cause }
    }

    fn out_of_memory(&self, needed: usize, what: &str, available: Option<u64>) -> BackendError {
        BackendError::OutOfMemory {
            device: self.facts.name.clone(),
            what: what.to_owned(),
            needed: needed as u64,
            available,
        }
    }

    /// Bytes that are free now; `None` where the driver does not say.
    fn free_memory(&self) -> Option<u64> {
        self.enter().ok()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to live numbers.
        let code = unsafe { (self.calls.mem_get_info)(&mut free, &mut total) };
        self.check("cuMemGetInfo", code).ok()?;
        Some(free as u64)
    }

    /// Waits for all that is on the stream.
    fn synchronize(&self) -> Result<(), BackendError> {
        // SAFETY: the stream lives as long as `self`.
        let code = unsafe { (self.calls.stream_synchronize)(self.stream.0) };
        self.check("cuStreamSynchronize", code)
    }
}

/// Whether the context can do nothing more after this error: the API's reference says of them that
/// the process must be ended, or the device is gone.
fn loses_the_device(code: c_int) -> bool {
    use sys::CUresult as Error;
    [
        Error::CUDA_ERROR_DEINITIALIZED,
        Error::CUDA_ERROR_INVALID_CONTEXT,
        Error::CUDA_ERROR_ECC_UNCORRECTABLE,
        Error::CUDA_ERROR_NVLINK_UNCORRECTABLE,
        Error::CUDA_ERROR_ILLEGAL_ADDRESS,
        Error::CUDA_ERROR_LAUNCH_TIMEOUT,
        Error::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        Error::CUDA_ERROR_ASSERT,
        Error::CUDA_ERROR_HARDWARE_STACK_ERROR,
        Error::CUDA_ERROR_ILLEGAL_INSTRUCTION,
        Error::CUDA_ERROR_MISALIGNED_ADDRESS,
        Error::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        Error::CUDA_ERROR_INVALID_PC,
        Error::CUDA_ERROR_LAUNCH_FAILED,
        Error::CUDA_ERROR_TENSOR_MEMORY_LEAK,
        Error::CUDA_ERROR_CONTAINED,
        Error::CUDA_ERROR_MPS_CLIENT_TERMINATED,
        Error::CUDA_ERROR_EXTERNAL_DEVICE,
        Error::CUDA_ERROR_UNKNOWN,
    ]
    .iter()
    .any(|error| *error as c_int == code)
}

impl Gpu for Device {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<u64, BackendError> {
        self.enter()?;
        if bytes as u64 > self.memory {
            return Err(self.out_of_memory(bytes, what, self.free_memory()));
        }
        let mut address = 0;
        // SAFETY: the pointer is to a live address.
        let code = unsafe { (self.calls.mem_alloc)(&mut address, bytes) };
        self.check_memory("cuMemAlloc", code, bytes, what)?;
        Ok(address)
    }

    fn release(&self, address: u64) {
        // After a failure the memory stays with the process: it may still be in use.
        if self.enter().and_then(|()| self.synchronize()).is_ok() {
            // SAFETY: the address is from cuMemAlloc, given back once, and nothing uses it any more.
            let code = unsafe { (self.calls.mem_free)(address) };
            let _ = self.check("cuMemFree", code);
        }
    }

    fn allocate_host(&self, bytes: usize) -> Result<u64, BackendError> {
        const WHAT: &str = "page-locked host memory";
        /// Page-locked for every context of the process.
        const PORTABLE: u32 = 1;
        self.enter()?;
        if isize::try_from(bytes).is_err() {
            return Err(self.out_of_memory(bytes, WHAT, None));
        }
        let mut address = ptr::null_mut();
        // SAFETY: the pointer is to a live pointer.
        let code = unsafe { (self.calls.mem_host_alloc)(&mut address, bytes, PORTABLE) };
        if code == OUT_OF_MEMORY {
            // What is free on the device says nothing of the host.
            return Err(self.out_of_memory(bytes, WHAT, None));
        }
        self.check("cuMemHostAlloc", code)?;
        // SAFETY: the driver has just given `bytes` bytes at this address, for us alone.
        unsafe { address.cast::<u8>().write_bytes(0, bytes) };
        Ok(address as u64)
    }

    fn release_host(&self, address: u64) {
        if self.enter().is_ok() {
            // SAFETY: the address is from cuMemHostAlloc, given back once; its owner has waited for
            // the copies from and to it.
            let code = unsafe { (self.calls.mem_free_host)(host(address)) };
            let _ = self.check("cuMemFreeHost", code);
        }
    }

    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), BackendError> {
        self.enter()?;
        // SAFETY: the caller vouches for `bytes` bytes of device memory, and that they live until
        // the stream has filled them.
        let code = unsafe { (self.calls.memset_d8_async)(to, byte, bytes, self.stream.0) };
        self.check("cuMemsetD8Async", code)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError> {
        self.enter()?;
        // SAFETY: as in `fill`, for both ranges.
        let code = unsafe { (self.calls.memcpy_dtod_async)(to, from, bytes, self.stream.0) };
        self.check("cuMemcpyDtoDAsync", code)
    }

    fn upload(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError> {
        self.enter()?;
        // SAFETY: as in `fill`, for both ranges.
        let code = unsafe { (self.calls.memcpy_htod_async)(to, host(from), bytes, self.stream.0) };
        self.check("cuMemcpyHtoDAsync", code)
    }

    fn download(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError> {
        self.enter()?;
        // SAFETY: as in `fill`, for both ranges.
        let code = unsafe { (self.calls.memcpy_dtoh_async)(host(to), from, bytes, self.stream.0) };
        self.check("cuMemcpyDtoHAsync", code)
    }

    fn tensor_map(&self, map: &TensorMapSpec) -> Result<[u8; 128], BackendError> {
        self.enter()?;
        map.bytes().map_err(|cause| self.failed("cuTensorMapEncodeTiled", cause))?;
        self.encode(map)
    }

    fn launch(&self, launch: &Launch) -> Result<(), BackendError> {
        self.enter()?;
        let function = self.function(launch)?;
        self.start(launch, function, self.stream)
    }

    fn record(&self, launches: &[Launch]) -> Result<u64, BackendError> {
        self.enter()?;
        self.capture(launches)
    }

    fn replay(&self, recording: u64) -> Result<(), BackendError> {
        self.enter()?;
        // SAFETY: the graph is from `record`, not given back yet; the caller vouches for the memory
        // that its launches use.
        let code = unsafe { (self.calls.graph_launch)(host(recording), self.stream.0) };
        self.check("cuGraphLaunch", code)
    }

    fn release_recording(&self, recording: u64) {
        if self.enter().is_ok() {
            // SAFETY: the graph is from `record`, given back once; the driver keeps what a launch
            // under way needs.
            let code = unsafe { (self.calls.graph_exec_destroy)(host(recording)) };
            let _ = self.check("cuGraphExecDestroy", code);
        }
    }

    fn mark(&self, timed: bool) -> Result<u64, BackendError> {
        const UNTIMED: u32 = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        self.enter()?;
        let mut event = ptr::null_mut();
        let flags = if timed { 0 } else { UNTIMED };
        // SAFETY: the pointer is to a live handle.
        let code = unsafe { (self.calls.event_create)(&mut event, flags) };
        self.check("cuEventCreate", code)?;
        // SAFETY: the event was just made.
        let code = unsafe { (self.calls.event_record)(event, self.stream.0) };
        let recorded = self.check("cuEventRecord", code);
        if recorded.is_err() {
            self.release_mark(event as u64);
        }
        recorded.map(|()| event as u64)
    }

    fn wait(&self, mark: u64) -> Result<(), BackendError> {
        self.enter()?;
        // SAFETY: the event is from `mark`, not given back yet.
        let code = unsafe { (self.calls.event_synchronize)(host(mark)) };
        self.check("cuEventSynchronize", code)
    }

    fn seconds(&self, from: u64, to: u64) -> Result<f64, BackendError> {
        self.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: the pointer is to a live f32; the events are from `mark`, not given back yet.
        let code =
            unsafe { (self.calls.event_elapsed_time)(&mut milliseconds, host(from), host(to)) };
        self.check("cuEventElapsedTime", code)?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn release_mark(&self, mark: u64) {
        if self.enter().is_ok() {
            // SAFETY: the event is from `mark`, given back once; the driver keeps it as long as the
            // stream needs it.
            let code = unsafe { (self.calls.event_destroy)(host(mark)) };
            let _ = self.check("cuEventDestroy", code);
        }
    }
}

/// A handle or host address as the C API takes it.
fn host(address: u64) -> *mut c_void {
    address as usize as *mut c_void
}

impl Drop for Device {
    /// Gives everything back, unless the device is lost: a lost context gives nothing back before
    /// the process ends, and a call may hang in the driver.
    fn drop(&mut self) {
        if self.context.0.is_null() || self.enter().is_err() {
            return;
        }
        let recorder = *self.recorder.get_mut().unwrap_or_else(|broken| broken.into_inner());
        let modules = self.modules.get_mut().unwrap_or_else(|broken| broken.into_inner());
        let modules: Vec<Raw> = modules.drain().map(|(_, module)| module.handle.0).collect();
        if !self.stream.0.is_null() && self.synchronize().is_err() {
            return;
        }
        // SAFETY: these handles are of this context, nothing runs any more, and nobody else has
        // them; the context is retained until the last line but one. Failures are of no interest.
        unsafe {
            for module in modules {
                (self.calls.module_unload)(module);
            }
            for stream in [self.stream, recorder] {
                if !stream.0.is_null() {
                    (self.calls.stream_destroy)(stream.0);
                }
            }
            (self.calls.ctx_set_current)(ptr::null_mut());
            (self.calls.device_primary_ctx_release)(self.device);
        }
    }
}
