//! The text of a picture: made of a request, and turned into options again.
//!
//! Names and words are the Stable Diffusion web UI's where it has them (Schedule type, Denoising strength, Eta, RNG,
//! Emphasis, Refiner switch at), SD.Next's for CFG rescale. Settings of the sampler that are not as the model was saved
//! stand under the names of [`Config`]'s fields. Every setting that changes pixels is there, or is the model file's own,
//! whose hash is there; a test makes pictures of random settings again from their texts, bit for bit.

use super::sampling::titled;
use super::{InitOptions, RequestOptions, Sigmas};
use crate::error::{Error, Result};
use crate::image::ResizeMode;
use crate::infotext::Infotext;
use crate::model::Model;
use crate::pipeline::{NoiseSource, NoiseStream, Prompts, Request};
use crate::sampler::{Config, SamplerKind, Spacing};
use crate::text::PromptStyle;
use serde_json::{Map, Value};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// Fields of a sampler's [`Config`] that `Sampler` and `Schedule type` tell.
const TOLD: [&str; 6] =
    ["kind", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "replaces"];
/// Settings that change nothing here: they say what was, or do nothing by themselves.
const REMARKS: [&str; 10] = [
    "Model hash",
    "Model",
    "Version",
    "Device",
    "Refiner",
    "Init image hash",
    "Mask hash",
    "Inputs hash",
    "Batch size",
    "Batch pos",
];

/// What a picture's text says that its request does not.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// The model's name.
    pub model: &'a str,
    /// What computed it.
    pub device: &'a str,
    /// Rows and columns of latents that were decoded at once.
    pub tile: [usize; 2],
    /// How the image that it began with was brought to its size.
    pub resize: ResizeMode,
    /// The bytes of the tensors that took the place of prompts or noise.
    pub inputs: Option<&'a [u8]>,
}

/// The text of one picture that shows `images` of `request`.
pub fn infotext<D: AsRef<[u8]>>(
    model: &Model<'_, D>,
    request: &Request,
    made: &Made<'_>,
    images: Range<usize>,
) -> Infotext {
    let config = &request.sampler;
    let mut text = prompts(model, request, images.clone());
    text.push("Steps", request.steps);
    text.push("Sampler", config.kind.title());
    if let Some(schedule) = schedule(config) {
        text.push("Schedule type", schedule);
    }
    text.push("CFG scale", request.guidance_scale);
    // Where nothing is drawn, a seed would say what is not so.
    let drawn = request.draws_noise(model).unwrap_or(true);
    let one_stream = request.noise == NoiseSource::Torch;
    if drawn {
        text.push("Seed", request.seed.wrapping_add(if one_stream { 0 } else { images.start as u64 }));
    }
    let [h, w] = request.pixels(model);
    text.push("Size", format_args!("{w}x{h}"));
    text.push("Model hash", hash_of(model));
    text.push("Model", made.model);
    if let Some(init) = &request.init {
        text.push("Denoising strength", init.strength);
        text.push("Init image hash", hash_of_floats(&init.pictures));
        if let Some(mask) = &init.mask {
            text.push("Mask hash", hash_of_floats(mask));
        }
        if made.resize != ResizeMode::Stretch {
            text.push("Resize mode", resize_words(made.resize));
        }
    }
    for (field, value) in differences(config, &saved(model, config.kind)) {
        text.push(&setting_of(&field), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    if drawn {
        text.push("RNG", if one_stream { "CPU" } else { "Fast" });
        // What the seed alone does not tell: the place in the stream that all images share.
        let stream = request.stream.unwrap_or(NoiseStream { images: request.prompts.len(), first: 0 });
        if one_stream && stream.images > 1 {
            text.push("Batch size", stream.images);
            text.push("Batch pos", stream.first + images.start);
        }
    }
    if request.guidance_rescale != 0.0 {
        text.push("CFG rescale", request.guidance_rescale);
    }
    if matches!(&request.prompts, Prompts::Texts(texts) if texts.style == PromptStyle::Plain) {
        text.push("Emphasis", "None");
    }
    if model.refiner.is_some() && request.refiner_start < 1.0 {
        text.push("Refiner", made.model);
        text.push("Refiner switch at", request.refiner_start);
    }
    if made.tile != request.latent_size {
        text.push("VAE tile", made.tile[0].max(made.tile[1]));
    }
    if let Some(inputs) = made.inputs {
        text.push("Inputs hash", format_args!("{:016x}", xxh3_64(inputs)));
    }
    if images.len() > 1 {
        text.push("Images", images.len());
    }
    text.push("Device", made.device);
    text.push("Version", concat!("aquatint ", env!("CARGO_PKG_VERSION")));
    text
}

/// What the images show, each text once.
fn prompts<D: AsRef<[u8]>>(model: &Model<'_, D>, request: &Request, images: Range<usize>) -> Infotext {
    let side = |side: usize| {
        let mut shown: Vec<String> = Vec::new();
        for i in images.clone() {
            let text = match (&request.prompts, &model.classes) {
                // The number of a class whose name is another's too.
                (Prompts::Classes(labels), Some(classes)) if side == 0 => {
                    let name = classes.name(labels[i]);
                    let named = classes.label(&name).is_ok_and(|label| label == labels[i]);
                    if named { name } else { labels[i].to_string() }
                }
                _ => request.prompts.describe(i, model)[side].clone(),
            };
            if !shown.contains(&text) {
                shown.push(text);
            }
        }
        shown.join(", ")
    };
    // An empty negative prompt is worth a line only where none at all is something else.
    let absent = |i: usize| match &request.prompts {
        Prompts::Texts(texts) => texts.negative(i).is_none(),
        _ => true,
    };
    let differs = model.text.as_ref().is_some_and(|text| text.zero_negative);
    let negative = Some(side(1)).filter(|text| !text.is_empty() || (differs && !images.clone().all(absent)));
    Infotext { prompt: side(0), negative, settings: Vec::new() }
}

impl RequestOptions {
    /// Takes from a picture's text what these options leave open. Gives remarks for people: what of the text is not
    /// applied, and whether it was another model.
    ///
    /// # Errors
    /// [`Error::Request`] if a setting has a value that means nothing here, or the text alone does not make the picture:
    /// a sheet of several, or one that began with an image or tensors that are not given.
    pub fn recall<D: AsRef<[u8]>>(
        &mut self,
        text: &Infotext,
        model: &Model<'_, D>,
        inputs: Option<&[u8]>,
    ) -> Result<Vec<String>> {
        if text.get("Steps").is_none() {
            return Err(Error::request("from", "a picture whose text tells how it was made", "one without"));
        }
        if let Some(images) = text.get("Images") {
            let expected = "a picture of one image (write them with -o name_%d.png)";
            return Err(Error::request("from", expected, format!("a sheet of {images}")));
        }
        let mut remarks = Vec::new();
        self.recall_prompts(text, model, inputs.is_some());
        self.recall_stream(text)?;
        let own = text.get("Version").is_some_and(|version| version.starts_with("aquatint"));
        for (name, value) in &text.settings {
            if !self.recall_setting(name, value, model, own)? && !REMARKS.contains(&name.as_str()) {
                remarks.push(format!("not applied: {name}: {value}"));
            }
        }
        if text.get("Refiner switch at").is_none() && model.refiner.is_some() {
            self.refiner_start.get_or_insert(1.0);
        }
        if text.get("Schedule type").is_none_or(|schedule| schedule == "Automatic") && !own {
            let kind = self.sampling.sampler.as_ref().and_then(|name| name.parse().ok());
            self.sampling.sigmas = self.sampling.sigmas.or(kind.and_then(automatic));
        }
        if let Some(hash) = text.get("Model hash").filter(|hash| *hash != hash_of(model)) {
            let name = text.get("Model").unwrap_or("another");
            remarks.push(format!("the picture was made by {name} ({hash}), not by this model"));
        }
        if text.get("Init image hash").is_some() && self.init.is_none() {
            return Err(Error::request("init-image", "the image that the picture began with", "none"));
        }
        if let Some(hash) = text.get("Inputs hash") {
            match inputs.map(|bytes| format!("{:016x}", xxh3_64(bytes))) {
                None => return Err(Error::request("inputs", "the tensors that the picture was made of", "none")),
                Some(got) if got != hash => remarks.push("the picture was made of other --inputs".into()),
                Some(_) => {}
            }
        }
        Ok(remarks)
    }

    /// The place in a stream of noise, unless another seed or generator is asked for.
    fn recall_stream(&mut self, text: &Infotext) -> Result<()> {
        let number = |name: &str| -> Result<Option<usize>> {
            text.get(name).map(|value| value.parse().map_err(|_| meaningless(name, value))).transpose()
        };
        if let (Some(images), Some(first)) = (number("Batch size")?, number("Batch pos")?)
            && self.seed.is_none()
            && self.noise.is_none()
        {
            self.stream = Some(NoiseStream { images, first });
        }
        Ok(())
    }

    fn recall_prompts<D: AsRef<[u8]>>(&mut self, text: &Infotext, model: &Model<'_, D>, inputs: bool) {
        let asked = &mut self.prompts;
        let reads = model.text.is_some() || model.classes.is_some();
        if asked.prompts.is_empty() && asked.class_labels.is_empty() && reads && !(inputs && text.prompt.is_empty()) {
            asked.prompts = vec![text.prompt.clone()];
            if asked.negatives.is_empty() && model.text.is_some() {
                asked.negatives.extend(text.negative.clone());
            }
        }
    }

    /// Whether a setting means something here.
    fn recall_setting<D: AsRef<[u8]>>(
        &mut self,
        name: &str,
        value: &str,
        model: &Model<'_, D>,
        own: bool,
    ) -> Result<bool> {
        let sampling = &mut self.sampling;
        match name {
            "Steps" => keep(&mut sampling.steps, name, value)?,
            "CFG scale" => keep(&mut sampling.cfg_scale, name, value)?,
            "CFG rescale" | "CFG Rescale" => keep(&mut sampling.guidance_rescale, name, value)?,
            "Seed" => keep(&mut self.seed, name, value)?,
            "VAE tile" => keep(&mut self.vae_tile, name, value)?,
            "Refiner switch at" if model.refiner.is_some() => keep(&mut self.refiner_start, name, value)?,
            "Denoising strength" => match &mut self.init {
                Some(InitOptions { strength, .. }) => keep(strength, name, value)?,
                None => return Ok(own),
            },
            "Resize mode" => match (resize_mode(value), &mut self.init) {
                (Some(mode), Some(init)) => _ = init.resize.get_or_insert(mode),
                (None, _) => return Err(meaningless(name, value)),
                (Some(_), None) => {}
            },
            "Size" => {
                let size = value.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
                let Some((width, height)) = size else { return Err(meaningless(name, value)) };
                if !self.size.given() {
                    (self.size.width, self.size.height) = (Some(width), Some(height));
                }
            }
            "Sampler" => return self.recall_sampler(value),
            "Schedule type" => return self.recall_schedule(value),
            "RNG" if value == "CPU" => self.noise = self.noise.or(Some(NoiseSource::Torch)),
            "RNG" if value == "Fast" => self.noise = self.noise.or(Some(NoiseSource::Fast)),
            "Emphasis" if value == "None" => self.prompts.plain = true,
            "Emphasis" => return Ok(value == "Original"),
            // Eta means another thing to other programs' other samplers.
            _ if own || (name == "Eta" && sampling.sampler.as_deref() == Some(SamplerKind::Ddim.name())) => {
                return Ok(self.recall_field(name, value));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// A sampler by its title, with the schedule behind it as older texts have it.
    fn recall_sampler(&mut self, title: &str) -> Result<bool> {
        if self.sampling.sampler.is_some() {
            return Ok(true);
        }
        let Some((kind, sigmas)) = titled(title) else {
            let titles: Vec<_> = SamplerKind::ALL.iter().map(|kind| kind.title()).collect();
            return Err(Error::request("from: Sampler", format!("one of {}, or --sampler", titles.join(", ")), title));
        };
        self.sampling.sampler = Some(kind.name().to_owned());
        self.sampling.sigmas = self.sampling.sigmas.or(sigmas);
        Ok(true)
    }

    fn recall_schedule(&mut self, value: &str) -> Result<bool> {
        let sampling = &mut self.sampling;
        let sigmas = match value {
            "Karras" => Sigmas::Karras,
            "Exponential" => Sigmas::Exponential,
            "Beta" => Sigmas::Beta,
            "Lu" => Sigmas::Lu,
            "Uniform" | "Normal" => Sigmas::Normal,
            "SGM Uniform" => {
                sampling.fields.entry("spacing".into()).or_insert(Spacing::Trailing.name().into());
                Sigmas::Normal
            }
            other => return Ok(other == "Automatic"),
        };
        sampling.sigmas.get_or_insert(sigmas);
        Ok(true)
    }

    /// Whether a setting is a field of the sampler's.
    fn recall_field(&mut self, name: &str, value: &str) -> bool {
        let field = name.to_ascii_lowercase().replace(' ', "_");
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        let known = !TOLD.contains(&field.as_str()) && with_field(&Config::default(), &field, &value).is_ok();
        if known {
            self.sampling.fields.insert(field, value);
        }
        known
    }
}

/// The web UI's words for it.
fn resize_words(mode: ResizeMode) -> &'static str {
    match mode {
        ResizeMode::Stretch => "Just resize",
        ResizeMode::Crop => "Crop and resize",
        ResizeMode::Pad => "Resize and fill",
    }
}

fn resize_mode(words: &str) -> Option<ResizeMode> {
    [ResizeMode::Stretch, ResizeMode::Crop, ResizeMode::Pad].into_iter().find(|&mode| resize_words(mode) == words)
}

/// Sets an option that was left open.
fn keep<T: std::str::FromStr>(option: &mut Option<T>, name: &str, value: &str) -> Result<()> {
    let value = value.parse().map_err(|_| meaningless(name, value))?;
    option.get_or_insert(value);
    Ok(())
}

fn meaningless(name: &str, value: &str) -> Error {
    Error::request(format!("from: {name}"), "a value that the setting can have", value)
}

/// The first ten digits of the model file's hash.
fn hash_of<D: AsRef<[u8]>>(model: &Model<'_, D>) -> String {
    format!("{:032x}", model.packed().hash())[..10].to_owned()
}

fn hash_of_floats(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    format!("{:016x}", xxh3_64(&bytes))
}

/// The model's own settings of a sampler.
fn saved<D: AsRef<[u8]>>(model: &Model<'_, D>, kind: SamplerKind) -> Config {
    if kind == model.sampler.kind { model.sampler.clone() } else { model.sampler.with_kind(kind) }
}

/// The web UI's name of the noise levels, of samplers that have a choice of them. Without it, it takes Karras' for some.
fn schedule(config: &Config) -> Option<&'static str> {
    let name = match config {
        Config { use_karras_sigmas: true, .. } => "Karras",
        Config { use_exponential_sigmas: true, .. } => "Exponential",
        Config { use_beta_sigmas: true, .. } => "Beta",
        Config { use_lu_lambdas: true, .. } => "Lu",
        Config { spacing: Some(Spacing::Trailing), .. } => "SGM Uniform",
        _ => "Uniform",
    };
    config.kind.has_sigmas().then_some(name)
}

/// The noise levels that the web UI takes for a sampler when its text names none.
fn automatic(kind: SamplerKind) -> Option<Sigmas> {
    match kind {
        SamplerKind::DpmSolverPp2M => Some(Sigmas::Karras),
        SamplerKind::DpmSolverPp2MSde => Some(Sigmas::Exponential),
        _ => None,
    }
}

/// A configuration's fields by name.
fn fields(config: &Config) -> Map<String, Value> {
    // By way of text: numbers keep the digits they are written with.
    let text = serde_json::to_string(config).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The fields of `config` that differ from those of `base`, but for those that are told otherwise; null where absent.
fn differences(config: &Config, base: &Config) -> Vec<(String, Value)> {
    let (ours, theirs) = (fields(config), fields(base));
    let names = ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name)));
    let differs = |name: &&String| !TOLD.contains(&name.as_str()) && ours.get(*name) != theirs.get(*name);
    names.filter(differs).map(|name| (name.clone(), ours.get(name).cloned().unwrap_or_default())).collect()
}

/// `config` with another value of a field.
pub(super) fn with_field(config: &Config, field: &str, value: &Value) -> Result<Config> {
    let mut fields = fields(config);
    fields.insert(field.to_owned(), value.clone());
    let what = || field.replace('_', "-");
    serde_json::from_value(Value::Object(fields)).map_err(|e| Error::request(what(), "a setting of samplers", e))
}

/// How a field is called in a text: `clip_sample` is `Clip sample`.
fn setting_of(field: &str) -> String {
    let mut name = field.replace('_', " ");
    name[..1].make_ascii_uppercase();
    name
}
