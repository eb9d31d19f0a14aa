//! What inputs of integer layers go through before they become codes, and their weights, the inverse of it: factors of
//! smoothing that fold into nothing, and rotations.

use super::layers::Layers;
use crate::error::Result;
use crate::lower::Part;
use crate::recipe::Recipe;
use crate::weight::{Channels, Rotation, Step, Storage, Weight, Weights, signs};
use aquatint::error::Error;
use aquatint::raw::program::{MAX_TURN, MIN_TURN, Tensor, Turn};
use std::collections::HashMap;

/// Chooses the signs of rotations.
const SEED: u64 = 1;

/// What inputs go through, by weight.
#[derive(Debug, Default)]
pub(super) struct Turns(HashMap<Tensor, Turn>);

impl Turns {
    /// What the input of the layer of `weight` goes through.
    pub(super) fn of(&self, weight: Tensor) -> Option<Turn> {
        self.0.get(&weight).copied()
    }

    /// Divides the input of `layers`, which read one value, by `factors`, and multiplies their weights by them.
    pub(super) fn divide(&mut self, weights: &mut Weights, layers: &[Tensor], factors: Vec<f32>) {
        let first = &weights[layers[0]];
        let (component, layer, n) = (first.component, first.layer_in_file(), factors.len());
        let inverse = factors.iter().map(|factor| factor.recip()).collect();
        let by = weights.make(component, format!("{layer}.input_factors"), &[n], factors);
        let inverse = weights.make(component, format!("{layer}.input_scales"), &[n], inverse);
        let by = weights[by].name();
        for &layer in layers {
            weights[layer].steps.push(Step::Scale { channels: Channels::Input, by: by.clone(), divide: false });
            self.0.insert(layer, Turn { factors: inverse, block: 0 });
        }
    }

    /// Rotates inputs and weights of the denoisers' linear layers whose activations `recipe` makes integers, as far as they
    /// are among `layers`: runs of as many channels as divide their inputs, up to [`MAX_TURN`]. Returns how many layers that
    /// are.
    ///
    /// # Errors
    /// If there are none.
    pub(super) fn rotate(&mut self, layers: &Layers, weights: &mut Weights, recipe: &mut Recipe) -> Result<usize> {
        let matcher = layers.compile("--rotate-layers")?;
        let wanted = |(i, w): &(usize, &Weight)| {
            Part::of(w.component) == Part::Denoiser
                && w.storage == Storage::Linear
                && recipe.decisions.get(*i).is_some_and(|d| d.treatment.activation_bits.is_some())
                && matcher.is_match(w)
        };
        let found: Vec<Tensor> = weights.iter().enumerate().filter(wanted).map(|(i, _)| Tensor(i as u32)).collect();
        // By component, inputs and what they go through already: layers that read one value share its codes.
        let mut made: HashMap<(&'static str, usize, Option<Tensor>), Tensor> = HashMap::new();
        let mut count = 0;
        for tensor in found {
            let (component, inputs) = (weights[tensor].component, weights[tensor].matrix().1);
            let block = block(inputs);
            if block == 0 {
                recipe.decisions[tensor.0 as usize]
                    .add_note(&format!("not rotated: {inputs} inputs have no runs of {MIN_TURN}"));
                continue;
            }
            let before = self.of(tensor).map(|turn| turn.factors);
            let factors = match made.get(&(component, inputs, before)) {
                Some(&factors) => factors,
                None => {
                    let values = factors(weights, inputs, block, before);
                    let key = before.map_or_else(|| format!("rotation.{inputs}"), |_| rotated_key(&weights[tensor]));
                    let factors = weights.make(component, key, &[inputs], values);
                    *made.entry((component, inputs, before)).or_insert(factors)
                }
            };
            let by = Rotation::Hadamard { size: u64::from(block), seed: SEED };
            weights[tensor].steps.push(Step::Rotate { channels: Channels::Input, by });
            self.0.insert(tensor, Turn { factors, block });
            count += 1;
        }
        if count == 0 {
            let expected = "linear layers with integer activations, or it has no effect";
            return Err(Error::request("--rotate", expected, "none").into());
        }
        recipe.extend(weights.len());
        Ok(count)
    }
}

fn rotated_key(weight: &Weight) -> String {
    format!("{}.input_rotation", weight.layer_in_file())
}

/// Channels of the longest runs that `inputs` can be rotated in; 0 for none.
fn block(inputs: usize) -> u32 {
    let most = 1 << inputs.trailing_zeros().min(MAX_TURN.trailing_zeros());
    if most >= MIN_TURN { most } else { 0 }
}

/// What channels are multiplied by before runs of `block` of them are added and subtracted: signs, the length of a rotation,
/// and what they went through `before`.
fn factors(weights: &Weights, inputs: usize, block: u32, before: Option<Tensor>) -> Vec<f32> {
    let unit = f64::from(block).sqrt().recip();
    let signs = signs(block as usize, SEED);
    let before = before.and_then(|tensor| weights.parameter(&weights[tensor].name()).ok());
    let scale = |i: usize| before.as_ref().map_or(1.0, |before| f64::from(before.values[i]));
    (0..inputs).map(|i| (signs[i % signs.len()] * unit * scale(i)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_longest_that_a_warp_holds() {
        let cases = [(1152, 128), (4608, 256), (768, 256), (320, 64), (24, 8), (20, 0), (7, 0), (1024, 256)];
        for (inputs, expected) in cases {
            assert_eq!(block(inputs), expected, "{inputs}");
        }
    }
}
