//! How many cases a property test runs.

use proptest::test_runner::Config;

/// What proptest runs when nobody says how many.
const USUAL: u64 = 256;

/// `n` cases, times `PROPTEST_CASES / 256` where that variable is set: an emulated CPU wants fewer, a night more.
pub(crate) fn cases(n: u32) -> Config {
    let usual = Config::default();
    let scaled = (u64::from(n) * u64::from(usual.cases)).div_ceil(USUAL);
    Config { cases: u32::try_from(scaled).unwrap_or(u32::MAX), failure_persistence: None, ..usual }
}
