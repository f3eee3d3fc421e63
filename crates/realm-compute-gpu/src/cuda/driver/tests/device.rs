//! A device opened of the made-up driver.

use realm_core::backend::BackendError;

use super::{
    fake::{ROOM, calls, fail, live, log},
    *,
};
use crate::cuda::gpu::{Buffer, HostBuffer, Launch, Mark, Recording, TensorMapSpec};

fn open(driver: Driver) -> Result<Device, Reason> {
    open_with(driver, || Ok(calls()), images(), 0, None)
}

fn opened() -> Arc<dyn Gpu> {
    let device = open(good()).unwrap();
    log();
    Arc::new(device)
}

fn launch(kernel: &str) -> Launch {
    Launch {
        unit: "one".into(),
        kernel: kernel.into(),
        grid: [2, 3, 1],
        threads: 64,
        shared: 0,
        parameters: vec![1, 2, 3, 4],
    }
}

fn failed(result: Result<(), BackendError>) -> String {
    result.expect_err("it cannot have worked").to_string()
}

#[test]
fn everything_is_given_back() {
    let gpu = opened();
    let facts = gpu.facts();
    assert_eq!((facts.name.as_str(), facts.memory), ("cuda:0", Some(ROOM as u64)));
    assert_eq!((facts.shared_memory, facts.multiprocessor_shared_memory), (232_448, 233_472));
    assert_eq!(facts.multiprocessors, 132);
    assert!(facts.description.starts_with("NVIDIA H100 80GB HBM3, 79.2 GiB"));

    let buffer = Buffer::new(&gpu, 1000, "a test").unwrap();
    buffer.fill(1).unwrap();
    buffer.write(10, &[1, 2, 3]).unwrap();
    assert_eq!(buffer.read(0..3).unwrap(), [0; 3]);
    assert!(HostBuffer::new(&gpu, 7).unwrap().bytes().iter().all(|&byte| byte == 0));
    gpu.copy(buffer.address(), buffer.address() + 500, 10).unwrap();
    gpu.launch(&launch("k")).unwrap();
    let recording = Recording::new(&gpu, &[launch("k"), launch("l")]).unwrap();
    let (one, two) = (Mark::timed(&gpu).unwrap(), Mark::timed(&gpu).unwrap());
    assert_eq!(two.seconds_since(&one).unwrap(), 0.0025);
    assert!(live().len() > 5, "{:?}", live());
    drop((one, two, recording, buffer));
    assert_eq!(live(), ["context", "module", "stream", "stream"]);
    log();
    drop(gpu);
    assert_eq!(live(), [""; 0]);
    // Nothing is unloaded under a kernel that runs.
    assert_eq!(log()[..2], ["cuStreamSynchronize", "cuModuleUnload"]);
}

#[test]
fn tensor_maps_are_made_by_the_driver() {
    let gpu = opened();
    let map = TensorMapSpec {
        address: 0x1000,
        cols: 100,
        rows: 7,
        row_bytes: 208,
        box_cols: 64,
        box_rows: 32,
    };
    let bytes = gpu.tensor_map(&map).unwrap();
    let expected: Vec<u8> = (0..128).map(|i| i / 8).collect();
    assert_eq!(bytes[..], expected[..]);
    // Words of 16 bits; not interleaved, 128 bytes swizzled, lines of 128 bytes, zeros outside.
    let call = "cuTensorMapEncodeTiled 1 0x1000 [100, 7] 208 [64, 32] [1, 1] 0 3 2 0";
    assert_eq!(log(), [call]);

    let refused = gpu.tensor_map(&TensorMapSpec { box_rows: 300, ..map }).unwrap_err().to_string();
    assert!(refused.contains("boxes of 300 × 64: its boxes are not"), "{refused}");
    assert_eq!(log(), [""; 0]);
    fail("cuTensorMapEncodeTiled", 1);
    let refused = gpu.tensor_map(&map).unwrap_err().to_string();
    assert!(refused.contains("cuTensorMapEncodeTiled") && !refused.contains('\n'), "{refused}");
}

#[test]
fn hopper_alone_has_wgmma() {
    let wgmma = |driver| open(driver).unwrap().facts().wgmma;
    assert!(wgmma(good()));
    assert!(!wgmma(Driver { device_get_attribute: attribute::<8, 0>, ..good() }));
    assert!(!wgmma(Driver { device_get_attribute: attribute::<10, 0>, ..good() }));
}

#[test]
fn memory_is_given_back_once_the_stream_is_done_with_it() {
    let gpu = opened();
    drop(Buffer::new(&gpu, 1, "a test").unwrap());
    assert_eq!(log(), ["cuMemAlloc", "cuStreamSynchronize", "cuMemFree"]);
}

#[test]
fn a_device_that_cannot_be_opened_says_why() {
    let reason = |driver| open(driver).err().expect("it cannot be opened").to_string();
    let old = Driver { device_get_attribute: attribute::<7, 0>, ..good() };
    assert!(reason(old).starts_with("below sm_80: the device's compute capability is 7.0"));
    let old = Driver { driver_get_version: cuda_12_9, ..good() };
    assert!(reason(old).starts_with("driver too old: it offers CUDA 12.9"));
    let narrow = Images::fake(&["80"], b"");
    let narrow = open_with(good(), || Ok(calls()), narrow, 0, None).err().unwrap();
    assert!(matches!(narrow, Reason::NotInBuild { capability: (9, 0), .. }), "{narrow}");
    let third = open_with(good(), || Ok(calls()), images(), 2, None).err().unwrap();
    assert_eq!(third.to_string(), "no such device: the driver shows 2, counted from 0");
    let lacks = || Err(Reason::DriverLacks { library: "libcuda.so.1", symbol: "cuGraphLaunch" });
    let lacks = open_with(good(), lacks, images(), 0, None).err().unwrap();
    assert!(lacks.to_string().contains("lacks cuGraphLaunch"));

    fail("cuDevicePrimaryCtxRetain", 2);
    assert_eq!(
        reason(good()),
        "its memory is full, probably of other programs' data: cuDevicePrimaryCtxRetain failed: \
         CUDA_ERROR_OUT_OF_MEMORY (2)"
    );
    fail("cuDevicePrimaryCtxRetain", 803);
    assert!(
        reason(good()).starts_with("cuDevicePrimaryCtxRetain failed: CUDA_ERROR_SYSTEM_DRIVER")
    );
    for call in ["cuCtxSetCurrent", "cuStreamCreate"] {
        fail(call, 46);
        assert_eq!(reason(good()), format!("{call} failed: error 46"));
    }
    assert_eq!(live(), [""; 0]);
}

#[test]
fn memory_that_there_is_not() {
    let gpu = opened();
    let all = Buffer::new(&gpu, ROOM - 10, "the weights").unwrap();
    let more = |bytes| Buffer::new(&gpu, bytes, "the KV cache").map(drop);
    assert_eq!(
        failed(more(11)),
        "cuda:0 is out of memory: the KV cache needs 11 bytes, 10 are free; use a smaller --ctx, a \
         smaller file or another --device"
    );
    for bytes in [usize::MAX, usize::MAX / 2, 90_000_000_000] {
        log();
        assert!(failed(more(bytes)).contains(&format!("needs {bytes} bytes, 10 are free")));
        assert_eq!(log(), ["cuMemGetInfo"], "the driver was asked for {bytes} bytes");
    }
    assert!(failed(HostBuffer::new(&gpu, usize::MAX).map(drop)).contains("page-locked"));
    fail("cuMemHostAlloc", 2);
    let host = failed(HostBuffer::new(&gpu, 5).map(drop));
    assert!(host.contains("page-locked host memory needs 5 bytes;"), "{host}");
    fail("cuModuleLoadData", 2);
    assert!(failed(gpu.launch(&launch("k"))).contains("the kernels of one needs 8 bytes"));
    // The device is none the worse for it.
    more(10).unwrap();
    gpu.launch(&launch("k")).unwrap();
    drop(all);
}

#[test]
fn a_lost_device_says_so_at_once_and_ends_quietly() {
    let gpu = opened();
    let buffer = Buffer::new(&gpu, 16, "a test").unwrap();
    let mark = Mark::new(&gpu).unwrap();
    let recording = Recording::new(&gpu, &[launch("k")]).unwrap();
    let mut host = HostBuffer::new(&gpu, 16).unwrap();
    fail("cuEventSynchronize", 719);
    let line = "cuda:0 failed: cuEventSynchronize: CUDA_ERROR_LAUNCH_FAILED (719), unspecified \
                launch failure; the device is lost to this process; start again, with another \
                --device if it stays so";
    assert_eq!(failed(mark.wait()), line);

    log();
    for result in [
        mark.wait(),
        buffer.fill(0),
        buffer.read(0..1).map(drop),
        buffer.write(0, &[1]),
        host.upload(0..1, &buffer, 0),
        host.download(0, &buffer, 0..1),
        gpu.launch(&launch("k")),
        gpu.copy(0, 0, 0),
        recording.replay(),
        Recording::new(&gpu, &[]).map(drop),
        Mark::new(&gpu).map(drop),
        mark.seconds_since(&mark).map(drop),
        Buffer::new(&gpu, 1, "more").map(drop),
    ] {
        assert_eq!(failed(result), line);
    }
    drop((buffer, mark, recording, host));
    drop(gpu);
    assert_eq!(log(), [""; 0], "the driver was called though the device is lost");
}

#[test]
fn a_device_lost_while_memory_is_given_back_ends_quietly() {
    let gpu = opened();
    let buffer = Buffer::new(&gpu, 16, "a test").unwrap();
    fail("cuStreamSynchronize", 700);
    log();
    drop(buffer);
    assert_eq!(log(), ["cuStreamSynchronize"]);
    assert!(failed(gpu.launch(&launch("k"))).contains("the device is lost"));
    drop(gpu);
    assert_eq!(log(), [""; 0]);
}

#[test]
fn a_failure_that_loses_nothing_can_be_followed_by_success() {
    let gpu = opened();
    fail("cuEventRecord", 1);
    assert!(!failed(Mark::new(&gpu).map(drop)).contains("lost"));
    assert!(!live().contains(&"event"));
    Mark::new(&gpu).unwrap().wait().unwrap();
}

/// All shared memory that there is, for every kernel.
const CARVE_OUT: &str = "cuFuncSetAttribute 9 100";

#[test]
fn launches_carry_what_they_are_given() {
    let gpu = opened();
    gpu.launch(&launch("k")).unwrap();
    gpu.launch(&Launch { shared: 1000, grid: [7, 1, 2], ..launch("k") }).unwrap();
    gpu.launch(&Launch { shared: 500, ..launch("k") }).unwrap();
    gpu.launch(&Launch { unit: "two".into(), ..launch("m") }).unwrap();
    let start = "cuLaunchKernelEx k [2, 3, 1] [64, 1, 1] shared";
    assert_eq!(
        log(),
        [
            "cuModuleLoadData",
            "cuModuleGetFunction k",
            CARVE_OUT,
            &format!("{start} 0 stream 2 [1, 2, 3, 4] overlaps"),
            "cuFuncSetAttribute 8 1000",
            "cuLaunchKernelEx k [7, 1, 2] [64, 1, 1] shared 1000 stream 2 [1, 2, 3, 4] overlaps",
            &format!("{start} 500 stream 2 [1, 2, 3, 4] overlaps"),
            "cuModuleLoadData",
            "cuModuleGetFunction m",
            CARVE_OUT,
            "cuLaunchKernelEx m [2, 3, 1] [64, 1, 1] shared 0 stream 2 [1, 2, 3, 4] overlaps",
        ]
    );
}

#[test]
fn every_thread_may_call() {
    let gpu = opened();
    gpu.launch(&launch("k")).unwrap();
    let result = std::thread::spawn({
        let gpu = gpu.clone();
        move || {
            // The made-up driver has an account for each thread: this one has no context yet.
            gpu.launch(&launch("k"))?;
            gpu.fill(0, 0, 1)?;
            Mark::new(&gpu)?.wait()
        }
    });
    result.join().expect("no call comes without a context").unwrap();
}

#[test]
fn before_hopper_kernels_do_not_overlap() {
    let driver = Driver { device_get_attribute: attribute::<8, 9>, ..good() };
    open(driver).unwrap().launch(&launch("k")).unwrap();
    assert!(log().iter().all(|line| !line.contains("overlaps")));
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let gpu = opened();
    let unit = Launch { unit: "three".into(), ..launch("k") };
    assert_eq!(
        failed(gpu.launch(&unit)),
        "cuda:0 failed: cuModuleLoadData (unit three): the program holds no such kernels; start \
         again, with another --device if it stays so"
    );
    let longer = Launch { parameters: vec![0; 8], ..launch("k") };
    let line = failed(gpu.launch(&longer));
    assert!(line.contains("kernel k of one takes 4 bytes of parameters, not 8"), "{line}");
    fail("cuModuleGetFunction", 500);
    let line = failed(gpu.launch(&launch("l")));
    assert!(line.contains("cuModuleGetFunction (kernel l of one): error 500"), "{line}");
    assert!(failed(gpu.launch(&launch("l\0"))).contains("no such name"));
    fail("cuLaunchKernelEx", 701);
    assert!(failed(gpu.launch(&launch("k"))).contains("cuLaunchKernelEx (kernel k of one)"));
}

#[test]
fn recordings_keep_the_order_and_run_on_the_stream() {
    let gpu = opened();
    let recording = Recording::new(&gpu, &[launch("k"), launch("l"), launch("k")]).unwrap();
    let started = |kernel: &str| {
        format!(
            "cuLaunchKernelEx {kernel} [2, 3, 1] [64, 1, 1] shared 0 stream 3 [1, 2, 3, 4] overlaps"
        )
    };
    // Kernels are loaded before the capture, which takes place on a stream of its own.
    assert_eq!(
        log(),
        [
            "cuModuleLoadData",
            "cuModuleGetFunction k",
            CARVE_OUT,
            "cuModuleGetFunction l",
            CARVE_OUT,
            "cuStreamBeginCapture 3 mode 1",
            &started("k"),
            &started("l"),
            &started("k"),
            "cuStreamEndCapture",
            "cuGraphInstantiateWithFlags",
            "cuGraphDestroy",
        ]
    );
    recording.replay().unwrap();
    recording.replay().unwrap();
    drop(recording);
    assert_eq!(log(), ["cuGraphLaunch stream 2", "cuGraphLaunch stream 2", "cuGraphExecDestroy"]);
}

#[test]
fn a_recording_that_fails_leaves_nothing_behind() {
    let gpu = opened();
    for (call, code) in [
        ("cuStreamBeginCapture", 1),
        ("cuLaunchKernelEx", 1),
        ("cuStreamEndCapture", 1),
        ("cuGraphInstantiateWithFlags", 2),
    ] {
        fail(call, code);
        log();
        assert!(failed(Recording::new(&gpu, &[launch("k")]).map(drop)).contains(call));
        let begun = call != "cuStreamBeginCapture";
        assert_eq!(log().iter().any(|line| line == "cuStreamEndCapture"), begun, "{call}");
        assert!(!live().contains(&"graph") && !live().contains(&"executable"), "{call}");
    }
    Recording::new(&gpu, &[launch("k")]).unwrap().replay().unwrap();
}
