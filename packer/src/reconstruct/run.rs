//! The work of a reconstruction, unit by unit.

use super::file::{Layer, LayerRecord, Record, UnitRecord};
use super::network::Network;
use super::partial::Partial;
use super::trainee::Trainee;
use super::{Curve, Learned, Levels, Settings, Unit, layer, outcome, walk};
use crate::calibrate::{self, Calibration, model::FloatModel, record::ModelRecord};
use crate::config::QConfig;
use crate::emit::{CodedLayer, Options, Progress, coded_layers};
use crate::error::Result;
use crate::quantize::adaround::Rounding;
use crate::quantize::{Calibrated, FeedbackOptions, Method, Moments, quantize, quantize_calibrated};
use crate::reverse::Array;
use aquatint::error::Error;
use aquatint::raw::codec::{QuantizedMatrix, TableValues};
use aquatint::raw::program::Tensor;
use aquatint::raw::whole_file::check_target;
use std::collections::BTreeMap;
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
    let float = FloatModel::open(&of_calibration, &mut |progress| {
        see(Event::Packing(progress));
    })?;
    let by_name: BTreeMap<&str, &CodedLayer> = coded.layers.iter().map(|layer| (layer.name.as_str(), layer)).collect();
    let network = Network::new(&float.packed, &|name| by_name.contains_key(name))?;
    let coded: BTreeMap<Tensor, CodedLayer> = network
        .tensors(&|name| by_name.contains_key(name))
        .into_iter()
        .map(|tensor| (tensor, by_name[network.name(tensor)].clone()))
        .collect();
    check_methods(settings, &coded)?;
    let model =
        ModelRecord::of_sources(&float.packed.meta().pipeline, &float.packed.meta().sources, &components(&coded));
    let hashes = (float.packed.hash(), calibration.summary()?.xxh3);
    let partial =
        Partial::open(&settings.output, Record::new(model, how(settings), identity(settings, &coded, &hashes)))?;
    if partial.unit(0)?.is_some() {
        see(Event::Resumed(partial.folder()));
    }
    let mut work = Work { settings, network, calibration: &calibration, coded, partial, see };
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
    if settings.unit == Unit::Layer && settings.learned == Learned::Levels {
        let expected = "--unit block: of single layers --calib finds the best levels without any training";
        return Err(Error::request("--learn levels", expected, "--unit layer").into());
    }
    Ok(())
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
    let learned = if settings.learned == Learned::Levels { "levels" } else { "rounding" };
    format!("{learned} by {unit}, {} iterations", settings.training.iterations)
}

/// A name for all that decides about the numbers.
fn identity(settings: &Settings, coded: &BTreeMap<Tensor, CodedLayer>, hashes: &(u128, String)) -> String {
    let Settings { unit, learned, training, batch, samples, memory, .. } = settings;
    let prompts = settings.prompts.as_ref().map(std::fs::read);
    let version = env!("CARGO_PKG_VERSION");
    let all = format!(
        "{version} {hashes:?} {coded:?} {unit:?} {learned:?} {training:?} {batch} {samples} {memory} {prompts:?}"
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
    pub(super) partial: Partial,
    pub(super) see: &'a mut dyn FnMut(Event<'_>) -> bool,
}

/// What is known of a layer before it is trained.
pub(super) struct Known {
    pub(super) weight: Array,
    pub(super) nearest: QuantizedMatrix,
    pub(super) moments: Option<Moments>,
    /// What packing with a calibration makes of it.
    pub(super) calibrated: Option<Calibrated>,
}

impl Known {
    /// The levels between which it is rounded: as packing with a calibration has them, a published rule's where it says so.
    pub(super) fn grid(&self) -> QuantizedMatrix {
        self.calibrated.as_ref().map_or(&self.nearest, |calibrated| &calibrated.matrix).clone()
    }
}

impl Work<'_> {
    /// Trains all layers one by one; returns how many units there are.
    fn layers(&mut self) -> Result<usize> {
        let layers: Vec<(Tensor, String)> = self.coded.iter().map(|(&t, layer)| (t, layer.name.clone())).collect();
        let (known, unknown): (Vec<_>, Vec<_>) = layers.into_iter().partition(|(_, name)| self.calibration.knows(name));
        for (_, name) in unknown {
            (self.see)(Event::Note(format!("{name} stays as it is: the calibration does not know its inputs")));
        }
        if known.is_empty() {
            return Err(Error::request("--calib", "moments of the inputs of layers that become codes", "none").into());
        }
        for (unit, (tensor, name)) in known.iter().enumerate() {
            let path = name.trim_end_matches(".weight");
            let path = path.split_once('/').map_or(path, |(_, path)| path);
            if !(self.see)(Event::Unit(unit, known.len(), path)) {
                return Err(stopped().into());
            }
            if self.partial.unit(unit)?.is_none() {
                let (layer, curve) = self.layer(*tensor)?;
                let done = self.partial.keep(unit, path, curve, &[layer])?;
                (self.see)(Event::Done(&done));
            }
        }
        Ok(known.len())
    }

    /// Trains one layer by moments.
    fn layer(&mut self, tensor: Tensor) -> Result<(Layer, Curve)> {
        let known = self.known(tensor)?;
        let moments = known.moments.as_ref().expect("a layer that the calibration knows");
        let (total, see, mut done) = (self.settings.training.iterations, &mut self.see, 0);
        let mut tell = |_| {
            done += 1;
            see(Event::Iteration(done, total))
        };
        let misfit =
            |fault| Error::request(format!("--calib for {}", self.coded[&tensor].name), "moments of its inputs", fault);
        let trained = layer::train(&known.weight.values, known.grid(), moments, &self.settings.training, &mut tell);
        let Some((rounding, mut curve)) = trained.map_err(misfit)? else { return Err(stopped().into()) };
        curve.check(&self.coded[&tensor].name)?;
        let mut matrix = rounding.harden();
        if curve.is_worse() {
            (matrix, curve.end) = (Rounding::new(&known.weight.values, known.grid()).harden(), curve.begin);
        }
        let own = self.network.bias_of(tensor);
        let bias = own.map(|_| outcome::mean_error(&known.weight.values, &matrix, moments));
        Ok((self.finished(tensor, &known, matrix, bias), curve))
    }

    /// What is known of a layer.
    ///
    /// # Errors
    /// If the calibration is damaged.
    pub(super) fn known(&self, tensor: Tensor) -> Result<Known> {
        let CodedLayer { name, method, bits, codebook } = &self.coded[&tensor];
        let weight = self.network.array(tensor)?;
        let rows = weight.dims[0];
        let cols = weight.values.len() / rows;
        let values = &weight.values;
        let nearest = quantize(values, rows, cols, *method, *bits, *codebook);
        let moments = self.calibration.moments(name)?;
        let options = FeedbackOptions::default();
        let chosen = moments
            .as_ref()
            .map(|moments| quantize_calibrated(values, rows, cols, *method, *bits, *codebook, moments, &options));
        let misfit = |fault| Error::request(format!("--calib for {name}"), "moments of its inputs", fault);
        let calibrated = chosen.transpose().map_err(misfit)?;
        Ok(Known { nearest, moments, calibrated, weight })
    }

    /// A layer ready to be trained in its block, and what its bias has gained before.
    ///
    /// # Errors
    /// If its bias cannot be read.
    pub(super) fn trainee(&self, tensor: Tensor, known: &Known) -> Result<(Trainee, Option<Vec<f32>>)> {
        if self.settings.learned == Learned::Rounding {
            return Ok((Trainee::rounding(tensor, &known.weight, known.grid()), None));
        }
        let own = self.network.bias_of(tensor);
        // Codes are chosen for what is left when the mean error is in the bias.
        let (matrix, gain) = match (&known.calibrated, own) {
            (Some(chosen), Some(_)) => {
                (chosen.matrix.clone(), Some(chosen.bias.iter().map(|&v| v as f32).collect::<Vec<f32>>()))
            }
            _ => (known.nearest.clone(), None),
        };
        let bias = match own {
            None => None,
            Some(bias) => {
                let mut array = self.network.array(bias)?;
                array.values.iter_mut().zip(gain.iter().flatten()).for_each(|(bias, gain)| *bias += gain);
                Some((bias, array))
            }
        };
        Ok((Trainee::Levels(Levels::new(tensor, &known.weight.dims, matrix, bias)), gain))
    }

    /// A layer with what there is to say of it.
    pub(super) fn finished(
        &self,
        tensor: Tensor,
        known: &Known,
        matrix: QuantizedMatrix,
        bias: Option<Vec<f32>>,
    ) -> Layer {
        let CodedLayer { name, method, bits, .. } = &self.coded[&tensor];
        let (table, int8) = match &matrix.table {
            TableValues::I8(entries) => (entries.len(), true),
            TableValues::F16(entries) => (entries.len(), false),
        };
        let errors = known.moments.as_ref().and_then(|moments| {
            outcome::output_errors(&known.weight.values, (&matrix, bias.as_deref()), &known.nearest, moments)
        });
        let record = LayerRecord {
            name: name.clone(),
            method: format!("{method}-{bits}"),
            bits: u32::from(bits.get()),
            rows: matrix.rows,
            cols: matrix.cols,
            tables: table / bits.levels(),
            int8,
            biased: bias.is_some(),
            output_error: errors.map(|[error, _]| error),
            nearest_output_error: errors.map(|[_, nearest]| nearest),
        };
        Layer { record, matrix, bias }
    }
}

/// What ends work that [`Event`]'s reader wants no more of.
pub(super) fn stopped() -> Error {
    Error::request("reconstruction", "to go on", "a wish to stop; the same command goes on with it")
}
