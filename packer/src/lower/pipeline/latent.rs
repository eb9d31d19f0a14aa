//! Latent diffusion without text: `LDMPipeline`, and the class-conditional model on ImageNet.
//!
//! diffusers has no pipeline of its own for the latter. `LDMClassToImagePipeline` is a `UNet2DConditionModel` whose
//! context is one vector: the row of a table, in a component `class_embedding` whose checkpoint holds nothing else. The
//! last row is for no class, but for the table of exactly ImageNet's classes: that model was trained without guidance.

use super::{first_of, fits, meta};
use crate::lower::unet2d_condition::Context;
use crate::lower::{CLASS_EMBEDDING, Lowered, UNET, VAE, VQVAE, unet2d, unet2d_condition, vae, vq};
use crate::source::diffusers::{Component, Model};
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::PipelineMeta;
use aquatint::raw::program::{Program, Role};

pub(super) fn lower_unconditional(model: &Model) -> Result<Lowered> {
    let unet = model.component(UNET);
    let config = unet2d::Config::read(UNET, &unet.class, &unet.config)?;
    let mut weights = Weights::new();
    let denoiser = unet2d::lower(&config, &|key| unet.weights.has(key), &mut weights);
    let first_stage = FirstStage::lower(model, config.in_channels, &mut weights)?;
    // The default of LDMPipeline.__call__ is 50 steps.
    let pipeline = PipelineMeta {
        latent_multiple: config.levels.multiple(),
        ..meta(model, config.in_channels, config.sample_size, first_stage.pixels)?
    };
    let FirstStage { program, unused, .. } = first_stage;
    Ok(Lowered { programs: vec![denoiser, program], weights, files: Vec::new(), pipeline, unused })
}

pub(super) fn lower_class_conditional(model: &Model) -> Result<Lowered> {
    let unet = model.component(UNET);
    let config = unet2d_condition::Config::read(UNET, &unet.class, &unet.config)?;
    if config.added.is_some() {
        let expected = "none for a model of classes";
        return Err(Error::request(format!("{UNET}/config.json: addition_embed_type"), expected, "text_time"));
    }
    let (table, rows) = class_table(model.component(CLASS_EMBEDDING), config.context)?;
    let mut weights = Weights::new();
    let context = Context::Classes { component: CLASS_EMBEDDING, table, rows };
    let denoiser = unet2d_condition::lower(&config, Role::Denoiser, context, &mut weights);
    let first_stage = FirstStage::lower(model, config.in_channels, &mut weights)?;
    // Without a row for no class guidance has no meaning; its class is then one that exists.
    let (classes, null_class) = if rows == IMAGENET { (rows, 0) } else { (rows - 1, rows - 1) };
    let pipeline = PipelineMeta {
        classes,
        null_class,
        class_names: model.class_names()?.into_iter().filter(|&(number, _)| number < classes).collect(),
        // What the authors' notebook samples with.
        steps: 20,
        guidance_scale: if rows == IMAGENET { 1.0 } else { 3.0 },
        latent_multiple: config.levels.multiple(),
        ..meta(model, config.in_channels, config.sample_size, first_stage.pixels)?
    };
    let FirstStage { program, unused, .. } = first_stage;
    Ok(Lowered { programs: vec![denoiser, program], weights, files: Vec::new(), pipeline, unused })
}

/// Name, without `.weight`, and rows of the only table of `component`, which must have `features` columns.
fn class_table(component: &Component, features: u32) -> Result<(&str, u32)> {
    let mut keys = component.weights.keys();
    let (key, more) = (keys.next().unwrap_or_default(), keys.next());
    let shape = component.weights.shape(key).unwrap_or_default();
    match (key.strip_suffix(".weight"), shape, more) {
        (Some(name), &[rows @ 2..=65536, d], None) if d == features as usize => Ok((name, rows as u32)),
        _ => {
            let expected = format!("one table, name.weight, of at least 2 rows of {features}");
            let more = if more.is_some() { " and more" } else { "" };
            Err(Error::request(format!("{}: weights", component.name), expected, format!("{key} {shape:?}{more}")))
        }
    }
}

/// Classes of ImageNet.
const IMAGENET: u32 = 1000;

/// The decoder of images: of either kind of autoencoder, in either folder.
struct FirstStage {
    program: Program,
    pixels: u32,
    unused: Vec<String>,
}

impl FirstStage {
    fn lower(model: &Model, channels: u32, weights: &mut Weights) -> Result<Self> {
        let (folder, component) = first_of(model, &[VQVAE, VAE]);
        let has = |key: &str| component.weights.has(key);
        let unused = ["encoder.", "quant_conv."].map(|name| format!("{folder}/{name}")).to_vec();
        if component.class == "VQModel" {
            let config = vq::Config::read(folder, &component.class, &component.config)?;
            fits(component, "vq_embed_dim", config.vector_dim, UNET, channels)?;
            let program = vq::lower(&config, &has, weights);
            return Ok(FirstStage { program, pixels: config.shared.pixels_per_latent(), unused });
        }
        let config = vae::Config::read(folder, &component.class, &component.config)?;
        fits(component, "latent_channels", config.latent_channels, UNET, channels)?;
        let program = vae::lower(&config, &has, weights);
        Ok(FirstStage { program, pixels: config.pixels_per_latent(), unused })
    }
}
