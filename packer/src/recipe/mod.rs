//! The decision, per weight, of how it is stored and what multiplies it.
//!
//! A [`Recipe`] joins what the configuration asks for with what each layer can do, and notes every difference:
//!
//! * a convolution whose channels are not a multiple of 4 cannot take integer activations and keeps float ones;
//! * a layer with at most [`FEW_INPUTS`] inputs per output costs next to nothing and loses most, so a default or SPEC
//!   leaves it at f16;
//! * so do the layers at the ends of a network, which get 8 bits: at the letters' DiT the last one has 0.2 % of the
//!   weights and makes half of the error of 3 bits;
//! * what depends on the timestep and on no latents is worked out before the step loop, so a default or SPEC leaves its
//!   activations floats.
//!
//! An entry that names a layer is honoured in all of these.
//!
//! Weights that belong to no layer are plain: biases and norm parameters f32, tables as the component's floats. A
//! configuration's floats are f32 if its default is, or if it has none and makes every layer f32; else they are f16.

mod decide;
#[cfg(test)]
mod tests;
mod types;

use crate::config::{self, ActivationRanges, Activations, Choice, Decider, QConfig, Transforms};
use crate::error::{Error, Result};
use crate::lower::Part;
use crate::pass::{Site, Starts};
use crate::quantize::{CodebookType, Method};
use crate::weight::{Storage, Weights};
use aquatint::raw::codec::Bits;
use aquatint::raw::format::TensorKind;
use aquatint::raw::program::shape::TensorType;
use decide::decide;

/// Layers with no more inputs per output than this are not quantized unless they are named.
pub const FEW_INPUTS: usize = 64;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// Plain 32-bit floats.
    F32,
    /// Plain 16-bit floats.
    F16,
    /// Codes of this width, whose levels this method chooses.
    Codes(Method, Bits),
}

impl Store {
    /// The name in reports, `f16`, `mse-4`, `kmeans-3`...
    pub fn name(self) -> String {
        match self {
            Store::F32 => "f32".into(),
            Store::F16 => "f16".into(),
            Store::Codes(method, bits) => format!("{}-{bits}", method.name()),
        }
    }

    /// Bits per weight, codebooks apart.
    pub fn bits(self) -> u8 {
        match self {
            Store::F32 => 32,
            Store::F16 => 16,
            Store::Codes(_, bits) => bits.get(),
        }
    }
}

/// What becomes of one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// How it is stored.
    pub store: Store,
    /// Width of the codes that multiply it; `None` for floats.
    pub activation_bits: Option<u8>,
    /// The codebooks that codes get; integers where integers multiply them.
    pub codebook: CodebookType,
}

impl Treatment {
    const fn plain(store: Store) -> Self {
        Treatment { store, activation_bits: None, codebook: CodebookType::F16 }
    }

    /// How the weight lies in the file.
    pub fn kind(self) -> TensorKind {
        match self.store {
            Store::F32 => TensorKind::F32,
            Store::F16 => TensorKind::F16,
            Store::Codes(method, bits) => {
                let (grain, codebook) = self.codebook.of_result(method, bits);
                TensorKind::Codes { bits, grain, int8: codebook.is_integer() }
            }
        }
    }
}

/// What becomes of one weight, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of it.
    pub treatment: Treatment,
    /// What in the configuration decided about its layer; `None` if it belongs to none, or there is no configuration.
    pub by: Option<Decider>,
    /// Why it is not treated as that asks, if it is not.
    pub note: Option<String>,
}

impl Decision {
    /// Adds to what is said of the layer.
    pub fn add_note(&mut self, note: &str) {
        let before = self.note.take().map_or_else(String::new, |before| before + "; ");
        self.note = Some(before + note);
    }

    const fn plain(store: Store) -> Self {
        Decision { treatment: Treatment::plain(store), by: None, note: None }
    }
}

/// What is asked for each part of a model: a file or a SPEC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Requests<'a> {
    /// For the denoisers.
    pub denoiser: Option<&'a str>,
    /// For the autoencoder.
    pub autoencoder: Option<&'a str>,
    /// For the text encoders.
    pub text: Option<&'a str>,
    /// Bits of the activations of the denoisers' layers whose weights are codes, whatever their request says.
    pub activation_bits: Option<u8>,
    /// Types of tensors by stable-diffusion.cpp's rules, which go before all of these.
    pub tensor_types: Option<&'a str>,
}

/// What becomes of a weight in a phase after the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The weight's number.
    pub weight: usize,
    /// The phase.
    pub phase: usize,
    /// What becomes of it then.
    pub decision: Decision,
}

/// The decision about every weight of a model.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// One per weight.
    pub decisions: Vec<Decision>,
    /// When the denoisers' phases begin.
    pub starts: Starts,
    /// What is other in phases than in the first, by phase.
    pub changes: Vec<Change>,
    /// The configurations in words.
    pub config: String,
    /// What of the configurations is taken otherwise or not at all.
    pub notes: Vec<String>,
    /// What the denoisers' configuration asks to be done to layers before they are quantized.
    pub transforms: Transforms,
    /// Ranges of activations that the denoisers' configuration fixes.
    pub activation_ranges: Option<ActivationRanges>,
}

impl Recipe {
    /// Lets learned tables of up to 16 integers keep to 7 bits where integers multiply them.
    pub fn narrow_codebooks(&mut self) {
        let changed = self.changes.iter_mut().map(|change| &mut change.decision);
        for Decision { treatment, .. } in self.decisions.iter_mut().chain(changed) {
            let learned = matches!(
                treatment.store,
                Store::Codes(Method::KMeansRow | Method::KMeansTensor, bits) if bits.levels() <= 16
            );
            if learned && treatment.activation_bits.is_some() && treatment.codebook == CodebookType::Int8 {
                treatment.codebook = CodebookType::Int7;
            }
        }
    }

    /// Decides for all `weights`, which stand at `sites`, what `requests` asks for. Where it asks for nothing, denoisers are f16, and the rest is
    /// f32 or f16 as the denoisers' floats are. Components of one part share its configuration: an entry that names
    /// a layer holds for the layers of that name in all of them.
    ///
    /// # Errors
    /// [`Error::Config`]: whatever is wrong with a configuration, layers that it names and the model lacks included.
    pub fn new(weights: &Weights, sites: &[Site], requests: Requests) -> Result<Self> {
        let mut recipe = Recipe {
            decisions: vec![Decision::plain(Store::F32); weights.len()],
            starts: Starts::default(),
            changes: Vec::new(),
            config: String::new(),
            notes: Vec::new(),
            transforms: Transforms::default(),
            activation_ranges: None,
        };
        let mut floats = Store::F16;
        let mut words = Vec::new();
        let Requests { denoiser, autoencoder, text, activation_bits, tensor_types } = requests;
        for (part, config, bits, option, name) in [
            (Part::Denoiser, denoiser, activation_bits, "--q-config", "denoiser"),
            (Part::Autoencoder, autoencoder, None, "--vae-q-config", "decoder"),
            (Part::Text, text, None, "--text-q-config", "text encoder"),
        ] {
            let first = weights.iter().map(|w| w.component).find(|component| Part::of(component) == part);
            match (first, config) {
                (None, None) => {}
                (None, Some(config)) => {
                    let expected = format!("none: this model has no {name}");
                    return Err(aquatint::Error::request(option, expected, config).into());
                }
                (Some(component), config) => {
                    let plain = bits.map(|_| recipe.clone());
                    let own = recipe.part((weights, sites), (part, component), (config, bits), floats)?;
                    if let Some(mut plain) = plain {
                        plain.part((weights, sites), (part, component), (config, None), floats)?;
                        if (&plain.decisions, &plain.changes) == (&recipe.decisions, &recipe.changes) {
                            let expected = "a configuration with layers that it changes, or it has no effect";
                            return Err(
                                aquatint::Error::request("--quant-act", expected, config.unwrap_or("none")).into()
                            );
                        }
                    }
                    if part == Part::Denoiser {
                        floats = own;
                    }
                    let bits = bits.map(|bits| format!(" with {bits}-bit activations")).unwrap_or_default();
                    words.push(format!("{component} {}{bits}", config.map_or_else(|| floats.name(), file_name)));
                }
            }
        }
        recipe.config = words.join(", ");
        if let Some(rules) = tensor_types {
            recipe.apply_types(rules, (weights, sites), activation_bits)?;
        }
        Ok(recipe)
    }

    /// Decides for further weights, up to `count` in all: they are vectors that the packer made.
    pub fn extend(&mut self, count: usize) {
        self.decisions.resize(count, Decision::plain(Store::F32));
    }

    /// What the shape rules need to know of the weights once they are stored.
    pub fn types(&self, weights: &Weights) -> Vec<TensorType> {
        weights.iter().zip(&self.decisions).map(|(w, d)| d.treatment.kind().ty(&w.dims())).collect()
    }

    /// Decides for the weights of `part`, which errors call `component`; returns how its floats are stored: as the
    /// configuration `arg` says, or as `floats` without one.
    fn part(
        &mut self,
        (weights, sites): (&Weights, &[Site]),
        (part, component): (Part, &'static str),
        (arg, activation_bits): (Option<&str>, Option<u8>),
        floats: Store,
    ) -> Result<Store> {
        let own = || weights.iter().enumerate().filter(|(_, w)| Part::of(w.component) == part);
        let layers: Vec<_> = own().filter(|(_, w)| w.quantizable()).collect();
        let mut choices = Vec::new();
        let mut floats = floats;
        if let Some(arg) = arg {
            let refuse = |source| Error::Config { component, source: Box::new(source) };
            let mut config = QConfig::parse(arg).map_err(refuse)?;
            if let Some(bits) = activation_bits {
                config = config.with_activations(Activations::Int(bits));
            }
            let names: Vec<String> = layers.iter().map(|(_, w)| w.layer()).collect();
            let copies =
                layers.iter().zip(&names).flat_map(|((_, w), name)| w.copied_layers().map(move |c| (c, &**name)));
            let aliases: Vec<(&str, &str)> = copies.collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            choices = config.resolve_phases(&names, &aliases).map_err(refuse)?;
            floats = floats_of(&config, &choices[0]);
            if config.linear_only() {
                for choices in &mut choices {
                    let convs = layers.iter().zip(choices).filter(|((_, w), _)| w.source_dims().len() > 2);
                    convs.for_each(|(_, choice)| choice.spec = config::FLOAT);
                }
            }
            self.notes.extend(config.notes(&names));
            let phases = config.phases();
            if part == Part::Denoiser {
                self.activation_ranges = config.activation_ranges();
                self.transforms = config.transforms().clone();
                self.starts = Starts { axis: phases.axis, positions: phases.starts() };
            } else if !phases.later.is_empty() {
                let expected = format!("none: the {component} does not run in steps");
                return Err(aquatint::Error::request(format!("phases of {arg}"), expected, phases.later.len()).into());
            }
        }
        for (i, weight) in own() {
            self.decisions[i] = Decision::plain(if weight.storage == Storage::Vector { Store::F32 } else { floats });
        }
        for (phase, choices) in choices.into_iter().enumerate() {
            for (&(i, weight), choice) in layers.iter().zip(choices) {
                let decision = decide(weight, sites[i], choice);
                if phase == 0 {
                    self.decisions[i] = decision;
                } else if decision.treatment != self.decisions[i].treatment {
                    self.changes.push(Change { weight: i, phase, decision });
                }
            }
        }
        Ok(floats)
    }
}

/// How a component's floats are stored under `config`, which makes `choices` of its layers.
fn floats_of(config: &QConfig, choices: &[Choice]) -> Store {
    let is_f32 = match config.default() {
        Some(default) => default.weights == config::Weights::F32,
        None => choices.iter().all(|choice| choice.spec.weights == config::Weights::F32),
    };
    if is_f32 { Store::F32 } else { Store::F16 }
}

/// A SPEC as it is; of a path only the last part, so that the packed file does not depend on where the file lay.
fn file_name(arg: &str) -> String {
    std::path::Path::new(arg).file_name().map_or_else(|| arg.to_owned(), |name| name.to_string_lossy().into_owned())
}
