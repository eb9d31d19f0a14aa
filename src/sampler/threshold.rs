//! Dynamic thresholding (Saharia et al., arXiv 2205.11487, section 2.3), as diffusers' `_threshold_sample` has it.

use super::Real;

/// How the x0 of each image is thresholded: values are clamped to +-s and divided by s, where s is a quantile of their
/// magnitudes, at least 1 and at most `most`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Which quantile, 0 to 1.
    pub ratio: f64,
    /// The largest threshold.
    pub most: f32,
}

impl Threshold {
    /// The threshold s of an image whose values have these magnitudes; puts them in another order. Between two of them the
    /// quantile is interpolated, as torch's is.
    ///
    /// # Panics
    /// Without values.
    pub fn of<T: Real>(&self, magnitudes: &mut [T]) -> T {
        let rank = self.ratio * (magnitudes.len() - 1) as f64;
        let (_, &mut low, above) = magnitudes.select_nth_unstable_by(rank as usize, T::total_cmp);
        let next = above.iter().copied().min_by(T::total_cmp).unwrap_or(low);
        let share = (rank - rank.floor()) as f32;
        let quantile = T::from(1.0 - share) * low + T::from(share) * next;
        let least = if quantile > T::from(1.0) { quantile } else { T::from(1.0) };
        if least < T::from(self.most) { least } else { T::from(self.most) }
    }
}
