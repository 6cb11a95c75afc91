//! The only file that knows the thread pool. Results never depend on the number of threads:
//! every output element is computed whole by one task.
//!
//! A token is a hundred parallel regions of some ten to some hundred microseconds, and a thread that sleeps takes as long to
//! wake. So while a block runs ([`enter`]) nobody sleeps: threads without work look for it, and who is done first spins
//! until the others have finished their last task. The caller is one of the threads: handing a block over to another and
//! waking up for its result took 17 us.

use crate::isa::environment::Environment;
use rayon::{ThreadPool, Yield};
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

/// Threads that help whoever calls, and what keeps them awake while a block runs.
struct Pool {
    /// One less than the threads in use; none where the caller is alone.
    helpers: Option<ThreadPool>,
    /// Blocks that are running.
    blocks: AtomicUsize,
    /// Threads that look for work without sleeping.
    watching: AtomicUsize,
}

static POOL: RwLock<Option<Arc<Pool>>> = RwLock::new(None);

fn build(threads: usize) -> Option<Arc<Pool>> {
    let named = |helpers| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(helpers);
        pool.thread_name(|i| format!("kizami-{}", i + 1)).build()
    };
    let helpers = if threads > 1 { Some(named(threads - 1).ok()?) } else { None };
    Some(Arc::new(Pool { helpers, blocks: AtomicUsize::new(0), watching: AtomicUsize::new(0) }))
}

fn pool() -> Arc<Pool> {
    if let Some(pool) = POOL.read().expect("no holder panics").as_ref() {
        return pool.clone();
    }
    let mut slot = POOL.write().expect("no holder panics");
    // Where the system refuses that many, the caller alone will do.
    let make = || build(default_threads()).or_else(|| build(1)).expect("one thread is the caller");
    slot.get_or_insert_with(make).clone()
}

/// Threads used when nobody asks: the logical cores this process may use.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Uses `threads` threads (at least one) from the next call on; false, and no change, where the
/// operating system refuses to start them.
pub fn set_threads(threads: usize) -> bool {
    let Some(pool) = build(threads.max(1)) else { return false };
    *POOL.write().expect("no holder panics") = Some(pool);
    true
}

/// Forgets the pool: threads do not survive a fork, so the child starts its own.
pub fn after_fork() {
    std::mem::forget(POOL.write().expect("no holder panics").take());
}

/// Threads in use.
pub fn threads() -> usize {
    pool().threads()
}

/// Runs `f` and keeps the other threads awake meanwhile.
pub fn enter<R>(f: impl FnOnce() -> R) -> R {
    let _environment = Environment::default();
    let pool = pool();
    let Some(helpers) = &pool.helpers else { return f() };
    let _running = Running::start(&pool.blocks);
    if pool.watching.load(Ordering::Relaxed) < helpers.current_num_threads() {
        let watched = pool.clone();
        helpers.spawn_broadcast(move |_| watched.watch());
    }
    f()
}

/// One more of something, for as long as this lives.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn start(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long threads stay awake after a block: the next one of the same step comes sooner.
const LINGER: Duration = Duration::from_micros(300);

impl Pool {
    fn threads(&self) -> usize {
        1 + self.helpers.as_ref().map_or(0, ThreadPool::current_num_threads)
    }

    /// Does whatever work there is until no block has run for a while.
    fn watch(&self) {
        thread_local!(static WATCHING: Cell<bool> = const { Cell::new(false) });
        if WATCHING.replace(true) {
            return; // work that this thread's own watch has found
        }
        let watching = Running::start(&self.watching);
        let (mut idle, mut pause) = (None, Pause::default());
        loop {
            if rayon::yield_now() == Some(Yield::Executed) {
                (idle, pause) = (None, Pause::default());
                continue;
            }
            if self.blocks.load(Ordering::Relaxed) > 0 {
                idle = None;
            } else if idle.get_or_insert_with(Instant::now).elapsed() > LINGER {
                break;
            }
            pause.take();
        }
        drop(watching);
        WATCHING.set(false);
    }
}

/// Waiting without sleeping: ever more often others may have the core.
#[derive(Default)]
struct Pause(u32);

impl Pause {
    fn take(&mut self) {
        self.0 = self.0.wrapping_add(1);
        if self.0.is_multiple_of(64) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Calls `f` for each task on all threads. Each has a run of neighbouring tasks, which read neighbouring memory, and
/// when it is done with those takes the last one of somebody else's.
fn share<T: Send>(tasks: impl ExactSizeIterator<Item = T>, f: impl Fn(T) + Sync) {
    let (pool, count) = (pool(), tasks.len());
    let threads = pool.threads().min(count);
    let Some(helpers) = pool.helpers.as_ref().filter(|_| threads > 1) else {
        tasks.for_each(f);
        return;
    };
    let tasks: Vec<Mutex<Option<T>>> = tasks.map(|task| Mutex::new(Some(task))).collect();
    let runs: Vec<Run> =
        (0..threads).map(|i| Run::new(i * count / threads..(i + 1) * count / threads)).collect();
    let work = |own: usize| {
        let _environment = Environment::default();
        while let Some(task) = (0..threads).find_map(|i| runs[(own + i) % threads].take(i == 0)) {
            // Counted even if it panics, or the others would wait for ever.
            let _finished = Counted(&runs[own].finished);
            let task = tasks[task].lock().expect("nothing panics while it is held").take();
            f(task.expect("each index is given out once"));
        }
    };
    let gone = AtomicUsize::new(0);
    helpers.in_place_scope(|scope| {
        let (work, gone) = (&work, &gone);
        for helper in 1..threads {
            scope.spawn(move |_| {
                let _gone = Counted(gone);
                work(helper);
            });
        }
        work(0);
        let mut pause = Pause::default();
        while runs.iter().map(|run| run.finished.load(Ordering::Acquire)).sum::<usize>() < count {
            pause.take();
        }
        // The scope's own end would put this thread to sleep for helpers that are just about to leave it.
        let mut spins = 0;
        while gone.load(Ordering::Acquire) < threads - 1 && spins < LEAVING {
            std::hint::spin_loop();
            spins += 1;
        }
        for _ in 0..LEFT {
            std::hint::spin_loop();
        }
    });
}

/// Spins for helpers to leave a region: some ten microseconds, because one that sleeps had better be slept for.
const LEAVING: usize = 500;
/// Spins between a helper's last sign and its leaving: half a microsecond.
const LEFT: usize = 16;

/// The neighbouring tasks of one thread. On cache lines of its own: a line that two cores write travels
/// between them for every task.
#[repr(align(128))]
struct Run {
    /// Tasks nobody has taken: the first in the low half, one past the last in the high half.
    left: AtomicU64,
    /// Tasks this thread has done, of its own run or another's.
    finished: AtomicUsize,
}

impl Run {
    fn new(tasks: Range<usize>) -> Self {
        let left = tasks.start as u64 | (tasks.end as u64) << 32;
        Self { left: AtomicU64::new(left), finished: AtomicUsize::new(0) }
    }

    /// The first task for the thread whose run it is, the last for others.
    fn take(&self, own: bool) -> Option<usize> {
        let mut left = self.left.load(Ordering::Relaxed);
        loop {
            let (first, end) = (left & u64::from(u32::MAX), left >> 32);
            if first >= end {
                return None;
            }
            let (task, rest) = if own { (first, left + 1) } else { (end - 1, left - (1 << 32)) };
            match self.left.compare_exchange_weak(left, rest, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(task as usize),
                Err(now) => left = now,
            }
        }
    }
}

/// Something under way: counted when it ends, however it does.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Calls `f(index, chunk)` for consecutive chunks of `len` elements, in parallel.
pub fn for_chunks<T: Send>(data: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    share(data.chunks_mut(len.max(1)).enumerate(), |(i, chunk)| f(i, chunk));
}

/// Multiply-adds that take about as long as handing a task over: less is not worth sharing.
const SMALL: usize = 1 << 16;

/// Calls `f` for each task, in parallel, dealt out as runs of neighbours. `work` is about how many
/// multiply-adds all tasks take together.
pub fn for_each<T: Send>(tasks: Vec<T>, work: usize, f: impl Fn(T) + Sync + Send) {
    if work <= SMALL {
        tasks.into_iter().for_each(f);
        return;
    }
    share(tasks.into_iter(), f);
}

/// Results of `f` for each task, in the order of the tasks.
pub fn map<T: Send, R: Send>(tasks: Vec<T>, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    let mut out: Vec<Option<R>> = tasks.iter().map(|_| None).collect();
    share(tasks.into_iter().zip(&mut out), |(task, out)| *out = Some(f(task)));
    out.into_iter().map(|out| out.expect("every task was done")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn every_task_is_done_once_wherever_it_is_called_from() {
        for threads in 1..=4 {
            assert!(set_threads(threads));
            for count in [0, 1, 2, 3, 7, 100] {
                let squares = || map((0..count).collect(), |i: usize| i * i);
                let expected: Vec<usize> = (0..count).map(|i| i * i).collect();
                assert_eq!(squares(), expected);
                assert_eq!(enter(squares), expected);
                // Regions within regions, as when two sequences' blocks run at once.
                let nested = enter(|| map(vec![0; 5], |_| squares()));
                assert!(nested.iter().all(|found| *found == expected));
                let done = AtomicUsize::new(0);
                for_each(vec![1; count], usize::MAX, |x| {
                    done.fetch_add(x, Ordering::Relaxed);
                });
                assert_eq!(done.into_inner(), count);
                let mut data = vec![0; count];
                for_chunks(&mut data, 3, |i, chunk| chunk.iter_mut().for_each(|x| *x += i + 1));
                assert!(data.iter().enumerate().all(|(at, x)| *x == at / 3 + 1));
            }
        }
    }

    #[test]
    fn a_task_that_panics_stops_nobody() {
        assert!(set_threads(3));
        for bad in [0, 50, 99] {
            let done = AtomicUsize::new(0);
            let region = || {
                for_each((0..100).collect(), usize::MAX, |i| {
                    assert_ne!(i, bad, "on purpose");
                    done.fetch_add(1, Ordering::Relaxed);
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(|| enter(region))).is_err());
            assert!(done.load(Ordering::Relaxed) < 100);
            assert_eq!(enter(|| map(vec![1, 2], |x| x + 1)), [2, 3]);
        }
    }

    #[test]
    fn callers_do_not_disturb_each_other() {
        let squares: Vec<usize> = (0..64).map(|i| i * i).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(enter(|| map((0..64).collect(), |i: usize| i * i)), squares);
                    }
                });
            }
            for round in 0..100 {
                assert!(set_threads(1 + round % 4));
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_region_in_which_everything_panics_ends() {
        let region = || for_each((0..50).collect::<Vec<i32>>(), usize::MAX, |i| panic!("{i}, on purpose"));
        assert!(catch_unwind(AssertUnwindSafe(|| enter(region))).is_err());
        assert_eq!(enter(|| map(vec![1, 2], |x| x + 1)), [2, 3]);
    }
}
