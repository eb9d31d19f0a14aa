//! Weights that are other in some phases: each is stored once in every precision that it has.

use super::calibrated::Known;
use super::turns::Turns;
use crate::error::Result;
use crate::pass::{Layer, Starts};
use crate::recipe::{Change, Recipe, Store, Treatment};
use crate::weight::Weights;
use aquatint::error::Error;
use aquatint::raw::program::{MAX_PHASES, QuantizeRange, Tensor};
use std::collections::HashMap;

/// What layers are in phases after the first.
#[derive(Debug, Default)]
pub(super) struct PhaseWeights {
    pub(super) starts: Starts,
    /// By phase and by the weight of the first phase, the weight of this one and the bits of its activations.
    layers: HashMap<(usize, Tensor), (Tensor, Option<u8>)>,
    /// By the weight of a phase, the bias of the first phase and the one that goes with it.
    biases: HashMap<Tensor, (Tensor, Tensor)>,
}

impl PhaseWeights {
    /// Appends the weights that `recipe` wants for phases to `weights`, and their decisions to it.
    ///
    /// # Errors
    /// If there are more phases than a program can have.
    pub(super) fn make(weights: &mut Weights, recipe: &mut Recipe) -> Result<Self> {
        let starts = recipe.starts.clone();
        if starts.positions.len() > MAX_PHASES {
            let expected = format!("at most {MAX_PHASES}");
            return Err(Error::request("phases", expected, starts.positions.len()).into());
        }
        let mut layers = HashMap::new();
        // By weight and how it is stored.
        let mut made: HashMap<(usize, Stored), Tensor> = HashMap::new();
        for Change { weight, phase, decision } in recipe.changes.clone() {
            let base = Tensor(weight as u32);
            let stored = stored(&decision.treatment);
            let tensor = if stored == self::stored(&recipe.decisions[weight].treatment) {
                base
            } else {
                *made.entry((weight, stored)).or_insert_with(|| {
                    recipe.decisions.push(decision.clone());
                    weights.vary(base, phase)
                })
            };
            layers.insert((phase, base), (tensor, decision.treatment.activation_bits));
        }
        Ok(PhaseWeights { starts, layers, biases: HashMap::new() })
    }

    /// Lets `layers` be weights of their own in each of the phases that begin at `starts`, in their own precision; there are no
    /// other phases. Their decisions go to `recipe`.
    pub(super) fn repeat(&mut self, starts: &Starts, layers: &[Tensor], weights: &mut Weights, recipe: &mut Recipe) {
        self.starts = starts.clone();
        for (phase, &layer) in (1..starts.positions.len()).flat_map(|phase| layers.iter().map(move |l| (phase, l))) {
            let decision = recipe.decisions[layer.0 as usize].clone();
            let bits = decision.treatment.activation_bits;
            recipe.decisions.push(decision);
            self.layers.insert((phase, layer), (weights.vary(layer, phase), bits));
        }
    }

    /// Whether the layer of `weight` is another one in a phase than in the first.
    pub(super) fn has(&self, phase: usize, weight: Tensor) -> bool {
        self.layers.contains_key(&(phase, weight))
    }

    /// The weight of a layer in a phase, by that of the first.
    pub(super) fn weight(&self, phase: usize, weight: Tensor) -> Tensor {
        self.layers.get(&(phase, weight)).map_or(weight, |&(tensor, _)| tensor)
    }

    /// Gives weights of phases that `known` has the inputs of biases of their own, as their mean errors differ.
    pub(super) fn give_biases(&mut self, known: &mut Known, weights: &mut Weights, recipe: &mut Recipe) {
        let mut all: Vec<_> = self.layers.iter().map(|((phase, base), (tensor, _))| (*tensor, *base, *phase)).collect();
        all.sort();
        all.dedup_by_key(|(tensor, ..)| *tensor);
        for (tensor, base, phase) in all.into_iter().filter(|(tensor, base, _)| tensor != base) {
            if let Some(biases) = known.vary(base, tensor, weights, phase) {
                self.biases.insert(tensor, biases);
            }
        }
        recipe.extend(weights.len());
    }

    /// Does to the weights and biases of phases what was done to those of the first since.
    pub(super) fn follow(&self, weights: &mut Weights) {
        let mut pairs: Vec<(Tensor, Tensor)> = Vec::new();
        for (&(_, base), &(tensor, _)) in self.layers.iter().filter(|((_, base), (tensor, _))| tensor != base) {
            pairs.push((base, tensor));
        }
        pairs.extend(self.biases.values().map(|&(base, bias)| (base, bias)));
        for (base, again) in pairs {
            weights[again].steps = weights[base].steps.clone();
        }
    }

    /// `layers`, weights of the first phase, and those of other phases that are theirs and have integer activations, too.
    pub(super) fn with_variants(&self, layers: &[Tensor], recipe: &Recipe) -> Vec<Tensor> {
        let integer = |tensor: &Tensor| recipe.decisions[tensor.0 as usize].treatment.activation_bits.is_some();
        let of_layer = |((_, base), (tensor, _)): (&(usize, Tensor), &(Tensor, Option<u8>))| {
            (layers.contains(base) && tensor != base && integer(tensor)).then_some(*tensor)
        };
        let mut all: Vec<Tensor> = self.layers.iter().filter_map(of_layer).chain(layers.iter().copied()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// What the layer of `weight` is in a phase; in the first, and where nothing is other, it takes codes of `bits`.
    pub(super) fn layer(&self, phase: usize, weight: Tensor, bits: Option<u8>, ranges: &[QuantizeRange]) -> Layer {
        let (tensor, bits) = self.layers.get(&(phase, weight)).copied().unwrap_or((weight, bits));
        let range = ranges.get(tensor.0 as usize).copied().unwrap_or(QuantizeRange::Dynamic);
        let bias = self.biases.get(&tensor).map(|&(_, bias)| bias);
        Layer { bias, ..Layer::of(tensor, bits.map(|bits| (bits, range))) }
    }

    /// Refuses ranges that are fixed for other bits than a phase has, and floats in a phase for a weight whose inputs go through
    /// something before they become codes in others.
    ///
    /// # Errors
    /// For the first such layer, by phase and in the order of layers.
    pub(super) fn check(
        &self,
        (weights, recipe): (&Weights, &Recipe),
        ranges: &[QuantizeRange],
        turns: &Turns,
    ) -> Result<()> {
        let mut all: Vec<_> = self.layers.iter().collect();
        all.sort();
        for (&(phase, base), &(tensor, bits)) in all {
            let fixed = ranges.get(tensor.0 as usize).is_some_and(|range| *range != QuantizeRange::Dynamic);
            let own = recipe.decisions[tensor.0 as usize].treatment.activation_bits;
            let refuse = |option: &str, expected: &str, got: String| {
                let what = format!("{option} for {} in phase {phase}", weights[base].layer());
                Err(Error::request(what, expected, got).into())
            };
            match bits {
                Some(bits) if fixed && Some(bits) != own => {
                    let expected = "the bits of its first phase, for which its range is fixed, or other weights";
                    return refuse("--act-range", expected, bits.to_string());
                }
                None if turns.of(tensor).is_some() => {
                    let expected = "integer activations in all phases that have the same weights, or other weights";
                    return refuse("--smooth or --rotate", expected, "floats".into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What decides how a weight lies in the file; floats have no codebook.
type Stored = (Store, bool);

fn stored(treatment: &Treatment) -> Stored {
    (treatment.store, treatment.codebook.is_integer())
}
