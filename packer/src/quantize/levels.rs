//! Nearest-level search: which of a few sorted levels is closest to each weight.

/// Levels of a codebook in ascending order, at most 256.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    values: Vec<f32>,
    /// Midpoints between neighbours: the code of `v` is the number of cuts below `v`.
    cuts: Vec<f32>,
}

/// Up to this many cuts it is faster to compare with all of them, several weights at a time, than to search.
const FEW: usize = 15;
/// Weights compared at a time.
const LANES: usize = 16;

impl Levels {
    /// The search over `values`, which must be ascending, 1 to 256 of them.
    pub(super) fn new(values: Vec<f32>) -> Self {
        debug_assert!((1..=256).contains(&values.len()) && values.is_sorted());
        let cuts = values.windows(2).map(|p| (0.5 * (f64::from(p[0]) + f64::from(p[1]))) as f32).collect();
        Levels { values, cuts }
    }

    /// Writes the index of the level nearest to each weight; the lower one if two are equally near.
    pub(super) fn encode(&self, weights: &[f32], codes: &mut [u8]) {
        if self.cuts.len() > FEW {
            for (code, &v) in codes.iter_mut().zip(weights) {
                *code = self.cuts.partition_point(|&cut| cut < v) as u8;
            }
            return;
        }
        let (mut w, mut c) = (weights.chunks_exact(LANES), codes.chunks_exact_mut(LANES));
        for (w, c) in (&mut w).zip(&mut c) {
            let mut below = [0u32; LANES];
            for &cut in &self.cuts {
                for (n, &v) in below.iter_mut().zip(w) {
                    *n += u32::from(cut < v);
                }
            }
            for (code, n) in c.iter_mut().zip(below) {
                *code = n as u8;
            }
        }
        for (code, &v) in c.into_remainder().iter_mut().zip(w.remainder()) {
            *code = self.cuts.iter().filter(|&&cut| cut < v).count() as u8;
        }
    }

    /// Sum of squared distances of `weights` from the levels that `codes` name.
    pub(super) fn sse(&self, weights: &[f32], codes: &[u8]) -> f64 {
        let distance = |(&v, &c): (&f32, &u8)| (f64::from(v) - f64::from(self.values[usize::from(c)])).powi(2);
        weights.iter().zip(codes).map(distance).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_level_at_every_count_and_length() {
        let weights: Vec<f32> = (0..53).map(|i| ((i * 37 % 53) as f32 - 26.0) * 0.171).collect();
        for n in [1usize, 2, 3, 8, 15, 16, 17, 40, 256] {
            let values: Vec<f32> = (0..n).map(|i| (i * i) as f32 * 0.01 - 4.0).collect();
            let levels = Levels::new(values.clone());
            for len in 0..weights.len() {
                let mut codes = vec![0xff; len];
                levels.encode(&weights[..len], &mut codes);
                for (&w, &c) in weights.iter().zip(&codes) {
                    let nearest = values.iter().map(|v| (v - w).abs()).fold(f32::MAX, f32::min);
                    assert!((values[usize::from(c)] - w).abs() <= nearest * (1.0 + 1e-6), "{n} levels, {w} -> {c}");
                }
            }
        }
    }
}
