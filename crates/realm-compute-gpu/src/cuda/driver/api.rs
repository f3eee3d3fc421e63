//! The few functions of the CUDA driver that a look for devices needs, and how functions are found.
//!
//! They are looked up in cudarc's handle of the driver library rather than called through its
//! bindings, which panic where a library lacks a function and hold results in a Rust enum, whereas
//! a newer driver may return a number that the enum does not list.
//!
//! Signatures: CUDA Driver API reference, sections *Initialization*, *Version Management*, *Device
//! Management* and *Error Handling*.
#![expect(unsafe_code, reason = "calls into the driver's C API")]

use std::ffi::{CStr, c_char, c_int, c_uint};

use cudarc::driver::sys;

use crate::Reason;

/// The driver library's name on this platform.
const LIBRARY: &str = if cfg!(windows) {
    "nvcuda.dll"
} else if cfg!(target_os = "macos") {
    "libcuda.dylib"
} else {
    "libcuda.so.1"
};

pub(super) const SUCCESS: c_int = sys::CUresult::CUDA_SUCCESS as c_int;
const STUB_LIBRARY: c_int = sys::CUresult::CUDA_ERROR_STUB_LIBRARY as c_int;
const NO_DEVICE: c_int = sys::CUresult::CUDA_ERROR_NO_DEVICE as c_int;

/// What a device is.
pub(super) struct Properties {
    /// The driver's handle.
    pub(super) device: sys::CUdevice,
    pub(super) name: String,
    /// Bytes, free or not.
    pub(super) memory: u64,
    /// (major, minor).
    pub(super) compute_capability: (u32, u32),
    pub(super) multiprocessors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub(super) shared_memory: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub(super) multiprocessor_shared_memory: u32,
}

/// Why [`Driver::init`] failed.
#[derive(Debug)]
pub(super) enum InitError {
    /// It found no GPU.
    NoDevice,
    Other(Reason),
}

type GetText = unsafe extern "system" fn(c_int, *mut *const c_char) -> c_int;

/// A function of the driver.
///
/// # Safety
/// The library was found to load, and `T` is the type of a pointer to that function.
pub(super) unsafe fn symbol<T: Copy>(name: &'static str) -> Result<T, Reason> {
    // SAFETY: as the caller vouches. cudarc keeps this handle for the rest of the program, so the
    // function outlives every caller.
    let symbol = unsafe { sys::culib().get(name.as_bytes()) };
    symbol.map(|it| *it).map_err(|_| Reason::DriverLacks { library: LIBRARY, symbol: name })
}

/// Functions of the driver, under the names of the C API without their prefix `cu`. Whoever makes
/// one vouches that each does what the API's reference says of it.
pub(super) struct Driver {
    pub(super) init: unsafe extern "system" fn(c_uint) -> c_int,
    pub(super) driver_get_version: unsafe extern "system" fn(*mut c_int) -> c_int,
    pub(super) device_get_count: unsafe extern "system" fn(*mut c_int) -> c_int,
    pub(super) device_get: unsafe extern "system" fn(*mut sys::CUdevice, c_int) -> c_int,
    pub(super) device_get_name:
        unsafe extern "system" fn(*mut c_char, c_int, sys::CUdevice) -> c_int,
    pub(super) device_total_mem: unsafe extern "system" fn(*mut usize, sys::CUdevice) -> c_int,
    pub(super) device_get_attribute:
        unsafe extern "system" fn(*mut c_int, c_int, sys::CUdevice) -> c_int,
    pub(super) get_error_name: GetText,
    pub(super) get_error_string: GetText,
}

impl Driver {
    /// Loads the library; it stays loaded.
    pub(super) fn load() -> Result<Self, Reason> {
        // SAFETY: loading runs the initialisers of NVIDIA's driver library, which ask nothing of
        // the program.
        if !unsafe { sys::is_culib_present() } {
            return Err(Reason::NoDriver { library: LIBRARY });
        }
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the library was just found to load; the field's type is the function's
                // signature in the API's reference.
                unsafe { symbol($name) }?
            };
        }
        Ok(Self {
            init: symbol!("cuInit"),
            driver_get_version: symbol!("cuDriverGetVersion"),
            device_get_count: symbol!("cuDeviceGetCount"),
            device_get: symbol!("cuDeviceGet"),
            device_get_name: symbol!("cuDeviceGetName"),
            device_total_mem: symbol!("cuDeviceTotalMem_v2"),
            device_get_attribute: symbol!("cuDeviceGetAttribute"),
            get_error_name: symbol!("cuGetErrorName"),
            get_error_string: symbol!("cuGetErrorString"),
        })
    }

    /// The newest CUDA that the driver offers, as (major, minor). Needs no [`Driver::init`].
    pub(super) fn version(&self) -> Result<(u32, u32), Reason> {
        let mut version = 0;
        // SAFETY: the pointer is to a live c_int.
        let code = unsafe { (self.driver_get_version)(&mut version) };
        self.check("cuDriverGetVersion", code)?;
        // Written as 1000 × major + 10 × minor.
        let version = unsigned(version);
        Ok((version / 1000, version % 1000 / 10))
    }

    /// Initialises the driver; needed before every other function but `version`.
    pub(super) fn init(&self) -> Result<(), InitError> {
        // SAFETY: the only argument that the API allows is 0.
        match unsafe { (self.init)(0) } {
            NO_DEVICE => Err(InitError::NoDevice),
            code => self.check("cuInit", code).map_err(InitError::Other),
        }
    }

    /// How many devices there are.
    pub(super) fn count(&self) -> Result<u32, Reason> {
        let mut count = 0;
        // SAFETY: the pointer is to a live c_int.
        let code = unsafe { (self.device_get_count)(&mut count) };
        self.check("cuDeviceGetCount", code)?;
        Ok(unsigned(count))
    }

    /// What device `ordinal` (below `count`) is.
    pub(super) fn properties(&self, ordinal: u32) -> Result<Properties, Reason> {
        let mut device = 0;
        // SAFETY: the pointer is to a live CUdevice; the driver refuses ordinals out of range.
        let code = unsafe { (self.device_get)(&mut device, ordinal as c_int) };
        self.check("cuDeviceGet", code)?;

        let mut memory = 0;
        // SAFETY: the pointer is to a live usize, the device from cuDeviceGet.
        let code = unsafe { (self.device_total_mem)(&mut memory, device) };
        self.check("cuDeviceTotalMem", code)?;

        use sys::CUdevice_attribute as Attribute;
        Ok(Properties {
            device,
            name: self.name(device)?,
            memory: memory as u64,
            compute_capability: (
                self.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                self.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: self
                .attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: self.attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            multiprocessor_shared_memory: self.attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
        })
    }

    fn name(&self, device: sys::CUdevice) -> Result<String, Reason> {
        let mut name = [0u8; 256];
        // The last byte stays 0 whatever the driver writes.
        let room = name.len() as c_int - 1;
        // SAFETY: the pointer is to `room` writable bytes, the device from cuDeviceGet.
        let code = unsafe { (self.device_get_name)(name.as_mut_ptr().cast(), room, device) };
        self.check("cuDeviceGetName", code)?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok(name.to_string_lossy().into_owned())
    }

    fn attribute(
        &self,
        device: sys::CUdevice,
        attribute: sys::CUdevice_attribute,
    ) -> Result<u32, Reason> {
        let mut value = 0;
        // SAFETY: the pointer is to a live c_int, the device from cuDeviceGet.
        let code = unsafe { (self.device_get_attribute)(&mut value, attribute as c_int, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(unsigned(value))
    }

    /// The result of `call` as an error with the driver's own words.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), Reason> {
        match code {
            SUCCESS => Ok(()),
            STUB_LIBRARY => Err(Reason::StubDriver { library: LIBRARY }),
            _ => Err(Reason::Failed { call, cause: self.words(code) }),
        }
    }

    /// The driver's name for an error, its number, and what the driver says of it.
    pub(super) fn words(&self, code: c_int) -> String {
        let mut words = match text(self.get_error_name, code) {
            Some(name) => format!("{name} ({code})"),
            None => format!("error {code}"),
        };
        if let Some(more) = text(self.get_error_string, code) {
            words = format!("{words}, {more}");
        }
        words
    }
}

/// What the driver says of an error; `None` where it knows none of that number.
fn text(get: GetText, code: c_int) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: the pointer is to a live pointer; every number is allowed.
    let result = unsafe { get(code, &mut text) };
    if result != SUCCESS || text.is_null() {
        return None;
    }
    // SAFETY: on success it is one of the driver's constant strings, which end in 0.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

/// A figure that the API counts in signed numbers, though it is never below 0.
fn unsigned(value: c_int) -> u32 {
    value.try_into().unwrap_or(0)
}
