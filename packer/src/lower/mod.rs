//! Lowering: a model's configuration becomes programs, and the list of weights they use.
//!
//! One hand-written builder per architecture ([`dit`], [`pixart`], [`hunyuan`], [`latte`], [`stdit`], [`unet2d`], [`unet2d_condition`], [`clip`], [`t5`], [`bert`], [`vae`], [`vq`]), on
//! top of blocks that several share ([`blocks`], [`unet`], [`transformer2d`]) and the typed steps of [`Builder`]; and one
//! function per class of pipeline ([`pipeline`]), which says what fits together how. Builders read configurations and
//! tensor *names*, and ask whether two tensors are the same; no weight is used here, and nothing is known of quantization.
//! What holds in published models and need not, such as that blocks share an embedder, is looked up. A setting that would change the
//! result and is not supported is refused by name.

pub mod bert;
pub mod blocks;
mod builder;
pub mod clip;
pub mod dit;
mod fields;
pub mod hunyuan;
pub mod latte;
pub mod pipeline;
pub mod pixart;
pub mod stdit;
pub mod t5;
pub mod transformer2d;
pub mod unet;
pub mod unet2d;
pub mod unet2d_condition;
pub mod vae;
pub mod vq;

pub use crate::source::diffusers::REFINER;
pub use builder::{Builder, Linear};
pub use fields::Fields;

use crate::source::diffusers::{Component, Model};
use crate::weight::{Origin, Weights};
use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::PipelineMeta;
use aquatint::raw::program::Program;
use std::collections::BTreeSet;

/// Folder of the denoiser in a DiT pipeline.
pub const DENOISER: &str = "transformer";
/// Folder of the denoiser in a UNet's pipeline.
pub const UNET: &str = "unet";
/// Folder of the table of classes in latent diffusion's pipeline for them.
pub const CLASS_EMBEDDING: &str = "class_embedding";
/// Folder of the autoencoder.
pub const VAE: &str = "vae";
/// Folder of the autoencoder in latent diffusion's pipeline.
pub const VQVAE: &str = "vqvae";
/// Folders of text encoders and of their tokenizers.
pub const TEXT_ENCODERS: [(&str, &str); 2] = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];

/// What a component is for. Each part has its own quantization configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What runs in every step.
    Denoiser,
    /// Images to latents and back.
    Autoencoder,
    /// Prompts to features.
    Text,
}

impl Part {
    /// What `component` is for.
    pub fn of(component: &str) -> Self {
        match component {
            VAE | VQVAE => Part::Autoencoder,
            _ if TEXT_ENCODERS.iter().any(|(folder, _)| *folder == component) => Part::Text,
            _ => Part::Denoiser,
        }
    }
}

/// A lowered model.
#[derive(Debug)]
pub struct Lowered {
    /// The denoiser first, then whatever else the pipeline has.
    pub programs: Vec<Program>,
    /// Weights in program order; [`aquatint::raw::program::Tensor`] counts them.
    pub weights: Weights,
    /// Files that the packed file brings along, by name: `tokenizer/tokenizer.json`.
    pub files: Vec<(String, Vec<u8>)>,
    /// What the pipeline needs beside the programs.
    pub pipeline: PipelineMeta,
    /// Beginnings of `component/key` of tensors that the checkpoints may hold and no program uses.
    pub unused: Vec<String>,
}

/// Lowers a pipeline and checks that its checkpoints hold exactly the tensors that the programs use.
///
/// # Errors
/// [`Error::Request`] naming component, field or tensor, what is supported or expected, and what was found.
pub fn lower(model: &Model) -> Result<Lowered> {
    let lowered = pipeline::lower(model)?;
    for component in &model.components {
        check(component, &lowered)?;
    }
    Ok(lowered)
}

/// Checks names and shapes of all tensors.
fn check(component: &Component, lowered: &Lowered) -> Result<()> {
    let checkpoint = &component.weights;
    let name = &component.name;
    let own = || {
        let of_checkpoint = lowered.weights.iter().filter(|w| w.component == name);
        of_checkpoint.filter_map(|weight| match &weight.origin {
            Origin::Checkpoint { key, dims } => Some((key, dims, &weight.copies)),
            Origin::Made { .. } => None,
        })
    };
    let mut used = BTreeSet::new();
    for (key, dims, copies) in own() {
        for key in std::iter::once(key).chain(copies) {
            used.insert(key.as_str());
            let shape = checkpoint.shape(key);
            if shape != Some(&dims[..]) {
                let got = shape.map_or_else(|| "no such tensor".into(), |s| format!("shape {s:?}"));
                return Err(Error::request(checkpoint.describe(key), format!("shape {dims:?}"), got));
            }
        }
    }
    let ignorable = |key: &str| {
        let path = format!("{name}/{key}");
        lowered.unused.iter().any(|prefix| path.starts_with(prefix))
    };
    let extra: Vec<_> = checkpoint.keys().filter(|key| !used.contains(key) && !ignorable(key)).collect();
    if let Some(first) = extra.first() {
        let more = if extra.len() > 1 { format!(", and {} more", extra.len() - 1) } else { String::new() };
        let expected = format!("only the {} tensors of the model its config.json describes", used.len());
        return Err(Error::request(format!("{name}: weights"), expected, format!("also {first}{more}")));
    }
    Ok(())
}
