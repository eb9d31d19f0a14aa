//! Packing with a reconstruction: codes, levels and biases as they were trained.

use super::store::{Stored, store_trained};
use crate::calibrate::record::ModelRecord;
use crate::error::Result;
use crate::lower::Part;
use crate::pass::give_biases;
use crate::recipe::{Recipe, Store, Treatment};
use crate::reconstruct::Reconstruction;
use crate::reconstruct::file::{ActivationRecord, LayerRecord};
use crate::weight::{Elements, Weight, Weights};
use aquatint::error::Error;
use aquatint::raw::codec::Grain;
use aquatint::raw::format::TensorKind;
use aquatint::raw::format::meta::{PipelineMeta, SourceMeta};
use aquatint::raw::program::{Program, QuantizeRange, Tensor};
use std::collections::{BTreeMap, HashMap};

/// The layers of a reconstruction that are packed.
pub(super) struct Reconstructed {
    file: Reconstruction,
    /// By a weight's name in the packed file, the number of its record.
    records: BTreeMap<String, usize>,
    /// Per bias, what it gains.
    pub(super) corrections: HashMap<usize, Vec<f64>>,
}

impl Reconstructed {
    /// The layers of `file`, which must be of the model made from `sources`. Those whose biases change get biases, of which
    /// `recipe` then knows, too.
    ///
    /// # Errors
    /// If it is of another model or another configuration, or is damaged.
    pub(super) fn new(
        file: Reconstruction,
        (pipeline, sources): (&PipelineMeta, &[SourceMeta]),
        programs: &mut [Program],
        weights: &mut Weights,
        recipe: &mut Recipe,
    ) -> Result<Self> {
        let refuse = |what: &str, expected: String, got: String| {
            Error::request(format!("--import {}: {what}", file.path().display()), expected, got)
        };
        let own = &file.record().model;
        let components: Vec<&str> = components(&file);
        let model = ModelRecord::of_sources(pipeline, sources, &components);
        if model.weights != own.weights {
            let expected = format!("a reconstruction of {} from the same files", model.name);
            return Err(refuse("model", expected, format!("one of {} from others", own.name)).into());
        }
        let records: BTreeMap<String, usize> =
            file.record().layers.iter().enumerate().map(|(i, layer)| (layer.name.clone(), i)).collect();
        let mut found = 0;
        for (weight, decision) in weights.iter().zip(&recipe.decisions) {
            let Some(&record) = records.get(&weight.name()).filter(|_| weight.quantizable()) else { continue };
            let record = &file.record().layers[record];
            let asked = decision.treatment.store.name();
            let integers = decision.treatment.kind() == kind(record, decision.treatment);
            if asked != record.method || !integers || weight.matrix() != (record.rows, record.cols) {
                let expected = format!("{} for {asked}; packer reconstruct makes it", record.name);
                return Err(refuse("configuration", expected, format!("one for {}", record.method)).into());
            }
            found += 1;
        }
        if found != records.len() || found == 0 {
            let expected = format!("layers of {}", pipeline.name);
            return Err(refuse("layers", expected, format!("{} that it does not have", records.len() - found)).into());
        }
        let biased = |weight: &Weight| records.get(&weight.name()).is_some_and(|&i| file.record().layers[i].biased);
        let wanted: Vec<bool> = weights.iter().map(biased).collect();
        let bias_of = give_biases(programs, weights, &|Tensor(i)| wanted[i as usize]);
        recipe.extend(weights.len());
        let mut corrections = HashMap::new();
        for (i, weight) in weights.iter().enumerate().filter(|(i, _)| wanted.get(*i) == Some(&true)) {
            let layer = file.layer(&file.record().layers[records[&weight.name()]])?;
            let Some(bias) = bias_of[i] else {
                let (expected, got) = ("a bias of its own".into(), "one that others have, too".into());
                return Err(refuse(&layer.record.name, expected, got).into());
            };
            let gain = layer.bias.iter().flatten().map(|&v| f64::from(v)).collect();
            corrections.insert(bias.0 as usize, gain);
        }
        recipe.config += &format!(", reconstructed ({})", file.record().how);
        Ok(Reconstructed { file, records, corrections })
    }

    /// Whether it has ranges of activations.
    pub(super) fn has_ranges(&self) -> bool {
        self.file.record().layers.iter().any(|layer| layer.activations.is_some())
    }

    /// Makes the curves of ranges that were learned; returns the range of each weight's input. Equal curves are one tensor. A layer
    /// with integer activations that has none keeps the range of each row.
    ///
    /// # Errors
    /// If the file is damaged, or has curves for codes of another width.
    pub(super) fn ranges(&self, weights: &mut Weights, recipe: &mut Recipe) -> Result<Vec<QuantizeRange>> {
        let mut made: Vec<(&'static str, ActivationRecord, Vec<[f32; 3]>, Tensor)> = Vec::new();
        let mut of_weight = vec![QuantizeRange::Dynamic; weights.len()];
        for (i, of_weight) in of_weight.iter_mut().enumerate() {
            let weight = &weights[Tensor(i as u32)];
            let Some(asked) = recipe.decisions[i].treatment.activation_bits else { continue };
            if Part::of(weight.component) != Part::Denoiser {
                continue;
            }
            let record = self.records.get(&weight.name()).map(|&record| &self.file.record().layers[record]);
            let Some((record, curve)) = record.and_then(|record| Some((record, record.activations?))) else {
                recipe.decisions[i].add_note("activations in the range of each row: none was learned for them");
                continue;
            };
            if curve.bits != asked {
                let subject = format!("--import {}: activations of {}", self.file.path().display(), record.name);
                return Err(Error::request(subject, format!("{asked} bits"), curve.bits).into());
            }
            let points = self.file.activations(record)?.unwrap_or_default();
            let (component, key) = (weight.component, format!("{}.activation_range", weight.layer_in_file()));
            let known = made.iter().find(|(of, other, p, _)| (*of, other, p) == (component, &curve, &points));
            let tensor = known.map(|(.., tensor)| *tensor).unwrap_or_else(|| {
                let values = points.iter().flatten().copied().collect();
                let tensor = weights.make(component, key, &[points.len(), 3], values);
                made.push((component, curve, points, tensor));
                tensor
            });
            *of_weight = QuantizeRange::curve(tensor, curve.axis());
        }
        recipe.extend(weights.len());
        of_weight.resize(weights.len(), QuantizeRange::Dynamic);
        Ok(of_weight)
    }

    /// The weight as it is stored, if the file has it.
    ///
    /// # Errors
    /// If the file is damaged.
    pub(super) fn stored(&self, weight: &Weight, elements: &Elements, treatment: Treatment) -> Result<Option<Stored>> {
        let (Some(&record), Store::Codes(..)) = (self.records.get(&weight.name()), treatment.store) else {
            return Ok(None);
        };
        let layer = self.file.layer(&self.file.record().layers[record])?;
        let errors = layer.record.output_error.zip(layer.record.nearest_output_error);
        Ok(Some(store_trained(&weight.name(), elements, layer.matrix, treatment.kind(), errors)))
    }
}

fn components(file: &Reconstruction) -> Vec<&str> {
    let mut components: Vec<&str> =
        file.record().layers.iter().filter_map(|layer| Some(layer.name.split_once('/')?.0)).collect();
    components.dedup();
    components
}

/// How a layer of this record lies in a packed file.
fn kind(record: &LayerRecord, treatment: Treatment) -> TensorKind {
    match treatment.kind() {
        TensorKind::Codes { bits, .. } => {
            let grain = if record.tables == 1 { Grain::Tensor } else { Grain::Row };
            TensorKind::Codes { bits, grain, int8: record.int8 }
        }
        other => other,
    }
}
