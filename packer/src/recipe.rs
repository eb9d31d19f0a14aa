//! The decision, per weight, of how it is stored and what multiplies it.
//!
//! A [`Recipe`] joins what the configuration asks for with what each layer can do, and notes every difference:
//!
//! * a convolution whose channels are not a multiple of 4 cannot take integer activations and keeps float ones;
//! * a layer with at most [`FEW_INPUTS`] inputs per output costs next to nothing and loses most, so a default or SPEC
//!   leaves it at f16. An entry that names it is honoured.
//!
//! Weights that belong to no layer are plain: biases and norm parameters f32, tables as the component's floats.

use crate::config::{Activations, LayerSpec, QConfig, Weights};
use crate::error::{Error, Result};
use crate::lower::{Part, Storage, Weight};
use crate::quantize::Method;
use aquatint::codec::Bits;
use aquatint::program::shape::TensorType;
use std::collections::BTreeMap;

/// Layers with no more inputs per output than this are not quantized unless they are named.
pub const FEW_INPUTS: usize = 64;
/// Integer convolutions take their channels in groups of this size.
const CHANNEL_GROUP: usize = 4;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Plain 32-bit floats.
    F32,
    /// Plain 16-bit floats.
    F16,
    /// Codes.
    Codes(Method, Bits),
}

impl Store {
    /// The name in reports, methods spelled as Qua2SeDiMo does: `f16`, `mse-4`, `kmeans-3`...
    pub fn name(self) -> String {
        match self {
            Store::F32 => "f32".into(),
            Store::F16 => "f16".into(),
            Store::Codes(method, bits) => format!("{}-{bits}", method.upstream_name()),
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
}

impl Treatment {
    const fn plain(store: Store) -> Self {
        Treatment { store, activation_bits: None }
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
}

/// The treatment of every weight of a model.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// One per weight.
    pub treatments: Vec<Treatment>,
    /// Why a weight is not treated as asked, by its number.
    pub notes: BTreeMap<usize, String>,
    /// The configurations in words.
    pub config: String,
}

impl Recipe {
    /// Decides for all `weights` what `requests` asks for. Where it asks for nothing, denoisers are f16, and the rest is
    /// f32 or f16 as the denoisers' floats are. Components of one part share its configuration: an entry that names
    /// a layer holds for the layers of that name in all of them.
    ///
    /// # Errors
    /// [`Error::Config`]: whatever is wrong with a configuration, layers that it names and the model lacks included.
    pub fn new(weights: &[Weight], requests: Requests) -> Result<Self> {
        let mut recipe = Recipe {
            treatments: vec![Treatment::plain(Store::F32); weights.len()],
            notes: BTreeMap::new(),
            config: String::new(),
        };
        let floats = if requests.denoiser == Some("f32") { Store::F32 } else { Store::F16 };
        let mut words = Vec::new();
        let Requests { denoiser, autoencoder, text, activation_bits } = requests;
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
                    recipe.part(weights, (part, component), (config, bits), floats)?;
                    let bits = bits.map(|bits| format!(" with {bits}-bit activations")).unwrap_or_default();
                    words.push(format!("{component} {}{bits}", config.map_or_else(|| floats.name(), file_name)));
                }
            }
        }
        recipe.config = words.join(", ");
        Ok(recipe)
    }

    /// What the shape rules need to know of the weights once they are stored.
    pub fn types(&self, weights: &[Weight]) -> Vec<TensorType> {
        let of = |(weight, treatment): (&Weight, &Treatment)| TensorType {
            dims: weight.dims.clone(),
            integer: treatment.activation_bits.is_some(),
            f32: treatment.store == Store::F32,
            codes: matches!(treatment.store, Store::Codes(..)),
            bytes: false,
        };
        weights.iter().zip(&self.treatments).map(of).collect()
    }

    /// Decides for the weights of `part`; errors call it `component`.
    fn part(
        &mut self,
        weights: &[Weight],
        (part, component): (Part, &'static str),
        (arg, activation_bits): (Option<&str>, Option<u8>),
        floats: Store,
    ) -> Result<()> {
        let floats = match arg {
            Some("f32") => Store::F32,
            Some(_) => Store::F16,
            None => floats,
        };
        let own = |w: &&Weight| Part::of(w.component) == part;
        for (i, weight) in weights.iter().enumerate().filter(|(_, w)| own(w)) {
            self.treatments[i].store = if weight.storage == Storage::Vector { Store::F32 } else { floats };
        }
        let Some(arg) = arg else { return Ok(()) };

        let refuse = |source| Error::Config { component, source: Box::new(source) };
        let mut config = QConfig::parse(arg).map_err(refuse)?;
        if let Some(bits) = activation_bits {
            config = config.with_activations(Activations::Int(bits));
        }
        let layers: Vec<_> = weights.iter().enumerate().filter(|(_, w)| own(w) && w.quantizable()).collect();
        let names: Vec<&str> = layers.iter().map(|(_, w)| w.layer()).collect();
        let aliases: Vec<(&str, &str)> =
            layers.iter().flat_map(|(_, w)| w.copied_layers().map(|copy| (copy, w.layer()))).collect();
        let specs = config.resolve(&names, &aliases).map_err(refuse)?;
        // A layer is named by an entry exactly if the default makes no difference to it.
        let with = |weights| {
            let default = LayerSpec { weights, activations: Activations::Float };
            config.clone().with_default(default).resolve(&names, &aliases).map_err(refuse)
        };
        let named: Vec<bool> = with(Weights::F16)?.iter().zip(&with(Weights::F32)?).map(|(a, b)| a == b).collect();
        for (((i, weight), spec), named) in layers.into_iter().zip(specs).zip(named) {
            let (treatment, note) = treat(weight, spec, named);
            self.treatments[i] = treatment;
            if let Some(note) = note {
                self.notes.insert(i, note);
            }
        }
        Ok(())
    }
}

/// The treatment of a layer for which `spec` was asked, by an entry of its own if `named`; why it differs, if so.
fn treat(weight: &Weight, spec: LayerSpec, named: bool) -> (Treatment, Option<String>) {
    let (method, bits) = match spec.weights {
        Weights::F32 => return (Treatment::plain(Store::F32), None),
        Weights::F16 => return (Treatment::plain(Store::F16), None),
        Weights::Codes { method, bits } => (method, bits),
    };
    let (_, inputs) = weight.matrix();
    if inputs <= FEW_INPUTS && !named {
        let note = format!("kept at f16: it has only {inputs} inputs per output, and no entry names it");
        return (Treatment::plain(Store::F16), Some(note));
    }
    let store = Store::Codes(method, bits);
    let activation_bits = match spec.activations {
        Activations::Float => None,
        Activations::Int(bits) => Some(bits),
    };
    let channels = weight.dims.last().copied().unwrap_or(0);
    if activation_bits.is_some() && weight.storage == Storage::Conv && !channels.is_multiple_of(CHANNEL_GROUP) {
        let note = format!("float activations: its {channels} channels are not a multiple of {CHANNEL_GROUP}");
        return (Treatment::plain(store), Some(note));
    }
    (Treatment { store, activation_bits }, None)
}

/// A SPEC as it is; of a path only the last part, so that the packed file does not depend on where the file lay.
fn file_name(arg: &str) -> String {
    std::path::Path::new(arg).file_name().map_or_else(|| arg.to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{DENOISER, Rows, VAE};

    fn layer(component: &'static str, name: &str, dims: &[usize], storage: Storage) -> Weight {
        Weight {
            component,
            key: format!("{name}.weight"),
            source_dims: dims.to_vec(),
            dims: dims.to_vec(),
            storage,
            rows: Rows::AsIs,
            copies: Vec::new(),
        }
    }

    fn weights() -> Vec<Weight> {
        let mut first = layer(DENOISER, "blocks.0.time", &[96, 128], Storage::Linear);
        first.copies = vec!["blocks.1.time.weight".into()];
        vec![
            layer(DENOISER, "patch", &[96, 2, 2, 4], Storage::Linear),
            first,
            layer(DENOISER, "blocks.0.bias", &[96], Storage::Vector),
            layer(DENOISER, "table", &[11, 96], Storage::Table),
            layer(VAE, "conv", &[32, 3, 3, 30], Storage::Conv),
            layer(VAE, "out", &[32, 3, 3, 32], Storage::Conv),
        ]
    }

    fn recipe(denoiser: Option<&str>, autoencoder: Option<&str>) -> Result<Recipe> {
        Recipe::new(&weights(), Requests { denoiser, autoencoder, ..Requests::default() })
    }

    fn stores(recipe: &Recipe) -> Vec<String> {
        recipe.treatments.iter().map(|t| format!("{}/{}", t.store.name(), t.activation_bits.unwrap_or(32))).collect()
    }

    #[test]
    fn activations_may_be_asked_for_apart() {
        let requests = Requests { denoiser: Some("w4a16"), autoencoder: Some("w4a16"), ..Requests::default() };
        let of = |bits| Recipe::new(&weights(), Requests { activation_bits: bits, ..requests }).unwrap();
        assert_eq!(stores(&of(None))[1..], ["mse-4/32", "f32/32", "f16/32", "mse-4/32", "mse-4/32"]);
        let six = of(Some(6));
        assert_eq!(stores(&six)[1..], ["mse-4/6", "f32/32", "f16/32", "mse-4/32", "mse-4/32"]);
        assert_eq!(six.config, "transformer w4a16 with 6-bit activations, vae w4a16");
    }

    #[test]
    fn a_specification_spares_small_layers_and_the_decoder() {
        let r = recipe(Some("w4a8"), None).unwrap();
        assert_eq!(stores(&r), ["f16/32", "mse-4/8", "f32/32", "f16/32", "f16/32", "f16/32"]);
        assert!(r.notes[&0].contains("only 16 inputs"), "{:?}", r.notes);
        assert_eq!(r.config, "transformer w4a8, vae f16");
    }

    #[test]
    fn floats_reach_every_component() {
        let r = recipe(Some("f32"), None).unwrap();
        assert!(stores(&r).iter().all(|s| s == "f32/32"));
        let r = recipe(None, None).unwrap();
        assert_eq!(stores(&r), ["f16/32", "f16/32", "f32/32", "f16/32", "f16/32", "f16/32"]);
        let r = recipe(Some("f32"), Some("f16")).unwrap();
        assert_eq!(stores(&r)[3..], ["f32/32", "f16/32", "f16/32"]);
    }

    #[test]
    fn odd_convolutions_keep_float_activations() {
        let r = recipe(None, Some("w8a8:kmeans")).unwrap();
        assert_eq!(stores(&r)[4..], ["kmeans-8/32", "kmeans-8/8"]);
        assert!(r.notes[&4].contains("30 channels"), "{:?}", r.notes);
    }
}
