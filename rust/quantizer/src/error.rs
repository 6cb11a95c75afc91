//! What can be wrong with a call into this crate. Weights and importance come from files, so none
//! of it is a panic.

/// A call that cannot be answered, naming what was found and what was expected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The format is read, never written.
    #[error("{ty}: no encoder; this format is only read")]
    NoEncoder {
        /// Format name.
        ty: &'static str,
    },
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
    /// A weight is infinite or no number.
    #[error("weight at row {row}, column {col}: found {value}, expected a finite number")]
    Weight {
        /// Row in the slice passed.
        row: usize,
        /// Column.
        col: usize,
        /// What was found.
        value: f32,
    },
    /// An importance is negative, infinite or no number.
    #[error("importance of column {col}: found {value}, expected a finite number of at least zero")]
    Importance {
        /// Column.
        col: usize,
        /// What was found.
        value: f32,
    },
    /// Second moments that are none.
    #[error(
        "second moments at row {row}, column {col}: found {value} and {mirrored} in its mirror image, expected equal \
         finite numbers no larger than the diagonal allows"
    )]
    Moments {
        /// Row.
        row: usize,
        /// Column.
        col: usize,
        /// What was found.
        value: f32,
        /// What was found with row and column exchanged.
        mirrored: f32,
    },
    /// What inputs differ by, times inputs, is not finite.
    #[error("drift at row {row}, column {col}: found {value}, expected a finite number")]
    Drift {
        /// Row.
        row: usize,
        /// Column.
        col: usize,
        /// What was found.
        value: f32,
    },
    /// An item offers nothing to choose from, or its bytes and costs do not pair up.
    #[error("item {item}: found {bytes} sizes and {costs} costs, expected as many of both, at least one")]
    Choices {
        /// Which item.
        item: usize,
        /// Sizes found.
        bytes: usize,
        /// Costs found.
        costs: usize,
    },
    /// A cost is infinite or no number.
    #[error("cost of choice {choice} of item {item}: found {value}, expected a finite number")]
    Cost {
        /// Which item.
        item: usize,
        /// Which of its choices.
        choice: usize,
        /// What was found.
        value: f64,
    },
    /// Even the smallest choices exceed the budget.
    #[error("budget of {budget} bytes: the smallest possible total is {smallest} bytes")]
    Budget {
        /// The budget asked for.
        budget: u64,
        /// Sum of every item's smallest choice.
        smallest: u64,
    },
    /// The sizes do not fit 64 bits.
    #[error("sizes: their sum exceeds 64 bits")]
    Overflow,
}

impl Error {
    /// The same error of a group of rows that starts at row `start`.
    pub(crate) fn below(self, start: usize) -> Self {
        match self {
            Self::Weight { row, col, value } => Self::Weight { row: row + start, col, value },
            other => other,
        }
    }
}

/// Checks one length, for use with `?`.
pub(crate) fn expect_len(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}
