//! One fixed table for every tensor, a scale per row: the Lloyd-Max quantizer of the normal distribution.
//!
//! Weights of one output channel are close to normal, so the levels that are best for N(0, 1) are nearly the best for
//! all of them once each row is scaled, and no row needs a table of its own. (OrbitQuant, 2026, does this after a
//! rotation; the levels are those of J. Max, "Quantizing for minimum distortion", 1960.)
//!
//! At 8 bits the table is the integers from -128: among 8-bit integers there are no other 256 levels, and the method
//! should not mean something else where activations are floats. Its squared error of a normal row is 9e-5, a seventh of
//! that at 6 bits; the Lloyd-Max table would have 4e-5.

use super::{CodebookType, levels::Levels};
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use half::f16;
use rayon::prelude::*;

/// Upper halves of the Lloyd-Max levels of N(0, 1), which are symmetric about 0, at 2 to 6 bits.
const NORMAL: [&[f64]; 5] = [
    &[0.4527800346, 1.5104176085],
    &[0.2450941789, 0.7560052812, 1.3439092785, 2.1519457045],
    &[0.1283950299, 0.3880482995, 0.6567591185, 0.9423404565, 1.2562311973, 1.6180463860, 2.0690172265, 2.7325895710],
    &[
        0.0658896598,
        0.1980518297,
        0.3313783058,
        0.4666995230,
        0.6049336240,
        0.7471357037,
        0.8945651174,
        1.0487833199,
        1.2118043806,
        1.3863403396,
        1.5762280786,
        1.7872332177,
        2.0287283994,
        2.3177394042,
        2.6911195774,
        3.2607324934,
    ],
    &[
        0.0334095064,
        0.1002782893,
        0.1672969034,
        0.2345669853,
        0.3021928464,
        0.3702826452,
        0.4389496716,
        0.5083137809,
        0.5785030305,
        0.6496555810,
        0.7219219405,
        0.7954676558,
        0.8704765865,
        0.9471549447,
        1.0257363490,
        1.1064882395,
        1.1897201418,
        1.2757944864,
        1.3651410198,
        1.4582763747,
        1.5558312247,
        1.6585889004,
        1.7675418830,
        1.8839772405,
        2.0096110426,
        2.1468102170,
        2.2989812097,
        2.4713047976,
        2.6722738352,
        2.9174067907,
        3.2404370550,
        3.7441012709,
    ],
];

/// The same as 8-bit integers. Of all spans up to 127 these round with the least squared error under N(0, 1).
const INTEGERS: [&[i8]; 5] = [
    &[21, 70],
    &[10, 31, 55, 88],
    &[5, 15, 25, 36, 48, 62, 79, 104],
    &[2, 7, 12, 17, 22, 27, 32, 38, 44, 50, 57, 65, 73, 84, 97, 118],
    &[
        1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 24, 26, 28, 30, 33, 35, 38, 40, 43, 46, 49, 52, 56, 60, 64, 68, 73, 79,
        86, 96, 111,
    ],
];

/// Standard deviations per unit of [`INTEGERS`], by least squares under N(0, 1).
const UNITS: [f64; 5] = [0.021574818, 0.024434783, 0.026168606, 0.027656174, 0.033797831];
/// The step of 256 integer levels with the least squared error under N(0, 1).
const UNIT_8: f64 = 0.030764364;

/// Scales that are tried per row, from [`NARROWEST`] of the one that suits a normal row, in equal ratios.
const SCALES: usize = 40;
/// The least scale that is tried, relative to the one that suits a normal row.
const NARROWEST: f64 = 0.7;
/// The largest scale reaches at least this far; further if a weight lies beyond the last level there.
const WIDEST: f64 = 1.5;
/// Times that the best of them is fitted to its codes.
const FITS: usize = 3;

/// The table of the method.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// The entries, ascending, as numbers: what the file stores, exactly.
    pub(super) entries: Vec<f32>,
    /// Entries per standard deviation of a normal row, inverted.
    unit: f64,
}

impl Table {
    pub(super) fn new(bits: Bits, codebook: CodebookType) -> Self {
        let mirrored = |half: Vec<f32>| half.iter().rev().map(|v| -v).chain(half.iter().copied()).collect();
        match (usize::from(bits.get()).checked_sub(2).filter(|&at| at < NORMAL.len()), codebook) {
            (None, _) => Table { entries: (-128..128).map(|q| q as f32).collect(), unit: UNIT_8 },
            (Some(at), CodebookType::Int8 | CodebookType::Int7) => {
                Table { entries: mirrored(INTEGERS[at].iter().map(|&e| f32::from(e)).collect()), unit: UNITS[at] }
            }
            (Some(at), CodebookType::F16) => {
                let half = NORMAL[at].iter().map(|&v| f16::from_f64(v).to_f32()).collect();
                Table { entries: mirrored(half), unit: 1.0 }
            }
        }
    }

    /// The table as the codec stores it.
    pub(super) fn values(&self, codebook: CodebookType) -> TableValues {
        match codebook {
            CodebookType::Int8 | CodebookType::Int7 => TableValues::I8(self.entries.iter().map(|&e| e as i8).collect()),
            CodebookType::F16 => TableValues::F16(self.entries.iter().map(|&e| f16::from_f32(e)).collect()),
        }
    }

    /// The scale of `row` with the least squared error that the search finds, each weight's counted `weights` times
    /// (all alike if there are none), and the offset: 0, but in a row of zeros, since the table itself may hold no 0.
    pub(super) fn fit(&self, row: &[f32], weights: Option<&[f64]>) -> (f32, f32) {
        let largest = row.iter().fold(0f32, |m, v| m.max(v.abs()));
        let (mut power, mut total) = (0f64, 0f64);
        for (i, &v) in row.iter().enumerate() {
            let weight = weights.map_or(1.0, |w| w[i]);
            power += weight * f64::from(v).powi(2);
            total += weight;
        }
        let reach = f64::from(largest) / f64::from(self.last());
        // A row that is 0 wherever it counts is scaled by the rest of it.
        let normal = if power > 0.0 { (power / total).sqrt() * self.unit } else { reach };
        let (narrow, wide) = (NARROWEST * normal, (WIDEST * normal).max(reach));
        let ratio = (wide / narrow).powf(1.0 / (SCALES - 1) as f64);
        let (mut codes, mut best): (_, Option<Trial>) = (vec![0u8; row.len()], None);
        let mut attempt = |scale: f64, best: &mut Option<Trial>| {
            let trial = self.attempt(row, weights, scale as f32, &mut codes);
            if let Some(trial) = trial.filter(|t| best.is_none_or(|b| t.error < b.error)) {
                *best = Some(trial);
            }
        };
        (0..SCALES).for_each(|i| attempt(narrow * ratio.powi(i as i32), &mut best));
        for _ in 0..FITS {
            if let Some(fitted) = best.and_then(|b| b.fitted) {
                attempt(fitted, &mut best);
            }
        }
        // Nothing but zeros, or less than a normal f32: the entry next to 0 becomes 0.
        let zero = self.entries[self.entries.len() / 2];
        best.map_or((1.0, -zero), |trial| (trial.scale, 0.0))
    }

    fn last(&self) -> f32 {
        self.entries[self.entries.len() - 1]
    }

    /// Tries one scale; `None` if levels would not be normal numbers.
    fn attempt(&self, row: &[f32], weights: Option<&[f64]>, scale: f32, codes: &mut [u8]) -> Option<Trial> {
        if !(scale.is_normal() && (scale * self.last()).is_finite() && (scale * self.entries[0]).is_finite()) {
            return None;
        }
        Levels::new(self.entries.iter().map(|e| scale * e).collect()).encode(row, codes);
        let (mut error, mut along, mut square) = (0.0, 0.0, 0.0);
        for (i, (&v, &code)) in row.iter().zip(codes.iter()).enumerate() {
            let (entry, v) = (self.entries[usize::from(code)], f64::from(v));
            let weight = weights.map_or(1.0, |w| w[i]);
            error += weight * (v - f64::from(scale * entry)).powi(2);
            along += weight * v * f64::from(entry);
            square += weight * f64::from(entry).powi(2);
        }
        Some(Trial { error, scale, fitted: (square > 0.0 && along > 0.0).then(|| along / square) })
    }
}

/// One scale, tried.
#[derive(Clone, Copy, Debug)]
struct Trial {
    error: f64,
    scale: f32,
    /// The scale that is best for the codes that this one gave.
    fitted: Option<f64>,
}

/// Quantizes (rows, cols) weights, both non-zero.
pub(super) fn quantize(
    weights: &[f32],
    rows: usize,
    cols: usize,
    bits: Bits,
    codebook: CodebookType,
) -> QuantizedMatrix {
    let table = Table::new(bits, codebook);
    let mut codes = vec![0u8; rows * cols];
    let (mut scale, mut offset) = (vec![0f32; rows], vec![0f32; rows]);
    (codes.par_chunks_mut(cols), weights.par_chunks(cols), &mut scale, &mut offset).into_par_iter().for_each(
        |(codes, row, scale, offset)| {
            (*scale, *offset) = table.fit(row, None);
            Levels::new(table.entries.iter().map(|e| *scale * (e + *offset)).collect()).encode(row, codes);
        },
    );
    QuantizedMatrix { bits, rows, cols, codes, table: table.values(codebook), grain: Grain::Tensor, scale, offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments of N(0, 1) over low..high by Simpson's rule: (mass, first, second).
    fn moments(low: f64, high: f64) -> [f64; 3] {
        let n = 4000;
        let step = (high - low) / n as f64;
        let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
        let mut sums = [0f64; 3];
        for i in 0..=n {
            let x = low + step * i as f64;
            let weight = if i == 0 || i == n { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
            for (power, sum) in sums.iter_mut().enumerate() {
                *sum += weight * step / 3.0 * density(x) * x.powi(power as i32);
            }
        }
        sums
    }

    /// The cells of positive levels, each with its moments.
    fn cells(levels: &[f64]) -> Vec<[f64; 3]> {
        let cuts: Vec<f64> = levels.windows(2).map(|p| (p[0] + p[1]) / 2.0).collect();
        let bounds = [&[0.0], &cuts[..], &[12.0]].concat();
        bounds.windows(2).map(|b| moments(b[0], b[1])).collect()
    }

    #[test]
    fn every_level_is_the_mean_of_its_cell() {
        for (half, published) in NORMAL.iter().zip([
            vec![0.4528, 1.510],
            vec![0.2451, 0.7560, 1.344, 2.152],
            vec![0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
            vec![],
            vec![],
        ]) {
            for (level, [mass, first, _]) in half.iter().zip(cells(half)) {
                assert!((first / mass - level).abs() < 2e-8, "{level}: the mean is {}", first / mass);
            }
            // Max's own tables, to their four digits.
            for (level, published) in half.iter().zip(published) {
                assert!((level - published).abs() < 6e-4 * published.max(0.1), "{level}, published {published}");
            }
        }
    }

    #[test]
    fn integers_round_the_levels_best_of_all_spans() {
        for ((half, integers), unit) in NORMAL.iter().zip(INTEGERS).zip(UNITS) {
            let cells = cells(half);
            // Least-squares unit and error of a rounding.
            let error = |entries: &[f64]| {
                let sum = |f: &dyn Fn(usize) -> f64| (0..half.len()).map(|j| cells[j][0] * f(j)).sum::<f64>();
                let unit = sum(&|j| entries[j] * half[j]) / sum(&|j| entries[j] * entries[j]);
                (sum(&|j| (half[j] - unit * entries[j]).powi(2)), unit)
            };
            let kept: Vec<f64> = integers.iter().map(|&e| f64::from(e)).collect();
            assert!((error(&kept).1 - unit).abs() < 1e-8, "{unit}");
            for span in 64..=127 {
                let last = half[half.len() - 1];
                let entries: Vec<f64> = half.iter().map(|v| (v / last * f64::from(span)).round()).collect();
                assert!(error(&kept).0 <= error(&entries).0 * (1.0 + 1e-6), "span {span}");
            }
        }
    }

    #[test]
    fn the_step_at_eight_bits_is_the_best_for_a_normal_row() {
        let error = |step: f64| {
            let level = |q: i32| f64::from(q) * step;
            let cell = |q: i32| {
                let low = if q == -128 { -12.0 } else { level(q) - step / 2.0 };
                let [mass, first, second] = moments(low, if q == 127 { 12.0 } else { level(q) + step / 2.0 });
                second - 2.0 * level(q) * first + level(q).powi(2) * mass
            };
            (-128..128).map(cell).sum::<f64>()
        };
        let here = error(UNIT_8);
        assert!(here < error(UNIT_8 * 1.001) && here < error(UNIT_8 * 0.999), "{here}");
        assert!((here - 8.77e-5).abs() < 1e-7, "{here}");
    }

    #[test]
    fn scales_follow_the_row_and_its_weights() {
        let table = Table::new(Bits::ALL[2], CodebookType::Int8);
        let row: Vec<f32> = table.entries.iter().flat_map(|e| [e * 0.3, e * -0.3]).collect();
        assert!((table.fit(&row, None).0 - 0.3).abs() < 1e-6, "the row is the table, scaled");
        // Two halves of different scales: the one that counts decides.
        let halves: Vec<f32> = table.entries.iter().flat_map(|e| [e * 0.3, e * 0.05]).collect();
        let weigh = |a, b| (0..halves.len()).map(|i| if i % 2 == 0 { a } else { b }).collect::<Vec<f64>>();
        assert!((table.fit(&halves, Some(&weigh(1.0, 0.0))).0 - 0.3).abs() < 1e-6);
        assert!((table.fit(&halves, Some(&weigh(0.0, 1.0))).0 - 0.05).abs() < 1e-6);
        assert_eq!(table.fit(&[0.0; 7], None), (1.0, -5.0));
    }
}
