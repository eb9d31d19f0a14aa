//! The text of a picture, made of its request.
//!
//! Names and words are the Stable Diffusion web UI's where it has them (Schedule type, Denoising strength, Eta, RNG,
//! Emphasis, Refiner switch at), SD.Next's for CFG rescale. Settings of the sampler that are not as the model was saved
//! stand under the names of [`Config`]'s fields. Every setting that changes pixels is there, or is the model file's own,
//! whose hash is there; a test makes pictures of random settings again from their texts, bit for bit.

use crate::error::{Error, Result};
use crate::image::ResizeMode;
use crate::infotext::Infotext;
use crate::model::Model;
use crate::pipeline::{InitImage, NoiseSource, NoiseStream, Prompts, Request};
use crate::sampler::{Config, SamplerKind, Spacing};
use crate::text::PromptStyle;
use serde_json::{Map, Value};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// Fields of a sampler's [`Config`] that `Sampler` and `Schedule type` tell.
pub(super) const TOLD: [&str; 6] =
    ["kind", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "replaces"];

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
    let [h, w] = request.picture_pixels(model);
    text.push("Size", format_args!("{w}x{h}"));
    if request.picture_size.is_some() {
        text.push("Resolution binning", true);
    }
    if model.latents.video {
        text.push("Frames", request.frames);
    }
    text.push("Model hash", hash_of(model));
    text.push("Model", made.model);
    if let Some(init) = &request.init {
        text.push("Denoising strength", init.strength);
        begin_hashes(init).into_iter().flatten().for_each(|(name, hash)| text.push(name, hash));
        if made.resize != ResizeMode::Stretch {
            text.push("Resize mode", resize_words(made.resize));
        }
    }
    for (field, value) in differences(config, &saved(model, config.kind)) {
        text.push(&setting_of(&field), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    if drawn {
        text.push("RNG", if request.noise == NoiseSource::Fast { "Fast" } else { "CPU" });
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

/// The first ten digits of the model file's hash.
pub(super) fn hash_of<D: AsRef<[u8]>>(model: &Model<'_, D>) -> String {
    format!("{:032x}", model.packed().hash())[..10].to_owned()
}

/// The hashes of what a run begins with, an image and its mask, and how a text calls them.
pub(super) fn begin_hashes(init: &InitImage) -> [Option<(&'static str, String)>; 2] {
    let hash = |values: &Vec<f32>| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        format!("{:016x}", xxh3_64(&bytes))
    };
    [Some(("Init image hash", hash(&init.pictures))), init.mask.as_ref().map(|mask| ("Mask hash", hash(mask)))]
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
        Config { use_lu_lambdas: true, .. } if config.kind.has_lambdas() => "Lu",
        Config { spacing: Some(Spacing::Trailing), .. } => "SGM Uniform",
        _ => "Uniform",
    };
    config.kind.has_sigmas().then_some(name)
}

/// The web UI's words for it.
pub(super) fn resize_words(mode: ResizeMode) -> &'static str {
    match mode {
        ResizeMode::Stretch => "Just resize",
        ResizeMode::Crop => "Crop and resize",
        ResizeMode::Pad => "Resize and fill",
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels that a sampler was saved with and another does not have are not said of the other: nobody could ask for them.
    #[test]
    fn schedules_are_those_that_the_sampler_has() {
        let saved = Config { use_lu_lambdas: true, ..Config::default() };
        assert_eq!(schedule(&saved.with_kind(SamplerKind::DpmSolverPp2M)), Some("Lu"));
        assert_eq!(schedule(&saved.with_kind(SamplerKind::Euler)), Some("Uniform"));
        assert_eq!(schedule(&saved.with_kind(SamplerKind::Ddim)), None);
    }
}
