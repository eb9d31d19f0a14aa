//! Lowering: a model's configuration becomes programs, and the list of weights they use.
//!
//! One hand-written builder per architecture ([`dit`], [`unet2d`], [`vae`]), on top of the typed steps of [`Builder`]. Builders read
//! configurations and tensor *names*; no weight is touched here, and nothing is known of quantization. A setting that
//! would change the result and is not supported is refused by name.

mod builder;
pub mod dit;
mod fields;
pub mod unet2d;
pub mod vae;

pub use builder::{Builder, Linear, Storage, Weight};
pub use fields::Fields;

use crate::source::diffusers::{Component, Model};
use aquatint::error::{Error, Result};
use aquatint::format::meta::PipelineMeta;
use aquatint::program::Program;
use aquatint::sampler;
use std::collections::BTreeSet;

/// Folder of the denoiser in a DiT pipeline.
pub const DENOISER: &str = "transformer";
/// Folder of the denoiser in a UNet's pipeline.
pub const UNET: &str = "unet";
/// Folder of the image decoder.
pub const VAE: &str = "vae";

/// A lowered model.
#[derive(Debug)]
pub struct Lowered {
    /// The denoiser and the decoder.
    pub programs: Vec<Program>,
    /// Weights in program order; [`aquatint::program::Tensor`] counts them.
    pub weights: Vec<Weight>,
    /// What the pipeline needs beside the programs.
    pub pipeline: PipelineMeta,
}

/// Lowers a pipeline and checks that its checkpoints hold exactly the tensors that the programs use.
///
/// # Errors
/// [`Error::Request`] naming component, field or tensor, what is supported or expected, and what was found.
pub fn lower(model: &Model) -> Result<Lowered> {
    let lowered = match model.class.as_str() {
        "DiTPipeline" => lower_dit(model)?,
        _ => lower_unet2d(model)?,
    };
    for component in &model.components {
        check(component, &lowered.weights)?;
    }
    Ok(lowered)
}

/// A `DDPMPipeline` or `DDIMPipeline`: a UNet on pixels.
fn lower_unet2d(model: &Model) -> Result<Lowered> {
    let unet = model.component(UNET);
    let config = unet2d::Config::read(&unet.class, &unet.config)?;
    let mut weights = Vec::new();
    let denoiser = unet2d::lower(&config, &|key| unet.weights.has(key), &mut weights);
    let pipeline = PipelineMeta {
        name: model.name.clone(),
        class: model.class.clone(),
        latent_channels: config.in_channels,
        latent_size: [config.sample_size; 2],
        pixels_per_latent: 1,
        classes: 0,
        null_class: 0,
        class_names: Default::default(),
        sampler: sampler::Config::from_diffusers(&model.scheduler)?,
        // The defaults of DDIMPipeline.__call__ and DDPMPipeline.__call__.
        steps: if model.class == "DDIMPipeline" { 50 } else { 1000 },
        guidance_scale: 1.0,
    };
    Ok(Lowered { programs: vec![denoiser], weights, pipeline })
}

fn lower_dit(model: &Model) -> Result<Lowered> {
    let (transformer, decoder) = (model.component(DENOISER), model.component(VAE));
    let mut weights = Vec::new();
    let config = dit::Config::read(&transformer.class, &transformer.config)?;
    let vae_config = vae::Config::read(&decoder.class, &decoder.config)?;
    if vae_config.latent_channels != config.in_channels {
        let expected = format!("{}, the transformer's in_channels", config.in_channels);
        return Err(Error::request("vae/config.json: latent_channels", expected, vae_config.latent_channels));
    }
    let denoiser = dit::lower(&config, &mut weights);
    let image = vae::lower(&vae_config, &|key| decoder.weights.has(key), &mut weights);
    let pipeline = PipelineMeta {
        name: model.name.clone(),
        class: model.class.clone(),
        latent_channels: config.in_channels,
        latent_size: [config.sample_size; 2],
        pixels_per_latent: vae_config.pixels_per_latent(),
        classes: config.classes,
        null_class: config.classes,
        class_names: model.class_names()?.into_iter().filter(|&(number, _)| number < config.classes).collect(),
        sampler: sampler::Config::from_diffusers(&model.scheduler)?,
        // The defaults of DiTPipeline.__call__.
        steps: 50,
        guidance_scale: 4.0,
    };
    Ok(Lowered { programs: vec![denoiser, image], weights, pipeline })
}

/// Tensors that a checkpoint may hold and no program uses: the encoder's half of a VAE, and position tables that old
/// versions saved although they follow from the configuration.
fn ignorable(component: &str, key: &str) -> bool {
    match component {
        VAE => key.starts_with("encoder.") || key.starts_with("quant_conv."),
        DENOISER => key == "pos_embed.pos_embed",
        _ => false,
    }
}

/// Checks names and shapes of all tensors, and that copies are copies.
fn check(component: &Component, weights: &[Weight]) -> Result<()> {
    let checkpoint = &component.weights;
    let name = &component.name;
    let mut used = BTreeSet::new();
    for weight in weights.iter().filter(|w| w.component == name) {
        for key in std::iter::once(&weight.key).chain(&weight.copies) {
            used.insert(key.as_str());
            let shape = checkpoint.shape(key);
            if shape != Some(&weight.source_dims[..]) {
                let got = shape.map_or_else(|| "no such tensor".into(), |s| format!("shape {s:?}"));
                return Err(Error::request(format!("{name}: {key}"), format!("shape {:?}", weight.source_dims), got));
            }
        }
    }
    let extra: Vec<_> = checkpoint.keys().filter(|key| !used.contains(key) && !ignorable(name, key)).collect();
    if let Some(first) = extra.first() {
        let more = if extra.len() > 1 { format!(", and {} more", extra.len() - 1) } else { String::new() };
        let expected = format!("only the {} tensors of the model its config.json describes", used.len());
        return Err(Error::request(format!("{name}: weights"), expected, format!("also {first}{more}")));
    }
    for weight in weights.iter().filter(|w| w.component == name) {
        for copy in &weight.copies {
            checkpoint.same_bits(&weight.key, copy)?;
        }
    }
    Ok(())
}
