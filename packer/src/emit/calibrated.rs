//! Packing with a calibration: which layers it knows, and the biases that take up their mean errors.

use crate::calibrate::record::When;
use crate::calibrate::{Calibration, CallRange, Extremes};
use crate::error::Result;
use crate::pass::give_biases;
use crate::quantize::{Moments, SmoothInput};
use crate::recipe::{Change, Decision, Recipe, Store};
use crate::weight::{Channels, Misfit, Rotation, Step, Weight, Weights, signs, turn};
use aquatint::error::Error;
use aquatint::raw::format::meta::{CalibrationMeta, PipelineMeta, SourceMeta};
use aquatint::raw::program::{Program, Tensor};
use std::path::Path;

/// What a calibration knows of the layers that become codes.
pub(super) struct Known {
    file: Calibration,
    /// Per weight, whether it knows the inputs and the weight becomes codes.
    known: Vec<bool>,
    /// Per weight, the bias that belongs to it alone.
    bias_of: Vec<Option<Tensor>>,
}

impl Known {
    /// Opens the calibration at `path`, which must be of the model made from `sources`. Layers that it knows and that become
    /// codes get biases, of which `recipe` then knows, too.
    ///
    /// # Errors
    /// If it cannot be read, is of another model, or knows no layer that becomes codes.
    pub(super) fn open(
        path: &Path,
        (pipeline, sources): (&PipelineMeta, &[SourceMeta]),
        programs: &mut [Program],
        weights: &mut Weights,
        recipe: &mut Recipe,
    ) -> Result<Self> {
        let file = Calibration::open(path)?;
        file.check_model(pipeline, sources)?;
        // Weights of later phases are no part of a program yet; those of the first are known for them, too.
        let codes = |(d, w): (&Decision, &Weight)| matches!(d.treatment.store, Store::Codes(..)) && w.phase.is_none();
        let coded: Vec<bool> = recipe.decisions.iter().zip(weights.iter()).map(codes).collect();
        let mut ever = coded.clone();
        for Change { weight, decision, .. } in &recipe.changes {
            ever[*weight] |= matches!(decision.treatment.store, Store::Codes(..));
        }
        let mut known: Vec<bool> =
            weights.iter().zip(ever).map(|(w, coded)| coded && file.knows(&w.whole_name())).collect();
        if !known.contains(&true) {
            let expected = "a configuration that makes codes of layers whose inputs it has, or it has no effect";
            return Err(Error::request("--calib", expected, "none").into());
        }
        let bias_of = give_biases(programs, weights, &|Tensor(i)| known[i as usize]);
        recipe.extend(weights.len());
        for (i, known) in known.iter_mut().enumerate() {
            // Codes are chosen for what is left when the mean error is in the bias.
            *known &= bias_of[i].is_some();
            if coded[i] && !*known {
                recipe.decisions[i].add_note("rounded to the nearest level: the calibration does not know its inputs");
            }
        }
        Ok(Known { file, known, bias_of })
    }

    /// Lets `again`, the weight of a phase, be known as `weight` is; returns the bias of `weight`, and the one that takes up
    /// the mean error of `again`, made here, if there is one.
    pub(super) fn vary(
        &mut self,
        weight: Tensor,
        again: Tensor,
        weights: &mut Weights,
        phase: usize,
    ) -> Option<(Tensor, Tensor)> {
        let Tensor(i) = weight;
        let first = self.bias_of.get(i as usize).copied().flatten()?;
        let bias = weights.vary(first, phase);
        self.known.resize(weights.len(), false);
        self.bias_of.resize(weights.len(), None);
        self.known[again.0 as usize] = true;
        self.bias_of[again.0 as usize] = Some(bias);
        Some((first, bias))
    }

    /// The moments of the inputs of weight `i`, after what its steps do to them, if codes are to be chosen by them.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(super) fn moments(&self, i: usize, weights: &Weights) -> Result<Option<Moments>> {
        if self.known.get(i) != Some(&true) {
            return Ok(None);
        }
        let weight = &weights[Tensor(i as u32)];
        let Some(mut moments) = self.file.moments(&weight.whole_name())? else { return Ok(None) };
        for step in &weight.steps {
            match step {
                Step::Split { first, count, .. } => {
                    let all = weight.source_dims()[1];
                    moments = moments.part(*first as usize..(first + count) as usize, all);
                }
                // What multiplies inputs of a weight divides what is multiplied by them.
                Step::Scale { channels: Channels::Input, by, divide } => {
                    let misfit = |Misfit { expected, got }| Error::request(weight.name(), expected, got);
                    let mut factors = weights.parameter(by).map_err(misfit)?.values;
                    if *divide {
                        factors.iter_mut().for_each(|factor| *factor = factor.recip());
                    }
                    moments = moments.divided(&factors);
                }
                Step::Rotate { channels: Channels::Input, by: Rotation::Hadamard { size, seed } } => {
                    let signs = signs(*size as usize, *seed);
                    moments = moments.rotated(signs.len(), &|run| turn(run, &signs));
                }
                Step::ToFileOrder | Step::Interleave | Step::Scale { .. } | Step::Rotate { .. } => {}
            }
        }
        Ok(Some(moments))
    }

    /// The number of the first of `layers` whose inputs have moments.
    pub(super) fn first_known(&self, layers: &[Tensor]) -> Option<usize> {
        layers.iter().map(|layer| layer.0 as usize).find(|&i| self.known.get(i) == Some(&true))
    }

    /// What the inputs of weight `i` are like, which have moments.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(super) fn smooth_input(&self, i: usize, weights: &Weights) -> Result<SmoothInput> {
        let weight = &weights[Tensor(i as u32)];
        let name = weight.whole_name();
        let gone = || Error::request(format!("--calib for {name}"), "what it says that it has", "none");
        let moments = self.moments(i, weights)?.ok_or_else(gone)?;
        let Extremes { mut low, mut high, squared_range } = self.file.extremes(&name)?.ok_or_else(gone)?;
        if let Some(Step::Split { first, count, .. }) =
            weight.steps.iter().find(|step| matches!(step, Step::Split { .. }))
        {
            let half = *first as usize..(first + count) as usize;
            (low, high) = (low[half.clone()].to_vec(), high[half].to_vec());
        }
        Ok(SmoothInput { moments, low, high, squared_range })
    }

    /// [`smooth_input`](Self::smooth_input) with the extremes of calls at timesteps that are `within` a range alone.
    ///
    /// # Errors
    /// As there, and if no such call was looked at.
    pub(super) fn smooth_input_at(
        &self,
        i: usize,
        weights: &Weights,
        within: &dyn Fn(f32) -> bool,
    ) -> Result<SmoothInput> {
        let mut input = self.smooth_input(i, weights)?;
        let weight = &weights[Tensor(i as u32)];
        let name = weight.whole_name();
        let (calls, _) = self.ranges(self.inputs(&name).unwrap_or_default(), weight, weights)?;
        let mut calls = calls.into_iter().filter(|call| within(call.timestep));
        let Some(mut seen) = calls.next() else {
            let expected = "calls in every range of timesteps; more of --cali-st look at more";
            return Err(Error::request(format!("--calib for {name}"), expected, "a range without").into());
        };
        calls.for_each(|call| seen.join(&call));
        (input.low, input.high) = (seen.low, seen.high);
        Ok(input)
    }

    /// The inputs of the layers whose weight is called `name` in the file, if they are known.
    pub(super) fn inputs(&self, name: &str) -> Option<&[usize]> {
        self.file.record().layers.get(name).map(Vec::as_slice)
    }

    /// Whether `inputs` are those of prompts alone, the same at every call.
    pub(super) fn constant(&self, inputs: &[usize]) -> bool {
        inputs.iter().all(|&input| self.file.record().inputs[input].when == When::Prompt)
    }

    /// What was seen of `inputs`, those of the layer of `weight`, at each call that was looked at, in order, and how many calls
    /// a run has. Where they are divided by factors, that is what is left of each channel; histograms are of what was before.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn ranges(
        &self,
        inputs: &[usize],
        weight: &Weight,
        weights: &Weights,
    ) -> Result<(Vec<CallRange>, usize)> {
        let (mut calls, all) = self.file.ranges(inputs)?;
        if !weight.steps.iter().any(|step| input_factors(step).is_some()) {
            return Ok((calls, all));
        }
        for step in &weight.steps {
            if let Step::Split { first, count, .. } = step {
                let half = *first as usize..(first + count) as usize;
                calls.iter_mut().for_each(|call| call.keep(half.clone()));
            }
            if let Some(by) = input_factors(step) {
                let misfit = |Misfit { expected, got }| Error::request(weight.name(), expected, got);
                let factors = weights.parameter(by).map_err(misfit)?.values;
                calls.iter_mut().for_each(|call| call.divide(&factors));
            }
        }
        Ok((calls, all))
    }

    /// The bias that takes up the mean error of weight `i`.
    pub(super) fn bias_of(&self, i: usize) -> Option<usize> {
        self.bias_of.get(i).copied().flatten().map(|Tensor(bias)| bias as usize)
    }

    /// The weight whose mean error bias `i` takes up.
    pub(super) fn weight_of(&self, i: usize) -> Option<usize> {
        self.bias_of.iter().position(|bias| bias.is_some_and(|Tensor(bias)| bias as usize == i))
    }

    /// The record of the calibration.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn meta(&self) -> Result<CalibrationMeta> {
        self.file.summary()
    }
}

/// The factors that inputs are divided by where `step` multiplies a weight with them.
pub(super) fn input_factors(step: &Step) -> Option<&str> {
    match step {
        Step::Scale { channels: Channels::Input, by, divide: false } => Some(by),
        _ => None,
    }
}
