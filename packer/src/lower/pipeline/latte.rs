//! `LattePipeline`: a transformer on latents of videos that reads a caption as T5 tells it. Its autoencoder makes single frames.

use super::pixart::{Captions, captions};
use super::{fits, meta};
use crate::lower::{DENOISER, Lowered, TEXT_ENCODERS, VAE, latte, t5, vae};
use crate::source::diffusers::Model;
use crate::weight::Weights;
use aquatint::error::Result;
use aquatint::raw::format::meta::{Conditioning, PipelineMeta, TextMeta};

/// Most tokens of a caption.
const TOKENS: u32 = 120;

pub(super) fn lower(model: &Model) -> Result<Lowered> {
    let (transformer, decoder) = (model.component(DENOISER), model.component(VAE));
    let config = latte::Config::read(&transformer.class, &transformer.config)?;
    let vae_config = vae::Config::read(VAE, &decoder.class, &decoder.config)?;
    fits(decoder, "latent_channels", vae_config.latent_channels, DENOISER, config.frame.in_channels)?;
    let mut weights = Weights::new();
    let denoiser = latte::lower(&config, &mut weights);
    let captions = captions(model, config.frame.caption_features, TOKENS, t5::Length::Told, &mut weights)?;
    let Captions { meta: captions, program, tokenizer } = captions;
    let image = vae::lower(&vae_config, &|key| decoder.weights.has(key), &mut weights);
    let pixart = &config.frame;
    let pipeline = PipelineMeta {
        frames: config.frames,
        // The defaults of the pipeline's __call__.
        guidance_scale: 7.5,
        steps: 50,
        latent_multiple: pixart.patch,
        text: Some(TextMeta {
            zero_negative: false,
            null_caption: None,
            // What the pipeline reads of it, filled up to all tokens, is cut off where the prompt ends.
            negative_as_long: true,
            denoiser: Conditioning { context: vec![0], context_2: None, pooled: None, sizes: Vec::new() },
            encoders: vec![captions],
        }),
        ..meta(model, pixart.in_channels, [pixart.sample_size; 2], vae_config.pixels_per_latent())?
    };
    // Nothing encodes images here.
    let mut unused = vec![
        format!("{DENOISER}/pos_embed.pos_embed"),
        format!("{DENOISER}/temp_pos_embed"),
        format!("{VAE}/encoder."),
        format!("{VAE}/quant_conv."),
    ];
    if model.without_text {
        unused.push(format!("{}/", TEXT_ENCODERS[0].0));
    }
    let programs = [denoiser].into_iter().chain(program).chain([image]).collect();
    Ok(Lowered { programs, weights, files: tokenizer.into_iter().collect(), pipeline, unused })
}
