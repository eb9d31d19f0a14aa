//! One function per pipeline class: which networks it has, how they fit together, and its defaults.

mod autoencoder;
mod dit;
mod hunyuan;
mod latent;
mod latte;
mod open_sora;
mod pixart;
mod pixel;
mod size_bins;
mod stable_diffusion;

pub use size_bins::size_bins;

use super::Lowered;
use crate::source::diffusers::{Component, Model};
use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::{OWN_SCHEDULER, PipelineMeta};
use aquatint::sampler;
use std::collections::BTreeMap;

/// Lowers `model` by its class.
///
/// # Errors
/// Lowers a pipeline of any supported class; the tensors of its checkpoints are not checked yet, see [`super::lower`].
pub fn lower(model: &Model) -> Result<Lowered> {
    match model.class.as_str() {
        "DiTPipeline" | "LatteClassPipeline" => dit::lower(model),
        "DDPMPipeline" | "DDIMPipeline" => pixel::lower(model),
        "LDMPipeline" => latent::lower_unconditional(model),
        "LDMClassToImagePipeline" => latent::lower_class_conditional(model),
        "HunyuanDiTPipeline" => hunyuan::lower(model),
        "LattePipeline" => latte::lower(model),
        "OpenSoraPipeline" => open_sora::lower(model),
        "PixArtAlphaPipeline" | "PixArtSigmaPipeline" => pixart::lower(model),
        _ => stable_diffusion::lower(model),
    }
}

/// What every pipeline's META has, from `model` and the shape of its latents; the rest as for a model without classes,
/// text, or encoder.
fn meta(model: &Model, latent_channels: u32, latent_size: [u32; 2], pixels_per_latent: u32) -> Result<PipelineMeta> {
    Ok(PipelineMeta {
        name: model.name.clone(),
        class: model.class.clone(),
        latent_channels,
        latent_size,
        frames: 1,
        pixels_per_latent,
        latent_multiple: 1,
        size_bins: Vec::new(),
        classes: 0,
        null_class: 0,
        class_names: Default::default(),
        sampler: sampler::Config::from_diffusers(&model.scheduler)?,
        decided_by: decided_by(model),
        steps: 50,
        guidance_scale: 1.0,
        guided_channels: None,
        text: None,
        encoder: None,
        refiner: None,
    })
}

/// Who decided about the sampler, unless all is as the model's own scheduler file has it.
fn decided_by(model: &Model) -> BTreeMap<String, String> {
    let own = [("scheduler".to_owned(), OWN_SCHEDULER.to_owned())].into();
    if model.decided_by == own { BTreeMap::new() } else { model.decided_by.clone() }
}

/// Refuses a decoder whose latents are not what the denoiser makes.
fn fits(decoder: &Component, field: &str, got: u32, denoiser: &str, channels: u32) -> Result<()> {
    if got == channels {
        return Ok(());
    }
    let expected = format!("{channels}, the {denoiser}'s in_channels");
    Err(Error::request(format!("{}/config.json: {field}", decoder.name), expected, got))
}

/// The component in the first of `folders` that the model has, with that folder's name.
fn first_of<'m>(model: &'m Model, folders: &[&'static str]) -> (&'static str, &'m Component) {
    let found = folders.iter().find_map(|&name| Some((name, model.find(name)?)));
    found.unwrap_or_else(|| panic!("one of {folders:?} in a {}", model.class))
}
