//! What can be wrong with a call into this crate. Shapes come from files, so none of it is a panic.

/// A call that cannot be answered, naming what was found and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The row length is no multiple of the format's block.
    #[error("{ty}: rows of {cols} weights do not divide into blocks of {block}")]
    RowLength {
        /// Format name.
        ty: &'static str,
        /// Weights per row.
        cols: usize,
        /// Weights per block.
        block: usize,
    },
    /// A buffer has another length than its shape says.
    #[error("{what}: found {found}, expected {expected}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Elements or bytes found.
        found: usize,
        /// Elements or bytes expected.
        expected: usize,
    },
    /// A value lies outside of what the operation can honour.
    #[error("{what}: found {found}, expected {expected}")]
    Range {
        /// Which value.
        what: &'static str,
        /// The value found.
        found: usize,
        /// The allowed values in words.
        expected: &'static str,
    },
}

/// Checks one length, for use with `?`.
pub(crate) fn expect_len(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}
