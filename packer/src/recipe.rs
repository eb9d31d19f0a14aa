//! The decision, per weight, of how it is stored and what multiplies it.
//!
//! A [`Recipe`] joins what the configuration asks for with what each layer can do, and notes every difference:
//!
//! * a convolution whose channels are not a multiple of 4 cannot take integer activations and keeps float ones;
//! * a layer with at most [`FEW_INPUTS`] inputs per output costs next to nothing and loses most, so a default or SPEC
//!   leaves it at f16. An entry that names it is honoured.
//!
//! Weights that belong to no layer are plain: biases and norm parameters f32, tables as the component's floats. A
//! configuration's floats are f32 if its default is, or if it has none and makes every layer f32; else they are f16.

use crate::config::{self, Activations, Choice, Decider, QConfig};
use crate::error::{Error, Result};
use crate::lower::Part;
use crate::quantize::{CodebookType, Method};
use crate::weight::{Storage, Weight, Weights};
use aquatint::raw::codec::Bits;
use aquatint::raw::format::TensorKind;
use aquatint::raw::program::shape::TensorType;

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
}

impl Treatment {
    const fn plain(store: Store) -> Self {
        Treatment { store, activation_bits: None }
    }

    /// The codebooks that codes get: integers where integers multiply them.
    pub fn codebook(self) -> CodebookType {
        if self.activation_bits.is_some() { CodebookType::Int8 } else { CodebookType::F16 }
    }

    /// How the weight lies in the file.
    pub fn kind(self) -> TensorKind {
        match self.store {
            Store::F32 => TensorKind::F32,
            Store::F16 => TensorKind::F16,
            Store::Codes(method, bits) => {
                let (grain, codebook) = self.codebook().of_result(method, bits);
                TensorKind::Codes { bits, grain, int8: codebook == CodebookType::Int8 }
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
}

/// The decision about every weight of a model.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// One per weight.
    pub decisions: Vec<Decision>,
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
    pub fn new(weights: &Weights, requests: Requests) -> Result<Self> {
        let mut recipe = Recipe { decisions: vec![Decision::plain(Store::F32); weights.len()], config: String::new() };
        let mut floats = Store::F16;
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
                    let plain = bits.map(|_| recipe.clone());
                    let own = recipe.part(weights, (part, component), (config, bits), floats)?;
                    if let Some(mut plain) = plain {
                        plain.part(weights, (part, component), (config, None), floats)?;
                        if plain.decisions == recipe.decisions {
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
        Ok(recipe)
    }

    /// What the shape rules need to know of the weights once they are stored.
    pub fn types(&self, weights: &Weights) -> Vec<TensorType> {
        weights.iter().zip(&self.decisions).map(|(w, d)| d.treatment.kind().ty(&w.dims())).collect()
    }

    /// Decides for the weights of `part`, which errors call `component`; returns how its floats are stored: as the
    /// configuration `arg` says, or as `floats` without one.
    fn part(
        &mut self,
        weights: &Weights,
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
            choices = config.resolve(&names, &aliases).map_err(refuse)?;
            floats = floats_of(&config, &choices);
        }
        for (i, weight) in own() {
            self.decisions[i] = Decision::plain(if weight.storage == Storage::Vector { Store::F32 } else { floats });
        }
        for ((i, weight), choice) in layers.into_iter().zip(choices) {
            self.decisions[i] = decide(weight, choice);
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

/// The decision about a layer for which the configuration makes `choice`.
fn decide(weight: &Weight, choice: Choice) -> Decision {
    let Choice { spec, by } = choice;
    let named = matches!(by, Decider::Entry(_));
    let with = |treatment, note| Decision { treatment, by: Some(by), note };
    let (method, bits) = match spec.weights {
        config::Weights::F32 => return with(Treatment::plain(Store::F32), None),
        config::Weights::F16 => return with(Treatment::plain(Store::F16), None),
        config::Weights::Codes { method, bits } => (method, bits),
    };
    let (_, inputs) = weight.matrix();
    if inputs <= FEW_INPUTS && !named {
        let note = format!("kept at f16: it has only {inputs} inputs per output, and no entry names it");
        return with(Treatment::plain(Store::F16), Some(note));
    }
    let store = Store::Codes(method, bits);
    let activation_bits = match spec.activations {
        Activations::Float => None,
        Activations::Int(bits) => Some(bits),
    };
    let channels = weight.dims().last().copied().unwrap_or(0);
    if activation_bits.is_some() && weight.storage == Storage::Conv && !channels.is_multiple_of(CHANNEL_GROUP) {
        let note = format!("float activations: its {channels} channels are not a multiple of {CHANNEL_GROUP}");
        return with(Treatment::plain(store), Some(note));
    }
    with(Treatment { store, activation_bits }, None)
}

/// A SPEC as it is; of a path only the last part, so that the packed file does not depend on where the file lay.
fn file_name(arg: &str) -> String {
    std::path::Path::new(arg).file_name().map_or_else(|| arg.to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{DENOISER, VAE};

    fn layer(component: &'static str, name: &str, dims: &[usize], storage: Storage) -> Weight {
        Weight::of_checkpoint(component, format!("{name}.weight"), dims, storage)
    }

    fn weights() -> Weights {
        let mut first = layer(DENOISER, "blocks.0.time", &[96, 128], Storage::Linear);
        first.copies = vec!["blocks.1.time.weight".into()];
        let all = [
            layer(DENOISER, "patch", &[96, 4, 2, 2], Storage::Linear),
            first,
            layer(DENOISER, "blocks.0.bias", &[96], Storage::Vector),
            layer(DENOISER, "table", &[11, 96], Storage::Table),
            layer(VAE, "conv", &[32, 30, 3, 3], Storage::Conv),
            layer(VAE, "out", &[32, 32, 3, 3], Storage::Conv),
        ];
        all.into_iter().collect()
    }

    fn by(recipe: &Recipe) -> Vec<String> {
        let text = |d: &Decision| d.by.as_ref().map_or_else(|| "-".into(), Decider::to_string);
        recipe.decisions.iter().map(text).collect()
    }

    /// A configuration file that is removed again.
    struct File(std::path::PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("packer-recipe-{}-{name}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            File(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_file_whose_default_is_f32_means_what_the_specification_does() {
        let spec = recipe(Some("f32"), None).unwrap();
        for (name, text) in [
            ("default.toml", "default = 'f32'"),
            ("every.json", r#"{"*": "f32"}"#),
            ("names.json", r#"{"patch": "f32", "blocks.0.time": "f32"}"#),
        ] {
            let file = File::new(name, text);
            let r = recipe(file.0.to_str(), None).unwrap();
            assert_eq!(stores(&r), stores(&spec), "{text}");
        }
        // The default says what a part's floats are, whatever entries say; the decoder's own beats the denoiser's.
        let file = File::new("mixed.toml", "default = 'f32'\n[layers]\n'blocks.*' = 'w4a8'");
        let r = recipe(file.0.to_str(), None).unwrap();
        assert_eq!(stores(&r), ["f32/32", "mse-4/8", "f32/32", "f32/32", "f32/32", "f32/32"]);
        assert_eq!(by(&r), ["default", "`blocks.*`", "-", "-", "-", "-"]);
        let r = recipe(Some("f16"), file_of(&File::new("vae.toml", "default = 'f32'"))).unwrap();
        assert_eq!(stores(&r)[3..], ["f16/32", "f32/32", "f32/32"]);
    }

    fn file_of(file: &File) -> Option<&str> {
        file.0.to_str()
    }

    #[test]
    fn a_decision_says_what_made_it() {
        let file = File::new("by.toml", "default = 'w4a8'\n[layers]\n'blocks.1.time' = 'w3a8'");
        let r = recipe(file.0.to_str(), None).unwrap();
        assert_eq!(stores(&r)[..2], ["f16/32", "mse-3/8"]);
        assert_eq!(by(&r)[..3], ["default", "`blocks.1.time`", "-"]);
        assert!(r.decisions[0].note.as_ref().is_some_and(|note| note.contains("only 16 inputs")));
        assert_eq!(by(&recipe(Some("w4a8"), Some("f16")).unwrap())[4..], ["specification"; 2]);
    }

    fn recipe(denoiser: Option<&str>, autoencoder: Option<&str>) -> Result<Recipe> {
        Recipe::new(&weights(), Requests { denoiser, autoencoder, ..Requests::default() })
    }

    fn stores(recipe: &Recipe) -> Vec<String> {
        let text = |t: Treatment| format!("{}/{}", t.store.name(), t.activation_bits.unwrap_or(32));
        recipe.decisions.iter().map(|d| text(d.treatment)).collect()
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
    fn activations_that_change_nothing_are_refused() {
        for (config, bits) in [("f16", 8), ("w4a8", 8), ("w4a6", 6)] {
            let requests = Requests { denoiser: Some(config), activation_bits: Some(bits), ..Requests::default() };
            let message = Recipe::new(&weights(), requests).unwrap_err().to_string();
            assert!(message.contains("--quant-act") && message.ends_with(&format!("got {config}")), "{message}");
        }
        let requests = Requests { denoiser: Some("w4a8"), activation_bits: Some(6), ..Requests::default() };
        assert!(Recipe::new(&weights(), requests).is_ok());
    }

    #[test]
    fn a_specification_spares_small_layers_and_the_decoder() {
        let r = recipe(Some("w4a8"), None).unwrap();
        assert_eq!(stores(&r), ["f16/32", "mse-4/8", "f32/32", "f16/32", "f16/32", "f16/32"]);
        assert!(r.decisions[0].note.as_ref().unwrap().contains("only 16 inputs"));
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
        assert!(r.decisions[4].note.as_ref().unwrap().contains("30 channels"));
    }
}
