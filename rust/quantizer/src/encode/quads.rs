//! Two entries of four magnitudes for eight neighbours, under a whole metric (IQ3_XXS, IQ3_S).

use super::codebook::{Book, whole_costs};
use super::lanes::{LANES, Lanes, opaque};
use super::octet::{Octet, Row};
use super::signs::{Signed, turns};
use super::split::OCTET;
use kizami_kernels::isa::Isa;

/// Distinct halves: two magnitudes of eight levels.
pub(super) const HALVES: usize = 64;

/// The codebook of a format.
pub(super) trait Codebook<const ENTRIES: usize> {
    const GRID: &'static [[i8; 4]; ENTRIES];
    /// The magnitudes of each half.
    const VALUES: &'static [[f32; 2]; HALVES];
    fn book() -> &'static Book<ENTRIES, HALVES>;
}

/// Two entries and eight signs, bits set where minus.
#[derive(Clone, Copy, Default)]
pub(super) struct Code {
    pub(super) entries: [u16; 2],
    pub(super) signs: u8,
}

impl Code {
    /// What it stands for.
    #[inline(always)]
    pub(super) fn values<const ENTRIES: usize>(self, grid: &[[i8; 4]; ENTRIES]) -> [f32; OCTET] {
        let mut values = [0.0; OCTET];
        for i in 0..OCTET {
            let magnitude = f32::from(grid[usize::from(self.entries[i / 4])][i % 4]);
            values[i] = if self.signs >> i & 1 == 1 { -magnitude } else { magnitude };
        }
        values
    }
}

/// Magnitudes of one entry given signs and the other entry, exhaustively, and signs given magnitudes, by turns. The
/// first entry is first chosen as if the second could make up for anything. Signs have to be a pattern that can be stored.
#[inline(always)]
pub(super) fn choose_whole<I: Isa, F: Codebook<ENTRIES>, const ENTRIES: usize, const PARITY: bool>(
    isa: I,
    octet: &Octet,
    row: &Row,
    draft: bool,
    codes: &mut [Code; LANES],
) -> [Lanes; OCTET] {
    let mut signed = Signed::new(octet, row);
    let mut entries = [[0; LANES]; 2];
    let turns = turns(draft, PARITY);
    for turn in 0..opaque(turns) {
        if turn > 0 {
            signed.flip(isa, PARITY);
        }
        for half in 0..opaque(2) {
            let alone = turn == 0 && half == 0;
            let mut z = [Lanes::ZERO; 4];
            if alone {
                let pull = octet.pull(&octet.residual(&row.w, &row.fed), 0, 4);
                for i in 0..4 {
                    z[i] = pull[i] * signed.inverse;
                }
            } else {
                let q = signed.values();
                for i in 0..4 {
                    z[i] = signed.z[4 * half + i];
                    for j in 4 * (1 - half)..4 * (1 - half) + 4 {
                        z[i] = z[i] - q[j] * Lanes::splat(octet.m[4 * half + i][j]);
                    }
                }
            }
            let mut m = [[Lanes::ZERO; 4]; 4];
            for i in 0..4 {
                z[i] = z[i] * signed.signs[4 * half + i];
                for j in 0..4 {
                    let whole = octet.m[4 * half + i][4 * half + j];
                    let entry = if alone { octet.leading[i][j] } else { whole };
                    m[i][j] = signed.signs[4 * half + i] * signed.signs[4 * half + j] * Lanes::splat(entry);
                }
            }
            entries[half] = nearest_whole::<I, F, ENTRIES>(isa, &m, &z);
            signed.set(4 * half, F::GRID, &entries[half]);
        }
    }
    if turns == 1 {
        signed.flip(isa, PARITY);
    }
    for l in 0..LANES {
        codes[l] = Code { entries: [entries[0][l], entries[1][l]], signs: signed.bits(l) };
    }
    signed.values()
}

/// The best entries for given signs.
#[inline(always)]
fn nearest_whole<I: Isa, F: Codebook<ENTRIES>, const ENTRIES: usize>(
    isa: I,
    m: &[[Lanes; 4]; 4],
    z: &[Lanes; 4],
) -> [u16; LANES] {
    let (mut whole, mut costs) = ([[[Lanes::ZERO; 2]; 2]; 3], [[[Lanes::ZERO; HALVES]]; 2]);
    for i in 0..2 {
        for j in 0..2 {
            whole[0][i][j] = m[i][j];
            whole[1][i][j] = m[2 + i][2 + j];
            whole[2][i][j] = m[i][2 + j];
        }
    }
    for h in 0..opaque(2) {
        whole_costs::<I, 2, HALVES, 8>(
            isa,
            F::VALUES,
            &whole[h],
            &[z[2 * h], z[2 * h + 1]],
            &mut costs[h][0],
        );
    }
    F::book().nearest_whole::<I, 2, 8, 1>(isa, F::VALUES, &costs[0], &costs[1], &whole[2]).0
}
