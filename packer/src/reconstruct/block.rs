//! Block reconstruction: what a run of nodes makes of the inputs that a quantized network gives it becomes what the float
//! network makes of its own (Li et al. 2021, BRECQ, section 3.3; quantization.md §3.2).

use super::adam::Adam;
use super::trainee::Trainee;
use super::{Curve, Training};
use crate::reverse::{Array, Tape, Values, Wanted};
use aquatint::Result;
use aquatint::raw::codec::QuantizedMatrix;
use aquatint::raw::program::{Program, Tensor, Value};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Samples that are run together where nothing is trained.
const CHUNK: usize = 16;

/// A block, what it is given and what it should make.
pub struct Block<'a> {
    /// The network.
    pub program: &'a Program,
    /// The block's nodes, ascending.
    pub nodes: &'a [usize],
    /// Frames of a sample.
    pub frames: usize,
    /// What it makes.
    pub output: Value,
    /// What it is given: of each value all samples, or what all samples have in common.
    pub inputs: &'a Values,
    /// The inputs that all samples have in common.
    pub shared: &'a BTreeSet<Value>,
    /// What its output should be, of all samples.
    pub target: &'a Array,
    /// The float weights.
    pub weights: &'a (dyn Fn(Tensor) -> &'a Array + 'a),
}

impl Block<'_> {
    /// Learns `trainees` for the least `sum over channels of (output - target)^2`, in the mean over samples and places;
    /// `batch` gives the samples of each iteration, which counts from 1. `see` hears of every iteration and may end the work by
    /// saying false; then there is no curve.
    ///
    /// The published code takes that sum over the second axis, which of pixels, channels first there, is that of channels, and
    /// of tokens is that of tokens. Here it is channels in both.
    ///
    /// # Errors
    /// Those of [`Tape::run`].
    pub fn train(
        &self,
        trainees: &mut BTreeMap<Tensor, Trainee>,
        training: &Training,
        batch: &mut dyn FnMut(usize) -> Vec<usize>,
        see: &mut dyn FnMut(f64) -> bool,
    ) -> Result<Option<Curve>> {
        let begin = self.loss(&current(trainees, Trainee::begin))?;
        let mut optimisers: BTreeMap<Tensor, Vec<Adam>> = trainees
            .iter_mut()
            .map(|(&t, trainee)| (t, trainee.parameters().iter().map(|p| Adam::new(p.len())).collect()))
            .collect();
        let wanted = Wanted { tensors: trainees.values().flat_map(Trainee::tensors).collect(), ..Wanted::default() };
        let mut losses = Vec::with_capacity(training.iterations);
        for count in 1..=training.iterations {
            let weights = current(trainees, Trainee::soft);
            let (inputs, target) = self.part(&batch(count));
            let find = |tensor: Tensor| weights.get(&tensor).unwrap_or_else(|| (self.weights)(tensor));
            let tape = Tape::run(self.program, self.nodes, self.frames, &inputs, &find)?;
            let (loss, seed) = squared_error(tape.value(self.output), &target);
            let back = tape.backward(Values::from([(self.output, seed)]), &wanted);
            for (tensor, trainee) in trainees.iter_mut() {
                let gradients = trainee.gradients(&back, training, count);
                let rate = trainee.rate(training, count);
                let optimisers = optimisers.get_mut(tensor).into_iter().flatten();
                for ((parameters, adam), gradient) in trainee.parameters().into_iter().zip(optimisers).zip(&gradients) {
                    adam.step(parameters, gradient, rate);
                }
            }
            losses.push(loss);
            if !see(loss) {
                return Ok(None);
            }
        }
        let end = self.loss(&current(trainees, Trainee::hard))?;
        Ok(Some(Curve::new(begin, &losses, end)))
    }

    /// Inputs and target of these samples.
    pub(super) fn part(&self, which: &[usize]) -> (Values, Array) {
        (part(self.inputs, self.shared, which), self.target.samples(which))
    }

    /// The loss over all samples.
    fn loss(&self, weights: &BTreeMap<Tensor, Array>) -> Result<f64> {
        let find = |tensor: Tensor| weights.get(&tensor).unwrap_or_else(|| (self.weights)(tensor));
        let (nodes, inputs, count) = ((self.nodes, self.frames), (self.inputs, self.shared), self.target.dims[0]);
        let y = run(self.program, nodes, self.output, inputs, count, &find)?;
        Ok(squared_error(&y, self.target).0)
    }
}

/// What `nodes` make of all `samples` of `inputs`, each of so many frames, of which some are `shared`: the value `output`.
///
/// # Errors
/// Those of [`Tape::run`].
pub(super) fn run<'w>(
    program: &Program,
    (nodes, frames): (&[usize], usize),
    output: Value,
    (inputs, shared): (&Values, &BTreeSet<Value>),
    samples: usize,
    weights: &dyn Fn(Tensor) -> &'w Array,
) -> Result<Array> {
    let mut all: Option<Array> = None;
    for which in chunks(samples) {
        let inputs = part(inputs, shared, &which.collect::<Vec<_>>());
        let find = |tensor: Tensor| -> &Array { weights(tensor) };
        let tape = Tape::run(program, nodes, frames, &inputs, &find)?;
        let y = tape.into_values().remove(&output).expect("the output of these nodes");
        match &mut all {
            None => all = Some(y),
            Some(all) => {
                all.dims[0] += y.dims[0];
                all.values.extend_from_slice(&y.values);
            }
        }
    }
    Ok(all.expect("one sample at least"))
}

/// All of `samples`, in runs that are worked on together.
pub(super) fn chunks(samples: usize) -> impl Iterator<Item = Range<usize>> {
    (0..samples).step_by(CHUNK).map(move |first| first..samples.min(first + CHUNK))
}

/// The inputs of these samples.
pub(super) fn part(inputs: &Values, shared: &BTreeSet<Value>, which: &[usize]) -> Values {
    let of = |(&value, array): (&Value, &Array)| match shared.contains(&value) {
        true => (value, array.clone()),
        false => (value, array.samples(which)),
    };
    inputs.iter().map(of).collect()
}

/// What trainees make of their weights and biases in some form.
fn current<T: IntoIterator<Item = (Tensor, Array)>>(
    trainees: &BTreeMap<Tensor, Trainee>,
    form: impl Fn(&Trainee) -> T,
) -> BTreeMap<Tensor, Array> {
    trainees.values().flat_map(form).collect()
}

/// `sum over channels of (y - target)^2` in the mean over rows, and its derivative.
fn squared_error(y: &Array, target: &Array) -> (f64, Array) {
    let rows = y.rows() as f64;
    let mut slope = y.clone();
    slope.values.iter_mut().zip(&target.values).for_each(|(slope, target)| *slope -= target);
    let loss = slope.values.par_chunks(1 << 12).map(|d| d.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>());
    let loss = loss.collect::<Vec<_>>().iter().sum::<f64>() / rows;
    let by = (2.0 / rows) as f32;
    slope.values.iter_mut().for_each(|slope| *slope *= by);
    (loss, slope)
}

/// The weights of a matrix.
pub(super) fn dense(matrix: &QuantizedMatrix) -> Vec<f32> {
    let mut weights = vec![0f32; matrix.codes.len()];
    weights.par_chunks_mut(matrix.cols.max(1)).enumerate().for_each(|(row, weights)| {
        weights.iter_mut().enumerate().for_each(|(col, weight)| *weight = matrix.weight(row, col));
    });
    weights
}
