//! Nearest levels of several rows at a time, each row with its own.

/// Up to this many cuts it is faster to compare with all of them, several rows at a time, than to search.
const FEW: usize = 15;

/// The ascending levels of a few rows.
#[derive(Debug)]
pub(super) struct TileLevels {
    rows: usize,
    /// Levels per row; rows with fewer repeat their last.
    count: usize,
    /// (row, level).
    values: Vec<f32>,
    /// Midpoints between neighbours, infinite where levels repeat at the end: (cut, row) if they are few, else
    /// (row, cut). The code of `v` is the number of cuts below `v`.
    cuts: Vec<f32>,
}

impl TileLevels {
    /// The levels of these rows, 1 to 256 each.
    pub(super) fn new(levels: &[Vec<f64>]) -> Self {
        let rows = levels.len();
        let count = levels.iter().map(Vec::len).max().unwrap_or(1);
        let mut values = Vec::with_capacity(rows * count);
        for row in levels {
            debug_assert!(!row.is_empty() && row.is_sorted());
            values.extend((0..count).map(|j| row[j.min(row.len() - 1)] as f32));
        }
        let cut = |r: usize, j: usize| match levels[r].get(j + 1) {
            Some(next) => (0.5 * (levels[r][j] + next)) as f32,
            None => f32::INFINITY,
        };
        let n = count - 1;
        let cuts = match n <= FEW {
            true => (0..n * rows).map(|i| cut(i % rows, i / rows)).collect(),
            false => (0..n * rows).map(|i| cut(i / n, i % n)).collect(),
        };
        TileLevels { rows, count, values, cuts }
    }

    /// The level of `code` in row `row`.
    #[inline(always)]
    pub(super) fn value(&self, row: usize, code: u8) -> f32 {
        self.values[row * self.count + usize::from(code)]
    }

    /// Writes the index of the level nearest to each row's value, the lower one if two are equally near; `below` is
    /// room for as many numbers.
    #[inline(always)]
    pub(super) fn encode(&self, values: &[f32], codes: &mut [u8], below: &mut [f32]) {
        let cuts = self.count - 1;
        if cuts > FEW {
            for ((code, &v), cuts) in codes.iter_mut().zip(values).zip(self.cuts.chunks_exact(cuts)) {
                *code = cuts.partition_point(|&cut| cut < v) as u8;
            }
            return;
        }
        below.fill(0.0);
        for cuts in self.cuts.chunks_exact(self.rows) {
            for ((n, &v), &cut) in below.iter_mut().zip(values).zip(cuts) {
                *n += if cut < v { 1.0 } else { 0.0 };
            }
        }
        for (code, &n) in codes.iter_mut().zip(below.iter()) {
            *code = n as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_gets_its_own_nearest_level() {
        for counts in [[1, 1, 1], [4, 2, 3], [16, 16, 5], [17, 3, 40], [256, 200, 1]] {
            let level = |r: usize, j: usize| (j * j + j) as f64 * 0.013 * (r + 1) as f64 - 3.0 + r as f64;
            let levels: Vec<Vec<f64>> =
                counts.iter().enumerate().map(|(r, &n)| (0..n).map(|j| level(r, j)).collect()).collect();
            let tile = TileLevels::new(&levels);
            assert_eq!(tile.count, *counts.iter().max().unwrap());
            let (mut codes, mut below) = ([9u8; 3], [0f32; 3]);
            for i in 0..200 {
                let values = [0, 1, 2].map(|r| ((i * 37 % 211) as f32) * 0.07 * (r + 1) as f32 - 5.0);
                tile.encode(&values, &mut codes, &mut below);
                for r in 0..3 {
                    let distance = |v: f64| (v - f64::from(values[r])).abs();
                    let nearest = levels[r].iter().map(|&v| distance(v)).fold(f64::MAX, f64::min);
                    assert!(usize::from(codes[r]) < counts[r]);
                    assert!(distance(f64::from(tile.value(r, codes[r]))) <= nearest + 1e-5);
                }
            }
            tile.encode(
                &[0, 1, 2].map(|r| (0.5 * (levels[r][0] + levels[r][1.min(counts[r] - 1)])) as f32),
                &mut codes,
                &mut below,
            );
            assert_eq!(codes, [0; 3], "ties go to the lower level");
        }
    }
}
