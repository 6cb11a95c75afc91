//! The contract between formats, which fill a [`Chunk`], and drivers, which consume it.
//!
//! A chunk is 256 weights of one row: one K-quant block, or eight blocks of 32. Whatever a format
//! looks like in memory, its decoder leaves the same picture here:
//!
//! ```text
//! codes    256 x i8      0..=127 where Format::SIGNED is false, else -128..=127
//! Family::Super    weight = d * (scales[k/16] * code) - dmin * mins[k/16]
//! Family::Grouped  weight = group_d[k/32] * code
//! ```
//!
//! Integer sub-scales are given per 16 weights; a format with one scale per 32 writes it twice.
//! The products stay exact in i32 over the whole chunk, which is what makes every instruction
//! set return the same bits (`docs/kernels.md`).

/// Weights in a chunk.
pub const CHUNK: usize = 256;
/// Weights that share one integer scale in the widest view.
pub const SUB: usize = 16;
/// Largest integer scale of activations. The worst format (Q6_K: scale 128, code 32) then stays
/// within an i32: 128 * 8 * 32 * 127 * 256 < 2^31.
pub const MAX_STEP: i16 = 8;
/// Weights that share one float scale in [`crate::Family::Grouped`] formats.
pub const GROUP: usize = 32;

/// 256 decoded weights of one row.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Chunk {
    /// One code per weight, in row order.
    pub codes: [i8; CHUNK],
    /// Integer scale per 16 weights. `Super` only.
    pub scales: [i16; CHUNK / SUB],
    /// Integer minimum per 16 weights. `Super` with `HAS_MIN` only.
    pub mins: [i16; CHUNK / SUB],
    /// Float scale per 32 weights. `Grouped` only; zero for groups past the end of the row.
    pub group_d: [f32; CHUNK / GROUP],
    /// Scale of the chunk. `Super` only.
    pub d: f32,
    /// Scale of the minimums. `Super` with `HAS_MIN` only.
    pub dmin: f32,
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            codes: [0; CHUNK],
            scales: [0; CHUNK / SUB],
            mins: [0; CHUNK / SUB],
            group_d: [0.0; CHUNK / GROUP],
            d: 0.0,
            dmin: 0.0,
        }
    }
}

/// 256 activations of one column, quantized to -127..=127: activation = scales[k/32] * steps[k/16] * code.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct ActChunk {
    /// One code per activation; zero past the end of the column.
    pub codes: [i8; CHUNK],
    /// Integer scale of each 16, from 1 to [`MAX_STEP`]; 1 for `Grouped` formats.
    pub steps: [i16; CHUNK / SUB],
    /// Sum of the codes of each 16, times its step.
    pub sums: [i16; CHUNK / SUB],
    /// Scale per 32; all eight are equal where the scale spans the chunk.
    pub scales: [f32; CHUNK / GROUP],
}

impl Default for ActChunk {
    fn default() -> Self {
        Self {
            codes: [0; CHUNK],
            steps: [1; CHUNK / SUB],
            sums: [0; CHUNK / SUB],
            scales: [0.0; CHUNK / GROUP],
        }
    }
}
