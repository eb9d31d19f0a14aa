//! What happens to a tile of a product before it is stored.

use super::arena::Reads;
use super::math::activate;
use super::simd::tiles::TileMut;
use super::simd::{GROUP, Isa, MR, NR, Tile};
use super::sink::Sink;
use crate::backend::args::PerSample;
use crate::program::Act;

/// What happens to a product before it is stored.
pub struct Epilogue<'a> {
    /// Added per channel.
    pub bias: Option<&'a [f32]>,
    /// Added per sample and channel, after the bias.
    pub shift: Option<PerRow<'a>>,
    /// Applied then.
    pub act: Act,
    /// Channels are values and gates by turns, and a pair makes one number of the result: `act` is the gate's alone, and
    /// nothing but the bias may go with it.
    pub gated: bool,
    /// Multiplies, after the activation.
    pub gate: Option<PerRow<'a>>,
    /// Added last: a matrix of as many columns as the output; its rows repeat.
    pub residual: Option<&'a [f32]>,
}

/// A number per sample and channel.
pub struct PerRow<'a> {
    /// `(conditions, cols)`.
    pub table: &'a [f32],
    /// Columns of the table.
    pub cols: usize,
    /// Column of the first channel.
    pub offset: usize,
    /// The condition of each sample.
    pub condition: &'a [u32],
    /// Output rows per sample.
    pub rows_per_sample: usize,
}

impl<'a> PerRow<'a> {
    /// Resolves columns of a per-condition matrix from column `offset`.
    pub fn new(reads: &Reads<'a>, columns: &PerSample, offset: usize) -> Self {
        PerRow {
            table: reads.floats(&columns.table),
            cols: columns.table.cols,
            offset,
            condition: reads.slice(columns.condition.at, columns.samples),
            rows_per_sample: columns.rows_per_sample,
        }
    }

    /// The numbers of row `m` and channels `n0..n0 + cols`.
    #[inline(always)]
    fn of(&self, m: usize, n0: usize, cols: usize) -> &[f32] {
        // Division is the dearest instruction of an epilogue, and the first sample is the only one more often than not.
        let sample = if m < self.rows_per_sample { 0 } else { m / self.rows_per_sample };
        let condition = self.condition[sample] as usize;
        &self.table[condition * self.cols + self.offset + n0..][..cols]
    }
}

/// At most `NR` numbers, and zeros: loops of known length over them stay in registers.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; NR] {
    if let Some(whole) = x.first_chunk() {
        return *whole;
    }
    let mut out = [0.0; NR];
    let (groups, rest) = x.as_chunks::<GROUP>();
    let (to, to_rest) = out.split_at_mut(groups.len() * GROUP);
    for (to, from) in to.as_chunks_mut::<GROUP>().0.iter_mut().zip(groups) {
        *to = *from;
    }
    for (to, from) in to_rest.iter_mut().zip(rest) {
        *to = *from;
    }
    out
}

impl Epilogue<'_> {
    /// Channels of the product per number of the result.
    pub fn channels(&self) -> usize {
        if self.gated { 2 } else { 1 }
    }

    /// Where the residual of row `m` begins, of `len` numbers in rows of `n`.
    pub fn residual_at(&self, m: usize, n: usize, len: usize) -> usize {
        // Its rows repeat, which needs no division in the first round.
        if m * n < len { m * n } else { m * n % len }
    }

    /// Finishes row `m` of a tile, `v`, and stores it into `out`, which begins at channel `n0`; `n` channels in all.
    /// Not for gated products.
    #[inline(always)]
    pub fn apply<I: Isa, S: Sink>(&self, [m, n0, n]: [usize; 3], v: &mut [f32; NR], sink: S, out: &mut [S::Element]) {
        let cols = out.len();
        if let Some(bias) = self.bias {
            let bias = padded(&bias[n0..n0 + cols]);
            v.iter_mut().zip(bias).for_each(|(v, x)| *v += x);
        }
        if let Some(shift) = &self.shift {
            let shift = padded(shift.of(m, n0, cols));
            v.iter_mut().zip(shift).for_each(|(v, x)| *v += x);
        }
        activate::<I>(self.act, v);
        if let Some(gate) = &self.gate {
            let gate = padded(gate.of(m, n0, cols));
            v.iter_mut().zip(gate).for_each(|(v, x)| *v *= x);
        }
        if let Some(residual) = self.residual {
            let at = self.residual_at(m, n, residual.len());
            let residual = padded(&residual[at + n0..][..cols]);
            v.iter_mut().zip(residual).for_each(|(v, x)| *v += x);
        }
        sink.store(m, v, out);
    }

    /// Finishes the rows of a gated tile, whose channels begin at `n0`: all its gates are activated together, whole
    /// vectors of them.
    #[inline(always)]
    pub fn apply_gated<I: Isa, S: Sink>(
        &self,
        [m0, n0]: [usize; 2],
        acc: &Tile<f32>,
        count: usize,
        sink: S,
        tile: &mut TileMut<'_, S::Element>,
    ) {
        const OUT: usize = NR / 2;
        let bias = self.bias.map_or([0.0; NR], |bias| padded(&bias[n0..n0 + 2 * tile.cols.len()]));
        let (mut values, mut gates) = ([[0.0; OUT]; MR], [[0.0; OUT]; MR]);
        for (v, (values, gates)) in acc.iter().zip(values.iter_mut().zip(&mut gates)) {
            for j in 0..OUT {
                values[j] = v[2 * j] + bias[2 * j];
                gates[j] = v[2 * j + 1] + bias[2 * j + 1];
            }
        }
        activate::<I>(self.act, gates.as_flattened_mut());
        for (i, (values, gates)) in values.iter_mut().zip(&gates).enumerate().take(count) {
            values.iter_mut().zip(gates).for_each(|(v, gate)| *v *= gate);
            sink.store(m0 + i, values, tile.row(m0 + i));
        }
    }
}
