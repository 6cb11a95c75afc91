//! The only file that knows the thread pool. Results never depend on the number of threads:
//! every output element is computed whole by one task.

use rayon::ThreadPool;
use rayon::prelude::*;
use std::sync::{Arc, RwLock};

static POOL: RwLock<Option<Arc<ThreadPool>>> = RwLock::new(None);

fn build(threads: usize) -> Option<Arc<ThreadPool>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("kizami-{i}"));
    pool.build().ok().map(Arc::new)
}

fn pool() -> Arc<ThreadPool> {
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
    pool().current_num_threads()
}

/// Runs `f` on a thread of the pool, so that the parallel regions in it start without waking anyone first.
pub fn enter<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    pool().install(f)
}

/// Calls `f(index, chunk)` for consecutive chunks of `len` elements, in parallel.
pub fn for_chunks<T: Send>(data: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let len = len.max(1);
    if data.len() <= len {
        if !data.is_empty() {
            f(0, data);
        }
        return;
    }
    pool().install(|| data.par_chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i, chunk)));
}

/// Multiply-adds that take about as long as waking a thread: less is not worth sharing.
const SMALL: usize = 1 << 16;

/// Calls `f` for each task, in parallel, dealt out one at a time. `work` is about how many
/// multiply-adds all tasks take together.
pub fn for_each<T: Send>(tasks: Vec<T>, work: usize, f: impl Fn(T) + Sync + Send) {
    if tasks.len() <= 1 || work <= SMALL {
        tasks.into_iter().for_each(f);
        return;
    }
    pool().install(|| tasks.into_par_iter().with_max_len(1).for_each(f));
}

/// Results of `f` for each task, in the order of the tasks.
pub fn map<T: Send, R: Send>(tasks: Vec<T>, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    if tasks.len() <= 1 {
        return tasks.into_iter().map(f).collect();
    }
    pool().install(|| tasks.into_par_iter().with_max_len(1).map(f).collect())
}
