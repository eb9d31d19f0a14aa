//! `HunyuanDiTPipeline`: a transformer on latents that reads a prompt as BERT and as mT5 tell it.

use super::{autoencoder::Images, meta};
use crate::lower::{DENOISER, Lowered, TEXT_ENCODERS, VAE, bert, hunyuan, t5};
use crate::source::diffusers::{Component, Model};
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::{Conditioning, PipelineMeta, SizeKind, TextEncoderMeta, TextLength, TextMeta};
use aquatint::raw::program::{Program, Role};
use aquatint::raw::text::Family;

/// The numbers that versions up to 1.1 read. The original size is that of all pictures that the model was trained on, whatever
/// size is made: the default of diffusers' pipeline and of the authors' sampler.
const SIZES: [SizeKind; hunyuan::SIZE_NUMBERS as usize] = [
    SizeKind::ModelHeight,
    SizeKind::ModelWidth,
    SizeKind::TargetHeight,
    SizeKind::TargetWidth,
    SizeKind::CropTop,
    SizeKind::CropLeft,
];

pub(super) fn lower(model: &Model) -> Result<Lowered> {
    let transformer = model.component(DENOISER);
    let config = hunyuan::Config::read(&transformer.class, &transformer.config)?;
    let mut weights = Weights::new();
    let mut programs = vec![hunyuan::lower(&config, &mut weights)];
    let (mut encoders, mut files, mut unused) = (Vec::new(), Vec::new(), Vec::new());
    for (encoder, meta) in texts(model, &config)? {
        if let Some(Encoder { component, network, tokenizer }) = encoder {
            programs.push(network.lower(component, meta.tokens, ROLES[encoders.len()], &mut weights, &mut unused)?);
            files.push((meta.tokenizer.clone(), tokenizer));
        }
        encoders.push(meta);
    }
    if model.without_text {
        unused.extend(TEXT_ENCODERS.map(|(folder, _)| format!("{folder}/")));
    }
    let latents = (DENOISER, config.in_channels);
    let images = Images::lower(model.component(VAE), latents, &mut programs, &mut weights, &mut unused)?;
    let sizes = if config.styled { SIZES.to_vec() } else { Vec::new() };
    let pipeline = PipelineMeta {
        // The defaults of HunyuanDiTPipeline.__call__.
        guidance_scale: 5.0,
        steps: 50,
        latent_multiple: config.patch,
        text: Some(TextMeta {
            encoders,
            zero_negative: false,
            null_caption: None,
            negative_as_long: false,
            denoiser: Conditioning { context: vec![0], context_2: Some(1), pooled: None, sizes },
        }),
        encoder: images.encoder(),
        ..meta(model, config.in_channels, [config.sample_size; 2], images.config.pixels_per_latent())?
    };
    Ok(Lowered { programs, weights, files, pipeline, unused })
}

/// Roles of text encoders, by their index.
const ROLES: [Role; 2] = [Role::TextEncoder, Role::TextEncoder2];

/// A text encoder that comes with the model.
struct Encoder<'m> {
    component: &'m Component,
    network: Network,
    /// Contents of its tokenizer's file.
    tokenizer: Vec<u8>,
}

/// What a text encoder is.
enum Network {
    Bert(bert::Config),
    T5(t5::Config),
}

/// Both text encoders and what META says of them. A model may come without either; prompts are then given as features.
fn texts<'m>(model: &'m Model, config: &hunyuan::Config) -> Result<Vec<(Option<Encoder<'m>>, TextEncoderMeta)>> {
    let found = TEXT_ENCODERS.map(|(folder, _)| model.find(folder).filter(|_| !model.without_text));
    if let Some(missing) = (0..2).find(|&i| found[i].is_none() && found[1 - i].is_some()) {
        let expected = format!("a {}, as there is a {}", TEXT_ENCODERS[missing].0, TEXT_ENCODERS[1 - missing].0);
        return Err(Error::request("model", expected, "none"));
    }
    let text = |(i, component): (usize, Option<&'m Component>)| {
        let meta = TextEncoderMeta {
            tokenizer: String::new(),
            tokens: config.tokens[i],
            length: TextLength::Masked,
            lower_case: false,
            begin: None,
            end: 0,
            pad: 0,
            features: config.text_features[i],
            pooled: 0,
        };
        let Some(component) = component else { return Ok((None, meta)) };
        let network = Network::read(component, i, meta.features)?;
        let (folder, tokenizer) = TEXT_ENCODERS[i];
        let file = model.tokenizer(tokenizer, [Family::Bert, Family::SentencePiece][i])?.into_owned();
        if file.vocabulary > network.vocabulary() {
            let expected = format!("{} tokens, the {folder}'s vocab_size", network.vocabulary());
            return Err(Error::request(tokenizer, expected, file.vocabulary));
        }
        let name = format!("{tokenizer}/tokenizer.json");
        let meta = TextEncoderMeta { tokenizer: name, begin: file.begin, end: file.end, pad: file.pad, ..meta };
        Ok((Some(Encoder { component, network, tokenizer: file.json }), meta))
    };
    found.into_iter().enumerate().map(text).collect()
}

impl Network {
    /// Text encoder number `i`, which must make as many `features` as the denoiser reads.
    fn read(component: &Component, i: usize, features: u32) -> Result<Self> {
        let folder = TEXT_ENCODERS[i].0;
        let (network, own, field) = match i {
            0 => {
                let config = bert::Config::read(folder, &component.class, &component.config)?;
                (Network::Bert(config.clone()), config.features, ["hidden_size", "cross_attention_dim"])
            }
            _ => {
                let config = t5::Config::read(folder, &component.class, &component.config)?;
                (Network::T5(config.clone()), config.features, ["d_model", "cross_attention_dim_t5"])
            }
        };
        if own != features {
            let expected = format!("{features}, the {DENOISER}'s {}", field[1]);
            return Err(Error::request(format!("{folder}/config.json: {}", field[0]), expected, own));
        }
        Ok(network)
    }

    /// Rows of its table of tokens.
    fn vocabulary(&self) -> u32 {
        match self {
            Network::Bert(config) => config.vocabulary,
            Network::T5(config) => config.vocabulary,
        }
    }

    /// The program, of texts that are filled up to `tokens`; appends what it leaves unused.
    fn lower(
        &self,
        component: &Component,
        tokens: u32,
        role: Role,
        weights: &mut Weights,
        unused: &mut Vec<String>,
    ) -> Result<Program> {
        let has = |key: &str| component.weights.has(key);
        match self {
            Network::Bert(config) => {
                unused.extend(config.unused(&has).iter().map(|key| format!("{}/{key}", component.name)));
                bert::lower(config, tokens, role, &has, weights)
            }
            Network::T5(config) => {
                let same = |a: &str, b: &str| component.weights.same(a, b);
                t5::lower(config, t5::Length::Padded(tokens), role, &has, &same, weights)
            }
        }
    }
}
