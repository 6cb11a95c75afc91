//! Where the time goes: wall time, multiply-accumulates and weight bytes per named operation.
//!
//! Off by default; a span then costs one relaxed load. Spans are opened by the thread that runs a block, around
//! whole operations, and do not nest: their times add up to what the blocks took. Knows no operation.

use crate::matrix::Matrix;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// What all spans of one name add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Of the operation: a tensor's name in its block, or what is computed.
    pub name: &'static str,
    /// Spans.
    pub calls: u64,
    /// Wall time.
    pub nanoseconds: u64,
    /// Multiply-accumulates of the matrix products.
    pub macs: u64,
    /// Bytes of the weights read.
    pub bytes: u64,
}

static ON: AtomicBool = AtomicBool::new(false);
static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

fn entries() -> MutexGuard<'static, Vec<Entry>> {
    ENTRIES.lock().expect("no holder panics")
}

/// Starts or stops recording.
pub fn record(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// What was recorded since the last call, in the order in which names first appeared.
pub fn take() -> Vec<Entry> {
    std::mem::take(&mut *entries())
}

/// Records until it is dropped. Empty while recording is off.
#[must_use = "a span lasts until it is dropped"]
#[derive(Debug)]
pub struct Span(Option<(Instant, Entry)>);

/// Opens a span: everything until its end happens under `name`, and takes that many multiply-accumulates and
/// bytes of weights.
#[inline]
pub fn span(name: &'static str, macs: usize, bytes: usize) -> Span {
    if !ON.load(Ordering::Relaxed) {
        return Span(None);
    }
    let entry = Entry { name, calls: 1, nanoseconds: 0, macs: macs as u64, bytes: bytes as u64 };
    Span(Some((Instant::now(), entry)))
}

/// Opens a span for the product of a matrix with `columns` columns.
#[inline]
pub fn linear(name: &'static str, w: &Matrix<'_>, columns: usize) -> Span {
    linears(name, [w], columns)
}

/// Opens a span for the products of several matrices with `columns` columns each.
#[inline]
pub fn linears<'a, 'm: 'a>(
    name: &'static str,
    stack: impl IntoIterator<Item = &'a Matrix<'m>>,
    columns: usize,
) -> Span {
    let (mut macs, mut bytes) = (0, 0);
    for w in stack {
        macs += w.rows() * w.cols() * columns;
        bytes += w.nbytes();
    }
    span(name, macs, bytes)
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some((start, entry)) = self.0.take() {
            let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            add(Entry { nanoseconds, ..entry });
        }
    }
}

#[cold]
fn add(new: Entry) {
    let mut entries = entries();
    match entries.iter_mut().find(|e| e.name == new.name) {
        Some(e) => {
            e.calls += new.calls;
            e.nanoseconds += new.nanoseconds;
            e.macs += new.macs;
            e.bytes += new.bytes;
        }
        None => entries.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    // One test: the record belongs to the process.
    #[test]
    fn spans_add_up_under_their_name_while_recording() {
        drop(span("profile::off", 1, 1));
        record(true);
        for _ in 0..3 {
            let _span = span("profile::on", 5, 7);
            std::thread::sleep(Duration::from_millis(2));
        }
        record(false);
        drop(span("profile::off", 1, 1));
        let found = take();
        assert!(found.iter().all(|e| e.name != "profile::off"));
        let on = found.iter().find(|e| e.name == "profile::on").expect("three spans of it");
        assert_eq!((on.calls, on.macs, on.bytes), (3, 15, 21));
        assert!(on.nanoseconds >= 6_000_000);
        assert!(take().iter().all(|e| e.name != "profile::on"));
    }
}
