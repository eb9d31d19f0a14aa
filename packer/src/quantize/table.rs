//! From clusters to a codebook the runtime can use, and the codes over it.
//!
//! Codes are assigned after the entries are rounded, to the nearest level that can be represented.

use super::{
    CodebookType,
    kmeans::{self, Clusters, Scratch},
    levels::Levels,
};
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use half::f16;
use rayon::prelude::*;

/// How many narrower spans than the full one, -127..127 or -63..63, are tried for an integer table. A span one step shorter moves every
/// inner entry to another place on the grid, and the best of a few places halves the rounding error.
const SPANS: usize = 32;
/// Values per piece of a pass over a tensor. Fixed, so that sums do not depend on the number of threads.
const PIECE: usize = 1 << 16;

/// A type of codebook entries.
trait Entry: Copy + Default + Send + Sync {
    /// Rounds ascending centroids to entries, integers of at most `reach`, with the scale and offset that go with them.
    fn fit(clusters: &Clusters, reach: i32) -> Codebook<Self>;
    /// The entry as a number.
    fn to_f32(self) -> f32;
    /// The codec's table.
    fn wrap(entries: Vec<Self>) -> TableValues;
}

/// Entries in ascending order; level j is `scale * (entries[j] + offset)`.
struct Codebook<E> {
    entries: Vec<E>,
    scale: f32,
    offset: f32,
}

impl<E: Entry> Codebook<E> {
    fn levels(&self) -> Levels {
        Levels::new(self.entries.iter().map(|e| self.scale * (e.to_f32() + self.offset)).collect())
    }

    /// Copies the entries to `table` and repeats the last in what is left of it.
    fn fill(&self, table: &mut [E]) {
        let n = self.entries.len();
        table[..n].copy_from_slice(&self.entries);
        table[n..].fill(self.entries[n - 1]);
    }
}

/// Levels as the file holds them: level j is `scale * (entries[j] + offset)`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredLevels {
    /// Ascending; what the table's type holds, as numbers.
    pub(super) entries: Vec<f32>,
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// Rounds ascending centroids to entries of a table of this type, each centroid's error counted by its weight.
pub(super) fn fit(clusters: &Clusters, codebook: CodebookType) -> StoredLevels {
    fn of<E: Entry>(clusters: &Clusters, reach: i32) -> StoredLevels {
        let Codebook { entries, scale, offset } = E::fit(clusters, reach);
        StoredLevels { entries: entries.into_iter().map(E::to_f32).collect(), scale, offset }
    }
    match codebook.reach() {
        Some(reach) => of::<i8>(clusters, reach),
        None => of::<f16>(clusters, 0),
    }
}

/// As [`fit`], but a centroid that is 0 stays exactly 0.
pub(super) fn fit_with_zero(clusters: &Clusters, codebook: CodebookType) -> StoredLevels {
    // Halves have no offset: 0 is one of them.
    match codebook.reach() {
        Some(reach) if clusters.centroids.contains(&0.0) => fit_about_zero(clusters, f64::from(reach)),
        _ => fit(clusters, codebook),
    }
}

/// Integers about the one that stands for 0: the offset is an integer, and the slope is free.
fn fit_about_zero(Clusters { centroids, counts }: &Clusters, reach: f64) -> StoredLevels {
    let (low, high) = (centroids[0], centroids[centroids.len() - 1]);
    let mut best: Option<(f64, StoredLevels)> = None;
    for narrower in 0..SPANS {
        let per_step = (2.0 * reach - narrower as f64) / (high - low);
        let zero = (-low * per_step).round() - reach;
        let steps = centroids.iter().map(|c| ((c * per_step).round() + zero).min(reach) - zero);
        let steps: Vec<f64> = steps.collect();
        let sum = |f: &dyn Fn(usize) -> f64| (0..steps.len()).map(|j| counts[j] * f(j)).sum::<f64>();
        let scale = (sum(&|j| steps[j] * centroids[j]) / sum(&|j| steps[j] * steps[j])) as f32;
        if !(scale.is_normal() && scale > 0.0) {
            continue;
        }
        let error = sum(&|j| (centroids[j] - f64::from(scale) * steps[j]).powi(2));
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            let entries = steps.iter().map(|step| (step + zero) as f32).collect();
            best = Some((error, StoredLevels { entries, scale, offset: -zero as f32 }));
        }
    }
    // Nothing but zeros, or less than a normal f32.
    best.map_or_else(|| StoredLevels { entries: vec![0.0], scale: 1.0, offset: 0.0 }, |(_, levels)| levels)
}

/// Tables of `levels` entries, each filled up with its last entry.
pub(super) fn tables<'a>(
    entries: impl Iterator<Item = &'a [f32]>,
    levels: usize,
    codebook: CodebookType,
) -> TableValues {
    let filled = entries.flat_map(|t| (0..levels).map(|code| t[code.min(t.len() - 1)]));
    match codebook.is_integer() {
        true => TableValues::I8(filled.map(|e| e as i8).collect()),
        false => TableValues::F16(filled.map(f16::from_f32).collect()),
    }
}

/// Scale and offset with which entry 0 is exactly `value`.
pub(super) fn constant(value: f32) -> (f32, f32) {
    if value == 0.0 { (1.0, 0.0) } else { (value, 1.0) }
}

impl Entry for i8 {
    fn fit(clusters: &Clusters, reach: i32) -> Codebook<i8> {
        let centroids = &clusters.centroids;
        let (low, high) = (centroids[0], centroids[centroids.len() - 1]);
        if low as f32 == high as f32 {
            let (scale, offset) = constant(low as f32);
            return Codebook { entries: vec![0], scale, offset };
        }
        let mut best: Option<(f64, Codebook<i8>)> = None;
        for narrower in 0..SPANS {
            let per_step = (f64::from(2 * reach) - narrower as f64) / (high - low);
            let entries: Vec<i8> =
                centroids.iter().map(|c| (((c - low) * per_step).round() as i32 - reach) as i8).collect();
            let (scale, shift) = regress(&entries, clusters);
            let (scale, offset) = (scale as f32, (shift / scale) as f32);
            if !(scale.is_normal() && scale > 0.0 && offset.is_finite()) {
                continue;
            }
            let level = |e: i8| f64::from(scale) * (f64::from(e) + f64::from(offset));
            let error: f64 =
                (0..centroids.len()).map(|j| clusters.counts[j] * (centroids[j] - level(entries[j])).powi(2)).sum();
            if best.as_ref().is_none_or(|(least, _)| error < *least) {
                best = Some((error, Codebook { entries, scale, offset }));
            }
        }
        best.map_or_else(
            || {
                // A range next to the smallest f32 has no normal step: the middle is as good as any level.
                let (scale, offset) = constant((0.5 * (low + high)) as f32);
                Codebook { entries: vec![0], scale, offset }
            },
            |(_, codebook)| codebook,
        )
    }

    fn to_f32(self) -> f32 {
        f32::from(self)
    }

    fn wrap(entries: Vec<i8>) -> TableValues {
        TableValues::I8(entries)
    }
}

/// Least squares: slope and intercept of centroids over entries, each weighted by its count.
fn regress(entries: &[i8], clusters: &Clusters) -> (f64, f64) {
    let total: f64 = clusters.counts.iter().sum();
    let mean = |f: &dyn Fn(usize) -> f64| (0..entries.len()).map(|j| clusters.counts[j] * f(j)).sum::<f64>() / total;
    let x = mean(&|j| f64::from(entries[j]));
    let y = mean(&|j| clusters.centroids[j]);
    let xx = mean(&|j| (f64::from(entries[j]) - x).powi(2));
    let xy = mean(&|j| (f64::from(entries[j]) - x) * (clusters.centroids[j] - y));
    (xy / xx, y - xy / xx * x)
}

impl Entry for f16 {
    fn fit(clusters: &Clusters, _: i32) -> Codebook<f16> {
        let largest = clusters.centroids.iter().fold(0f64, |m, c| m.max(c.abs()));
        // The scale is 1 wherever f16 keeps its 11 bits. Outside, a power of two brings the largest centroid to 1..2.
        let scale = if (2f64.powi(-8)..32768.0).contains(&largest) || largest == 0.0 {
            1.0
        } else {
            2f64.powi((largest.log2().floor() as i32).clamp(-126, 127))
        };
        let entries = clusters.centroids.iter().map(|c| f16::from_f64(c / scale)).collect();
        Codebook { entries, scale: scale as f32, offset: 0.0 }
    }

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn wrap(entries: Vec<f16>) -> TableValues {
        TableValues::F16(entries)
    }
}

/// K-Means-C: a codebook per row. Also the squared error of the exact centroids.
pub(super) fn kmeans_rows(
    w: &[f32],
    rows: usize,
    cols: usize,
    bits: Bits,
    codebook: CodebookType,
) -> (QuantizedMatrix, f64) {
    match codebook.reach() {
        Some(reach) => rows_of::<i8>(w, rows, cols, bits, reach),
        None => rows_of::<f16>(w, rows, cols, bits, 0),
    }
}

/// K-Means-A: one codebook. Also the squared error of the exact centroids.
pub(super) fn kmeans_tensor(
    w: &[f32],
    rows: usize,
    cols: usize,
    bits: Bits,
    codebook: CodebookType,
) -> (QuantizedMatrix, f64) {
    match codebook.reach() {
        Some(reach) => tensor_of::<i8>(w, rows, cols, bits, reach),
        None => tensor_of::<f16>(w, rows, cols, bits, 0),
    }
}

fn rows_of<E: Entry>(weights: &[f32], rows: usize, cols: usize, bits: Bits, reach: i32) -> (QuantizedMatrix, f64) {
    let mut codes = vec![0u8; rows * cols];
    let mut table = vec![E::default(); rows * bits.levels()];
    let (mut scale, mut offset) = (vec![0f32; rows], vec![0f32; rows]);
    let sse: Vec<f64> = (
        codes.par_chunks_mut(cols),
        weights.par_chunks(cols),
        table.par_chunks_mut(bits.levels()),
        &mut scale,
        &mut offset,
    )
        .into_par_iter()
        .map_init(Scratch::default, |scratch, (codes, row, table, scale, offset)| {
            let clusters = kmeans::cluster(row, bits.levels(), scratch);
            let sse = exact_sse(row, &clusters, codes);
            let codebook = E::fit(&clusters, reach);
            codebook.levels().encode(row, codes);
            codebook.fill(table);
            (*scale, *offset) = (codebook.scale, codebook.offset);
            sse
        })
        .collect();
    let table = E::wrap(table);
    (QuantizedMatrix { bits, rows, cols, codes, table, grain: Grain::Row, scale, offset }, sse.iter().sum())
}

fn tensor_of<E: Entry>(weights: &[f32], rows: usize, cols: usize, bits: Bits, reach: i32) -> (QuantizedMatrix, f64) {
    let clusters = kmeans::cluster(weights, bits.levels(), &mut Scratch::default());
    let codebook = E::fit(&clusters, reach);
    let levels = codebook.levels();
    let mut codes = vec![0u8; rows * cols];
    let sse: Vec<f64> = (codes.par_chunks_mut(PIECE), weights.par_chunks(PIECE))
        .into_par_iter()
        .map(|(codes, piece)| {
            let sse = exact_sse(piece, &clusters, codes);
            levels.encode(piece, codes);
            sse
        })
        .collect();
    let mut table = vec![E::default(); bits.levels()];
    codebook.fill(&mut table);
    let (scale, offset) = (vec![codebook.scale; rows], vec![codebook.offset; rows]);
    let table = E::wrap(table);
    (QuantizedMatrix { bits, rows, cols, codes, table, grain: Grain::Tensor, scale, offset }, sse.iter().sum())
}

/// Squared error of `weights` from the exact centroids; `codes` is overwritten.
fn exact_sse(weights: &[f32], clusters: &Clusters, codes: &mut [u8]) -> f64 {
    let levels = Levels::new(clusters.centroids.iter().map(|&c| c as f32).collect());
    levels.encode(weights, codes);
    levels.sse(weights, codes)
}

/// A matrix with no rows or no columns.
pub(super) fn empty(rows: usize, cols: usize, bits: Bits) -> QuantizedMatrix {
    let lowest = -(bits.levels() as i32 / 2);
    QuantizedMatrix {
        bits,
        rows,
        cols,
        codes: Vec::new(),
        table: TableValues::I8((0..bits.levels() as i32).map(|q| (q + lowest) as i8).collect()),
        grain: Grain::Tensor,
        scale: vec![1.0; rows],
        offset: vec![0.0; rows],
    }
}

/// `(sum (w - wq)^2, sum w^2)` in f64, the same on any number of threads.
pub(super) fn error_and_energy(weights: &[f32], matrix: &QuantizedMatrix) -> (f64, f64) {
    if weights.is_empty() {
        return (0.0, 0.0);
    }
    let per_row: Vec<(f64, f64)> = (weights.par_chunks(matrix.cols), matrix.codes.par_chunks(matrix.cols))
        .into_par_iter()
        .enumerate()
        .map(|(r, (row, codes))| {
            let level = |code: usize| matrix.scale[r] * (matrix.entry(r, code as u8) + matrix.offset[r]);
            let levels: Vec<f64> = (0..matrix.bits.levels()).map(|code| f64::from(level(code))).collect();
            row.iter().zip(codes).fold((0.0, 0.0), |(error, energy), (&w, &code)| {
                let w = f64::from(w);
                (error + (w - levels[usize::from(code)]).powi(2), energy + w * w)
            })
        })
        .collect();
    per_row.iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d))
}
