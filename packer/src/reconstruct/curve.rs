//! How a loss went.

use aquatint::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Points of a curve at most.
const POINTS: usize = 120;

/// A loss over the iterations of a training, and on all samples before and after.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Of what the training began with, rounded.
    pub begin: f64,
    /// Of the result.
    pub end: f64,
    /// Means over as many equal parts of the iterations as there are, of what they trained on.
    pub points: Vec<f64>,
}

impl Curve {
    /// That of `losses`, one per iteration.
    pub fn new(begin: f64, losses: &[f64], end: f64) -> Self {
        let parts = POINTS.min(losses.len());
        let part = |i: usize| &losses[losses.len() * i / parts..losses.len() * (i + 1) / parts];
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        Curve { begin, end, points: (0..parts).map(|i| mean(part(i))).collect() }
    }

    /// Whether it was all for nothing: the result is worse than what training began with.
    pub fn is_worse(&self) -> bool {
        self.end > self.begin
    }

    /// Checks that the training of the unit called `name` kept to numbers.
    ///
    /// # Errors
    /// The first loss that is none.
    pub fn check(&self, name: &str) -> Result<()> {
        let losses = [self.begin].into_iter().chain(self.points.iter().copied()).chain([self.end]);
        match losses.into_iter().find(|loss| !loss.is_finite()) {
            Some(loss) => Err(Error::request(format!("loss of {name}"), "finite numbers; try a smaller --lr", loss)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_and_short_trainings_are_kept_whole() {
        assert_eq!(Curve::new(3.0, &[2.0, 1.0], 0.5), Curve { begin: 3.0, end: 0.5, points: vec![2.0, 1.0] });
        assert_eq!(Curve::new(1.0, &[], 1.0).points, [0.0; 0]);
        let losses: Vec<f64> = (0..POINTS * 3).map(|i| i as f64).collect();
        let points = Curve::new(0.0, &losses, 0.0).points;
        let lost = Curve::new(1.0, &[1.0, f64::INFINITY], f64::NAN).check("block").unwrap_err();
        assert_eq!(lost.to_string(), "loss of block: expected finite numbers; try a smaller --lr, got inf");
        assert!(Curve::new(1.0, &[2.0], 3.0).check("block").is_ok());
        assert_eq!((points.len(), points[0], points[POINTS - 1]), (POINTS, 1.0, (POINTS * 3 - 2) as f64));
    }
}
