//! The work of a reconstruction, unit by unit.

use super::file::{Layer, Record, UnitRecord};
use super::known::Known;
use super::network::Network;
use super::partial::Partial;
use super::{Activations, Curve, Learned, Settings, Unit, layer, outcome, walk};
use crate::calibrate::{self, Calibration, model::FloatModel, record::ModelRecord};
use crate::config::QConfig;
use crate::emit::{self, ActivationRanges, CodedLayer, Options, Packing, Progress, coded_layers};
use crate::error::Result;
use crate::pass;
use crate::quantize::adaround::Rounding;
use crate::quantize::{Method, RangeRule};
use crate::weight::Weights;
use aquatint::error::Error;
use aquatint::raw::program::{CurveAxis, Tensor};
use aquatint::raw::whole_file::check_target;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

/// What happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// The model is packed as f32.
    Packing(Progress<'a>),
    /// The share of the runs of the float model that is done.
    Runs(f64),
    /// Units of an earlier, interrupted command were found and are kept.
    Resumed(&'a Path),
    /// Something that a person should know.
    Note(String),
    /// A unit begins: its number, how many there are, and its name.
    Unit(usize, usize, &'a str),
    /// Iterations of the unit that are done, and all.
    Iteration(usize, usize),
    /// A unit is done.
    Done(&'a UnitRecord),
}

/// What was done.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// What the file says of itself.
    pub record: Record,
    /// Samples that blocks were trained on.
    pub samples: usize,
    /// Seconds in all.
    pub seconds: f64,
}

/// Reconstructs as `settings` say; `see` is shown what happens, and may end the work by saying false: the same call goes on
/// after the last unit that was done.
///
/// # Errors
/// Whatever is wrong with the model, the settings or the output, before anything appears at the output.
pub fn reconstruct(settings: &Settings, see: &mut dyn FnMut(Event<'_>) -> bool) -> Result<Report> {
    let begin = Instant::now();
    let config = QConfig::file(&settings.q_config).map(Path::to_owned);
    let inputs = [Some(&settings.model), Some(&settings.calibration), settings.prompts.as_ref(), config.as_ref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(|path| path.as_path()).collect();
    check_target(&settings.output, &inputs)?;
    check(settings)?;
    let options = Options {
        model: settings.model.clone(),
        donors: settings.donors.clone(),
        overrules: settings.overrules.clone(),
        q_config: Some(settings.q_config.clone()),
        split: settings.split.clone(),
        ..Options::default()
    };
    let coded = coded_layers(&options)?;
    let calibration = Calibration::open(&settings.calibration)?;
    calibration.check_model(&coded.pipeline, &coded.sources)?;
    let of_calibration = calibrate::Settings {
        donors: settings.donors.clone(),
        overrules: settings.overrules.clone(),
        prompts: settings.prompts.clone(),
        ..calibrate::Settings::new(settings.model.clone(), settings.output.clone())
    };
    // Halves of layers are layers of the float model, too.
    let wholes: BTreeSet<&str> =
        coded.layers.iter().filter_map(|layer| Some(layer.half.as_ref()?.whole.as_str())).collect();
    let split = |packing: &mut Packing| {
        let wanted = |weights: &Weights, tensor: Tensor, _| wholes.contains(&*weights[tensor].whole_name());
        let dims = emit::dims(&coded.pipeline);
        pass::split_layers(&mut packing.programs, &mut packing.weights, &dims, &wanted).map(|_| ())
    };
    let float = FloatModel::open_after(&of_calibration, &split, &mut |progress| {
        see(Event::Packing(progress));
    })?;
    let (of_config, calls) = (coded.activation_ranges, calibration.record().run.chosen.len());
    let by_name: BTreeMap<&str, &CodedLayer> = coded.layers.iter().map(|layer| (layer.name.as_str(), layer)).collect();
    let network = Network::new(&float.packed, &|name| by_name.contains_key(name))?;
    let coded: BTreeMap<Tensor, CodedLayer> = network
        .tensors(&|name| by_name.contains_key(name))
        .into_iter()
        .map(|tensor| (tensor, by_name[network.name(tensor)].clone()))
        .collect();
    check_methods(settings, &coded)?;
    let ranges = settings.activations.map(|wanted| starting_ranges(&wanted, of_config, &coded, calls)).transpose()?;
    let model =
        ModelRecord::of_sources(&float.packed.meta().pipeline, &float.packed.meta().sources, &components(&coded));
    let hashes = (float.packed.hash(), calibration.summary()?.xxh3);
    let partial =
        Partial::open(&settings.output, Record::new(model, how(settings), identity(settings, &coded, &hashes)))?;
    if partial.unit(0)?.is_some() {
        see(Event::Resumed(partial.folder()));
    }
    let mut work = Work { settings, network, calibration: &calibration, coded, ranges, partial, see };
    let (units, samples) = match settings.unit {
        Unit::Layer => (work.layers()?, 0),
        Unit::Block => walk::walk(&mut work, &float.packed, &of_calibration)?,
    };
    let record = work.partial.finish(units, &settings.output)?;
    Ok(Report { record, samples, seconds: begin.elapsed().as_secs_f64() })
}

/// Refuses numbers that mean nothing.
fn check(settings: &Settings) -> Result<()> {
    let training = &settings.training;
    let numbers = [("iters", training.iterations), ("batch", settings.batch), ("samples", settings.samples)];
    if let Some((option, _)) = numbers.iter().find(|(_, n)| *n == 0) {
        return Err(Error::request(*option, "at least 1", 0).into());
    }
    if !(training.rate.is_finite() && training.rate > 0.0) {
        return Err(Error::request("lr", "a positive number", training.rate).into());
    }
    if let Some(Activations { training, .. }) = settings.activations {
        if training.iterations == 0 {
            return Err(Error::request("act-iters", "at least 1", 0).into());
        }
        if !(training.rate.is_finite() && training.rate > 0.0) {
            return Err(Error::request("act-lr", "a positive number", training.rate).into());
        }
    }
    let refuse = |what: &str, expected: &str, got: &str| Err(Error::request(what, expected, got).into());
    let steps = settings.activations.is_some();
    match (settings.unit, settings.learned) {
        (_, Learned::Nothing) if !steps => refuse("--learn", "rounding, levels or activations", "nothing"),
        (Unit::Layer, _) if steps => {
            let expected = "--unit block: moments of inputs do not tell what codes make of them";
            refuse("--learn activations", expected, "--unit layer")
        }
        (Unit::Layer, Learned::Levels) => {
            let expected = "--unit block: of single layers --calib finds the best levels without any training";
            refuse("--learn levels", expected, "--unit layer")
        }
        _ => Ok(()),
    }
}

/// What ranges of activations begin as: as `wanted`, as the configuration has them, or one range by extremes.
///
/// # Errors
/// If no layer has integer activations, or there are more intervals than calls.
fn starting_ranges(
    wanted: &Activations,
    of_config: Option<ActivationRanges>,
    coded: &BTreeMap<Tensor, CodedLayer>,
    calls: usize,
) -> Result<ActivationRanges> {
    if coded.values().all(|layer| layer.activation_bits.is_none()) {
        let expected = "a configuration with integer activations, such as w4a8";
        return Err(Error::request("--learn activations", expected, "floats alone").into());
    }
    let plain = ActivationRanges {
        rule: RangeRule::MinMax,
        intervals: 1,
        axis: CurveAxis::StepFraction,
        symmetric: false,
        momentum: None,
    };
    let ranges = wanted.ranges.or(of_config).unwrap_or(plain);
    if ranges.intervals == 0 || ranges.intervals > calls.max(1) {
        let expected = format!("1 to {}, the calls that the calibration looked at", calls.max(1));
        return Err(Error::request("--act-intervals", expected, ranges.intervals).into());
    }
    Ok(ranges)
}

/// Refuses layers that cannot be trained.
fn check_methods(settings: &Settings, coded: &BTreeMap<Tensor, CodedLayer>) -> Result<()> {
    if coded.is_empty() {
        return Err(
            Error::request("--q-config", "a configuration that makes codes of layers of the denoiser", "none").into()
        );
    }
    let other = coded.values().find(|layer| !matches!(layer.method, Method::Uniform(_)));
    match other.filter(|_| settings.learned == Learned::Rounding) {
        Some(layer) => {
            let expected = "uniform levels, such as w4a8, between which weights are rounded; or --learn levels";
            Err(Error::request(format!("--q-config for {}", layer.name), expected, layer.method).into())
        }
        None => Ok(()),
    }
}

fn components(coded: &BTreeMap<Tensor, CodedLayer>) -> Vec<&str> {
    let mut components: Vec<&str> = coded.values().filter_map(|l| Some(l.name.split_once('/')?.0)).collect();
    components.dedup();
    components
}

/// What is done, in words.
fn how(settings: &Settings) -> String {
    let unit = if settings.unit == Unit::Block { "block" } else { "layer" };
    let learned = match settings.learned {
        Learned::Rounding => Some("rounding"),
        Learned::Levels => Some("levels"),
        Learned::Nothing => None,
    };
    let weights = learned.map(|learned| format!("{learned} by {unit}, {} iterations", settings.training.iterations));
    let steps = settings
        .activations
        .map(|activations| format!("steps of activations by {unit}, {} iterations", activations.training.iterations));
    weights.into_iter().chain(steps).collect::<Vec<_>>().join("; ")
}

/// A name for all that decides about the numbers.
fn identity(settings: &Settings, coded: &BTreeMap<Tensor, CodedLayer>, hashes: &(u128, String)) -> String {
    let Settings { unit, learned, training, activations, batch, samples, memory, .. } = settings;
    let prompts = settings.prompts.as_ref().map(std::fs::read);
    let version = env!("CARGO_PKG_VERSION");
    let all = format!(
        "{version} {hashes:?} {coded:?} {unit:?} {learned:?} {training:?} {activations:?} {batch} {samples} {memory} {prompts:?}"
    );
    format!("{:032x}", xxh3_128(all.as_bytes()))
}

/// Everything that the work needs.
pub(super) struct Work<'a> {
    pub(super) settings: &'a Settings,
    pub(super) network: Network<'a>,
    pub(super) calibration: &'a Calibration,
    /// The layers that become codes.
    pub(super) coded: BTreeMap<Tensor, CodedLayer>,
    /// What ranges of activations begin as, if they are learned.
    pub(super) ranges: Option<ActivationRanges>,
    pub(super) partial: Partial,
    pub(super) see: &'a mut dyn FnMut(Event<'_>) -> bool,
}

impl Work<'_> {
    /// Trains all layers one by one, halves of one together; returns how many units there are.
    fn layers(&mut self) -> Result<usize> {
        let mut layers: Vec<(String, Vec<Tensor>)> = Vec::new();
        for (&tensor, layer) in &self.coded {
            let name = layer.half.as_ref().map_or(&layer.name, |half| &half.whole);
            match layers.iter_mut().find(|(other, _)| other == name) {
                Some((_, halves)) => halves.push(tensor),
                None => layers.push((name.clone(), vec![tensor])),
            }
        }
        let (known, unknown): (Vec<_>, Vec<_>) = layers.into_iter().partition(|(name, _)| self.calibration.knows(name));
        for (name, _) in unknown {
            (self.see)(Event::Note(format!("{name} stays as it is: the calibration does not know its inputs")));
        }
        if known.is_empty() {
            return Err(Error::request("--calib", "moments of the inputs of layers that become codes", "none").into());
        }
        for (unit, (name, tensors)) in known.iter().enumerate() {
            let path = name.trim_end_matches(".weight");
            let path = path.split_once('/').map_or(path, |(_, path)| path);
            if !(self.see)(Event::Unit(unit, known.len(), path)) {
                return Err(stopped().into());
            }
            if self.partial.unit(unit)?.is_none() {
                let (layers, curve) = self.layer(name, tensors)?;
                let done = self.partial.keep(unit, path, (curve, None), &layers)?;
                (self.see)(Event::Done(&done));
            }
        }
        Ok(known.len())
    }

    /// Trains the layer whose whole weight is called `name`, all of it or the halves that there are, by moments.
    fn layer(&mut self, name: &str, tensors: &[Tensor]) -> Result<(Vec<Layer>, Curve)> {
        let known = tensors.iter().map(|&tensor| self.known(tensor)).collect::<Result<Vec<_>>>()?;
        let moments = self.calibration.moments(name)?.expect("a layer that the calibration knows");
        let part = |(known, tensor): (&Known, &Tensor)| {
            let grid = known.grid();
            let whole = || (0..moments.inputs()).collect();
            let inputs = self.coded[tensor].half.as_ref().map_or_else(whole, |half| half.columns(grid.cols));
            (grid, inputs)
        };
        let parts: Vec<_> = known.iter().zip(tensors).map(part).collect();
        let parts = known.iter().zip(parts).map(|(known, (grid, inputs))| {
            let weights = &known.weight.values;
            layer::Part { weights, grid, inputs }
        });
        let (total, see, mut done) = (self.settings.training.iterations, &mut self.see, 0);
        let mut tell = |_| {
            done += 1;
            see(Event::Iteration(done, total))
        };
        let misfit = |fault| Error::request(format!("--calib for {name}"), "moments of its inputs", fault);
        let trained = layer::train(parts.collect(), &moments, &self.settings.training, &mut tell);
        let Some((roundings, mut curve)) = trained.map_err(misfit)? else { return Err(stopped().into()) };
        curve.check(name)?;
        let worse = curve.is_worse();
        if worse {
            curve.end = curve.begin;
        }
        let mut layers = Vec::new();
        for ((&tensor, known), rounding) in tensors.iter().zip(&known).zip(roundings) {
            let matrix = if worse { Rounding::new(&known.weight.values, known.grid()) } else { rounding }.harden();
            let own = self.network.bias_of(tensor).zip(known.moments.as_ref());
            let bias = own.map(|(_, moments)| outcome::mean_error(&known.weight.values, &matrix, moments));
            layers.push(self.finished(tensor, known, matrix, bias));
        }
        Ok((layers, curve))
    }
}

/// What ends work that [`Event`]'s reader wants no more of.
pub(super) fn stopped() -> Error {
    Error::request("reconstruction", "to go on", "a wish to stop; the same command goes on with it")
}
