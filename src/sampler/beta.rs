//! The beta distribution of noise levels (Lee et al., "Beta Sampling is All You Need", arXiv 2407.12173).

/// Both parameters of the distribution.
const SHAPE: f64 = 0.6;
/// The beta function of (0.6, 0.6): the square of gamma(0.6) over gamma(1.2).
const WHOLE: f64 = 2.415_344_208_002_472_3;
/// Terms of the continued fraction, which converges to f64 within some 20 below the middle.
const TERMS: usize = 64;

/// The value below which a share `p` of the distribution lies, 0 to 1.
pub(super) fn quantile(p: f64) -> f64 {
    // Symmetric about the middle, and the fraction converges fast below it.
    if p > 0.5 {
        return 1.0 - quantile(1.0 - p);
    }
    let (mut low, mut high) = (0.0, 0.5);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return high;
        }
        if share_below(middle) < p { low = middle } else { high = middle }
    }
}

/// The share of the distribution below `x`, 0 < x <= 0.5: the continued fraction of the incomplete beta function (DLMF
/// 8.17.22), from its end.
fn share_below(x: f64) -> f64 {
    let (a, b) = (SHAPE, SHAPE);
    let mut tail = 1.0;
    for m in (0..=TERMS).rev() {
        let m = m as f64;
        let even = (m + 1.0) * (b - m - 1.0) * x / ((a + 2.0 * m + 1.0) * (a + 2.0 * m + 2.0));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        tail = 1.0 + odd / (1.0 + even / tail);
    }
    x.powf(a) * (1.0 - x).powf(b) / (a * WHOLE * tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_scipys() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        for (p, want) in [
            (0.0, 0.0),
            (1e-6, 1.8558824624053043e-10),
            (0.01, 0.0008612388215429059),
            (0.25, 0.17568037865269498),
            (0.5, 0.5),
            (0.75, 0.824319621347305),
            (0.9, 0.9604155944112192),
            (0.999, 0.9999814412614826),
            (1.0, 1.0),
        ] {
            assert!((quantile(p) - want).abs() < 1e-14, "{p}: {}, expected {want}", quantile(p));
        }
    }
}
