//! Steps of activations, learned: the scales of fixed ranges, a number for each of the intervals of a curve, their zero points as
//! they are (Q-Diffusion's second stage; quantization.md §3.2).
//!
//! ```text
//! x -> scale (clamp(round(x / scale) + zero) - zero)      scale = scale before (1 + learned)
//! loss = sum over channels of |output - target|^2.4       by Adam, its rate falling to 0 along a cosine
//! ```
//!
//! The published code learns scales themselves, with a rate of 4e-4 whatever their size; here a rate is relative to the scale that there
//! was before.

use super::adam::Adam;
use super::block::{Block, chunks};
use super::{Curve, StepTraining};
use crate::reverse::{Array, Cotangents, Tape, Values, Wanted};
use aquatint::Result;
use aquatint::raw::program::Tensor;
use rayon::prelude::*;

/// The power of errors.
const POWER: f64 = 2.4;
/// The least part of a scale that is left of it.
const LEAST: f32 = 1e-2;

/// A curve of ranges on its way.
#[derive(Clone, Debug)]
pub struct Steps {
    /// What the block calls the curve.
    tensor: Tensor,
    /// Position, scale and zero point, as they begin.
    points: Vec<[f32; 3]>,
    /// What is added to each scale, in parts of it.
    learned: Vec<f32>,
}

impl Steps {
    /// Learns the scales of `points`, rows of position, scale and zero point, of the curve that a block calls `tensor`.
    pub fn new(tensor: Tensor, points: Vec<[f32; 3]>) -> Self {
        Steps { tensor, learned: vec![0.0; points.len()], points }
    }

    fn scale(&self, point: usize) -> f32 {
        self.points[point][1] * (1.0 + self.learned[point]).max(LEAST)
    }

    /// Scale and zero point of samples, `at` giving the point of each.
    fn table(&self, at: &[usize]) -> Array {
        let ranges = at.iter().flat_map(|&point| [self.scale(point), self.points[point][2]]).collect();
        Array::new(&[at.len(), 2], ranges)
    }

    /// Derivatives with respect to what is learned, of samples at these points.
    fn gradient(&self, back: &Cotangents, at: &[usize]) -> Vec<f32> {
        let mut gradient = vec![0f32; self.points.len()];
        let slopes = back.tensor(self.tensor).unwrap_or(&[]);
        for (slope, &point) in slopes.iter().step_by(2).zip(at) {
            gradient[point] += slope * self.points[point][1];
        }
        gradient
    }

    /// The curve as it becomes.
    pub fn finish(&self) -> Vec<[f32; 3]> {
        let point = |(i, &[position, _, zero]): (usize, &[f32; 3])| [position, self.scale(i), zero];
        self.points.iter().enumerate().map(point).collect()
    }
}

impl Block<'_> {
    /// Learns `steps` for the least `sum over channels of |output - target|^2.4`, in the mean over samples and places; `at` gives
    /// the point of every sample on curves, `batch` the samples of each iteration, which counts from 1. `see` hears of every
    /// iteration and may end the work by saying false; then there is no curve. Steps stay as they were if they came out worse.
    ///
    /// # Errors
    /// Those of [`Tape::run`].
    pub fn train_steps(
        &self,
        steps: &mut [Steps],
        at: &[usize],
        training: &StepTraining,
        batch: &mut dyn FnMut(usize) -> Vec<usize>,
        see: &mut dyn FnMut(f64) -> bool,
    ) -> Result<Option<Curve>> {
        let begin = self.power_loss(steps, at)?;
        let wanted = Wanted { tensors: steps.iter().map(|curve| curve.tensor).collect(), ..Wanted::default() };
        let mut adams: Vec<Adam> = steps.iter().map(|curve| Adam::new(curve.points.len())).collect();
        let mut losses = Vec::with_capacity(training.iterations);
        for count in 1..=training.iterations {
            let which = batch(count);
            let at: Vec<usize> = which.iter().map(|&sample| at[sample]).collect();
            let (inputs, target) = self.part(&which);
            let tables = tables(steps, &at);
            let find = |tensor| find(&tables, tensor).unwrap_or_else(|| (self.weights)(tensor));
            let tape = Tape::run(self.program, self.nodes, self.frames, &inputs, &find)?;
            let y = tape.value(self.output);
            let (loss, seed) = power_error(y, &target, y.rows());
            let back = tape.backward(Values::from([(self.output, seed)]), &wanted);
            let done = (count - 1) as f32 / training.iterations as f32;
            let rate = training.rate * 0.5 * (1.0 + (std::f32::consts::PI * done).cos());
            for (curve, adam) in steps.iter_mut().zip(&mut adams) {
                let gradient = curve.gradient(&back, &at);
                adam.step(&mut curve.learned, &gradient, rate);
            }
            losses.push(loss);
            if !see(loss) {
                return Ok(None);
            }
        }
        let mut curve = Curve::new(begin, &losses, self.power_loss(steps, at)?);
        if curve.is_worse() {
            steps.iter_mut().for_each(|curve| curve.learned.fill(0.0));
            curve.end = begin;
        }
        Ok(Some(curve))
    }

    /// The loss over all samples.
    fn power_loss(&self, steps: &[Steps], at: &[usize]) -> Result<f64> {
        let mut loss = 0.0;
        for which in chunks(at.len()) {
            let tables = tables(steps, &at[which.clone()]);
            let (inputs, target) = self.part(&which.collect::<Vec<_>>());
            let find = |tensor| find(&tables, tensor).unwrap_or_else(|| (self.weights)(tensor));
            let tape = Tape::run(self.program, self.nodes, self.frames, &inputs, &find)?;
            loss += power_error(tape.value(self.output), &target, self.target.rows()).0;
        }
        Ok(loss)
    }
}

fn tables(steps: &[Steps], at: &[usize]) -> Vec<(Tensor, Array)> {
    steps.iter().map(|curve| (curve.tensor, curve.table(at))).collect()
}

fn find(tables: &[(Tensor, Array)], tensor: Tensor) -> Option<&Array> {
    tables.iter().find(|(curve, _)| *curve == tensor).map(|(_, table)| table)
}

/// `sum |y - target|^2.4 / rows`, and its derivative.
fn power_error(y: &Array, target: &Array, rows: usize) -> (f64, Array) {
    let mut slope = y.clone();
    let rows = rows as f64;
    let pieces = slope.values.par_chunks_mut(1 << 12).zip(target.values.par_chunks(1 << 12));
    let sums = pieces.map(|(slope, target)| {
        let mut sum = 0f64;
        for (slope, target) in slope.iter_mut().zip(target) {
            let error = f64::from(*slope - target);
            let power = error.abs().powf(POWER - 1.0);
            sum += power * error.abs();
            *slope = (POWER * power.copysign(error) / rows) as f32;
        }
        sum
    });
    let loss = sums.collect::<Vec<_>>().iter().sum::<f64>() / rows;
    (loss, slope)
}
