//! Ranges of activations that are fixed before anything runs: scale and zero point from what a calibration saw.

use aquatint::raw::program::CurveAxis;

/// Timesteps that models are trained on, in the intervals of [`CurveAxis::Timestep`].
const TIMESTEPS: f32 = 1000.0;

/// Bins of a histogram.
pub const BINS: usize = 64;
/// Power of two at which the first bin begins; each covers half an octave.
const FIRST_OCTAVE: i32 = -20;

/// The bin of a value: `floor(2 log2 |x|) - 2 FIRST_OCTAVE`, within 0 and [`BINS`] - 1. Zeros are in the first.
#[inline]
pub fn bin(x: f32) -> usize {
    // |x| = m 2^e with 1 <= m < 2; the upper half of an octave begins at the square root of 2.
    let bits = x.abs().to_bits();
    let octave = (bits >> 23) as i32 - 127;
    let upper = i32::from(bits & 0x7f_ffff >= 0x35_04f4);
    (2 * (octave - FIRST_OCTAVE) + upper).clamp(0, BINS as i32 - 1) as usize
}

/// The least magnitude in a bin.
fn lowest(bin: usize) -> f64 {
    2f64.powf(bin as f64 / 2.0 + f64::from(FIRST_OCTAVE))
}

/// How a fixed range follows from the values that were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRule {
    /// All of them.
    MinMax,
    /// The range shrunk by 0, 1, ... 79 %, with the least mean error to the power of 2.4 (Q-Diffusion's `mse`), errors
    /// estimated from the histogram of magnitudes.
    Mse,
}

/// What was seen of an activation.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenRange {
    /// The least value.
    pub low: f32,
    /// The greatest.
    pub high: f32,
    /// How many values have magnitudes in each bin.
    pub bins: [u64; BINS],
}

/// Shrunken ranges that are tried.
const SHRINKS: u16 = 80;
/// Parts of a bin that errors are summed over.
const PARTS: usize = 16;
/// The power of errors.
const POWER: f64 = 2.4;

impl SeenRange {
    /// That of `values`; none if there are none.
    pub fn of(values: &[f32]) -> Option<SeenRange> {
        let first = *values.first()?;
        let mut seen = SeenRange { low: first, high: first, bins: [0; BINS] };
        for &v in values {
            (seen.low, seen.high) = (seen.low.min(v), seen.high.max(v));
            seen.bins[bin(v)] += 1;
        }
        Some(seen)
    }

    /// What was seen of both.
    #[must_use]
    pub fn and(&self, other: &SeenRange) -> SeenRange {
        let bins = std::array::from_fn(|i| self.bins[i].saturating_add(other.bins[i]));
        SeenRange { low: self.low.min(other.low), high: self.high.max(other.high), bins }
    }

    /// Scale and zero point in `bits`: a value is `scale * (q - zero)`, q from 0 to `2^bits - 1`. With `symmetric` the zero point
    /// is `2^(bits - 1)`, and both signs reach as far.
    pub fn scale_and_zero(&self, rule: RangeRule, bits: u8, symmetric: bool) -> (f32, f32) {
        scale_and_zero(self.ends(rule, bits, symmetric), bits, symmetric)
    }

    /// The ends of the range that the rule gives; of a symmetric one, the further end on both sides.
    fn ends(&self, rule: RangeRule, bits: u8, symmetric: bool) -> [f64; 2] {
        let shrink = match rule {
            RangeRule::MinMax => 1.0,
            RangeRule::Mse => self.best_shrink(bits, symmetric),
        };
        let [low, high] = [self.low, self.high].map(|end| shrink * f64::from(end));
        let furthest = low.abs().max(high.abs());
        if symmetric { [-furthest, furthest] } else { [low, high] }
    }

    fn best_shrink(&self, bits: u8, symmetric: bool) -> f64 {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let furthest = low.abs().max(high.abs());
        let (low, high) = if symmetric { (-furthest, furthest) } else { (low, high) };
        let all: f64 = self.bins.iter().map(|&n| n as f64).sum();
        let error = |shrink: f64| {
            // Inside: errors spread evenly over a step.
            let step = shrink * (high - low) / f64::from((1u32 << bits) - 1);
            let inside = (step / 2.0).powf(POWER) / (POWER + 1.0);
            let outside = |m: f64| {
                // Which signs have values of this magnitude, if both signs have as many where both may.
                let signs = [(m <= high, shrink * high), (m <= -low, -shrink * low)];
                let count = signs.iter().filter(|(may, _)| *may).count().max(1) as f64;
                let cut = |(may, end): &(bool, f64)| if *may { (m - end).max(0.0).powf(POWER) / count } else { 0.0 };
                signs.iter().map(cut).sum::<f64>()
            };
            // Values spread evenly over their bin.
            let spread = |bin: usize| {
                let (from, to) = (lowest(bin), lowest(bin + 1).min(furthest));
                (0..PARTS).map(|i| outside(from + (to - from) * (i as f64 + 0.5) / PARTS as f64)).sum::<f64>()
                    / PARTS as f64
            };
            let bins = self.bins.iter().enumerate().filter(|(_, n)| **n > 0);
            inside * all + bins.map(|(bin, &n)| n as f64 * spread(bin)).sum::<f64>()
        };
        let mut best = (f64::INFINITY, 1.0);
        for i in 0..SHRINKS {
            let shrink = 1.0 - 0.01 * f64::from(i);
            let error = error(shrink);
            if error < best.0 {
                best = (error, shrink);
            }
        }
        best.1
    }
}

/// Scale and zero point of codes for a range.
fn scale_and_zero([low, high]: [f64; 2], bits: u8, symmetric: bool) -> (f32, f32) {
    let levels = f64::from((1u32 << bits) - 1);
    if symmetric {
        let half = f64::from(1u32 << (bits - 1));
        let scale = if high > 0.0 { high / (half - 1.0) } else { 1.0 };
        return (scale as f32, half as f32);
    }
    if low == high {
        let scale = if high == 0.0 { 1.0 } else { high.abs() };
        return (scale as f32, (-low / scale).round_ties_even() as f32);
    }
    // A step that is much finer than the values would push the zero point beyond what codes round exactly.
    let scale = ((high - low) / levels).max(high.abs().max(low.abs()) / 4e6);
    (scale as f32, (-low / scale).round_ties_even() as f32)
}

/// A run cut into intervals of time, each with a range of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// How many.
    pub count: usize,
    /// What time is.
    pub axis: CurveAxis,
    /// Calls of the run.
    pub calls: usize,
}

impl Intervals {
    /// Calls in an interval of steps: runs of equal length, the last perhaps shorter; see the course's
    /// `step_index // ceil(T / k)`.
    fn steps(&self) -> usize {
        self.calls.div_ceil(self.count).max(1)
    }

    /// The interval of call `index`, at which the network receives `timestep`.
    pub fn of(&self, index: usize, timestep: f32) -> usize {
        let interval = match self.axis {
            CurveAxis::StepFraction => index / self.steps(),
            CurveAxis::Timestep => (timestep / TIMESTEPS * self.count as f32) as usize,
        };
        interval.min(self.count - 1)
    }

    /// Where an interval begins on the axis.
    pub fn position(&self, interval: usize) -> f32 {
        match self.axis {
            CurveAxis::StepFraction => (interval * self.steps()) as f32 / self.calls.max(1) as f32,
            CurveAxis::Timestep => interval as f32 * TIMESTEPS / self.count as f32,
        }
    }
}

/// A range that calls of a run make one after another.
#[derive(Clone, Debug)]
pub struct MovingRange {
    rule: RangeRule,
    bits: u8,
    symmetric: bool,
    /// The part of its ends that stays when a call is seen; none if the rule is for all values together.
    momentum: Option<f64>,
    all: Option<SeenRange>,
    ends: Option<[f64; 2]>,
}

impl MovingRange {
    /// A range of which nothing is seen. With `momentum`, so many hundredths of its ends stay at every call, and the rest is the
    /// ends of the call's own range (Q-Diffusion's `running_stat` with 95, the course project's `momentum` with 90); without,
    /// it is the range of all values together.
    pub fn new(rule: RangeRule, bits: u8, symmetric: bool, momentum: Option<u8>) -> Self {
        let momentum = momentum.map(|hundredths| f64::from(hundredths) / 100.0);
        MovingRange { rule, bits, symmetric, momentum, all: None, ends: None }
    }

    /// Takes the next call's values.
    pub fn see(&mut self, call: &SeenRange) {
        let Some(stay) = self.momentum else {
            self.all = Some(self.all.as_ref().map_or_else(|| call.clone(), |all| all.and(call)));
            return;
        };
        let own = call.ends(self.rule, self.bits, self.symmetric);
        let moved = |old: [f64; 2]| [0, 1].map(|i| old[i] * stay + own[i] * (1.0 - stay));
        self.ends = Some(self.ends.map_or(own, moved));
    }

    /// Scale and zero point, as [`SeenRange::scale_and_zero`] has them; none if no call was seen.
    pub fn scale_and_zero(&self) -> Option<(f32, f32)> {
        let all = self.all.as_ref().map(|all| all.ends(self.rule, self.bits, self.symmetric));
        self.ends.or(all).map(|ends| scale_and_zero(ends, self.bits, self.symmetric))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(values: &[f32]) -> SeenRange {
        SeenRange::of(values).unwrap()
    }

    #[test]
    fn all_values_are_codes_of_a_range_by_extremes() {
        for values in [&[-1.0f32, 3.0][..], &[0.5, 0.7], &[-2.0, -1.0], &[0.0, 255.0]] {
            let seen = seen(values);
            for bits in [6, 8] {
                let (scale, zero) = seen.scale_and_zero(RangeRule::MinMax, bits, false);
                for &v in values {
                    let q = (v / scale).round_ties_even() + zero;
                    assert!((0.0..=f32::from((1u16 << bits) - 1)).contains(&q), "{v}: {q}");
                    assert!((scale * (q - zero) - v).abs() <= 0.5001 * scale);
                }
                let (scale, zero) = seen.scale_and_zero(RangeRule::MinMax, bits, true);
                assert_eq!(zero, f32::from(1u16 << (bits - 1)));
                assert!(values.iter().all(|v| (v / scale).abs() <= zero - 1.0 + 1e-3));
            }
        }
        assert_eq!(seen(&[0.0, 0.0]).scale_and_zero(RangeRule::MinMax, 8, false), (1.0, 0.0));
        assert_eq!(seen(&[-3.0, -3.0]).scale_and_zero(RangeRule::MinMax, 8, false), (3.0, 1.0));
    }

    #[test]
    fn an_outlier_is_cut_off_and_an_even_spread_is_not() {
        let even: Vec<f32> = (0..4001).map(|i| (i as f32 - 2000.0) / 2000.0).collect();
        let (all, _) = seen(&even).scale_and_zero(RangeRule::MinMax, 8, false);
        let (best, _) = seen(&even).scale_and_zero(RangeRule::Mse, 8, false);
        assert!(best > 0.9 * all, "{best} {all}");
        let outlier: Vec<f32> = even.iter().copied().chain([5.0, -5.0]).collect();
        let (all, _) = seen(&outlier).scale_and_zero(RangeRule::MinMax, 4, false);
        let (best, _) = seen(&outlier).scale_and_zero(RangeRule::Mse, 4, false);
        assert!(best < 0.6 * all, "{best} {all}");
        // By the values themselves it is the better one, too.
        let error = |scale: f32, zero: f32| -> f64 {
            let coded = |v: f32| scale * (((v / scale).round_ties_even() + zero).clamp(0.0, 15.0) - zero);
            outlier.iter().map(|&v| f64::from((v - coded(v)).abs()).powf(POWER)).sum()
        };
        let of = |rule| {
            let (scale, zero) = seen(&outlier).scale_and_zero(rule, 4, false);
            error(scale, zero)
        };
        assert!(of(RangeRule::Mse) < of(RangeRule::MinMax));
    }
}
