//! A CUDA device that is none: the kernels' own sources, compiled for the CPU. Threads of a block
//! are fibers that run in an order drawn from a seed, warps' operations wait for all 32 lanes, what
//! was copied asynchronously is there after its wait and not before, and memory starts as poison.
//! What on a device would go wrong now and then, goes wrong here and is an error: races in shared
//! memory, accesses to what is not allocated or not aligned, threads that miss a barrier. Where a
//! message says `code at`, `addr2line -i -e PROGRAM CODE` says which line of which kernel.
//!
//! The stream is a queue. A call may run what is queued, or leave it until somebody waits: whoever
//! touches memory that the stream still needs sees it change, or not change.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use realm_core::backend::BackendError;

use self::simt::{Memory, Range};
use crate::{
    EmulatedKernel, Reason,
    cuda::gpu::{Facts, Gpu, Launch, TensorMapSpec},
};

mod simt;
#[cfg(test)]
mod tests;

const NAME: &str = "cuda-emulated";
const SM80: &str = "cuda-emulated-sm80";

/// Device memory's contents at first: no number in any float type.
const POISON: u8 = 0xff;

/// The device of a seed. It is always there.
pub(crate) fn open(seed: u64) -> Result<Arc<dyn Gpu>, Reason> {
    Ok(Emulated::new(seed))
}

/// As many as an H200 has.
const MULTIPROCESSORS: u32 = 132;

/// The same, as a device that lacks what Hopper brought: it runs the kernels for Ampere.
pub(crate) fn open_sm80(seed: u64) -> Result<Arc<dyn Gpu>, Reason> {
    Ok(Emulated::named(SM80, false, MULTIPROCESSORS, seed))
}

/// Either of them with a single multiprocessor, for which a launch of a few blocks is a large one: what
/// is only worth while with many then runs at small sizes.
pub(crate) fn open_small(seed: u64, wgmma: bool) -> Result<Arc<dyn Gpu>, Reason> {
    Ok(Emulated::named(if wgmma { NAME } else { SM80 }, wgmma, 1, seed))
}

/// Every kernel but those that test the emulation, and whether it has run in this process.
pub(crate) fn kernels() -> Result<Vec<EmulatedKernel>, Reason> {
    let mut kernels = simt::kernels();
    kernels.retain(|kernel| !kernel.unit.starts_with("selftest"));
    kernels.sort();
    Ok(kernels)
}

/// The emulated device.
pub(crate) struct Emulated {
    facts: Facts,
    state: Mutex<State>,
}

impl Emulated {
    /// A device; `seed` varies the order of its threads and when its queue runs.
    #[expect(clippy::new_ret_no_self, reason = "used through the trait alone")]
    pub(crate) fn new(seed: u64) -> Arc<dyn Gpu> {
        Self::named(NAME, true, MULTIPROCESSORS, seed)
    }

    fn named(name: &'static str, wgmma: bool, multiprocessors: u32, seed: u64) -> Arc<dyn Gpu> {
        let kernels = if wgmma { "the CUDA kernels" } else { "the CUDA kernels for sm_80" };
        let facts = Facts {
            name: name.into(),
            description: format!(
                "a test device: {kernels} on the CPU, warps emulated, seed {seed}"
            ),
            memory: None,
            shared_memory: 227 * 1024,
            multiprocessors,
            multiprocessor_shared_memory: 228 * 1024,
            wgmma,
        };
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
        Arc::new(Self { facts, state: Mutex::new(State { name, random, ..State::default() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, call: &str, cause: String) -> BackendError {
        BackendError::Failed { device: self.facts.name.clone(), call: call.into(), cause }
    }

    fn out_of_memory(&self, what: &str, bytes: usize) -> BackendError {
        BackendError::OutOfMemory {
            device: self.facts.name.clone(),
            what: what.into(),
            needed: bytes as u64,
            available: None,
        }
    }

    fn push(&self, op: Op) -> Result<(), BackendError> {
        let mut state = self.state();
        state.queue.push_back(op);
        if state.random().is_multiple_of(4) {
            return state.run(None);
        }
        state.failure.clone().map_or(Ok(()), Err)
    }
}

/// Work on the stream.
enum Op {
    Fill { to: u64, byte: u8, bytes: usize },
    Copy { call: &'static str, to: u64, from: u64, bytes: usize },
    Launch(Arc<[Launch]>),
    Mark(u64),
    Release(u64),
}

struct Allocation {
    memory: Memory,
    what: String,
    /// Whether a kernel has written to it: others then read it after their predecessor's end.
    written: usize,
}

/// A mark: when the stream passed it.
struct Passed {
    at: Option<Instant>,
    timed: bool,
}

#[derive(Default)]
struct State {
    /// The device's.
    name: &'static str,
    device: BTreeMap<u64, Allocation>,
    host: BTreeMap<u64, Allocation>,
    queue: VecDeque<Op>,
    marks: HashMap<u64, Passed>,
    recordings: HashMap<u64, Arc<[Launch]>>,
    handles: u64,
    random: u64,
    /// The first thing that went wrong: like a CUDA context, the device is of no use from then on.
    failure: Option<BackendError>,
}

impl State {
    /// xorshift64*.
    fn random(&mut self) -> u64 {
        self.random = self.random.max(1);
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    /// Runs the queue, up to a mark or all of it.
    fn run(&mut self, until: Option<u64>) -> Result<(), BackendError> {
        while self.failure.is_none()
            && until.is_none_or(|mark| self.marks.get(&mark).is_some_and(|mark| mark.at.is_none()))
            && let Some(op) = self.queue.pop_front()
        {
            if let Err((call, cause)) = self.step(op) {
                let device = self.name.to_owned();
                self.failure = Some(BackendError::Failed { device, call, cause });
            }
        }
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn step(&mut self, op: Op) -> Result<(), (String, String)> {
        match op {
            Op::Fill { to, byte, bytes } => {
                let (start, offset) =
                    find(&self.device, to, bytes).map_err(|e| ("fill".into(), e))?;
                if let Some(found) = self.device.get_mut(&start) {
                    found.memory.fill(offset, byte, bytes);
                }
            }
            Op::Copy { call, to, from, bytes } => {
                self.copy(call, to, from, bytes).map_err(|cause| (call.into(), cause))?;
            }
            Op::Launch(launches) => {
                for launch in &*launches {
                    let call = || format!("{}::{}", launch.unit, launch.kernel);
                    self.launch(launch).map_err(|cause| (call(), cause))?;
                }
            }
            Op::Mark(mark) => {
                if let Some(passed) = self.marks.get_mut(&mark) {
                    passed.at = Some(Instant::now());
                }
            }
            Op::Release(address) => drop(self.device.remove(&address)),
        }
        Ok(())
    }

    fn copy(&self, call: &str, to: u64, from: u64, bytes: usize) -> Result<(), String> {
        let targets = if call == "download" { &self.host } else { &self.device };
        let sources = if call == "upload" { &self.host } else { &self.device };
        let (to_start, to_offset) = find(targets, to, bytes)?;
        let (from_start, from_offset) = find(sources, from, bytes)?;
        if call == "copy" && to < from + bytes as u64 && from < to + bytes as u64 {
            return Err(format!("the ranges of {bytes} bytes at {to:#x} and {from:#x} overlap"));
        }
        let (target, source) = (&targets[&to_start].memory, &sources[&from_start].memory);
        target.copy(to_offset, source, from_offset, bytes);
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), String> {
        let mut ranges: Vec<Range> = self
            .device
            .values()
            .map(|Allocation { memory, written, .. }| {
                let start = memory.address() as usize;
                Range { start, end: start + memory.bytes(), written: *written }
            })
            .collect();
        simt::launch(launch, self.random(), &mut ranges)?;
        for (allocation, range) in self.device.values_mut().zip(&ranges) {
            allocation.written = range.written;
        }
        for Allocation { memory, what, .. } in self.device.values() {
            if let Some(side) = memory.stray_write() {
                let bytes = memory.bytes();
                return Err(format!(
                    "a write {side} the {bytes} bytes of device memory for {what}"
                ));
            }
        }
        Ok(())
    }
}

/// The allocation that holds a range, and the range's offset in it.
fn find(
    allocations: &BTreeMap<u64, Allocation>,
    address: u64,
    bytes: usize,
) -> Result<(u64, usize), String> {
    let (start, found) = allocations
        .range(..=address)
        .next_back()
        .ok_or_else(|| format!("{bytes} bytes at {address:#x}, where no memory is allocated"))?;
    let offset = (address - start) as usize;
    let length = found.memory.bytes();
    if offset.checked_add(bytes).is_none_or(|end| end > length) {
        return Err(format!(
            "{bytes} bytes at offset {offset} of the {length} that were allocated for {}",
            found.what
        ));
    }
    Ok((*start, offset))
}

impl Gpu for Emulated {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<u64, BackendError> {
        let memory = Memory::new(bytes, POISON).ok_or_else(|| self.out_of_memory(what, bytes))?;
        let address = memory.address();
        self.state().device.insert(address, Allocation { memory, what: what.into(), written: 0 });
        Ok(address)
    }

    fn release(&self, address: u64) {
        let mut state = self.state();
        if state.failure.is_some() {
            state.device.remove(&address);
        } else {
            state.queue.push_back(Op::Release(address));
        }
    }

    fn allocate_host(&self, bytes: usize) -> Result<u64, BackendError> {
        let what = "page-locked host memory";
        let memory = Memory::new(bytes, 0).ok_or_else(|| self.out_of_memory(what, bytes))?;
        let address = memory.address();
        self.state().host.insert(address, Allocation { memory, what: what.into(), written: 0 });
        Ok(address)
    }

    fn release_host(&self, address: u64) {
        self.state().host.remove(&address);
    }

    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), BackendError> {
        self.push(Op::Fill { to, byte, bytes })
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError> {
        self.push(Op::Copy { call: "copy", to, from, bytes })
    }

    fn upload(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError> {
        self.push(Op::Copy { call: "upload", to, from, bytes })
    }

    fn download(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError> {
        self.push(Op::Copy { call: "download", to, from, bytes })
    }

    fn tensor_map(&self, map: &TensorMapSpec) -> Result<[u8; 128], BackendError> {
        let there = map.bytes().and_then(|bytes| find(&self.state().device, map.address, bytes));
        there.map_err(|cause| self.failed("tensor_map", cause))?;
        Ok(simt::tensor_map(map))
    }

    fn launch(&self, launch: &Launch) -> Result<(), BackendError> {
        self.push(Op::Launch([launch.clone()].into()))
    }

    fn record(&self, launches: &[Launch]) -> Result<u64, BackendError> {
        let mut state = self.state();
        let handle = state.handle();
        state.recordings.insert(handle, launches.into());
        Ok(handle)
    }

    fn replay(&self, recording: u64) -> Result<(), BackendError> {
        let launches = self.state().recordings.get(&recording).cloned();
        let Some(launches) = launches else {
            return Err(self.failed("replay", format!("there is no recording {recording}")));
        };
        self.push(Op::Launch(launches))
    }

    fn release_recording(&self, recording: u64) {
        self.state().recordings.remove(&recording);
    }

    fn mark(&self, timed: bool) -> Result<u64, BackendError> {
        let mut state = self.state();
        let handle = state.handle();
        state.marks.insert(handle, Passed { at: None, timed });
        state.queue.push_back(Op::Mark(handle));
        Ok(handle)
    }

    fn wait(&self, mark: u64) -> Result<(), BackendError> {
        self.state().run(Some(mark))
    }

    fn seconds(&self, from: u64, to: u64) -> Result<f64, BackendError> {
        let state = self.state();
        let passed = |mark| state.marks.get(&mark).filter(|mark| mark.timed)?.at;
        match (passed(from), passed(to)) {
            (Some(from), Some(to)) => Ok(to.saturating_duration_since(from).as_secs_f64()),
            _ => {
                let cause = "a mark is not timed, or the stream has not passed it";
                Err(self.failed("seconds", cause.into()))
            }
        }
    }

    fn release_mark(&self, mark: u64) {
        self.state().marks.remove(&mark);
    }
}
