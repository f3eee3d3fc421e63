//! The worker pool: threads that spin briefly for the next job, then sleep.
//!
//! A job is a number of tasks handed out one by one. Workers that come too late for a job are not
//! waited for: a core taken by another program slows a job, but cannot stop it.

use std::{
    cell::UnsafeCell,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
};

/// How often a worker looks for a job before it sleeps: some tens of microseconds, longer than the
/// gap between two ops of a step.
const SPINS: u32 = 2_000;

/// More threads than any machine has cores, and fewer than [`JOINED`] counts.
const MOST: usize = 4096;

/// Set in [`Shared::state`] while workers may join the job. The bits above count jobs, the bits
/// below the workers that joined.
const OPEN: u64 = 1 << 16;
const JOINED: u64 = OPEN - 1;
const NEXT_JOB: u64 = OPEN << 1;

/// A job: called once with each task number below `tasks`.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while the state is closed with nobody joined, and read only by
// threads that joined after the state was opened (release/acquire on `state`); the function behind
// its pointer is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as for Sync; the pointer in `job` is dereferenced only while `Pool::run` keeps the function
// alive.
unsafe impl Send for Shared {}

struct Worker {
    thread: Thread,
    asleep: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// A fixed number of threads, the caller's included.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// One job at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool that computes on `threads` threads (at least one: the caller's; at most [`MOST`]).
    pub(crate) fn new(threads: usize) -> Self {
        let threads = threads.min(MOST);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads).map_while(|at| spawn(at, &shared)).collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// Threads that compute, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with every number below `tasks`, in no order, on all threads; returns when all
    /// are done.
    pub(crate) fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(task);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let task: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: only the lifetime is extended; `finish` below waits, also when a task panics, for
        // every worker that joined, and none can join afterwards.
        let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        // SAFETY: the state is closed and nobody is joined, so no other thread reads the job.
        unsafe { *shared.job.get() = Some(Job { task, tasks }) };
        shared.next.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        let closed = shared.state.load(Ordering::Relaxed);
        // Sequentially consistent beside `asleep`: either the worker sees the job or we see it asleep.
        shared.state.store(closed + NEXT_JOB + OPEN, Ordering::SeqCst);
        for worker in &self.workers {
            if worker.asleep.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        let finish = Finish(shared);
        work(shared, Job { task, tasks });
        drop(finish);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a worker thread panicked");
    }
}

/// Closes the job and waits for those who joined.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::Acquire);
        let mut spins = 0u32;
        while self.0.state.load(Ordering::Acquire) & JOINED != 0 {
            spins += 1;
            if spins > SPINS { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

/// Leaves the job, also when a task panics.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.panicked.store(true, Ordering::Relaxed);
        }
        self.0.state.fetch_sub(1, Ordering::Release);
    }
}

fn work(shared: &Shared, job: Job) {
    loop {
        let at = shared.next.fetch_add(1, Ordering::Relaxed);
        if at >= job.tasks {
            return;
        }
        // SAFETY: `Pool::run` keeps the function alive until everyone who joined has left.
        unsafe { (*job.task)(at) };
    }
}

fn spawn(at: usize, shared: &Arc<Shared>) -> Option<Worker> {
    let asleep = Arc::new(AtomicBool::new(false));
    let handle = {
        let (shared, asleep) = (shared.clone(), asleep.clone());
        thread::Builder::new()
            .name(format!("realm-{at}"))
            .spawn(move || worker(&shared, &asleep))
            .ok()?
    };
    Some(Worker { thread: handle.thread().clone(), asleep, handle: Some(handle) })
}

fn worker(shared: &Shared, asleep: &AtomicBool) {
    let mut done = 0;
    let mut spins = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let state = shared.state.load(Ordering::Acquire);
        if state & OPEN != 0 && state & !JOINED != done {
            let joined = shared.state.compare_exchange(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if joined.is_ok() {
                done = state & !JOINED;
                spins = 0;
                let _leave = Leave(shared);
                // SAFETY: we joined an open job, so nobody writes it before we leave.
                if let Some(job) = unsafe { *shared.job.get() } {
                    work(shared, job);
                }
            }
            continue;
        }
        spins += 1;
        if spins < SPINS {
            std::hint::spin_loop();
            continue;
        }
        asleep.store(true, Ordering::SeqCst);
        let state = shared.state.load(Ordering::SeqCst);
        let idle = state & OPEN == 0 || state & !JOINED == done;
        if idle && !shared.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
        spins = 0;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker that panicked has already told `run`.
                drop(handle.join());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_every_job() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for job in 0..300 {
                let tasks = job % 37;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |at| _ = counts[at].fetch_add(1, Ordering::Relaxed));
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                if job % 100 == 99 {
                    thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(64, |at| assert!(at != 40, "task 40"));
        }));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, |at| _ = sum.fetch_add(at, Ordering::Relaxed));
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
