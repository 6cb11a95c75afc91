//! The only file that knows the thread pool. Results never depend on the number of threads:
//! every output element is computed whole by one task.
//!
//! A token is a hundred parallel regions of some ten to some hundred microseconds, and a thread that sleeps takes as long to
//! wake. So while a block runs ([`enter`]) nobody sleeps: threads without work look for it, and who is done first spins
//! until the others have finished their last task.

use rayon::{ThreadPool, Yield};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

/// The threads, and what keeps them awake while a block runs.
struct Pool {
    threads: ThreadPool,
    /// Blocks that are running.
    blocks: AtomicUsize,
    /// Threads that look for work without sleeping.
    watching: AtomicUsize,
}

static POOL: RwLock<Option<Arc<Pool>>> = RwLock::new(None);

fn build(threads: usize) -> Option<Arc<Pool>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("kizami-{i}"));
    let threads = pool.build().ok()?;
    Some(Arc::new(Pool { threads, blocks: AtomicUsize::new(0), watching: AtomicUsize::new(0) }))
}

fn pool() -> Arc<Pool> {
    if let Some(pool) = POOL.read().expect("no holder panics").as_ref() {
        return pool.clone();
    }
    let mut slot = POOL.write().expect("no holder panics");
    // Where the system refuses that many, one will do; where it refuses one, nothing can run.
    let make = || build(default_threads()).or_else(|| build(1)).expect("the system starts one thread");
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
    pool().threads.current_num_threads()
}

/// Runs `f` on a thread of the pool and keeps all of them awake meanwhile.
pub fn enter<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let pool = pool();
    let count = pool.threads.current_num_threads();
    if count == 1 {
        return pool.threads.install(f);
    }
    let _running = Running::start(&pool.blocks);
    if pool.watching.load(Ordering::Relaxed) < count {
        let watched = pool.clone();
        pool.threads.spawn_broadcast(move |_| watched.watch());
    }
    pool.threads.install(f)
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
fn share<T: Send>(mut tasks: impl ExactSizeIterator<Item = T>, f: impl Fn(T) + Sync) {
    let (pool, count) = (pool(), tasks.len());
    let threads = pool.threads.current_num_threads().min(count);
    if threads <= 1 {
        tasks.for_each(f);
        return;
    }
    let runs: Vec<Mutex<VecDeque<T>>> = (0..threads)
        .map(|i| Mutex::new(tasks.by_ref().take((i + 1) * count / threads - i * count / threads).collect()))
        .collect();
    let take = |run: usize, own: bool| {
        let mut run = runs[run].lock().expect("nothing panics while it is held");
        if own { run.pop_front() } else { run.pop_back() }
    };
    let unfinished = AtomicUsize::new(count);
    let work = |own: usize| {
        while let Some(task) = (0..threads).find_map(|i| take((own + i) % threads, i == 0)) {
            // Counted off even if it panics, or the others would wait for ever.
            let _finished = Finished(&unfinished);
            f(task);
        }
    };
    pool.threads.scope(|scope| {
        let work = &work;
        for helper in 1..threads {
            scope.spawn(move |_| work(helper));
        }
        work(0);
        let mut pause = Pause::default();
        while unfinished.load(Ordering::Acquire) > 0 {
            pause.take();
        }
    });
}

/// A task that is under way.
struct Finished<'a>(&'a AtomicUsize);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Calls `f(index, chunk)` for consecutive chunks of `len` elements, in parallel.
pub fn for_chunks<T: Send>(data: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    share(data.chunks_mut(len.max(1)).enumerate(), |(i, chunk)| f(i, chunk));
}

/// Multiply-adds that take about as long as handing a task over: less is not worth sharing.
const SMALL: usize = 1 << 16;

/// Calls `f` for each task, in parallel, dealt out one at a time. `work` is about how many
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
}
