//! The text of a picture, turned into options again: what [`describe`](super::describe) writes, and what other programs do.

use super::describe::{TOLD, begin_hashes, hash_of, resize_words, with_field};
use super::web_ui::titles;
use super::{InitOptions, RequestOptions};
use crate::error::{Error, Result};
use crate::image::ResizeMode;
use crate::infotext::Infotext;
use crate::model::Model;
use crate::pipeline::{NoiseSource, NoiseStream, Request};
use crate::sampler::{Config, SamplerKind};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

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
        let own = is_own(text);
        for (name, value) in &text.settings {
            if !self.recall_setting(name, value, model, own)? && !REMARKS.contains(&name.as_str()) {
                remarks.push(format!("not applied: {name}: {value}"));
            }
        }
        if text.get("Refiner switch at").is_none() && model.refiner.is_some() {
            self.refiner_start.get_or_insert(1.0);
        }
        if text.get("Schedule type").is_none_or(|schedule| schedule == "Automatic") && !own {
            self.sampling.recall_automatic();
        }
        if let Some(hash) = text.get("Model hash").filter(|hash| *hash != hash_of(model)) {
            let name = text.get("Model").unwrap_or("another");
            remarks.push(format!("the picture was made by {name} ({hash}), not by this model"));
        }
        if text.get("Init image hash").is_some() && self.init.is_none() {
            return Err(Error::request("init-image", "the image that the picture began with", "none"));
        }
        if text.get("Mask hash").is_some() && self.init.as_ref().is_some_and(|init| init.mask.is_none()) {
            return Err(Error::request("mask", "the mask that the picture was made with", "none"));
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

    /// What `request` begins with that is not what the picture of `text` began with, for people.
    pub fn begins_otherwise(text: &Infotext, request: &Request) -> Vec<String> {
        // Other programs hash in other ways.
        let hashes = request.init.iter().filter(|_| is_own(text)).flat_map(begin_hashes).flatten();
        let others = hashes.filter(|(name, hash)| text.get(name) != Some(hash));
        others.map(|(name, _)| format!("another image than the picture was made of: {name}")).collect()
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
            "Frames" if model.latents.video => keep(&mut self.frames, name, value)?,
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
            "Resolution binning" => match value {
                "true" | "True" => self.size.binning = true,
                _ => return Err(meaningless(name, value)),
            },
            "Sampler" if !sampling.recall_sampler(value) => {
                return Err(Error::request("from: Sampler", format!("one of {}, or --sampler", titles()), value));
            }
            "Sampler" => {}
            "Schedule type" => return Ok(sampling.recall_schedule(value)),
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

/// The way of resizing that the web UI has these words for.
fn resize_mode(words: &str) -> Option<ResizeMode> {
    [ResizeMode::Stretch, ResizeMode::Crop, ResizeMode::Pad].into_iter().find(|&mode| resize_words(mode) == words)
}

/// Whether this program wrote a text.
fn is_own(text: &Infotext) -> bool {
    text.get("Version").is_some_and(|version| version.starts_with("aquatint"))
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
