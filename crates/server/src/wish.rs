//! What a client asks, whichever API it speaks.

use crate::encode::decode_picture;
use crate::refusal::Refusal;
use crate::settings::Limits;
use aquatint::image::{Encoding, Picture, ResizeMode};
use aquatint::options::{InitOptions, PromptOptions, RequestOptions, SamplingOptions, SizeOptions};
use schemars::JsonSchema;
use serde::Deserialize;

/// What a client asks, as jobs of this server's own API have it: everything but the prompt is the model's own setting if absent.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ask {
    /// The model's id; the first one served if absent.
    pub model: Option<String>,
    /// What the pictures show; of models with classes, a class by name or number.
    pub prompt: String,
    /// What they do not show.
    pub negative_prompt: Option<String>,
    /// Pictures; 1 if absent.
    pub n: Option<usize>,
    /// Pixels.
    pub width: Option<usize>,
    /// Pixels.
    pub height: Option<usize>,
    /// Sampler steps.
    pub steps: Option<usize>,
    /// Guidance scale; 1 or less turns guidance off.
    pub guidance_scale: Option<f32>,
    /// How much of the contrast that guidance adds is taken back, 0 to 1.
    pub guidance_rescale: Option<f32>,
    /// A sampler by name or title, with its noise levels behind it if wanted: `dpm++2m`, `DPM++ 2M Karras`.
    pub sampler: Option<String>,
    /// DDIM and TCD: noise added at each step, 0 to 1.
    pub eta: Option<f32>,
    /// Picture k is that of seed + k alone; -1 or none takes a random one.
    pub seed: Option<i64>,
    /// A picture to begin with, in base64 or as a `data:` URL.
    pub image: Option<String>,
    /// Where it is made anew, white.
    pub mask: Option<String>,
    /// How far the result may stray from the picture, 0 to 1.
    pub strength: Option<f64>,
    /// `stretch`, `crop` or `pad`: what becomes of a picture in other proportions.
    pub resize_mode: Option<ResizeWord>,
    /// `png`, `jpeg` or `webp`.
    pub format: Option<Format>,
    /// Of JPEG, 1 to 100.
    pub quality: Option<u8>,
}

/// How a picture is brought to another size, as a word.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResizeWord {
    Stretch,
    Crop,
    Pad,
}

impl ResizeWord {
    pub fn mode(self) -> ResizeMode {
        match self {
            ResizeWord::Stretch => ResizeMode::Stretch,
            ResizeWord::Crop => ResizeMode::Crop,
            ResizeWord::Pad => ResizeMode::Pad,
        }
    }
}

/// A kind of picture file, as a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Png,
    Jpeg,
    Webp,
}

impl Format {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpeg",
            Format::Webp => "webp",
        }
    }

    /// How such a file is made; `quality` counts for JPEG.
    pub fn encoding(self, quality: Option<u8>) -> Encoding {
        match self {
            Format::Png => Encoding::Png,
            Format::Jpeg => Encoding::Jpeg(quality.unwrap_or(90)),
            Format::Webp => Encoding::Webp,
        }
    }
}

/// What a client asks, its pictures decoded.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The model's id, or none for the first.
    pub model: Option<String>,
    /// What the pictures show.
    pub prompt: String,
    /// What they do not show.
    pub negative: Option<String>,
    /// Pictures.
    pub images: usize,
    /// At most so many at a time; all at most eight if absent. Does not change any.
    pub at_once: Option<usize>,
    /// Size, steps and sampler.
    pub size: SizeOptions,
    /// Steps, guidance and sampler.
    pub sampling: SamplingOptions,
    /// None or below 0: a random one.
    pub seed: Option<i64>,
    /// What they begin with.
    pub init: Option<InitOptions>,
    /// The kind of file.
    pub format: Format,
    /// Of JPEG.
    pub quality: Option<u8>,
}

impl Ask {
    /// The same with its pictures decoded.
    ///
    /// # Errors
    /// A picture that is none.
    pub fn wish(self, limits: &Limits) -> Result<Wish, Refusal> {
        let mask = self.mask.as_deref().map(|text| decode_picture("mask", text, limits)).transpose()?;
        let init = match &self.image {
            Some(text) => Some(InitOptions {
                image: decode_picture("image", text, limits)?,
                mask,
                resize: self.resize_mode.map(ResizeWord::mode),
                strength: self.strength,
            }),
            None if mask.is_some() => return Err(Refusal::field("mask", "there is no image that it belongs to")),
            None if self.strength.is_some() => {
                return Err(Refusal::field("strength", "there is no image to begin with"));
            }
            None => None,
        };
        Ok(Wish {
            model: self.model,
            prompt: self.prompt,
            negative: self.negative_prompt,
            images: self.n.unwrap_or(1),
            at_once: None,
            size: SizeOptions { width: self.width, height: self.height, binning: false },
            sampling: SamplingOptions {
                steps: self.steps,
                cfg_scale: self.guidance_scale,
                guidance_rescale: self.guidance_rescale,
                sampler: self.sampler,
                eta: self.eta,
                ..SamplingOptions::default()
            },
            seed: self.seed,
            init,
            format: self.format.unwrap_or_default(),
            quality: self.quality,
        })
    }
}

impl Wish {
    /// Refuses what no model is asked for here.
    pub fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        if !(1..=limits.images).contains(&self.images) {
            return Err(Refusal::field("n", format!("expected 1 to {} pictures, got {}", limits.images, self.images)));
        }
        if let Some(steps) = self.sampling.steps.filter(|steps| !(1..=limits.steps).contains(steps)) {
            return Err(Refusal::field("steps", format!("expected 1 to {} steps, got {steps}", limits.steps)));
        }
        for (name, side) in [("width", self.size.width), ("height", self.size.height)] {
            if let Some(side) = side.filter(|&side| side > limits.side) {
                return Err(Refusal::field(name, format!("expected at most {} pixels, got {side}", limits.side)));
            }
        }
        for (name, text) in [("prompt", Some(&self.prompt)), ("negative_prompt", self.negative.as_ref())] {
            let Some(text) = text else { continue };
            if text.len() > limits.prompt {
                return Err(Refusal::field(
                    name,
                    format!("expected at most {} bytes, got {}", limits.prompt, text.len()),
                ));
            }
            if text.contains('\0') {
                return Err(Refusal::field(name, "expected text without NUL"));
            }
        }
        let finite = [
            ("guidance_scale", self.sampling.cfg_scale),
            ("guidance_rescale", self.sampling.guidance_rescale),
            ("eta", self.sampling.eta),
        ];
        if let Some((name, value)) = finite.into_iter().find(|(_, value)| value.is_some_and(|v| !v.is_finite())) {
            return Err(Refusal::field(name, format!("expected a finite number, got {}", value.unwrap_or_default())));
        }
        Ok(())
    }

    /// The options of a request for some of its pictures, of a model that may read prompts, and negative ones.
    pub fn options(&self, seed: u64, images: usize, [reads, guided]: [bool; 2]) -> RequestOptions {
        // Clients send empty ones where there is none, and some send them always.
        let negative = self.negative.iter().filter(|text| guided && !text.trim().is_empty());
        RequestOptions {
            prompts: PromptOptions {
                // An empty one is a prompt where prompts are read, and none elsewhere.
                prompts: Some(self.prompt.clone()).filter(|text| reads || !text.is_empty()).into_iter().collect(),
                negatives: negative.cloned().collect(),
                n_imgs: Some(images),
                ..PromptOptions::default()
            },
            sampling: self.sampling.clone(),
            size: self.size,
            init: self.init.clone(),
            seed: Some(seed),
            batch_size: Some(images),
            ..RequestOptions::default()
        }
    }

    /// The seed, drawn if none was given. As long as a web UI's, so that every client can send it back.
    pub fn seed(&self) -> u64 {
        match self.seed {
            Some(seed) if seed >= 0 => seed as u64,
            _ => u64::from(fastrand::u32(..)),
        }
    }
}

/// A picture whose transparent parts are to be made anew, as a mask that is white there.
pub fn mask_of_opacity(bytes: &[u8], limits: &Limits) -> Result<Picture, Refusal> {
    let picture = Picture::from_bytes(bytes, "mask", limits.pixels)?;
    Ok(picture.transparency())
}
