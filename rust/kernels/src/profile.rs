//! Where the time goes: wall time, multiply-accumulates and weight bytes per named operation.
//!
//! Off by default; a span then costs one relaxed load. Spans are opened by the thread that runs a block, around
//! whole operations, and do not nest. Where spans of several threads overlap, each takes an equal share of the time:
//! all times add up to the wall time in which a block ran, however many ran at once. Knows no operation.

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
    /// Wall time, shared with spans open at the same time.
    pub nanoseconds: u64,
    /// Multiply-accumulates of the matrix products.
    pub macs: u64,
    /// Bytes of the weights read.
    pub bytes: u64,
}

static ON: AtomicBool = AtomicBool::new(false);
static RECORD: Mutex<Record> = Mutex::new(Record { entries: Vec::new(), open: 0, share: 0.0, last: None });

struct Record {
    entries: Vec<Entry>,
    /// Spans that are open now.
    open: u32,
    /// Nanoseconds that a span would have been given that is open forever: wall time over open spans.
    share: f64,
    /// When a span was last opened or closed.
    last: Option<Instant>,
}

impl Record {
    /// Deals out the time since a span was last opened or closed.
    fn advance(&mut self) {
        let now = Instant::now();
        if let (Some(last), 1..) = (self.last, self.open) {
            self.share += now.duration_since(last).as_nanos() as f64 / f64::from(self.open);
        }
        self.last = Some(now);
    }

    fn add(&mut self, new: Entry) {
        match self.entries.iter_mut().find(|e| e.name == new.name) {
            Some(e) => {
                e.calls += new.calls;
                e.nanoseconds += new.nanoseconds;
                e.macs += new.macs;
                e.bytes += new.bytes;
            }
            None => self.entries.push(new),
        }
    }
}

fn recorded() -> MutexGuard<'static, Record> {
    RECORD.lock().expect("no holder panics")
}

/// Starts or stops recording.
pub fn record(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// What was recorded since the last call, in the order in which names first appeared.
pub fn take() -> Vec<Entry> {
    std::mem::take(&mut recorded().entries)
}

/// Records until it is dropped. Empty while recording is off.
#[must_use = "a span lasts until it is dropped"]
#[derive(Debug)]
pub struct Span(Option<(f64, Entry)>);

/// Opens a span: everything until its end happens under `name`, and takes that many multiply-accumulates and
/// bytes of weights.
#[inline]
pub fn span(name: &'static str, macs: usize, bytes: usize) -> Span {
    if !ON.load(Ordering::Relaxed) {
        return Span(None);
    }
    let entry = Entry { name, calls: 1, nanoseconds: 0, macs: macs as u64, bytes: bytes as u64 };
    Span(Some((open(), entry)))
}

#[cold]
fn open() -> f64 {
    let mut record = recorded();
    record.advance();
    record.open += 1;
    record.share
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
            close(start, entry);
        }
    }
}

#[cold]
fn close(start: f64, entry: Entry) {
    let mut record = recorded();
    record.advance();
    record.open -= 1;
    let nanoseconds = (record.share - start).round() as u64;
    record.add(Entry { nanoseconds, ..entry });
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
        let start = Instant::now();
        std::thread::scope(|scope| {
            for name in ["profile::left", "profile::right"] {
                scope.spawn(move || {
                    let _span = span(name, 0, 0);
                    std::thread::sleep(Duration::from_millis(5));
                });
            }
        });
        let wall = start.elapsed().as_nanos() as u64;
        record(false);
        drop(span("profile::off", 1, 1));
        let found = take();
        let both = ["profile::left", "profile::right"].map(|name| found.iter().find(|e| e.name == name));
        let both = both.map(|e| e.expect("one span of it").nanoseconds);
        assert!(both[0] + both[1] >= 5_000_000 && both[0] + both[1] <= wall + 2, "{both:?} in {wall}");
        assert!(found.iter().all(|e| e.name != "profile::off"));
        let on = found.iter().find(|e| e.name == "profile::on").expect("three spans of it");
        assert_eq!((on.calls, on.macs, on.bytes), (3, 15, 21));
        assert!(take().iter().all(|e| e.name != "profile::on"));
    }
}
