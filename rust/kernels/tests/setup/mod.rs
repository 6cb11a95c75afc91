//! What property tests share: how many cases they draw, and the instruction sets they run.

#![allow(dead_code, reason = "not every test binary uses both")]

use kizami_kernels::Level;
use proptest::test_runner::Config;
use std::io::Write;
use std::sync::Once;

/// Draws `cases` cases, or as many as `KIZAMI_TEST_CASES` says: an emulated CPU wants fewer.
pub(crate) fn config(cases: u32) -> Config {
    let asked = std::env::var("KIZAMI_TEST_CASES").ok().and_then(|n| n.parse().ok());
    Config { cases: asked.unwrap_or(cases), failure_persistence: None, ..Config::default() }
}

/// The levels this CPU can run, lowest first; says which it cannot, once per test binary.
pub(crate) fn levels() -> Vec<Level> {
    static SAID: Once = Once::new();
    let (available, skipped): (Vec<Level>, Vec<Level>) =
        Level::ALL.iter().partition(|level| level.available());
    SAID.call_once(|| {
        for level in skipped {
            // To the handle itself: of a test that passes, the harness swallows what `eprintln!` writes.
            let line = format!("NOT TESTED, this CPU cannot run it: {}\n", level.name());
            std::io::stderr().write_all(line.as_bytes()).expect("standard error");
        }
    });
    available
}
