//! Stable Diffusion 1, and XL with or without its refiner: a UNet on latents that reads one or two text encoders.
//!
//! The classes for images to start from and for masks have the same networks and other defaults at most, so they are the
//! same here. The refiner is a pipeline of its own, or a second denoiser: see [`Model::with_refiner`].

use super::{autoencoder::Images, meta};
use crate::lower::clip::Output;
use crate::lower::unet2d_condition::{Added, Config, Context};
use crate::lower::{Lowered, REFINER, TEXT_ENCODERS, UNET, VAE, clip, unet2d_condition};
use crate::source::diffusers::{Component, Model};
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::{Conditioning, PipelineMeta, SizeKind, TextEncoderMeta, TextLength, TextMeta};
use aquatint::raw::program::{Program, Role};
use aquatint::raw::text::Family;

/// Roles of text encoders, by their index.
const ROLES: [Role; 2] = [Role::TextEncoder, Role::TextEncoder2];

/// The numbers that SDXL's base reads.
const BASE_SIZES: [SizeKind; 6] = [
    SizeKind::OriginalHeight,
    SizeKind::OriginalWidth,
    SizeKind::CropTop,
    SizeKind::CropLeft,
    SizeKind::TargetHeight,
    SizeKind::TargetWidth,
];
/// The numbers that its refiner reads.
const REFINER_SIZES: [SizeKind; 5] = [
    SizeKind::OriginalHeight,
    SizeKind::OriginalWidth,
    SizeKind::CropTop,
    SizeKind::CropLeft,
    SizeKind::AestheticScore,
];

pub(super) fn lower(model: &Model) -> Result<Lowered> {
    let unet = model.component(UNET);
    let config = Config::read(UNET, &unet.class, &unet.config)?;
    let xl = model.class.contains("XL");
    let encoders = encoders(model, xl)?;

    let mut weights = Weights::new();
    let mut programs = Vec::new();
    let mut multiple = config.levels.multiple();
    let conditioning = denoiser(&config, Role::Denoiser, &encoders, &mut programs, &mut weights)?;
    let refiner = match model.find(REFINER) {
        None => None,
        Some(component) => {
            let refining = Config::read(REFINER, &component.class, &component.config)?;
            if refining.in_channels != config.in_channels {
                let what = format!("{REFINER}/config.json: in_channels");
                return Err(Error::request(what, config.in_channels, refining.in_channels));
            }
            // Powers of two, so the larger one is a multiple of both.
            multiple = multiple.max(refining.levels.multiple());
            Some(denoiser(&refining, Role::Refiner, &encoders, &mut programs, &mut weights)?)
        }
    };
    if let Some(wants) = model.index.get("requires_aesthetics_score").and_then(|v| v.as_bool())
        && wants != conditioning.sizes.contains(&SizeKind::AestheticScore)
    {
        let expected = format!("{}, as the unet's configuration has it", !wants);
        return Err(Error::request("model_index.json: requires_aesthetics_score", expected, wants));
    }
    let mut unused = Vec::new();
    for (encoder, role) in encoders.iter().zip(ROLES) {
        if model.without_text {
            unused.push(format!("{}/", encoder.component.name));
            continue;
        }
        let has = |key: &str| encoder.component.weights.has(key);
        programs.push(clip::lower(&encoder.config, encoder.output, role, &has, &mut weights));
        let folder = &encoder.component.name;
        unused.extend(encoder.config.unused(encoder.output, &has).iter().map(|key| format!("{folder}/{key}")));
    }
    let images =
        Images::lower(model.component(VAE), (UNET, config.in_channels), &mut programs, &mut weights, &mut unused)?;

    let zero_negative = model.index.get("force_zeros_for_empty_prompt").and_then(|v| v.as_bool()).unwrap_or(xl);
    let pipeline = PipelineMeta {
        // The defaults of the pipelines' __call__.
        guidance_scale: if xl { 5.0 } else { 7.5 },
        text: Some(TextMeta {
            encoders: encoders.iter().map(|e| e.meta.clone()).collect(),
            zero_negative,
            null_caption: None,
            negative_as_long: false,
            denoiser: conditioning,
        }),
        encoder: images.encoder(),
        refiner,
        latent_multiple: multiple,
        ..meta(model, config.in_channels, config.sample_size, images.config.pixels_per_latent())?
    };
    let files = encoders.into_iter().filter(|e| !e.meta.tokenizer.is_empty());
    let files = files.map(|e| (e.meta.tokenizer, e.tokenizer)).collect();
    Ok(Lowered { programs, weights, files, pipeline, unused })
}

/// A text encoder of the pipeline.
struct Encoder<'m> {
    component: &'m Component,
    config: clip::Config,
    output: Output,
    meta: TextEncoderMeta,
    /// Contents of its tokenizer's file.
    tokenizer: Vec<u8>,
}

/// The text encoders that the model has, in order.
fn encoders(model: &Model, xl: bool) -> Result<Vec<Encoder<'_>>> {
    let mut encoders = Vec::new();
    for (folder, tokenizer) in TEXT_ENCODERS {
        let Some(component) = model.find(folder) else { continue };
        let config = clip::Config::read(folder, &component.class, &component.config)?;
        let output = match (xl, config.projection) {
            (false, None) => Output::Normed,
            (true, None) => Output::Penultimate,
            (true, Some(_)) => Output::PenultimateAndPooled,
            (false, Some(_)) => {
                let what = format!("{folder}/config.json: class");
                return Err(Error::request(what, "CLIPTextModel", &component.class));
            }
        };
        let file = model.tokenizer(tokenizer, Family::Clip)?;
        for (field, fits, limit, got) in [
            ("vocab_size", file.vocabulary <= config.vocabulary, config.vocabulary, file.vocabulary),
            ("max_position_embeddings", file.tokens == config.tokens, config.tokens, file.tokens),
        ] {
            if !fits {
                return Err(Error::request(tokenizer, format!("{limit} tokens, the {folder}'s {field}"), got));
            }
        }
        if let Some(end) =
            config.end.filter(|&end| output == Output::PenultimateAndPooled && end != u64::from(file.end))
        {
            let expected = format!("{}, the end of texts in {tokenizer}", file.end);
            return Err(Error::request(format!("{folder}/config.json: eos_token_id"), expected, end));
        }
        let meta = TextEncoderMeta {
            tokenizer: if model.without_text { String::new() } else { format!("{tokenizer}/tokenizer.json") },
            tokens: config.tokens,
            length: TextLength::Padded,
            lower_case: false,
            begin: file.begin,
            end: file.end,
            pad: file.pad,
            features: config.features,
            pooled: if output == Output::PenultimateAndPooled { config.projection.unwrap_or(0) } else { 0 },
        };
        let tokenizer = file.into_owned().json;
        encoders.push(Encoder { component, config, output, meta, tokenizer });
    }
    Ok(encoders)
}

/// Appends the program of `role`, whose context is as wide as some of the encoders together; says which.
fn denoiser(
    config: &Config,
    role: Role,
    encoders: &[Encoder],
    programs: &mut Vec<Program>,
    weights: &mut Weights,
) -> Result<Conditioning> {
    let component = if role == Role::Refiner { REFINER } else { UNET };
    // All encoders, or the last alone: the refiner has no use for the first.
    let count = encoders.len();
    let widths = |from: usize| encoders[from..].iter().map(|e| e.meta.features).sum::<u32>();
    let Some(from) = (0..count).find(|&from| widths(from) == config.context) else {
        let features: Vec<_> = encoders.iter().map(|e| e.meta.features).collect();
        let expected = format!("the features of the text encoders, {features:?}, side by side");
        return Err(Error::request(format!("{component}/config.json: cross_attention_dim"), expected, config.context));
    };
    let context = (from as u32..count as u32).collect();
    let Some(added) = config.added else {
        let inputs = Context::Text { pooled: 0, numbers: 0 };
        programs.push(unet2d_condition::lower(config, role, inputs, weights));
        return Ok(Conditioning { context, context_2: None, pooled: None, sizes: Vec::new() });
    };
    let Some(index) = (from..count).find(|&i| encoders[i].meta.pooled > 0) else {
        let expected = "an encoder of class CLIPTextModelWithProjection, for addition_embed_type text_time";
        return Err(Error::request("text encoders", expected, "none"));
    };
    let pooled = encoders[index].meta.pooled;
    let sizes = sizes(component, &added, pooled)?;
    let inputs = Context::Text { pooled, numbers: sizes.len() as u32 };
    programs.push(unet2d_condition::lower(config, role, inputs, weights));
    Ok(Conditioning { context, context_2: None, pooled: Some(index as u32), sizes: sizes.to_vec() })
}

/// The numbers that a denoiser reads, told by how many they are.
fn sizes(component: &str, added: &Added, pooled: u32) -> Result<&'static [SizeKind]> {
    match added.numbers(component, pooled)? {
        6 => Ok(&BASE_SIZES),
        5 => Ok(&REFINER_SIZES),
        other => {
            let expected = "5 or 6 numbers beside the text, as SDXL has them";
            let what = format!("{component}/config.json: projection_class_embeddings_input_dim");
            Err(Error::request(what, expected, other))
        }
    }
}
