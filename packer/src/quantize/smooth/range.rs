//! How the ranges of rows change with factors.

/// Points that distributions are worked out at.
const POINTS: usize = 513;
/// Deviations from the mean beyond which nothing is expected.
const REACH: f64 = 6.0;

/// The expected range of a row, greatest less least value, of independent normal channels of these means and deviations.
///
/// The greatest is at most t with the product of all channels' probabilities, so its mean is an integral of that product.
pub(super) fn expected_range(channels: &[(f64, f64)]) -> f64 {
    let low = channels.iter().map(|(mean, sd)| mean - REACH * sd).fold(f64::INFINITY, f64::min);
    let high = channels.iter().map(|(mean, sd)| mean + REACH * sd).fold(f64::NEG_INFINITY, f64::max);
    let step = (high - low) / (POINTS - 1) as f64;
    let mut within = 0.0;
    for i in 0..POINTS {
        let t = low + step * i as f64;
        // Whether all are below t, whether all are above.
        let (mut below, mut above) = (1.0, 1.0);
        for &(mean, sd) in channels {
            let p = if sd > 0.0 { normal((t - mean) / sd) } else { f64::from(u8::from(t >= mean)) };
            below *= p;
            above *= 1.0 - p;
        }
        let weight = if i == 0 || i == POINTS - 1 { 0.5 } else { 1.0 };
        within += weight * step * (1.0 - below - above);
    }
    within.max(0.0)
}

/// The probability that a normal variable is below z: Abramowitz and Stegun 7.1.26, within 1e-7.
fn normal(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let tail = 0.5 * series.iter().fold(0.0, |sum, c| (sum + c) * t) * (-x * x).exp();
    if z < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_tables() {
        for (z, p) in [(0.0, 0.5), (1.0, 0.841_344_746), (-1.96, 0.024_997_895), (3.0, 0.998_650_102), (9.0, 1.0)] {
            assert!((normal(z) - p).abs() < 1e-7, "{z}: {} for {p}", normal(z));
        }
    }

    /// Expected ranges of samples of a standard normal variable are tabulated as d2 in quality control.
    #[test]
    fn ranges_are_those_of_tables() {
        for (n, d2) in [(2, 1.128), (3, 1.693), (5, 2.326), (10, 3.078), (25, 3.931)] {
            let range = expected_range(&vec![(3.0, 2.0); n]);
            assert!((range / 2.0 - d2).abs() < 1e-3, "{n}: {range}");
        }
        // Of values that never change it is what lies between them, but for the step of the grid.
        let fixed = expected_range(&[(-1.0, 0.0), (2.0, 0.0), (0.5, 0.0)]);
        assert!((fixed - 3.0).abs() < 0.02, "{fixed}");
        assert_eq!(expected_range(&[(1.0, 0.0)]), 0.0);
    }
}
