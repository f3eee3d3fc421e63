//! What Hopper brought, by the kernels of `kernels/cuda/simt/selftest_hopper.cu`.

use zerocopy::{Immutable, IntoBytes};

use super::{
    Arc, Buffer, Emulated, Gpu, Launch, Mark, TensorMapSpec, failure, random, read, words,
};

/// Twin of `Arguments`.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Arguments {
    a: [u8; 128],
    b: [u8; 128],
    from: u64,
    to: u64,
    count: u32,
    what: u32,
    /// The struct is aligned to 64 bytes.
    rest: [u64; 5],
}

/// A matrix of which copies take boxes of 64 columns.
fn matrix(address: u64, rows: u64, cols: u64, box_rows: u32) -> TensorMapSpec {
    TensorMapSpec { address, cols, rows, row_bytes: 2 * cols, box_cols: 64, box_rows }
}

fn arguments(from: &Buffer, to: &Buffer, count: u32, what: u32) -> Arguments {
    let none = [0; 128];
    let (from, to) = (from.address(), to.address());
    Arguments { a: none, b: none, from, to, count, what, rest: [0; 5] }
}

fn launch(kernel: &str, threads: u32, arguments: Arguments) -> Launch {
    Launch {
        unit: "selftest_hopper".into(),
        kernel: kernel.into(),
        grid: [1, 1, 1],
        threads,
        shared: 48 * 1024,
        parameters: arguments.as_bytes().to_vec(),
    }
}

/// Random elements between -2 and 2, of bf16 or f16 alike in that, two in a word.
fn elements(count: usize, state: &mut u64) -> Vec<u32> {
    let exponent = |bits: u32| 0x3800 | bits & 0x87ff;
    (0..count / 2)
        .map(|_| {
            let bits = random(state);
            exponent(bits as u32 & 0xffff) | exponent((bits >> 32) as u32 & 0xffff) << 16
        })
        .collect()
}

/// Every size and form of wgmma gives the bits that mma gives, where a and b lie as copies lay them.
#[test]
fn wgmma_multiplies_as_mma_does() {
    let mut state = 99;
    for n in [16u64, 32, 64, 96, 128, 192, 256] {
        for what in 0..32 {
            let transposed = what & 2 != 0;
            if transposed && n > 64 && n % 64 != 0 {
                continue;
            }
            let gpu = Emulated::new(n * 100 + u64::from(what));
            let data = elements(64 * 64 + 64 * n as usize, &mut state);
            let (from, to) = (words(&gpu, &data), words(&gpu, &vec![0; 128 * n as usize]));
            let b = from.address() + 8192;
            let b = if transposed { matrix(b, 64, n, 64) } else { matrix(b, n, 64, n as u32) };
            let mut arguments = arguments(&from, &to, 0, what);
            arguments.a = gpu.tensor_map(&matrix(from.address(), 64, 64, 64)).unwrap();
            arguments.b = gpu.tensor_map(&b).unwrap();
            gpu.launch(&launch(&format!("products_n{n}"), 128, arguments)).unwrap();
            let found = read(&to);
            let (wgmma, mma) = found.split_at(64 * n as usize);
            assert!(mma.iter().filter(|&&bits| bits != 0).count() > 32 * n as usize);
            let differs = (0..wgmma.len()).find(|&i| wgmma[i] != mma[i]);
            assert_eq!(differs, None, "n {n}, what {what}");
        }
    }
}

#[test]
fn boxes_are_swizzled_and_zero_outside_of_their_matrix() {
    let (rows, cols) = (70u64, 104u64);
    let gpu = Emulated::new(4);
    let data: Vec<u32> = (0..rows * cols / 2).map(|i| 0x10001 * i as u32 + 1).collect();
    let (from, to) = (words(&gpu, &data), words(&gpu, &[7; 2048]));
    for (x, y) in [(0, 0), (64, 0), (0, 64), (72, 33), (200, 1), (8, 90)] {
        let mut arguments = arguments(&from, &to, y * 65536 + x, 0);
        arguments.a = gpu.tensor_map(&matrix(from.address(), rows, cols, 64)).unwrap();
        gpu.launch(&launch("boxes", 64, arguments)).unwrap();
        let tile = read(&to);
        for (row, col) in (0..64).flat_map(|row| (0..64).step_by(2).map(move |col| (row, col))) {
            let there = u64::from(y + row) < rows && u64::from(x + col) < cols;
            let at = u64::from(y + row) * cols + u64::from(x + col);
            let expected = if there { data[at as usize / 2] } else { 0 };
            let unit = (col / 8) ^ (row % 8);
            let found = tile[(row * 32 + unit * 4 + col % 8 / 2) as usize];
            assert_eq!(found, expected, "box at {x}, {y}: row {row}, column {col}");
        }
    }
}

#[test]
fn rings_of_barriers_bring_every_piece_in_order() {
    let count = 20;
    let from: Vec<u32> = (0..256 * count).map(|i| i * i + 3).collect();
    for seed in 0..20 {
        let gpu = Emulated::new(seed);
        let (bytes, to) = (words(&gpu, &from), words(&gpu, &[0; 128]));
        // A piece is 512 bytes of every 512: `from` counts in halves of words.
        gpu.launch(&launch("ring", 160, arguments(&bytes, &to, count, 0))).unwrap();
        for (t, found) in read(&to).into_iter().enumerate() {
            let expected = (0..count as usize).fold(0u32, |sum, i| {
                let piece = |at: usize| from[128 * i + at].wrapping_mul(2);
                sum.wrapping_mul(3).wrapping_add(piece(127 - t)).wrapping_add(piece(t))
            });
            assert_eq!(found, expected, "seed {seed}, thread {t}");
        }
    }
}

/// The message of fault `what` of the kernel `hopper_faults`.
fn fault(seed: u64, what: u32) -> String {
    let gpu = Emulated::new(seed);
    let (from, to) = (words(&gpu, &[1; 8192]), words(&gpu, &[2; 256]));
    let gone = words(&gpu, &[0; 2048]);
    let mut arguments = arguments(&from, &to, 0, what);
    let of = if what == 36 { &gone } else { &from };
    arguments.a = gpu.tensor_map(&matrix(of.address(), 64, 64, 64)).unwrap();
    drop(gone);
    Mark::new(&gpu).unwrap().wait().unwrap();
    failure(&gpu, &launch("hopper_faults", 160, arguments))
}

#[test]
fn every_fault_is_named() {
    let expected = [
        (0, "it waits for ever at a wgmma: 127 of 128 threads have come"),
        (1, "threads of a warpgroup call wgmma with different operands"),
        (2, "a wgmma with no wgmma_fence since the last wgmma_wait"),
        (3, "a wgmma with A in registers and no wgmma_fence since the last wgmma_commit"),
        (4, "d[17] of lane 8 was written to while a wgmma was under way"),
        (5, "races with a wgmma of warps 0 to 3: no barrier between (byte 8192 of 49152 of the"),
        (6, "wgmma: a read of 16 bytes at 0x"),
        (6, "wrote with no fence_async and barrier after it"),
        (7, "of what thread 9 wrote with no fence_async and barrier after it"),
        (8, "races with thread 9: no barrier between"),
        (9, "a tile that does not begin at a multiple of 1024"),
        (10, "whose stride_bytes is no multiple of 1024"),
        (11, "whose leading_bytes is no multiple of 1024"),
        (12, "a descriptor that tile_descriptor has not made"),
        (13, "the block ended while a wgmma was under way"),
        (14, "have called wgmma_commit unequally"),
        (15, "with other registers or of another shape while one is under way"),
        (16, "of a shared array: 128 of 128 arrivals and 0 bytes are missing"),
        (
            17,
            "it waits for ever for phase 0 of the barrier at byte 0 of 32 of a shared array: 0 of 1",
        ),
        (17, "arrivals and 16 bytes are missing"),
        (18, "arrivals and -16 bytes are missing"),
        (19, "more arrivals in a phase than its barrier is made for"),
        (20, "a barrier that init_barrier or make_arrival has not made"),
        (21, "a barrier is made for the second time"),
        (22, "or that was written to since"),
        (24, "races with a copy_bulk or copy_tensor: no barrier between"),
        (25, "races with "),
        (26, "copy_tensor: a write of 8192 bytes at 0x"),
        (26, "which is not aligned"),
        (27, "copy_tensor with what is no tensor map"),
        (28, "sync_group of a number that is not in 1 to 15"),
        (29, "while others wait there for"),
        (30, "it waits for ever at sync_group(3, 96): 64 threads have come"),
        (31, "sync_group by some lanes of a warp and not by all"),
        (32, "copy_bulk of bytes that are no multiple of 16"),
        (33, "races with thread"),
        (34, "dynamic_shared() and aligned_shared() in one kernel"),
        (35, "lanes of a warp wait for different groups of wgmma"),
        (36, "copy_tensor: a read of 128 bytes at 0x"),
        (37, "thread 90: a read of 4 bytes at 0x"),
        (37, "races with thread 26"),
        (38, "copy_bulk: a write of 16 bytes at 0x"),
        (38, "of what thread 128 wrote with no fence_async"),
        (39, "wgmma: a read of 16 bytes at 0x"),
    ];
    for (what, part) in expected {
        for seed in [what.into(), 1000, 1001] {
            let message = fault(seed, what);
            println!("{what}: {message}");
            assert!(message.contains(part), "fault {what}: {message}");
            assert!(message.contains("block (0, 0, 0), thread "), "fault {what}: {message}");
        }
    }
}

#[test]
fn matrices_that_no_map_can_describe_are_refused() {
    let gpu: Arc<dyn Gpu> = Emulated::new(2);
    let buffer = words(&gpu, &[0; 4096]);
    let good = matrix(buffer.address(), 64, 64, 64);
    assert!(gpu.tensor_map(&good).is_ok());
    let of = |change: fn(&mut TensorMapSpec)| {
        let mut spec = good;
        change(&mut spec);
        let message = gpu.tensor_map(&spec).unwrap_err().to_string();
        assert!(message.contains("tensor_map") && !message.contains('\n'), "{message}");
        message
    };
    assert!(of(|map| map.address += 8).contains("no multiple of 16"));
    assert!(of(|map| map.row_bytes = 136).contains("no multiple of 16 bytes apart"));
    assert!(of(|map| map.row_bytes = 112).contains("rows that overlap"));
    assert!(of(|map| map.rows = 0).contains("no rows"));
    assert!(of(|map| map.cols = u64::MAX).contains("columns"));
    assert!(of(|map| map.box_cols = 128).contains("its boxes are not"));
    assert!(of(|map| map.box_rows = 257).contains("its boxes are not"));
    assert!(of(|map| map.rows = 1 << 32).contains("were allocated for words"));
    assert!(of(|map| map.rows = 129).contains("16512 bytes at offset 0 of the 16384"));
    assert!(of(|map| map.address = 16).contains("where no memory is allocated"));
}

#[test]
fn the_second_device_is_one_before_hopper() {
    let (hopper, ampere) = (Emulated::new(1), super::super::open_sm80(1).unwrap());
    assert_eq!((hopper.facts().wgmma, ampere.facts().wgmma), (true, false));
    assert_eq!(ampere.facts().name, "cuda-emulated-sm80");
    let launch =
        launch("no such kernel", 32, arguments(&words(&ampere, &[0]), &words(&ampere, &[0]), 0, 0));
    let error = ampere.launch(&launch).and_then(|()| Mark::new(&ampere)?.wait()).unwrap_err();
    assert!(error.to_string().contains("cuda-emulated-sm80"), "{error}");
}

/// A kernel counts as one that ran from its first launch that ends well on.
#[test]
fn kernels_that_ran_are_remembered() {
    let ran = |kernel: &str| {
        let mut kernels = super::super::simt::kernels().into_iter();
        kernels.find(|it| it.unit == "selftest_hopper" && it.kernel == kernel).unwrap().ran
    };
    assert!(!ran("nothing_else_runs_this"));
    let gpu = Emulated::new(1);
    let to = words(&gpu, &[0]);
    failure(&gpu, &launch("nothing_else_runs_this", 32, arguments(&to, &to, 1, 0)));
    assert!(!ran("nothing_else_runs_this"));
    let gpu = Emulated::new(1);
    let to = words(&gpu, &[0]);
    gpu.launch(&launch("nothing_else_runs_this", 32, arguments(&to, &to, 0, 0))).unwrap();
    Mark::new(&gpu).unwrap().wait().unwrap();
    assert!(ran("nothing_else_runs_this"));
    let all = super::super::kernels().unwrap();
    assert!(all.is_sorted() && all.iter().any(|it| it.unit == "embed"));
    assert!(all.iter().all(|it| !it.unit.starts_with("selftest")));
}

/// How long a product takes: run with --release and --ignored.
#[test]
#[ignore = "a measurement"]
fn products_a_second() {
    let gpu = Emulated::new(1);
    let (from, to) = (words(&gpu, &[0; 16]), words(&gpu, &[0; 16]));
    for _ in 0..3 {
        let start = std::time::Instant::now();
        gpu.launch(&launch("many_products", 128, arguments(&from, &to, 2000, 0))).unwrap();
        Mark::new(&gpu).unwrap().wait().unwrap();
        println!("{:.1} µs a product m64n128k16", start.elapsed().as_secs_f64() / 2000.0 * 1e6);
    }
}
