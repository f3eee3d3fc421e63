//! A made-up driver for one thread's test: it notes each call, keeps account of what was made and
//! given back, and fails where it is told to.

use std::{cell::RefCell, collections::BTreeSet, ffi::CStr, ptr};

use cudarc::driver::sys;

use super::super::calls::Raw;
use super::*;

/// Bytes of memory that the device has free at first.
pub(super) const ROOM: usize = 80_000_000_000;

#[derive(Default)]
struct State {
    log: Vec<String>,
    /// Whether this thread has a context.
    current: bool,
    /// Calls that fail the next time, with what.
    failing: Vec<(&'static str, c_int)>,
    /// A context that broke returns this from every call.
    broken: Option<c_int>,
    /// What was made and not given back: the kind, the handle or address.
    live: BTreeSet<(&'static str, usize)>,
    made: usize,
    used: usize,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// The next call of that name returns `code`. A code from 700 on breaks the context, as it does in
/// truth.
pub(super) fn fail(call: &'static str, code: c_int) {
    STATE.with_borrow_mut(|state| state.failing.push((call, code)));
}

/// The calls since the last time, without those that make the context current.
pub(super) fn log() -> Vec<String> {
    let all = STATE.with_borrow_mut(|state| std::mem::take(&mut state.log));
    all.into_iter().filter(|line| line != "cuCtxSetCurrent").collect()
}

/// What was made and not given back.
pub(super) fn live() -> Vec<&'static str> {
    STATE.with_borrow(|state| state.live.iter().map(|(kind, _)| *kind).collect())
}

/// Notes a call; what it shall return.
fn called(line: String) -> c_int {
    STATE.with_borrow_mut(|state| {
        let name = line.split(' ').next().unwrap().to_owned();
        let without = ["cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxSetCurrent"];
        assert!(state.current || without.contains(&&*name), "{name} without a context");
        state.log.push(line);
        if let Some(at) = state.failing.iter().position(|(call, _)| *call == name) {
            let (_, code) = state.failing.remove(at);
            state.broken = (700..800).contains(&code).then_some(code);
            return code;
        }
        state.broken.unwrap_or(0)
    })
}

/// Notes the call that makes a thing, and makes it.
unsafe fn make(to: *mut Raw, kind: &'static str, line: String) -> c_int {
    let code = called(line);
    if code == 0 {
        let handle = STATE.with_borrow_mut(|state| {
            state.made += 1;
            state.live.insert((kind, state.made));
            state.made
        });
        // SAFETY: as the API's reference asks of the caller.
        unsafe { to.write(ptr::without_provenance_mut(handle)) };
    }
    code
}

/// Notes the call that gives a thing back.
fn give_back(handle: usize, kind: &'static str, line: &str) -> c_int {
    let code = called(line.to_owned());
    if code == 0 {
        let known = STATE.with_borrow_mut(|state| state.live.remove(&(kind, handle)));
        assert!(known, "{line}: no {kind} {handle}");
    }
    code
}

macro_rules! make {
    ($name:ident($($argument:ty),*) = $kind:literal, $call:literal) => {
        unsafe extern "system" fn $name(to: *mut Raw, $(_: $argument),*) -> c_int {
            // SAFETY: as the API's reference asks of the caller.
            unsafe { make(to, $kind, $call.into()) }
        }
    };
}
macro_rules! give_back {
    ($name:ident = $kind:literal, $call:literal) => {
        unsafe extern "system" fn $name(handle: Raw) -> c_int {
            give_back(handle as usize, $kind, $call)
        }
    };
}
macro_rules! note {
    ($name:ident($($argument:ty),*) = $call:literal) => {
        unsafe extern "system" fn $name($(_: $argument),*) -> c_int {
            called($call.into())
        }
    };
}

make!(stream_create(c_uint) = "stream", "cuStreamCreate");
make!(event_create(c_uint) = "event", "cuEventCreate");
make!(module_load(*const std::ffi::c_void) = "module", "cuModuleLoadData");
make!(graph_instantiate(Raw, u64) = "executable", "cuGraphInstantiateWithFlags");
make!(retain(c_int) = "context", "cuDevicePrimaryCtxRetain");
give_back!(stream_destroy = "stream", "cuStreamDestroy");
give_back!(event_destroy = "event", "cuEventDestroy");
give_back!(module_unload = "module", "cuModuleUnload");
give_back!(executable_destroy = "executable", "cuGraphExecDestroy");
give_back!(graph_destroy = "graph", "cuGraphDestroy");
give_back!(free_host = "host memory", "cuMemFreeHost");
note!(synchronize(Raw) = "cuStreamSynchronize");
note!(fill(u64, u8, usize, Raw) = "cuMemsetD8Async");
note!(copy(u64, u64, usize, Raw) = "cuMemcpyDtoDAsync");
note!(upload(u64, *const std::ffi::c_void, usize, Raw) = "cuMemcpyHtoDAsync");
note!(download(Raw, u64, usize, Raw) = "cuMemcpyDtoHAsync");
note!(event_record(Raw, Raw) = "cuEventRecord");
note!(event_synchronize(Raw) = "cuEventSynchronize");

unsafe extern "system" fn set_current(context: Raw) -> c_int {
    let code = called("cuCtxSetCurrent".into());
    STATE.with_borrow_mut(|state| state.current = code == 0 && !context.is_null());
    code
}
unsafe extern "system" fn release(_: c_int) -> c_int {
    called("cuDevicePrimaryCtxRelease".into());
    STATE.with_borrow_mut(|state| state.live.retain(|(kind, _)| *kind != "context"));
    0
}
unsafe extern "system" fn info(free: *mut usize, total: *mut usize) -> c_int {
    // SAFETY: as the API's reference asks of the caller.
    unsafe { put(total, ROOM) };
    // SAFETY: as above.
    unsafe { put(free, ROOM - STATE.with_borrow(|state| state.used)) };
    called("cuMemGetInfo".into())
}
unsafe extern "system" fn alloc(to: *mut u64, bytes: usize) -> c_int {
    let full = STATE.with_borrow_mut(|state| {
        let full = state.used + bytes > ROOM;
        state.used += if full { 0 } else { bytes };
        full
    });
    if full {
        called("cuMemAlloc".into());
        return 2;
    }
    // SAFETY: a handle and an address are of one size here.
    unsafe { make(to.cast(), "memory", "cuMemAlloc".into()) }
}
unsafe extern "system" fn free(address: u64) -> c_int {
    give_back(address as usize, "memory", "cuMemFree")
}
unsafe extern "system" fn host_alloc(to: *mut Raw, bytes: usize, _: c_uint) -> c_int {
    let code = called("cuMemHostAlloc".into());
    if code == 0 {
        // Never freed: it is a test's, and small.
        let memory: Raw = Box::leak(vec![0xffu8; bytes].into_boxed_slice()).as_mut_ptr().cast();
        STATE.with_borrow_mut(|state| state.live.insert(("host memory", memory as usize)));
        // SAFETY: as the API's reference asks of the caller.
        unsafe { to.write(memory) };
    }
    code
}
unsafe extern "system" fn begin(stream: Raw, mode: c_uint) -> c_int {
    called(format!("cuStreamBeginCapture {} mode {mode}", stream as usize))
}
unsafe extern "system" fn end(_: Raw, to: *mut Raw) -> c_int {
    // SAFETY: as the API's reference asks of the caller.
    unsafe { make(to, "graph", "cuStreamEndCapture".into()) }
}
unsafe extern "system" fn get_function(to: *mut Raw, _: Raw, name: *const c_char) -> c_int {
    // SAFETY: as the API's reference asks of the caller.
    let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap();
    // SAFETY: as above. The kernel's "handle" is its first letter.
    unsafe { put(to, ptr::without_provenance_mut(usize::from(name.as_bytes()[0]))) };
    called(format!("cuModuleGetFunction {name}"))
}
unsafe extern "system" fn encode(
    to: *mut sys::CUtensorMap,
    kind: c_uint,
    rank: u32,
    address: u64,
    dims: *const u64,
    strides: *const u64,
    boxes: *const u32,
    steps: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
) -> c_int {
    assert_eq!((rank, to as usize % 64), (2, 0));
    // SAFETY: as the API's reference asks of the caller, for two dimensions.
    let (dims, strides) = unsafe { (*dims.cast::<[u64; 2]>(), *strides) };
    // SAFETY: as above.
    let (boxes, steps) = unsafe { (*boxes.cast::<[u32; 2]>(), *steps.cast::<[u32; 2]>()) };
    // SAFETY: as above.
    unsafe { (*to).opaque = std::array::from_fn(|i| i as u64 * 0x0101_0101_0101_0101) };
    called(format!(
        "cuTensorMapEncodeTiled {kind} {address:#x} {dims:?} {strides} {boxes:?} {steps:?} \
         {interleave} {swizzle} {promotion} {fill}"
    ))
}
unsafe extern "system" fn param_info(
    _: Raw,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> c_int {
    assert_eq!(index, 0);
    // SAFETY: as the API's reference asks of the caller.
    unsafe { put(offset, 0) };
    // SAFETY: as above.
    unsafe { put(size, 4) }
}
unsafe extern "system" fn set_attribute(_: Raw, attribute: c_uint, value: c_int) -> c_int {
    called(format!("cuFuncSetAttribute {attribute} {value}"))
}
unsafe extern "system" fn launch(
    config: *const sys::CUlaunchConfig,
    function: Raw,
    parameters: *mut Raw,
    extra: *mut Raw,
) -> c_int {
    assert!(extra.is_null());
    // SAFETY: as the API's reference asks of the caller.
    let config = unsafe { &*config };
    // SAFETY: as above; `param_info` says that the only parameter has 4 bytes.
    let bytes = unsafe { (*parameters).cast::<[u8; 4]>().read() };
    let overlaps = (0..config.numAttrs as usize).any(|i| {
        // SAFETY: as above.
        let attribute = unsafe { &*config.attrs.add(i) };
        use sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as ID;
        assert!(attribute.id == ID);
        // SAFETY: the id says which of the union's fields it is.
        unsafe { attribute.value.programmaticStreamSerializationAllowed == 1 }
    });
    let kernel = char::from(function as usize as u8);
    let grid = [config.gridDimX, config.gridDimY, config.gridDimZ];
    let threads = [config.blockDimX, config.blockDimY, config.blockDimZ];
    called(format!(
        "cuLaunchKernelEx {kernel} {grid:?} {threads:?} shared {} stream {} {bytes:?}{}",
        config.sharedMemBytes,
        config.hStream as usize,
        if overlaps { " overlaps" } else { "" }
    ))
}
unsafe extern "system" fn graph_launch(graph: Raw, stream: Raw) -> c_int {
    assert!(STATE.with_borrow(|state| state.live.contains(&("executable", graph as usize))));
    called(format!("cuGraphLaunch stream {}", stream as usize))
}
unsafe extern "system" fn elapsed(to: *mut f32, _: Raw, _: Raw) -> c_int {
    // SAFETY: as the API's reference asks of the caller.
    unsafe { put(to, 2.5) };
    called("cuEventElapsedTime".into())
}

/// The table of this driver's functions.
pub(super) fn calls() -> Calls {
    Calls {
        device_primary_ctx_retain: retain,
        device_primary_ctx_release: release,
        ctx_set_current: set_current,
        mem_get_info: info,
        mem_alloc: alloc,
        mem_free: free,
        mem_host_alloc: host_alloc,
        mem_free_host: free_host,
        memset_d8_async: fill,
        memcpy_dtod_async: copy,
        memcpy_htod_async: upload,
        memcpy_dtoh_async: download,
        stream_create,
        stream_synchronize: synchronize,
        stream_destroy,
        stream_begin_capture: begin,
        stream_end_capture: end,
        tensor_map_encode_tiled: encode,
        module_load_data: module_load,
        module_get_function: get_function,
        module_unload,
        func_get_param_info: param_info,
        func_set_attribute: set_attribute,
        launch_kernel_ex: launch,
        graph_instantiate_with_flags: graph_instantiate,
        graph_destroy,
        graph_launch,
        graph_exec_destroy: executable_destroy,
        event_create,
        event_record,
        event_synchronize,
        event_elapsed_time: elapsed,
        event_destroy,
    }
}
