//! Pruning on the way of a weight into the file: the denoiser's layers lose weights before anything else is done to them.

use super::Options;
use crate::error::Result;
use crate::lower::Part;
use crate::quantize::{Cut, Pruning, RankSearch, pruned_count, zero_channels, zero_smallest, zero_up_to};
use crate::source::diffusers::Model;
use crate::weight::{Origin, Storage, Weight, Weights};
use aquatint::error::Error;
use std::collections::{HashMap, HashSet};

/// Which weights lose how much.
pub(super) struct Pruned {
    how: Pruning,
    /// Names of the layers, `component/module path`.
    layers: HashSet<String>,
    /// Of weights that are pruned together, what falls to each, by its whole name.
    cuts: HashMap<String, Cut>,
}

impl Pruned {
    /// Plans what `options` ask for, if they ask for it. Where all weights are pruned together they are read three times.
    ///
    /// # Errors
    /// If a fraction is none, nothing would be pruned, weights are imported as they are, or the model cannot be read.
    pub(super) fn plan(options: &Options, model: &Model, weights: &Weights) -> Result<Option<Self>> {
        let Some(how) = options.pruning else { return Ok(None) };
        let (Pruning::Layer(fraction) | Pruning::Global(fraction) | Pruning::Channels(fraction)) = how;
        let option = if matches!(how, Pruning::Channels(_)) { "--prune-structured" } else { "--prune" };
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::request(option, "a fraction above 0 and below 1", fraction).into());
        }
        if options.import.is_some() {
            let expected = "no --import: imported weights are taken as they are";
            return Err(Error::request(option, expected, "both").into());
        }
        let mut names = HashSet::new();
        let whole: Vec<&Weight> = weights.iter().filter(|w| is_layer(w) && names.insert(w.whole_name())).collect();
        let layers = whole.iter().map(|w| layer_name(w)).collect();
        let mut pruned = Pruned { how, layers, cuts: HashMap::new() };
        let all: usize = whole.iter().map(|w| size(w)).sum();
        let count = match how {
            Pruning::Global(fraction) => pruned_count(fraction, all),
            Pruning::Layer(fraction) => whole.iter().map(|w| pruned_count(fraction, size(w))).sum(),
            Pruning::Channels(fraction) => whole.iter().map(|w| pruned_count(fraction, w.source_dims()[0])).sum(),
        };
        if count == 0 {
            let expected = "a fraction that makes something of the denoiser's layers 0, or it has no effect";
            return Err(Error::request(option, expected, fraction).into());
        }
        if let Pruning::Global(_) = how {
            pruned.cuts = cuts(model, &whole, count)?;
        }
        Ok(Some(pruned))
    }

    /// Whether `weight` is a layer's that is pruned.
    pub(super) fn has(&self, weight: &Weight) -> bool {
        is_layer(weight)
    }

    /// Prunes the elements of `weight` as the checkpoint has them, if it is among those that are.
    pub(super) fn apply(&self, weight: &Weight, values: &mut [f32]) {
        if !is_layer(weight) {
            let bias = weight.storage == Storage::Vector && weight.key().ends_with(".bias");
            if let Pruning::Layer(fraction) = self.how
                && bias
                && self.layers.contains(&layer_name(weight))
            {
                zero_smallest(values, pruned_count(fraction, values.len()));
            }
            return;
        }
        match self.how {
            Pruning::Layer(fraction) => zero_smallest(values, pruned_count(fraction, values.len())),
            Pruning::Channels(fraction) => {
                let channels = weight.source_dims()[0];
                zero_channels(values, channels, pruned_count(fraction, channels));
            }
            Pruning::Global(_) => {
                self.cuts.get(&weight.whole_name()).into_iter().for_each(|&cut| zero_up_to(values, cut));
            }
        }
    }

    /// In words, for META.
    pub(super) fn describe(&self) -> String {
        match self.how {
            Pruning::Layer(fraction) => format!("the least {fraction} of each layer's weights and biases pruned"),
            Pruning::Global(fraction) => format!("the least {fraction} of all layers' weights pruned"),
            Pruning::Channels(fraction) => format!("the least {fraction} of each layer's output channels pruned"),
        }
    }
}

/// Whether it is the weight of a layer of a denoiser.
fn is_layer(weight: &Weight) -> bool {
    Part::of(weight.component) == Part::Denoiser && weight.quantizable() && !weight.is_made()
}

/// `component/module path` of a weight or a bias.
fn layer_name(weight: &Weight) -> String {
    let key = weight.key();
    let path = key.strip_suffix(".weight").or_else(|| key.strip_suffix(".bias")).unwrap_or(key);
    format!("{}/{path}", weight.component)
}

/// Elements before any step.
fn size(weight: &Weight) -> usize {
    weight.source_dims().iter().product()
}

/// What falls to each weight when `count` elements of all of them are pruned.
fn cuts(model: &Model, weights: &[&Weight], count: usize) -> Result<HashMap<String, Cut>> {
    let read = |weight: &Weight| match &weight.origin {
        Origin::Checkpoint { key, .. } => model.component(weight.component).weights.read(key),
        Origin::Made { values, .. } => Ok(values.clone()),
    };
    let mut search = RankSearch::new();
    for weight in weights {
        search.see(&read(weight)?);
    }
    let rank = search.narrow(count as u64);
    for weight in weights {
        search.see(&read(weight)?);
    }
    let mut cut = search.cut(rank);
    weights.iter().map(|weight| Ok((weight.whole_name(), cut.take(&read(weight)?)))).collect()
}
