//! Decisions by stable-diffusion.cpp's rules for tensors.

use super::decide::decide;
use super::{Recipe, Store};
use crate::config::{Activations, Choice, Decider, LayerSpec, TensorTypes, Weights as Precision, tensor_names};
use crate::error::{Error, Result};
use crate::lower::Part;
use crate::pass::Site;
use crate::weight::{Weight, Weights};
use std::collections::HashMap;

impl Recipe {
    /// Decides anew about every layer that a rule is for; coded ones of the denoisers get `activation_bits`, if there are any.
    ///
    /// # Errors
    /// If the rules cannot be read, or none of them is for a layer.
    pub(super) fn apply_types(
        &mut self,
        text: &str,
        (weights, sites): (&Weights, &[Site]),
        activation_bits: Option<u8>,
    ) -> Result<()> {
        let refuse = |source| Error::Config { component: "model", source: Box::new(source) };
        let types = TensorTypes::parse(text).map_err(refuse)?;
        let mut layers: HashMap<&str, Vec<String>> = HashMap::new();
        for weight in weights.iter().filter(|w| w.quantizable()) {
            layers.entry(weight.component).or_default().push(weight.layer());
        }
        let (mut all, mut left, mut decided) = (Vec::new(), 0, 0);
        for (i, weight) in weights.iter().enumerate().filter(|(_, w)| w.quantizable() && !w.is_made()) {
            let own: Vec<&str> = layers[weight.component].iter().map(String::as_str).collect();
            let names = tensor_names(weight.component, prefixes(weight.component), &weight.layer(), &own);
            let before = self.decisions[i].treatment;
            let coded = matches!(before.store, Store::Codes(..)).then_some(before.activation_bits).flatten();
            let bits = activation_bits.filter(|_| Part::of(weight.component) == Part::Denoiser).or(coded);
            let activations = bits.map_or(Activations::Float, Activations::Int);
            let before = LayerSpec { weights: Precision::F16, activations };
            match types.of(&names, innermost(weight), Some(before)) {
                Some((key, spec)) => {
                    let choice = Choice { spec, by: Decider::Entry(key.to_owned()) };
                    self.decisions[i] = decide(weight, sites[i], choice);
                    decided += 1;
                }
                None => left += 1,
            }
            all.extend(names);
        }
        if decided == 0 {
            let expected = "rules that are for layers of this model, or they have no effect";
            return Err(aquatint::Error::request("--tensor-type-rules", expected, text).into());
        }
        self.config += &format!(", types by {} for {decided} layers", text.trim_matches(','));
        self.notes.extend(types.idle(&all).map(|rule| format!("`{rule}` is found in no tensor's name of this model")));
        self.notes.push(format!(
            "rules decide about {decided} layers; {left} others stay as they are without them: as in stable-diffusion.cpp, \
             rows that do not fill blocks (3x3 convolutions among them) and embeddings are never converted"
        ));
        Ok(())
    }
}

/// What stable-diffusion.cpp puts before the names of a component's tensors.
fn prefixes(component: &str) -> &'static [&'static str] {
    match Part::of(component) {
        Part::Denoiser => &["model.diffusion_model."],
        Part::Autoencoder => &["vae.", "first_stage_model."],
        Part::Text if component == "text_encoder_2" => &["conditioner.embedders.1.model.", "cond_stage_model.1."],
        Part::Text => &["cond_stage_model.transformer.", "te."],
    }
}

/// The length of the innermost axis of a weight as files hold it.
fn innermost(weight: &Weight) -> usize {
    weight.source_dims().last().copied().unwrap_or(0)
}
