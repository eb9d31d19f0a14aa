//! The extent of values: least and greatest, and a histogram of magnitudes.

use crate::quantize::{BINS, bin};

/// The extent of some rows of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Extent {
    /// Least of each channel.
    pub low: Vec<f32>,
    /// Greatest of each channel.
    pub high: Vec<f32>,
    /// How many values have magnitudes in each bin.
    pub bins: [u64; BINS],
    /// Groups of values that have a quantization scale in common when scales are dynamic.
    pub groups: u64,
    /// Sum over groups of (greatest - least)^2.
    pub squared_ranges: f64,
    /// The first value that is not finite.
    pub fault: Option<f32>,
}

impl Extent {
    /// That of `x`, rows of `channels` values; a group is a row or, if `whole`, all of them.
    pub fn of(x: &[f32], channels: usize, whole: bool) -> Self {
        let (mut low, mut high) = (vec![f32::INFINITY; channels], vec![f32::NEG_INFINITY; channels]);
        let mut bins = [0; BINS];
        let (mut groups, mut squared_ranges) = (0, 0.0);
        let squared = |low: f32, high: f32| (f64::from(high) - f64::from(low)).powi(2);
        for row in x.chunks_exact(channels) {
            let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
            for ((&v, low), high) in row.iter().zip(&mut low).zip(&mut high) {
                *low = low.min(v);
                *high = high.max(v);
                least = least.min(v);
                most = most.max(v);
            }
            row.iter().for_each(|&v| bins[bin(v)] += 1);
            if !whole {
                groups += 1;
                squared_ranges += squared(least, most);
            }
        }
        if whole && !x.is_empty() {
            let (least, most) = (least(&low), greatest(&high));
            (groups, squared_ranges) = (1, squared(least, most));
        }
        let fault = x.iter().copied().find(|v| !v.is_finite());
        Extent { low, high, bins, groups, squared_ranges, fault }
    }
}

/// The least of `values`.
pub fn least(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::INFINITY, f32::min)
}

/// The greatest of `values`.
pub fn greatest(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f32::consts::SQRT_2;

    #[test]
    fn bins_are_half_octaves() {
        for (x, expected) in
            [(0.0, 0), (1e-9, 0), (1.0, 40), (-1.0, 40), (SQRT_2, 40), (SQRT_2.next_up(), 41), (1.9, 41), (2.0, 42)]
        {
            assert_eq!(bin(x), expected, "{x}");
        }
        assert_eq!((bin(f32::MAX), bin(f32::INFINITY), bin(f32::MIN_POSITIVE)), (63, 63, 0));
        for i in -39..23 {
            // A little above each boundary, by the definition.
            let x = 2f64.powf(f64::from(i) / 2.0 + 1e-4) as f32;
            assert_eq!(bin(x) as i32, i + 40, "{x}");
        }
    }

    #[test]
    fn extents_are_per_channel_and_ranges_per_group() {
        let x = [1.0, -2.0, 3.0, 0.5, -1.0, 4.0];
        let rows = Extent::of(&x, 3, false);
        assert_eq!((&rows.low[..], &rows.high[..]), (&[0.5, -2.0, 3.0][..], &[1.0, -1.0, 4.0][..]));
        assert_eq!((rows.groups, rows.squared_ranges), (2, 50.0));
        let whole = Extent::of(&x, 3, true);
        assert_eq!((whole.groups, whole.squared_ranges), (1, 36.0));
        assert_eq!(rows.bins.iter().sum::<u64>(), 6);
        assert!(Extent::of(&[0.0, f32::NAN], 2, false).fault.is_some_and(f32::is_nan));
    }
}
