//! Statistics: what a figure would have been with other images.

mod binomial;
mod bootstrap;
mod eigen;
mod figure;
mod jackknife;
mod product;
mod rank;
mod shuffle;

pub use binomial::{mcnemar, newcombe, wilson};
pub use bootstrap::{Bootstrapped, bootstrap, draw};
pub use eigen::{Eigen, eigenvalues, symmetric};
pub use figure::Figure;
pub use jackknife::{FEWEST, GROUPS, Jackknifed, group};
pub use product::{times_transposed, transposed};
pub use rank::{pearson, spearman};
pub use shuffle::Shuffle;

use serde::Serialize;

/// The 97.5 % quantile of the standard normal distribution: half the width of a 95 % interval, in deviations.
pub const Z95: f64 = 1.959_963_984_540_054;

/// A figure and its 95 % interval. In JSON, what is infinite is null.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// What these images gave.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Estimate {
    /// Whether the interval holds zero: a difference that these images do not show.
    pub fn holds_zero(&self) -> bool {
        self.low <= 0.0 && 0.0 <= self.high
    }
}

/// The `share` quantile of `values`, between neighbours by linear interpolation, as numpy has it by default; sorts them.
///
/// # Panics
/// If there are none.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = share * (values.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let (a, b) = (values[low], values[(low + 1).min(values.len() - 1)]);
    // Infinities would make a NaN of their difference.
    if part == 0.0 || a == b { a } else { a + part * (b - a) }
}
