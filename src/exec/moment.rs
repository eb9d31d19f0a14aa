//! When calls happen, and what that decides.

use crate::program::CurveAxis;

/// When a model call happens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// The timestep that the model receives, in training steps.
    pub timestep: f32,
    /// The share of the whole run's calls that come before this one: 0 for the first, below 1. A run that makes a part of
    /// its calls only begins later.
    pub fraction: f32,
}

impl Moment {
    /// Its position on an axis of time.
    pub fn on(self, axis: CurveAxis) -> f32 {
        match axis {
            CurveAxis::Timestep => self.timestep,
            CurveAxis::StepFraction => self.fraction,
        }
    }
}

/// Scale and zero point over time.
pub(super) struct Curve<'m> {
    pub axis: CurveAxis,
    /// Rows of (position, scale, zero), positions ascending.
    pub points: &'m [f32],
}

impl Curve<'_> {
    /// Scale and zero point at a moment.
    pub fn at(&self, moment: Moment) -> [f32; 2] {
        let position = moment.on(self.axis);
        let n = self.points.chunks_exact(3).take_while(|p| p[0] <= position).count().max(1);
        [self.points[3 * n - 2], self.points[3 * n - 1]]
    }
}
