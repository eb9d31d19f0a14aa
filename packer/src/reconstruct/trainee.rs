//! What is learned of one weight.

use super::Training;
use super::block::dense;
use super::levels::Levels;
use crate::quantize::adaround::{Rounding, Schedule};
use crate::reverse::{Array, Cotangents};
use aquatint::raw::codec::QuantizedMatrix;
use aquatint::raw::program::Tensor;

/// A weight on its way to codes, and what of it is learned.
pub enum Trainee {
    /// The direction in which every weight is rounded.
    Rounding(RoundedWeight),
    /// Levels and bias, with the codes as they are.
    Levels(Levels),
}

/// A weight of which [`Rounding`] is learned.
pub struct RoundedWeight {
    tensor: Tensor,
    dims: Vec<usize>,
    /// Rounded to the nearest level.
    nearest: QuantizedMatrix,
    rounding: Rounding,
    /// Alpha before any training: as the nearest level has it.
    begin: Vec<f32>,
}

impl Trainee {
    /// Learns directions of rounding of `weight`, on the levels of `grid`, whose codes are not looked at.
    ///
    /// # Panics
    /// If these are not [uniform](crate::quantize::adaround::is_uniform).
    pub fn rounding(tensor: Tensor, weight: &Array, grid: QuantizedMatrix) -> Self {
        let rounding = Rounding::new(&weight.values, grid);
        let nearest = rounding.harden();
        let begin = rounding.alpha.clone();
        Trainee::Rounding(RoundedWeight { tensor, dims: weight.dims.clone(), nearest, rounding, begin })
    }

    /// The tensors whose derivatives it learns from.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        match self {
            Trainee::Rounding(weight) => vec![weight.tensor],
            Trainee::Levels(levels) => levels.tensors(),
        }
    }

    /// The tensors as they are before any training, in the form of the result.
    pub(super) fn begin(&self) -> Vec<(Tensor, Array)> {
        match self {
            Trainee::Rounding(weight) => vec![(weight.tensor, Array::new(&weight.dims, dense(&weight.nearest)))],
            Trainee::Levels(levels) => levels.begin(),
        }
    }

    /// The tensors as training sees them.
    pub(super) fn soft(&self) -> Vec<(Tensor, Array)> {
        match self {
            Trainee::Rounding(weight) => vec![(weight.tensor, Array::new(&weight.dims, weight.rounding.soft()))],
            Trainee::Levels(levels) => levels.current(),
        }
    }

    /// The tensors as they become.
    pub(super) fn hard(&self) -> Vec<(Tensor, Array)> {
        match self {
            Trainee::Rounding(weight) => {
                vec![(weight.tensor, Array::new(&weight.dims, dense(&weight.rounding.harden())))]
            }
            Trainee::Levels(levels) => levels.hard(),
        }
    }

    /// What it learns, array by array.
    pub(super) fn parameters(&mut self) -> Vec<&mut Vec<f32>> {
        match self {
            Trainee::Rounding(weight) => vec![&mut weight.rounding.alpha],
            Trainee::Levels(levels) => levels.parameters(),
        }
    }

    /// Derivatives of the loss of iteration `count` with respect to [`parameters`](Self::parameters).
    pub(super) fn gradients(&self, back: &Cotangents, training: &Training, count: usize) -> Vec<Vec<f32>> {
        match self {
            Trainee::Rounding(RoundedWeight { tensor, rounding, .. }) => {
                let schedule = Schedule { iterations: training.iterations, weight: training.weight };
                let regularizer = schedule.exponent(count).map(|exponent| (schedule.weight, exponent));
                let zeros = || vec![0.0; rounding.len()];
                let of_weights = back.tensor(*tensor).map_or_else(zeros, <[f32]>::to_vec);
                vec![rounding.gradient(&of_weights, regularizer)]
            }
            Trainee::Levels(levels) => levels.gradients(back),
        }
    }

    /// The optimiser's rate in iteration `count`: directions have the same throughout, as published, levels one that falls
    /// to zero along a cosine.
    pub(super) fn rate(&self, training: &Training, count: usize) -> f32 {
        let done = (count - 1) as f32 / training.iterations as f32;
        match self {
            Trainee::Rounding(_) => training.rate,
            Trainee::Levels(_) => training.rate * 0.5 * (1.0 + (std::f32::consts::PI * done).cos()),
        }
    }

    /// Forgets what was learned.
    pub(super) fn reset(&mut self) {
        match self {
            Trainee::Rounding(RoundedWeight { rounding, begin, .. }) => rounding.alpha.clone_from(begin),
            Trainee::Levels(levels) => levels.parameters().into_iter().for_each(|learned| learned.fill(0.0)),
        }
    }

    /// What is learned of rounding, if it is that.
    pub fn directions(&self) -> Option<&Rounding> {
        match self {
            Trainee::Rounding(weight) => Some(&weight.rounding),
            Trainee::Levels(_) => None,
        }
    }

    /// The matrix as it becomes, and what its bias gains, if that was learned.
    pub fn finish(&self) -> (QuantizedMatrix, Option<Vec<f32>>) {
        match self {
            Trainee::Rounding(weight) => (weight.rounding.harden(), None),
            Trainee::Levels(levels) => levels.finish(),
        }
    }
}
