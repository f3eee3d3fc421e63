//! The functions of the CUDA driver that run a model, looked up by name as those of `api` are.
//!
//! Signatures: CUDA Driver API reference, sections *Primary Context Management* to *Graph
//! Management*, and *Tensor Map Object Management*. A handle (context, stream, module, function, event, graph) is a pointer to what
//! only the driver knows.
#![expect(unsafe_code, reason = "signatures of the driver's C API")]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

use cudarc::driver::sys;

use super::api;
use crate::Reason;

/// A handle of the driver's.
pub(super) type Raw = *mut c_void;

macro_rules! calls {
    ($($field:ident = $symbol:literal($($argument:ty),+ $(,)?);)+) => {
        /// Functions of the driver, under the names of the C API without their prefix `cu` and
        /// their version. Whoever makes one vouches that each does what the reference says of it.
        pub(super) struct Calls {
            $(pub(super) $field: unsafe extern "system" fn($($argument),+) -> c_int,)+
        }

        impl Calls {
            /// Looks them up in the library that [`api::Driver::load`] has loaded.
            pub(super) fn load() -> Result<Self, Reason> {
                Ok(Self {
                    // SAFETY: the field's type is the function's signature in the reference.
                    $($field: unsafe { api::symbol($symbol) }?,)+
                })
            }
        }
    };
}

calls! {
    device_primary_ctx_retain = "cuDevicePrimaryCtxRetain"(*mut Raw, sys::CUdevice);
    device_primary_ctx_release = "cuDevicePrimaryCtxRelease_v2"(sys::CUdevice);
    ctx_set_current = "cuCtxSetCurrent"(Raw);
    mem_get_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    mem_alloc = "cuMemAlloc_v2"(*mut u64, usize);
    mem_free = "cuMemFree_v2"(u64);
    mem_host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    mem_free_host = "cuMemFreeHost"(*mut c_void);
    memset_d8_async = "cuMemsetD8Async"(u64, u8, usize, Raw);
    memcpy_dtod_async = "cuMemcpyDtoDAsync_v2"(u64, u64, usize, Raw);
    memcpy_htod_async = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, Raw);
    memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, Raw);
    stream_create = "cuStreamCreate"(*mut Raw, c_uint);
    stream_synchronize = "cuStreamSynchronize"(Raw);
    stream_destroy = "cuStreamDestroy_v2"(Raw);
    stream_begin_capture = "cuStreamBeginCapture_v2"(Raw, c_uint);
    stream_end_capture = "cuStreamEndCapture"(Raw, *mut Raw);
    tensor_map_encode_tiled = "cuTensorMapEncodeTiled"(
        *mut sys::CUtensorMap, c_uint, u32, u64, *const u64, *const u64, *const u32, *const u32,
        c_uint, c_uint, c_uint, c_uint
    );
    module_load_data = "cuModuleLoadData"(*mut Raw, *const c_void);
    module_get_function = "cuModuleGetFunction"(*mut Raw, Raw, *const c_char);
    module_unload = "cuModuleUnload"(Raw);
    func_get_param_info = "cuFuncGetParamInfo"(Raw, usize, *mut usize, *mut usize);
    func_set_attribute = "cuFuncSetAttribute"(Raw, c_uint, c_int);
    launch_kernel_ex =
        "cuLaunchKernelEx"(*const sys::CUlaunchConfig, Raw, *mut *mut c_void, *mut *mut c_void);
    graph_instantiate_with_flags = "cuGraphInstantiateWithFlags"(*mut Raw, Raw, c_ulonglong);
    graph_destroy = "cuGraphDestroy"(Raw);
    graph_launch = "cuGraphLaunch"(Raw, Raw);
    graph_exec_destroy = "cuGraphExecDestroy"(Raw);
    event_create = "cuEventCreate"(*mut Raw, c_uint);
    event_record = "cuEventRecord"(Raw, Raw);
    event_synchronize = "cuEventSynchronize"(Raw);
    event_elapsed_time = "cuEventElapsedTime_v2"(*mut f32, Raw, Raw);
    event_destroy = "cuEventDestroy_v2"(Raw);
}
