//! The emulation itself, by the kernels of `kernels/cuda/simt/selftest.cu`.

use std::sync::Arc;

use realm_core::backend::BackendError;
use zerocopy::{Immutable, IntoBytes};

use super::Emulated;
use crate::cuda::gpu::{Buffer, Gpu, HostBuffer, Launch, Mark, Recording, TensorMapSpec};

mod faults;
mod hopper;
mod results;

/// Twin of `Arguments`.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Arguments {
    from: u64,
    to: u64,
    count: u32,
    what: u32,
}

fn launch(kernel: &str, grid: [u32; 3], threads: u32, arguments: Arguments) -> Launch {
    Launch {
        unit: "selftest".into(),
        kernel: kernel.into(),
        grid,
        threads,
        shared: 0,
        parameters: arguments.as_bytes().to_vec(),
    }
}

fn words(gpu: &Arc<dyn Gpu>, words: &[u32]) -> Buffer {
    let buffer = Buffer::new(gpu, words.len() * 4, "words").unwrap();
    buffer.write(0, words.as_bytes()).unwrap();
    buffer
}

fn read(buffer: &Buffer) -> Vec<u32> {
    let bytes = buffer.read(0..buffer.bytes()).unwrap();
    bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
}

/// Runs a kernel on copies of `from` and `to`, and returns what `to` becomes.
fn run(
    kernel: &str,
    grid: [u32; 2],
    from: &[u32],
    to: &[u32],
    (count, what): (u32, u32),
) -> Vec<u32> {
    let [blocks, threads] = grid;
    let gpu = Emulated::new(7);
    let (from, to) = (words(&gpu, from), words(&gpu, to));
    let arguments = Arguments { from: from.address(), to: to.address(), count, what };
    let mut launch = launch(kernel, [blocks, 1, 1], threads, arguments);
    launch.shared = 4096;
    gpu.launch(&launch).unwrap();
    read(&to)
}

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn grids_of_all_shapes_run_every_thread_once() {
    let gpu = Emulated::new(1);
    for (grid, threads) in [([1, 1, 1], 32), ([3, 5, 7], 64), ([1, 2, 1], 1024), ([1, 1, 9], 96)] {
        let count = (grid.iter().product::<u32>() * threads) as usize;
        let data: Vec<u32> = (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let (from, to) = (words(&gpu, &data), words(&gpu, &vec![0; count]));
        let count = count as u32 - 1;
        let arguments = Arguments { from: from.address(), to: to.address(), count, what: 0 };
        gpu.launch(&launch("copy_words", grid, threads, arguments)).unwrap();
        let mut expected = data;
        expected[count as usize] = 0;
        assert!(read(&to) == expected, "{grid:?} blocks of {threads}");
    }
}

/// The numbers that threads take: a permutation, another one with another seed, the same with the
/// same seed as far as one block goes.
#[test]
fn the_seed_decides_the_order() {
    let order = |seed, blocks: u32, threads: u32| {
        let gpu = Emulated::new(seed);
        let count = blocks * threads;
        let to = words(&gpu, &vec![0; count as usize + 1]);
        let arguments = Arguments { from: 0, to: to.address(), count, what: 0 };
        gpu.launch(&launch("take_numbers", [blocks, 1, 1], threads, arguments)).unwrap();
        let mut numbers = read(&to);
        assert_eq!(numbers.pop(), Some(count));
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..count), "{numbers:?}");
        numbers
    };
    assert_eq!(order(3, 1, 256), order(3, 1, 256));
    assert_ne!(order(3, 1, 256), order(4, 1, 256));
    assert!(!order(3, 1, 32).is_sorted());
    let firsts: Vec<u32> =
        order(5, 100, 32).chunks(32).map(|of| *of.iter().min().unwrap()).collect();
    assert!(!firsts.is_sorted(), "blocks start in order");
}

/// What the stream does is seen after a wait, whenever it really ran.
#[test]
fn recordings_marks_and_copies_keep_their_order() {
    for seed in 0..8 {
        let gpu = Emulated::new(seed);
        assert_eq!(gpu.facts().name, "cuda-emulated");
        let (a, b, c) = (words(&gpu, &[1, 2, 3, 4]), words(&gpu, &[0; 4]), words(&gpu, &[0; 4]));
        let step = |from: &Buffer, to: &Buffer| {
            let arguments = Arguments { from: from.address(), to: to.address(), count: 4, what: 0 };
            launch("copy_words", [1, 1, 1], 32, arguments)
        };
        let recording = Recording::new(&gpu, &[step(&a, &b), step(&b, &c)]).unwrap();
        let start = Mark::timed(&gpu).unwrap();
        recording.replay().unwrap();
        let mut host = HostBuffer::new(&gpu, 32).unwrap();
        host.download(0, &c, 0..16).unwrap();
        a.fill(9).unwrap();
        gpu.copy(b.address() + 4, a.address(), 8).unwrap();
        recording.replay().unwrap();
        drop(recording);
        host.download(16, &c, 0..16).unwrap();
        let end = Mark::timed(&gpu).unwrap();
        end.wait().unwrap();
        assert!(end.seconds_since(&start).unwrap() >= 0.0);
        let nines = 0x0909_0909u32;
        assert_eq!(host.bytes(), [1, 2, 3, 4, nines, nines, nines, nines].as_bytes());
        let fresh = Buffer::new(&gpu, 4, "fresh").unwrap();
        assert_eq!(read(&fresh), [u32::MAX]);
    }
}

/// Work waits in the queue at times: somebody who does not wait sees it undone.
#[test]
fn nothing_is_sure_before_the_wait() {
    let undone = (0..32).filter(|&seed| {
        let gpu = Emulated::new(seed);
        let from = words(&gpu, &[5]);
        let mut host = HostBuffer::new(&gpu, 4).unwrap();
        host.download(0, &from, 0..4).unwrap();
        let early = host.bytes() == [0; 4];
        Mark::new(&gpu).unwrap().wait().unwrap();
        assert_eq!(host.bytes(), 5u32.to_ne_bytes());
        early
    });
    let undone = undone.count();
    assert!((1..32).contains(&undone), "{undone} of 32");
}

/// How fast the emulation is. `cargo test --release emulated::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let gpu = Emulated::new(1);
    let to = words(&gpu, &[0; 4096]);
    let from = words(&gpu, &[0; 4096]);
    let time = |kernel: &str, blocks, threads, count| {
        let arguments = Arguments { from: from.address(), to: to.address(), count, what: 0 };
        let launch = launch(kernel, [blocks, 1, 1], threads, arguments);
        let start = std::time::Instant::now();
        gpu.launch(&launch).unwrap();
        Mark::new(&gpu).unwrap().wait().unwrap();
        start.elapsed().as_secs_f64()
    };
    for _ in 0..3 {
        let blocks = 4000.0 / time("nothing", 4000, 256, 0);
        let products = 100_000.0 / time("products", 1, 32, 100_000);
        let total: f64 = (0..1000).map(|_| time("nothing", 4, 32, 0)).sum();
        let launches = 1000.0 / total;
        println!(
            "{blocks:.0} blocks of 256 a second on all cores, {products:.0} products a second on \
             one, {launches:.0} launches a second"
        );
    }
}

/// The message of the error that a launch ends with.
fn failure(gpu: &Arc<dyn Gpu>, launch: &Launch) -> String {
    let result = gpu.launch(launch).and_then(|()| Mark::new(gpu)?.wait());
    match result {
        Err(BackendError::Failed { device, call, cause }) => {
            assert_eq!(device, "cuda-emulated");
            assert_eq!(call, format!("{}::{}", launch.unit, launch.kernel));
            cause
        }
        other => panic!("{other:?}"),
    }
}
