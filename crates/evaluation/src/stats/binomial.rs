//! Shares of images, and whether two files differ in them.

use super::{Estimate, Z95};

/// Wilson's 95 % score interval (1927) of the share of `hits` in `n`.
///
/// # Panics
/// If `n` is 0.
pub fn wilson(hits: usize, n: usize) -> Estimate {
    assert!(n > 0, "a share of no images");
    let (share, n) = (hits as f64 / n as f64, n as f64);
    let z2 = Z95 * Z95;
    let centre = share + z2 / (2.0 * n);
    let half = Z95 * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    let [low, high] = [centre - half, centre + half].map(|end| (end / (1.0 + z2 / n)).clamp(0.0, 1.0));
    Estimate { value: share, low, high }
}

/// McNemar's exact test: the probability that of `lost + won` images that two files read differently, the fewer are
/// at most this few, or the more at least this many, if either way is as likely.
pub fn mcnemar(lost: usize, won: usize) -> f64 {
    let (n, fewer) = (lost + won, lost.min(won));
    if lost == won {
        return 1.0;
    }
    // Binomial coefficients as logarithms, since they overflow; the sum is over the smaller tail.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for k in 0..fewer {
        log_term += ((n - k) as f64 / (k + 1) as f64).ln();
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Newcombe's 95 % interval of the difference of two shares of the same images (1998, method 10: score intervals, with
/// a correction for continuity of their correlation). `pairs[i][j]` counts images that the reference reads right
/// (`i = 1`) or not, and the other file likewise (`j`). The value is the other file's share less the reference's.
///
/// # Panics
/// If there are no images.
pub fn newcombe(pairs: [[usize; 2]; 2]) -> Estimate {
    let [[neither, won], [lost, both]] = pairs.map(|row| row.map(|count| count as f64));
    let count = pairs.as_flattened().iter().sum::<usize>();
    let n = count as f64;
    let [other, reference] = [pairs[0][1], pairs[1][0]].map(|alone| wilson(alone + pairs[1][1], count));
    let margins = (both + lost) * (neither + won) * (both + won) * (neither + lost);
    let excess = both * neither - lost * won;
    let excess = if excess > 0.0 { (excess - n / 2.0).max(0.0) } else { excess };
    let correlation = if margins == 0.0 { 0.0 } else { excess / margins.sqrt() };
    let reach = |a: f64, b: f64| (a * a - 2.0 * correlation * a * b + b * b).max(0.0).sqrt();
    let value = (won - lost) / n;
    Estimate {
        value,
        low: value - reach(other.value - other.low, reference.high - reference.value),
        high: value + reach(other.high - other.value, reference.value - reference.low),
    }
}
