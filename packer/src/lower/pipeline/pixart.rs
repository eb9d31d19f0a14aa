//! `PixArtAlphaPipeline` and `PixArtSigmaPipeline`: a transformer on latents that reads a caption as T5 tells it.

use super::{autoencoder::Images, meta, size_bins};
use crate::lower::{DENOISER, Lowered, TEXT_ENCODERS, VAE, pixart, t5};
use crate::source::diffusers::{Component, Model};
use crate::source::layout::{LEARNED_NULL, NULL_CAPTION, STEPS};
use crate::source::tokenizer::TokenizerFile;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::{Conditioning, PipelineMeta, SizeKind, TextEncoderMeta, TextLength, TextMeta};
use aquatint::raw::program::{Program, Role};
use aquatint::raw::text::Family;
use serde_json::Value;
use zerocopy::IntoBytes;

/// Most tokens of a caption in the first version, alpha, and in the second, Sigma: those that they were trained on.
const TOKENS: [u32; 2] = [120, 300];
/// The token of T5 that ends a text, and the one that fills it up, for files that do not make tokens of texts.
const END: u32 = 1;
const PAD: u32 = 0;
/// The name of the caption for none among a packed file's files.
const NULL_FILE: &str = "null_caption.f32";
/// What a transformer reads of an image's size, where it does.
const SIZES: [SizeKind; pixart::SIZE_NUMBERS as usize] =
    [SizeKind::TargetHeight, SizeKind::TargetWidth, SizeKind::AspectRatio];

pub(super) fn lower(model: &Model) -> Result<Lowered> {
    let transformer = model.component(DENOISER);
    let config = pixart::Config::read(&transformer.class, &transformer.config, &|key| transformer.weights.has(key))?;
    let mut weights = Weights::new();
    let denoiser = pixart::lower(&config, &mut weights);
    let most = TOKENS[usize::from(model.class == "PixArtSigmaPipeline")];
    // The authors lead alpha away from a caption that it has learned, and Sigma, as diffusers does both, from an empty one.
    let learned = model.index.get(LEARNED_NULL).and_then(Value::as_bool) == Some(true);
    let null = learned.then(|| null_caption(transformer, config.caption_features)).transpose()?;
    let most = null.as_ref().map_or(most, |null| most.min(null.tokens));
    let Captions { meta: captions, program, tokenizer } =
        captions(model, config.caption_features, most, t5::Length::Own, &mut weights)?;
    let mut programs: Vec<Program> = [denoiser].into_iter().chain(program).collect();
    // Old versions saved tables that nothing reads.
    let mut unused = vec![format!("{DENOISER}/pos_embed.pos_embed"), format!("{DENOISER}/{NULL_CAPTION}")];
    let latents = (DENOISER, config.in_channels);
    let images = Images::lower(model.component(VAE), latents, &mut programs, &mut weights, &mut unused)?;
    let sizes = if config.sizes { SIZES.to_vec() } else { Vec::new() };
    let pipeline = PipelineMeta {
        // The defaults of both pipelines' __call__.
        guidance_scale: 4.5,
        steps: model.index.get(STEPS).and_then(Value::as_u64).map_or(20, |n| n as u32),
        latent_multiple: config.patch,
        size_bins: size_bins(config.sample_size, config.patch * images.config.pixels_per_latent()),
        text: Some(TextMeta {
            zero_negative: false,
            null_caption: null.as_ref().map(|null| null.file.0.clone()),
            negative_as_long: false,
            denoiser: Conditioning { context: vec![0], context_2: None, pooled: None, sizes },
            encoders: vec![captions],
        }),
        encoder: images.encoder(),
        ..meta(model, config.in_channels, [config.sample_size; 2], images.config.pixels_per_latent())?
    };
    if model.without_text {
        unused.push(format!("{}/", TEXT_ENCODERS[0].0));
    }
    let files = tokenizer.into_iter().chain(null.map(|null| null.file)).collect();
    Ok(Lowered { programs, weights, files, pipeline, unused })
}

/// The features that a transformer has learned for no caption.
pub(super) struct NullCaption {
    /// Of so many tokens.
    pub tokens: u32,
    /// Name and contents of the packed file's file of them.
    pub file: (String, Vec<u8>),
}

/// Reads [`NULL_CAPTION`], rows of `features`.
pub(super) fn null_caption(transformer: &Component, features: u32) -> Result<NullCaption> {
    let values = transformer.weights.read(NULL_CAPTION)?;
    Ok(NullCaption {
        tokens: (values.len() as u32).checked_div(features).unwrap_or(0),
        file: (NULL_FILE.to_owned(), values.as_bytes().to_vec()),
    })
}

/// What makes features of captions.
pub(super) struct Captions {
    pub meta: TextEncoderMeta,
    /// None if texts are encoded elsewhere.
    pub program: Option<Program>,
    /// Name and contents of the tokenizer's file.
    pub tokenizer: Option<(String, Vec<u8>)>,
}

/// T5, which reads captions at their own length, of at most so many tokens: the authors fill them up and leave out again what
/// does not count. `length` is one of no fixed number of tokens.
pub(super) fn captions(
    model: &Model,
    features: u32,
    most: u32,
    length: t5::Length,
    weights: &mut Weights,
) -> Result<Captions> {
    let [(folder, tokenizer), _] = TEXT_ENCODERS;
    let encoder = model.component(folder);
    let config = t5::Config::read(folder, &encoder.class, &encoder.config)?;
    if config.features != features {
        let expected = format!("{features}, the {DENOISER}'s caption_channels");
        return Err(Error::request(format!("{folder}/config.json: d_model"), expected, config.features));
    }
    let meta = TextEncoderMeta {
        tokenizer: String::new(),
        tokens: most,
        length: TextLength::Own,
        // As diffusers' pipelines do.
        lower_case: true,
        begin: None,
        end: END,
        pad: PAD,
        features,
        pooled: 0,
    };
    if model.without_text {
        return Ok(Captions { meta, program: None, tokenizer: None });
    }
    let file = model.tokenizer(tokenizer, Family::SentencePiece)?.into_owned();
    if file.vocabulary > config.vocabulary {
        let expected = format!("{} tokens, the {folder}'s vocab_size", config.vocabulary);
        return Err(Error::request(tokenizer, expected, file.vocabulary));
    }
    let name = format!("{tokenizer}/tokenizer.json");
    let TokenizerFile { begin, end, pad, tokens, json, .. } = file;
    let meta = TextEncoderMeta { tokenizer: name.clone(), tokens: most.min(tokens), begin, end, pad, ..meta };
    let (has, same) = (|key: &str| encoder.weights.has(key), |a: &str, b: &str| encoder.weights.same(a, b));
    let program = t5::lower(&config, length, Role::TextEncoder, &has, &same, weights)?;
    Ok(Captions { meta, program: Some(program), tokenizer: Some((name, json)) })
}
