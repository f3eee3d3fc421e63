//! The list against made-up drivers: each case changes one function of a good one. `device` does
//! the same with a device that is opened.
#![expect(unsafe_code, reason = "stands in for the driver's C API")]

use std::ffi::{c_char, c_int, c_uint};

use super::*;

mod device;
mod fake;

extern "system" fn init(_: c_uint) -> c_int {
    0
}
extern "system" fn init_without_device(_: c_uint) -> c_int {
    100
}
extern "system" fn init_mismatch(_: c_uint) -> c_int {
    803
}
extern "system" fn init_of_stub(_: c_uint) -> c_int {
    34
}
extern "system" fn init_unheard_of(_: c_uint) -> c_int {
    123_456
}

unsafe fn put<T>(to: *mut T, value: T) -> c_int {
    // SAFETY: the caller's pointer is to a live T.
    unsafe { to.write(value) };
    0
}

macro_rules! puts {
    ($($name:ident: $type:ty = $value:expr;)*) => {$(
        unsafe extern "system" fn $name(to: *mut $type) -> c_int {
            // SAFETY: as the API's reference asks of the caller.
            unsafe { put(to, $value) }
        }
    )*};
}
puts! {
    cuda_13_1: c_int = 13_010;
    cuda_12_9: c_int = 12_090;
    no_cuda: c_int = 0;
    below_zero: c_int = -1;
    two: c_int = 2;
    zero: c_int = 0;
}

unsafe extern "system" fn get(device: *mut c_int, ordinal: c_int) -> c_int {
    // SAFETY: as the API's reference asks of the caller.
    unsafe { put(device, ordinal) }
}
unsafe extern "system" fn name(to: *mut c_char, room: c_int, _: c_int) -> c_int {
    let text = b"NVIDIA H100 80GB HBM3";
    assert!(room as usize > text.len());
    for (i, &byte) in text.iter().chain(b"\0").enumerate() {
        // SAFETY: below `room`, which the caller vouches for.
        unsafe { to.add(i).write(byte as c_char) };
    }
    0
}
unsafe extern "system" fn endless_name(to: *mut c_char, room: c_int, _: c_int) -> c_int {
    // SAFETY: the caller vouches for `room` bytes.
    unsafe { to.write_bytes(b'x', room as usize) };
    0
}
unsafe extern "system" fn total_mem(to: *mut usize, _: c_int) -> c_int {
    // SAFETY: as the API's reference asks of the caller.
    unsafe { put(to, 85_000_000_000) }
}
unsafe extern "system" fn total_mem_but_of_0(to: *mut usize, device: c_int) -> c_int {
    if device == 0 {
        return 214;
    }
    // SAFETY: as the API's reference asks of the caller.
    unsafe { total_mem(to, device) }
}
/// Of a device of compute capability `MAJOR`.`MINOR`.
unsafe extern "system" fn attribute<const MAJOR: c_int, const MINOR: c_int>(
    to: *mut c_int,
    attribute: c_int,
    _: c_int,
) -> c_int {
    let value = match attribute {
        75 => MAJOR,
        76 => MINOR,
        16 => 132,
        97 => 232_448,
        81 => 233_472,
        _ => return 1,
    };
    // SAFETY: as the API's reference asks of the caller.
    unsafe { put(to, value) }
}
unsafe extern "system" fn error_name(code: c_int, to: *mut *const c_char) -> c_int {
    let text = match code {
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        719 => c"CUDA_ERROR_LAUNCH_FAILED",
        214 => c"CUDA_ERROR_ECC_UNCORRECTABLE",
        803 => c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        _ => return 1,
    };
    // SAFETY: as the API's reference asks of the caller.
    unsafe { put(to, text.as_ptr()) }
}
unsafe extern "system" fn error_string(code: c_int, to: *mut *const c_char) -> c_int {
    let text = match code {
        719 => c"unspecified launch failure",
        803 => c"kernel module and library differ",
        _ => return 1,
    };
    // SAFETY: as the API's reference asks of the caller.
    unsafe { put(to, text.as_ptr()) }
}

fn good() -> Driver {
    Driver {
        init,
        driver_get_version: cuda_13_1,
        device_get_count: two,
        device_get: get,
        device_get_name: name,
        device_total_mem: total_mem,
        device_get_attribute: attribute::<9, 0>,
        get_error_name: error_name,
        get_error_string: error_string,
    }
}

/// As they are made where nothing narrows the build.
fn images() -> Images {
    Images::fake(&["80", "90a", "ptx"], b"image 1.image 2.")
}

fn list(driver: &Driver, visible: Option<String>) -> Result<Vec<GpuDevice>, Reason> {
    super::list(driver, &images(), visible)
}

fn reason(driver: Driver) -> String {
    list(&driver, None).expect_err("this driver has no devices").to_string()
}

#[test]
fn lists_every_device() {
    let devices = list(&good(), None).unwrap();
    let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["cuda:0", "cuda:1"]);
    assert_eq!(devices[1].memory, Some(85_000_000_000));
    assert_eq!(
        devices[1].to_string(),
        "cuda:1: NVIDIA H100 80GB HBM3, 79.2 GiB, compute capability 9.0, 132 multiprocessors, \
         driver with CUDA 13.1"
    );
    assert!(!devices[1].software && devices[1].usable.is_ok());
}

#[test]
fn a_failing_device_does_not_hide_the_others() {
    let driver = Driver { device_total_mem: total_mem_but_of_0, ..good() };
    let devices = list(&driver, None).unwrap();
    assert_eq!(
        devices[0].to_string(),
        "cuda:0: does not answer (not usable: cuDeviceTotalMem failed: \
         CUDA_ERROR_ECC_UNCORRECTABLE (214))"
    );
    assert_eq!(devices[1].usable, Ok(()));
}

#[test]
fn an_old_driver_is_named_with_the_one_needed() {
    assert_eq!(
        // Found out before `init`, which may fail for that very reason.
        reason(Driver { driver_get_version: cuda_12_9, init: init_mismatch, ..good() }),
        "driver too old: it offers CUDA 12.9, this build needs 13.0; update NVIDIA's driver to \
         580 or newer"
    );
    for version in [no_cuda, below_zero] {
        let found = list(&Driver { driver_get_version: version, ..good() }, None).unwrap_err();
        assert!(matches!(found, Reason::DriverTooOld { found: (0, 0), .. }), "{found}");
    }
}

#[test]
fn no_device_says_what_may_hide_it() {
    assert_eq!(
        reason(Driver { init: init_without_device, ..good() }),
        "no device: the driver shows no NVIDIA GPU"
    );
    let hidden = list(&Driver { device_get_count: zero, ..good() }, Some(String::new()));
    assert_eq!(
        hidden.unwrap_err().to_string(),
        "no device: the driver shows no NVIDIA GPU; CUDA_VISIBLE_DEVICES is \"\""
    );
    // A count that makes no sense is no device either.
    let odd = list(&Driver { device_get_count: below_zero, ..good() }, None);
    assert!(matches!(odd, Err(Reason::NoDevice { visible: None })));
}

#[test]
fn errors_carry_the_drivers_words() {
    assert_eq!(
        reason(Driver { init: init_mismatch, ..good() }),
        "cuInit failed: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803), kernel module and library differ"
    );
    assert_eq!(reason(Driver { init: init_unheard_of, ..good() }), "cuInit failed: error 123456");
    assert!(reason(Driver { init: init_of_stub, ..good() }).contains("toolkit's stub"));
}

#[test]
fn a_name_without_end_is_cut() {
    let devices = list(&Driver { device_get_name: endless_name, ..good() }, None).unwrap();
    assert!(devices[0].description.starts_with("xxx"), "{}", devices[0]);
}

#[test]
fn devices_that_the_kernels_do_not_run_on_say_so() {
    let driver = Driver { device_get_attribute: attribute::<7, 5>, ..good() };
    let reason = list(&driver, None).unwrap()[0].usable.clone().unwrap_err();
    let expected =
        "below sm_80: the device's compute capability is 7.5, the kernels need 8.0 or newer";
    assert_eq!(reason.to_string(), expected);

    let driver = Driver { device_get_attribute: attribute::<8, 0>, ..good() };
    assert_eq!(list(&driver, None).unwrap()[0].usable, Ok(()));
    let narrow = Images::fake(&["90a"], b"");
    let reason = super::list(&driver, &narrow, None).unwrap()[0].usable.clone().unwrap_err();
    assert_eq!(
        reason.to_string(),
        "the program was built with REALM_CUDA_ARCHS=90a, which leaves out the device's compute \
         capability 8.0; build without REALM_CUDA_ARCHS"
    );
}
