//! Smoothing that changes over timesteps, as ViDiT-Q's `timerange` has it: each stretch of time has an exponent and greatest
//! magnitudes of its own, so it has weights of its own, too.
//!
//! What makes a value is the same at all times, so factors are part of making codes here, and none is folded into anything.

use super::Options;
use super::calibrated::Known;
use super::phases::PhaseWeights;
use super::pruned::Pruned;
use super::smoothing::{self, Smoothing, layers};
use super::turns::Turns;
use crate::calibrate::Calibration;
use crate::config;
use crate::error::Result;
use crate::lower::Part;
use crate::pass::{Smoothable, Starts};
use crate::recipe::Recipe;
use crate::source::diffusers::Model;
use crate::weight::{Storage, Weights};
use aquatint::error::Error;
use aquatint::raw::program::{CurveAxis, MAX_PHASES, Tensor};

/// One smoothing for each stretch of time.
pub(super) struct Timed {
    /// Where they begin.
    starts: Starts,
    /// By stretch.
    rules: Vec<Smoothing>,
}

impl Timed {
    /// What the configuration that made `recipe` asks for; none where `options` say otherwise, or where its exponents are for all
    /// times.
    ///
    /// # Errors
    /// If ranges of timesteps do not follow each other from 0 on, or there are phases of other kinds.
    pub(super) fn new(options: &Options, recipe: &Recipe) -> Result<Option<Self>> {
        let [smoothing] = &recipe.transforms.smooth[..] else { return Ok(None) };
        if options.smoothing.is_some() || !smoothing.is_timed() {
            return Ok(None);
        }
        smoothing::check(options, recipe.activation_ranges)?;
        if !recipe.starts.positions.is_empty() {
            let expected = "no phases beside it: both are stretches of time with weights of their own";
            return Err(Error::request("smoothing by timerange", expected, "both").into());
        }
        let mut positions = Vec::new();
        let mut next = 0;
        for &(_, range) in &smoothing.alphas {
            let [first, last] = range.filter(|[first, last]| *first == next && last >= first).ok_or_else(|| {
                let got = range.map_or("none".into(), |[first, last]| format!("[{first}, {last}]"));
                Error::request("timerange of the configuration", format!("one from {next} on"), got)
            })?;
            positions.push(first as f32);
            next = last + 1;
        }
        if positions.len() > MAX_PHASES {
            let expected = format!("at most {MAX_PHASES} ranges");
            return Err(Error::request("timerange of the configuration", expected, positions.len()).into());
        }
        let one = |&(alpha, range)| {
            let alphas = vec![(alpha, range)];
            smoothing::of_config(&config::Smoothing { alphas, ..smoothing.clone() })
        };
        let rules = smoothing.alphas.iter().map(one).collect::<Result<_>>()?;
        Ok(Some(Timed { starts: Starts { axis: CurveAxis::Timestep, positions }, rules }))
    }

    /// Gives linear layers with integer activations that are to be smoothed, and whose inputs the calibration knows, a weight
    /// in each stretch of time.
    ///
    /// # Errors
    /// If there are none, or the calibration cannot be read.
    pub(super) fn vary(
        &self,
        options: &Options,
        phases: &mut PhaseWeights,
        (weights, recipe): (&mut Weights, &mut Recipe),
    ) -> Result<()> {
        let matcher = self.rules[0].layers.compile("--smooth-layers")?;
        let calibration = options.calibration.as_ref().map(|path| Calibration::open(path)).transpose()?;
        let wanted = |(i, weight): &(usize, &crate::weight::Weight)| {
            Part::of(weight.component) == Part::Denoiser
                && weight.storage == Storage::Linear
                && recipe.decisions[*i].treatment.activation_bits.is_some()
                && calibration.as_ref().is_some_and(|file| file.knows(&weight.whole_name()))
                && matcher.is_match(weight)
        };
        let found: Vec<Tensor> = weights.iter().enumerate().filter(wanted).map(|(i, _)| Tensor(i as u32)).collect();
        if found.is_empty() {
            let expected = "linear layers with integer activations that the calibration knows, or it has no effect";
            return Err(Error::request("smoothing of the configuration", expected, "none").into());
        }
        recipe.starts = self.starts.clone();
        phases.repeat(&self.starts, &found, weights, recipe);
        Ok(())
    }

    /// Divides the inputs of those layers by factors in each stretch of time, where they become codes; `sites` are the values
    /// that layers read. Returns what to tell of it.
    ///
    /// # Errors
    /// If no call of a stretch was looked at, or a weight or the calibration cannot be read.
    pub(super) fn smooth(
        &self,
        sites: &[Smoothable],
        (weights, recipe, turns): (&mut Weights, &mut Recipe, &mut Turns),
        (model, pruned): (&Model, Option<&Pruned>),
        (known, phases): (&Known, &PhaseWeights),
    ) -> Result<String> {
        let mut count = 0;
        for site in sites {
            let varied: Vec<Tensor> = site.layers.iter().copied().filter(|&layer| phases.has(1, layer)).collect();
            let Some(first) = known.first_known(&varied) else { continue };
            let read = layers(&varied, (&*weights, &*recipe), (model, pruned))?;
            let factors = |(phase, rule): (usize, &Smoothing)| -> Result<Vec<f32>> {
                let (from, to) = (self.starts.positions[phase], self.starts.positions.get(phase + 1));
                let within = |t: f32| (phase == 0 || t >= from) && to.is_none_or(|&to| t < to);
                Ok(rule.rule.factors(&read, &known.smooth_input_at(first, weights, &within)?))
            };
            // All of them before the first weight is changed, whose inputs the others are.
            let all = self.rules.iter().enumerate().map(factors).collect::<Result<Vec<_>>>()?;
            for (phase, factors) in all.into_iter().enumerate() {
                let own: Vec<Tensor> = varied.iter().map(|&layer| phases.weight(phase, layer)).collect();
                let note = format!("smoothed from timestep {} on", self.starts.positions[phase]);
                own.iter().for_each(|&Tensor(i)| recipe.decisions[i as usize].add_note(&note));
                turns.divide(weights, &own, factors);
            }
            count += 1;
        }
        recipe.extend(weights.len());
        let stretches = self.rules.len();
        recipe.config += &format!(", {} in {stretches} ranges of timesteps", self.rules[0].describe());
        Ok(format!("{count} inputs of layers are smoothed where they become codes, by {stretches} ranges of timesteps"))
    }
}
