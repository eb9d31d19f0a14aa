//! Open-Sora 1.0: a transformer on latents of videos that reads a caption as T5 tells it, and has learned one that stands for
//! none. Its autoencoder makes single frames.

use super::pixart::{Captions, captions, null_caption};
use super::{fits, meta};
use crate::lower::{DENOISER, Lowered, TEXT_ENCODERS, VAE, stdit, t5, vae};
use crate::source::diffusers::Model;
use crate::source::layout::{GUIDED_CHANNELS, NULL_CAPTION, STEPS};
use crate::weight::Weights;
use aquatint::error::Result;
use aquatint::raw::format::meta::{Conditioning, PipelineMeta, TextMeta};
use serde_json::Value;

/// Most tokens of a caption.
const TOKENS: u32 = 120;

pub(super) fn lower(model: &Model) -> Result<Lowered> {
    let (transformer, decoder) = (model.component(DENOISER), model.component(VAE));
    let config = stdit::Config::read(&transformer.class, &transformer.config)?;
    let vae_config = vae::Config::read(VAE, &decoder.class, &decoder.config)?;
    fits(decoder, "latent_channels", vae_config.latent_channels, DENOISER, config.frame.in_channels)?;
    let mut weights = Weights::new();
    let denoiser = stdit::lower(&config, &mut weights);
    let null = null_caption(transformer, config.frame.caption_features)?;
    let captions =
        captions(model, config.frame.caption_features, TOKENS.min(null.tokens), t5::Length::Own, &mut weights)?;
    let Captions { meta: captions, program, tokenizer } = captions;
    let image = vae::lower(&vae_config, &|key| decoder.weights.has(key), &mut weights);
    let count = |field| model.index.get(field).and_then(Value::as_u64).map(|n| n as u32);
    let pixart = &config.frame;
    let pipeline = PipelineMeta {
        frames: config.frames,
        // The authors' configurations for inference.
        guidance_scale: 7.0,
        guided_channels: count(GUIDED_CHANNELS),
        steps: count(STEPS).unwrap_or(100),
        latent_multiple: pixart.patch,
        text: Some(TextMeta {
            zero_negative: false,
            null_caption: Some(null.file.0.clone()),
            negative_as_long: false,
            denoiser: Conditioning { context: vec![0], context_2: None, pooled: None, sizes: Vec::new() },
            encoders: vec![captions],
        }),
        ..meta(model, pixart.in_channels, [pixart.sample_size; 2], vae_config.pixels_per_latent())?
    };
    // The caption for none is a file, no weight. Nothing encodes images here.
    let mut unused =
        vec![format!("{DENOISER}/{NULL_CAPTION}"), format!("{VAE}/encoder."), format!("{VAE}/quant_conv.")];
    if model.without_text {
        unused.push(format!("{}/", TEXT_ENCODERS[0].0));
    }
    let programs = [denoiser].into_iter().chain(program).chain([image]).collect();
    let files = tokenizer.into_iter().chain([null.file]).collect();
    Ok(Lowered { programs, weights, files, pipeline, unused })
}
