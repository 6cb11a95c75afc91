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

/// The levels this CPU can run, lowest first; says once per test binary which they are and which it cannot run.
/// `.ci/neon` reads that.
pub(crate) fn levels() -> Vec<Level> {
    static SAID: Once = Once::new();
    let (available, skipped): (Vec<Level>, Vec<Level>) =
        Level::ALL.iter().partition(|level| level.available());
    SAID.call_once(|| {
        let names = |levels: &[Level]| levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(" ");
        let mut text = format!("\nlevels: {}\n", names(&available));
        if !skipped.is_empty() {
            text += &format!("NOT TESTED, this CPU cannot run: {}\n", names(&skipped));
        }
        // To the handle itself: of a test that passes, the harness swallows what `eprintln!` writes.
        std::io::stderr().write_all(text.as_bytes()).expect("standard error");
    });
    available
}
