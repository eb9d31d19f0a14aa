//! Rank correlation.

/// Spearman's rank correlation of two rows of numbers, pair by pair; equal numbers share their mean rank. 0 if all numbers of a row are
/// equal.
///
/// # Panics
/// If they are not as many.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "numbers in pairs");
    pearson(&ranks(a), &ranks(b))
}

/// Pearson's correlation; 0 if all numbers of a row are equal.
pub fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let sums = a.iter().zip(b).fold([0.0; 3], |[ab, aa, bb], (a, b)| {
        let (a, b) = (a - mean_a, b - mean_b);
        [ab + a * b, aa + a * a, bb + b * b]
    });
    let below = (sums[1] * sums[2]).sqrt();
    if below > 0.0 { sums[0] / below } else { 0.0 }
}

fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&i, &j| x[i].total_cmp(&x[j]));
    let mut ranks = vec![0.0; x.len()];
    let mut first = 0;
    while first < order.len() {
        let equal = order[first..].iter().take_while(|&&i| x[i] == x[order[first]]).count();
        let rank = first as f64 + (equal - 1) as f64 / 2.0;
        order[first..first + equal].iter().for_each(|&i| ranks[i] = rank);
        first += equal;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of scipy.stats.spearmanr and pearsonr (1.17).
    #[test]
    fn correlations_are_scipys() {
        let a = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        let b = [2.0, 7.0, 1.0, 8.0, 2.0, 8.0, 1.0, 8.0];
        assert!((spearman(&a, &b) - 0.198_853_681_209_924_67).abs() < 1e-12, "{}", spearman(&a, &b));
        assert!((pearson(&a, &b) - 0.209_655_319_073_012_1).abs() < 1e-12, "{}", pearson(&a, &b));
        assert!((spearman(&a, &a) - 1.0).abs() < 1e-12);
        assert_eq!(spearman(&a, &[1.0; 8]), 0.0);
    }
}
