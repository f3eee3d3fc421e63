//! Kernels of a device: loading them, starting them, recording them as CUDA graphs.
#![expect(unsafe_code, reason = "calls into the driver's C API")]

use std::{
    collections::HashMap,
    ffi::{CString, c_int},
    ptr,
    sync::PoisonError,
};

use cudarc::driver::sys;
use realm_core::backend::BackendError;

use super::device::{Device, Handle};
use crate::cuda::gpu::{Launch, TensorMapSpec};

/// A unit that was loaded.
pub(super) struct Module {
    pub(super) handle: Handle,
    /// Its kernels looked up so far, by name.
    functions: HashMap<String, Function>,
}

struct Function {
    handle: Handle,
    /// Bytes of its parameter struct.
    parameters: usize,
    /// The most dynamic shared memory that a launch may have so far: a kernel must be told before
    /// it gets more than 48 KiB.
    shared: u32,
}

impl Device {
    /// The kernel that a launch names, loaded on first use, ready for the launch's shared memory.
    pub(super) fn function(&self, launch: &Launch) -> Result<Handle, BackendError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if !modules.contains_key(&launch.unit) {
            modules.insert(launch.unit.clone(), self.load(&launch.unit)?);
        }
        let module = modules.get_mut(&launch.unit).expect("it was just loaded");
        if !module.functions.contains_key(&launch.kernel) {
            let function = self.look_up(module.handle, launch)?;
            module.functions.insert(launch.kernel.clone(), function);
        }
        let function = module.functions.get_mut(&launch.kernel).expect("it was just looked up");
        if function.parameters != launch.parameters.len() {
            let cause = format!(
                "kernel {} of {} takes {} bytes of parameters, not {}",
                launch.kernel,
                launch.unit,
                function.parameters,
                launch.parameters.len()
            );
            return Err(self.failed("cuLaunchKernelEx", cause));
        }
        if launch.shared > function.shared {
            const SHARED: u32 =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32;
            let bytes = c_int::try_from(launch.shared).unwrap_or(c_int::MAX);
            // SAFETY: the function's module stays loaded as long as `self` lives.
            let code = unsafe { (self.calls.func_set_attribute)(function.handle.0, SHARED, bytes) };
            self.check(&named("cuFuncSetAttribute", launch), code)?;
            function.shared = launch.shared;
        }
        Ok(function.handle)
    }

    fn load(&self, unit: &str) -> Result<Module, BackendError> {
        let call = format!("cuModuleLoadData (unit {unit})");
        let Some(image) = self.images.find(unit) else {
            return Err(self.failed(&call, "the program holds no such kernels".into()));
        };
        let mut module = ptr::null_mut();
        // SAFETY: the pointer is to a live handle; the image is a fatbin, which says how long it is,
        // and stays in memory.
        let code = unsafe { (self.calls.module_load_data)(&mut module, image.as_ptr().cast()) };
        self.check_memory(&call, code, image.len(), &format!("the kernels of {unit}"))?;
        Ok(Module { handle: Handle(module), functions: HashMap::new() })
    }

    fn look_up(&self, module: Handle, launch: &Launch) -> Result<Function, BackendError> {
        let call = named("cuModuleGetFunction", launch);
        let name = CString::new(launch.kernel.as_str())
            .map_err(|_| self.failed(&call, "no such name".into()))?;
        let mut function = ptr::null_mut();
        // SAFETY: the pointer is to a live handle, the module is loaded, the name ends in 0.
        let code =
            unsafe { (self.calls.module_get_function)(&mut function, module.0, name.as_ptr()) };
        self.check(&call, code)?;
        let (mut offset, mut parameters) = (0, 0);
        // SAFETY: the pointers are to live numbers; the function was just found.
        let code =
            unsafe { (self.calls.func_get_param_info)(function, 0, &mut offset, &mut parameters) };
        self.check(&named("cuFuncGetParamInfo", launch), code)?;
        // The same split of an SM's memory for all kernels: it drains before it changes its split, and
        // then launches would not overlap.
        const CARVEOUT: u32 =
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as u32;
        // SAFETY: the function's module stays loaded as long as `self` lives.
        let code = unsafe { (self.calls.func_set_attribute)(function, CARVEOUT, 100) };
        self.check(&named("cuFuncSetAttribute", launch), code)?;
        Ok(Function { handle: Handle(function), parameters, shared: 0 })
    }

    /// The driver's description of a matrix for tensor copies.
    pub(super) fn encode(&self, map: &TensorMapSpec) -> Result<[u8; 128], BackendError> {
        use sys::{
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16 as WORDS,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZEROS,
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE as PLAIN,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B as LINES,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B as SWIZZLE,
        };
        let (dims, strides) = ([map.cols, map.rows], [map.row_bytes]);
        let (boxes, steps) = ([map.box_cols, map.box_rows], [1, 1]);
        let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the first pointer is to a live map, the others to as many numbers as two dimensions
        // ask for; the driver does not follow the address.
        let code = unsafe {
            (self.calls.tensor_map_encode_tiled)(
                &mut encoded,
                WORDS as u32,
                2,
                map.address,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                PLAIN as u32,
                SWIZZLE as u32,
                LINES as u32,
                ZEROS as u32,
            )
        };
        self.check(&format!("cuTensorMapEncodeTiled ({map:?})"), code)?;
        let mut bytes = [0; 128];
        for (to, word) in bytes.chunks_exact_mut(8).zip(encoded.opaque) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(bytes)
    }

    /// Puts a launch of the kernel that [`Self::function`] has found for it on a stream.
    pub(super) fn start(
        &self,
        launch: &Launch,
        function: Handle,
        stream: Handle,
    ) -> Result<(), BackendError> {
        // The kernel may start while its predecessor ends; it waits for the predecessor's results
        // itself.
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        value.programmaticStreamSerializationAllowed = 1;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value,
        };
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: stream.0.cast(),
            attrs: &mut attribute,
            numAttrs: u32::from(self.overlaps),
        };
        let mut parameters = [launch.parameters.as_ptr().cast_mut().cast()];
        // SAFETY: the configuration and its attribute live through the call. The kernel has one
        // parameter, as long as the bytes behind the pointer (`function` has compared them), which
        // the driver copies. Whoever made the launch vouches for what the parameters point to.
        let code = unsafe {
            (self.calls.launch_kernel_ex)(
                &config,
                function.0,
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.check(&named("cuLaunchKernelEx", launch), code)
    }

    /// An executable graph of launches in their order.
    pub(super) fn capture(&self, launches: &[Launch]) -> Result<u64, BackendError> {
        /// Other threads, and other calls of theirs, are none of the capture's business.
        const THREAD_LOCAL: u32 =
            sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as u32;
        // Loading a kernel is no work for a stream: all are there before the capture starts.
        let functions: Vec<Handle> =
            launches.iter().map(|launch| self.function(launch)).collect::<Result<_, _>>()?;
        let stream = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the stream lives as long as `self`, and the lock keeps other captures off it.
        let code = unsafe { (self.calls.stream_begin_capture)(stream.0, THREAD_LOCAL) };
        self.check("cuStreamBeginCapture", code)?;
        let started = launches
            .iter()
            .zip(functions)
            .try_for_each(|(launch, function)| self.start(launch, function, *stream));
        let mut graph = ptr::null_mut();
        // SAFETY: the pointer is to a live handle. A capture is ended whatever became of it, or the
        // stream would be of no further use.
        let code = unsafe { (self.calls.stream_end_capture)(stream.0, &mut graph) };
        let ended = self.check("cuStreamEndCapture", code);
        drop(stream);

        let made = started.and(ended).and_then(|()| {
            let mut executable = ptr::null_mut();
            // SAFETY: the pointer is to a live handle, the graph was just captured.
            let code =
                unsafe { (self.calls.graph_instantiate_with_flags)(&mut executable, graph, 0) };
            self.check("cuGraphInstantiateWithFlags", code)?;
            Ok(executable as u64)
        });
        if !graph.is_null() {
            // SAFETY: the graph was captured above; what was made of it does not need it. That it
            // might fail is of no interest.
            unsafe { (self.calls.graph_destroy)(graph) };
        }
        made
    }
}

/// A call, with the kernel that it was for.
fn named(call: &str, launch: &Launch) -> String {
    format!("{call} (kernel {} of {})", launch.kernel, launch.unit)
}
