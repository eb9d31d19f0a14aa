//! Packing with a calibration: which layers it knows, and the biases that take up their mean errors.

use crate::calibrate::{Calibration, CallRange};
use crate::error::Result;
use crate::pass::give_biases;
use crate::quantize::Moments;
use crate::recipe::{Decision, Recipe, Store};
use crate::weight::{Step, Weight, Weights};
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
        // Those of later phases are no part of a program yet.
        let codes = |(d, w): (&Decision, &Weight)| matches!(d.treatment.store, Store::Codes(..)) && w.phase.is_none();
        let coded: Vec<bool> = recipe.decisions.iter().zip(weights.iter()).map(codes).collect();
        let mut known: Vec<bool> =
            weights.iter().zip(&coded).map(|(w, &coded)| coded && file.knows(&w.whole_name())).collect();
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

    /// Lets `again`, the weight of a phase, be known as `weight` is; returns the bias that takes up its mean error, made
    /// here, if there is one.
    pub(super) fn vary(
        &mut self,
        weight: Tensor,
        again: Tensor,
        weights: &mut Weights,
        phase: usize,
    ) -> Option<Tensor> {
        let Tensor(i) = weight;
        let bias = self.bias_of.get(i as usize).copied().flatten()?;
        let bias = weights.vary(bias, phase);
        self.known.resize(weights.len(), false);
        self.bias_of.resize(weights.len(), None);
        self.known[again.0 as usize] = true;
        self.bias_of[again.0 as usize] = Some(bias);
        Some(bias)
    }

    /// The moments of the inputs of `weight`, number `i`, if codes are to be chosen by them.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(super) fn moments(&self, i: usize, weight: &Weight) -> Result<Option<Moments>> {
        if self.known.get(i) != Some(&true) {
            return Ok(None);
        }
        let moments = self.file.moments(&weight.whole_name())?;
        let half = weight.steps.iter().find_map(|step| match step {
            Step::Split { first, count, .. } => Some(*first as usize..(first + count) as usize),
            _ => None,
        });
        Ok(match (moments, half) {
            (Some(moments), Some(inputs)) => Some(moments.part(inputs)),
            (moments, _) => moments,
        })
    }

    /// The inputs of the layers whose weight is called `name` in the file, if they are known.
    pub(super) fn inputs(&self, name: &str) -> Option<&[usize]> {
        self.file.record().layers.get(name).map(Vec::as_slice)
    }

    /// What was seen of `inputs` at each call that was looked at, in order, and how many calls a run has.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn ranges(&self, inputs: &[usize]) -> Result<(Vec<CallRange>, usize)> {
        self.file.ranges(inputs)
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
