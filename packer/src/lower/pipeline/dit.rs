//! `DiTPipeline`: a class-conditional transformer on latents; and Latte's, on latents of videos, whose autoencoder makes single
//! frames.

use super::{fits, meta};
use crate::lower::{DENOISER, Lowered, VAE, dit, vae};
use crate::source::diffusers::Model;
use crate::source::layout::{GUIDED_CHANNELS, STEPS};
use crate::weight::Weights;
use aquatint::error::Result;
use aquatint::raw::format::meta::PipelineMeta;
use serde_json::Value;

pub(super) fn lower(model: &Model) -> Result<Lowered> {
    let (transformer, decoder) = (model.component(DENOISER), model.component(VAE));
    let mut weights = Weights::new();
    let config = dit::Config::read(&transformer.class, &transformer.config)?;
    let vae_config = vae::Config::read(VAE, &decoder.class, &decoder.config)?;
    fits(decoder, "latent_channels", vae_config.latent_channels, DENOISER, config.in_channels)?;
    let denoiser = dit::lower(&config, &|a, b| transformer.weights.same(a, b), &mut weights);
    let image = vae::lower(&vae_config, &|key| decoder.weights.has(key), &mut weights);
    let count = |field| model.index.get(field).and_then(Value::as_u64).map(|n| n as u32);
    let pipeline = PipelineMeta {
        classes: config.classes,
        null_class: config.classes,
        class_names: model.class_names()?.into_iter().filter(|&(number, _)| number < config.classes).collect(),
        frames: config.frames.unwrap_or(1),
        // The default of DiTPipeline.__call__, as are the 50 steps; and that of Latte's authors for classes.
        guidance_scale: if config.frames.is_some() { 7.0 } else { 4.0 },
        guided_channels: count(GUIDED_CHANNELS),
        steps: count(STEPS).unwrap_or(50),
        latent_multiple: config.patch,
        ..meta(model, config.in_channels, [config.sample_size; 2], vae_config.pixels_per_latent())?
    };
    // Old versions saved the position table, although it follows from the configuration. Nothing encodes images here.
    let unused = ["transformer/pos_embed.pos_embed", "vae/encoder.", "vae/quant_conv."].map(String::from).to_vec();
    Ok(Lowered { programs: vec![denoiser, image], weights, files: Vec::new(), pipeline, unused })
}
