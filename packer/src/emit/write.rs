//! The walk of the weights into the file: read, pruned, stepped, quantized or taken from others, written.

use super::Packing;
use super::calibrated::Known;
use super::imported::in_file_order;
use super::pruned::Pruned;
use super::reconstructed::Reconstructed;
use super::report::{LayerLine, Progress, line};
use super::store::{Stored, store, store_imported};
use crate::error::Result;
use crate::import::Imported;
use crate::lower::Part;
use crate::recipe::{Recipe, Store, Treatment};
use crate::source::diffusers::Model;
use crate::weight::{Elements, Misfit, Origin, Weight, Weights, step};
use aquatint::error::Error;
use aquatint::raw::format::TensorSpec;
use aquatint::raw::program::Tensor;
use std::collections::HashMap;

impl Packing {
    /// Writes all weights in order; returns the layers' entries of the report.
    pub(super) fn write_weights(
        &mut self,
        recipe: &Recipe,
        changes: Changes,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<LayerLine>> {
        let (total, known) = (self.weights.iter().map(|w| w.len() as u64).sum(), changes.known);
        let (mut done, mut layers) = (0, Vec::new());
        let mut corrections = changes.trained.map_or_else(HashMap::new, |trained| trained.corrections.clone());
        // Weights that were stored before their turn, because their biases come first.
        let mut early: HashMap<usize, Prepared> = HashMap::new();
        for (i, (weight, decision)) in self.weights.iter().zip(&recipe.decisions).enumerate() {
            let name = weight.name();
            progress(Progress { name: &name, done, total });
            let prepare = |i: usize, corrections: &mut HashMap<usize, Vec<f64>>| -> Result<Prepared> {
                let treatment = recipe.decisions[i].treatment;
                let prepared = self.prepare(i, treatment, changes, corrections.remove(&i))?;
                if let (Some(bias), Some(output)) = (known.and_then(|k| k.bias_of(i)), &prepared.stored.calibrated)
                    && !output.bias.is_empty()
                {
                    corrections.insert(bias, output.bias.clone());
                }
                Ok(prepared)
            };
            if let Some(later) = known.and_then(|k| k.weight_of(i)).filter(|&w| w > i) {
                early.insert(later, prepare(later, &mut corrections)?);
            }
            let prepared = early.remove(&i).map_or_else(|| prepare(i, &mut corrections), Ok)?;
            let Prepared { dims, stored } = prepared;
            let count = dims.iter().map(|&n| n as u64).product();
            self.writer.tensor(TensorSpec { name, dims, kind: stored.kind }, &stored.bytes)?;
            done += count;
            if !weight.quantizable() {
                continue;
            }
            layers.push(line(weight, decision, &stored, count));
        }
        Ok(layers)
    }

    /// Weight `i` as it is stored; a bias with what it must take up.
    fn prepare(
        &self,
        i: usize,
        treatment: Treatment,
        Changes { known, imported, trained, pruned }: Changes,
        correction: Option<Vec<f64>>,
    ) -> Result<Prepared> {
        let weight = &self.weights[Tensor(i as u32)];
        let name = weight.name();
        let mut elements = elements(&self.model, &self.weights, weight, pruned)?;
        for (to, by) in elements.values.iter_mut().zip(correction.iter().flatten()) {
            *to = (f64::from(*to) + by) as f32;
        }
        if let (Some(imported), Store::Codes(method, bits)) = (imported, treatment.store)
            && Part::of(weight.component) == Part::Denoiser
        {
            let model = &self.model.component(weight.component).weights;
            if let Some(got) = imported.weight(model, weight, method, bits)? {
                let stored = store_imported(&name, &elements, in_file_order(weight, got)?, treatment)?;
                return Ok(Prepared { dims: elements.dims, stored });
            }
        }
        if let Some(stored) = trained.map_or(Ok(None), |trained| trained.stored(weight, &elements, treatment))? {
            return Ok(Prepared { dims: elements.dims, stored });
        }
        let moments = known.map_or(Ok(None), |known| known.moments(i, &self.weights))?;
        let sparse = pruned.is_some_and(|pruned| pruned.has(weight));
        let mut stored = store(&name, &elements, treatment, moments.as_ref(), sparse)?;
        if imported.is_some() && weight.quantizable() && matches!(treatment.store, Store::Codes(..)) {
            stored.note = Some("not in the imported file by this method at this width: quantized here".into());
        }
        Ok(Prepared { dims: elements.dims, stored })
    }
}

/// What changes weights on their way into the file.
#[derive(Clone, Copy)]
pub(super) struct Changes<'a> {
    pub(super) known: Option<&'a Known>,
    pub(super) imported: Option<&'a Imported>,
    pub(super) trained: Option<&'a Reconstructed>,
    pub(super) pruned: Option<&'a Pruned>,
}

/// A weight ready to be written.
struct Prepared {
    dims: Vec<usize>,
    stored: Stored,
}

/// The elements of `weight` in the file's order, pruned and after all its steps.
pub(super) fn elements(model: &Model, weights: &Weights, weight: &Weight, pruned: Option<&Pruned>) -> Result<Elements> {
    let (dims, mut values) = match &weight.origin {
        Origin::Checkpoint { key, dims } => (dims, model.component(weight.component).weights.read(key)?),
        Origin::Made { dims, values, .. } => (dims, values.clone()),
    };
    if let Some(pruned) = pruned {
        pruned.apply(weight, &mut values);
    }
    let source = Elements { dims: dims.clone(), values };
    let misfit = |Misfit { expected, got }| Error::request(format!("steps of {}", weight.name()), expected, got);
    Ok(step::apply(&weight.steps, source, &|name| weights.parameter(name)).map_err(misfit)?)
}
