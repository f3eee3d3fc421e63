//! What is wrong with a kernel or its launch is an error that says where, never a hang or a crash.

use realm_core::backend::BackendError;

use super::{
    Arc, Arguments, Buffer, Emulated, Gpu, HostBuffer, Launch, Mark, failure, launch, words,
};

/// The message of fault `what` of the kernel `faults`.
fn fault(seed: u64, what: u32) -> String {
    let gpu = Emulated::new(seed);
    let (from, to) = (words(&gpu, &[1; 256]), words(&gpu, &[2; 256]));
    let arguments = Arguments { from: from.address(), to: to.address(), count: 256, what };
    failure(&gpu, &launch("faults", [3, 1, 1], 128, arguments))
}

#[test]
fn every_fault_is_named() {
    let expected = [
        (0, "ended without wait_for_predecessor()"),
        (1, "a write of 4 bytes at 0x"),
        (2, "divergent barrier: it waits at sync_block, but thread 77 has ended"),
        (3, "divergent warp: it waits at a 4-byte shuffle for its warp, but thread 40 has ended"),
        (4, "thread 9 waits at sync_block"),
        (5, "while lanes of its warp wait at a"),
        (6, "copy_async: a read of 16 bytes at 0x"),
        (7, "which is not aligned"),
        (8, "which is not shared memory"),
        (9, "a read of 4 bytes at 0x"),
        (10, ", at byte 1024 of 1024 of a device buffer"),
        (11, ", at byte 512 of 512 of a shared array"),
        (12, "races with thread"),
        (13, "races with thread"),
        (14, "not aligned for its type"),
        (15, "is outside the array"),
        (16, "a division by zero"),
        (17, "a shift by 256 bits"),
        (18, "a shuffle_xor with mask 32"),
        (19, "its stack is too small"),
        (21, "races with thread"),
        (22, "atomic_add: an atomic operation of 4 bytes"),
        (23, "ended while a copy_bulk was on its way"),
        (24, "waits for ever for phase 1 of the barrier at byte 0 of 8 of a shared array: 1 of 1"),
        (25, "call copy_bulk with different operands"),
        (26, "races with a copy_bulk or copy_tensor: no barrier between"),
    ];
    for (what, part) in expected {
        for seed in [what.into(), 1000] {
            let message = fault(seed, what);
            println!("{what}: {message}");
            assert!(message.contains(part), "fault {what}: {message}");
            assert!(message.contains("block ("), "fault {what}: {message}");
            assert!(message.contains("thread "), "fault {what}: {message}");
        }
    }
}

#[test]
fn a_device_that_failed_stays_so() {
    let gpu = Emulated::new(1);
    let to = words(&gpu, &[0]);
    let arguments = Arguments { from: 0, to: to.address(), count: 1, what: 0 };
    let first = failure(&gpu, &launch("faults", [1, 1, 1], 32, arguments));
    let again = to.read(0..4).unwrap_err().to_string();
    assert!(again.contains(&first), "{again}");
}

#[test]
fn memory_that_was_given_back_is_gone() {
    let gpu = Emulated::new(1);
    let to = words(&gpu, &[0; 256]);
    let from = words(&gpu, &[0; 256]).address();
    let arguments = Arguments { from, to: to.address(), count: 256, what: 20 };
    let message = failure(&gpu, &launch("faults", [1, 1, 1], 128, arguments));
    assert!(message.contains("load_stream16: a read of 16 bytes"), "{message}");
    assert!(message.contains("where no memory is allocated"), "{message}");
}

#[test]
fn launches_that_do_not_fit_their_kernel_are_refused() {
    let refused = |change: fn(&mut Launch)| {
        let gpu = Emulated::new(1);
        let arguments = Arguments { from: 0, to: 0, count: 0, what: 0 };
        let mut launch = launch("copy_words", [1, 1, 1], 32, arguments);
        change(&mut launch);
        failure(&gpu, &launch)
    };
    let none = "there is no such kernel";
    assert_eq!(refused(|launch| launch.kernel = "copy_word".into()), none);
    assert_eq!(refused(|launch| launch.unit = "embed".into()), none);
    assert_eq!(refused(|launch| launch.kernel = "a\0b".into()), "a name with a 0 in it");
    assert!(refused(|launch| launch.parameters.push(0)).starts_with("25 bytes of parameters"));
    for threads in [0, 31, 33, 1056, u32::MAX] {
        let gpu = Emulated::new(1);
        let arguments = Arguments { from: 0, to: 0, count: 0, what: 0 };
        let message = failure(&gpu, &launch("copy_words", [1, 1, 1], threads, arguments));
        assert!(message.contains("threads a block"), "{message}");
    }
    assert!(refused(|launch| launch.grid = [1, 0, 1]).contains("a grid of 1, 0, 1"));
    assert!(refused(|launch| launch.grid = [1, 65536, 1]).contains("a grid of"));
    assert!(refused(|launch| launch.grid = [u32::MAX; 3]).contains("a grid of"));
    assert!(refused(|launch| launch.shared = 227 * 1024 + 1).contains("of shared memory"));
}

#[test]
fn copies_stay_inside_their_buffers() {
    type Act = dyn Fn(&Arc<dyn Gpu>, &Buffer) -> Result<(), BackendError>;
    let message = |act: &Act| {
        let gpu = Emulated::new(3);
        let buffer = words(&gpu, &[1, 2, 3, 4]);
        let result = act(&gpu, &buffer).and_then(|()| Mark::new(&gpu)?.wait());
        result.unwrap_err().to_string()
    };
    let of = "of the 16 that were allocated for words";
    assert!(message(&|gpu, b| gpu.fill(b.address() + 8, 0, 9)).contains(of));
    assert!(message(&|gpu, b| gpu.copy(b.address(), b.address() + 12, 8)).contains(of));
    assert!(message(&|gpu, b| gpu.copy(b.address(), b.address() + 4, 8)).contains("overlap"));
    assert!(message(&|gpu, _| gpu.fill(1, 0, 1)).contains("where no memory is allocated"));
    let host_gone = |gpu: &Arc<dyn Gpu>, b: &Buffer| {
        let from = HostBuffer::new(gpu, 16)?.bytes().as_ptr() as u64;
        gpu.upload(b.address(), from, 16)
    };
    assert!(message(&host_gone).contains("upload: 16 bytes at"));
    let gpu = Emulated::new(1);
    let error = Buffer::new(&gpu, usize::MAX / 8, "too much").unwrap_err().to_string();
    assert!(error.contains("out of memory: too much needs"), "{error}");
}
