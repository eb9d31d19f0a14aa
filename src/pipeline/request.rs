//! What to make: a request, and its check against a model.

use super::init::InitImage;
use super::noise::{NoiseSource, NoiseStream};
use super::prompts::{Embeddings, EncoderFeatures, PromptFeatures, Prompts};
use crate::error::{Error, Result};
use crate::format::meta::TextLength;
use crate::model::{MAX_FRAMES, MAX_SIDE, Model, TextModel};
use crate::program::Role;
use crate::sampler::{Config, Span, Start, Table};

/// Most tokens of a prompt: beyond any use, and far from overflowing anything.
const MAX_TOKENS: usize = 1 << 20;
/// Bytes of tables of timestep-dependent values, unless the caller says otherwise.
pub const TABLE_BYTES: usize = 64 << 20;
/// Share of the steps after which a refiner takes over: what its authors made it for.
pub const REFINER_START: f64 = 0.8;
/// Bytes of arena beyond which images are decoded in tiles, unless the caller says otherwise.
pub const DECODE_BYTES: usize = 1_500_000_000;
/// Most images of one request, and samples of one call: beyond any use, and far from overflowing anything.
pub const MAX_IMAGES: usize = 1 << 16;

/// What to make: [`Request::new`] gives the model's own settings, to be changed field by field.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// What each image shows; their number is the number of images.
    pub prompts: Prompts,
    /// Sampler steps.
    pub steps: usize,
    /// Guidance scale; at most 1 means no guidance.
    pub guidance_scale: f32,
    /// How much the guided output gets the deviation of the conditional one, 0 to 1 (Lin et al. 2023, section 3.4).
    pub guidance_rescale: f32,
    /// The sampler and its noise schedule.
    pub sampler: Config,
    /// Seed of the request.
    pub seed: u64,
    /// Where noise comes from.
    pub noise: NoiseSource,
    /// The larger request whose noise this one's images have, with [`NoiseSource::Torch`]: so that one of its images can be
    /// made again without the others.
    pub stream: Option<NoiseStream>,
    /// Initial latents `(n, c, h, w)`, of videos `(n, c, f, h, w)`, instead of noise, of unit variance: samplers that start from wider ones scale
    /// them, as diffusers' pipelines do.
    pub latents: Option<Vec<f32>>,
    /// Height and width of the latents.
    pub latent_size: [usize; 2],
    /// Height and width in pixels that pictures have in the end: they are resized so that they cover it, and what hangs over is cut
    /// off. Those of the latents if absent.
    pub picture_size: Option<[usize; 2]>,
    /// Frames of each video; 1 for images. What is said of images, such as how many there are in a request or a pass, holds
    /// of videos; what is decoded is single frames.
    pub frames: usize,
    /// Images per pass through the network.
    pub batch_size: usize,
    /// Most bytes of tables of timestep-dependent values.
    pub table_bytes: usize,
    /// Most bytes of arena: batches become smaller, and images are decoded in tiles, as it demands.
    pub max_memory: Option<usize>,
    /// Rows and columns of latents that are decoded at once; chosen by memory if absent.
    pub tile: Option<usize>,
    /// The image to begin with.
    pub init: Option<InitImage>,
    /// Share of the training steps, from the noisy end, after which the refiner takes over, if there is one; 1 leaves it
    /// out.
    pub refiner_start: f64,
}

/// A run of model calls by one network.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    /// Which.
    pub role: Role,
    /// Its calls.
    pub table: Table,
}

impl Request {
    /// A request for images of `prompts` with the model's own settings.
    pub fn new<D: AsRef<[u8]>>(model: &Model<'_, D>, prompts: Prompts) -> Self {
        Request {
            batch_size: prompts.len().clamp(1, 8),
            prompts,
            steps: model.steps,
            guidance_scale: model.guidance_scale,
            guidance_rescale: 0.0,
            sampler: model.sampler.clone(),
            seed: 42,
            noise: NoiseSource::Fast,
            stream: None,
            latents: None,
            latent_size: model.latents.size,
            picture_size: None,
            frames: model.latents.frames,
            table_bytes: TABLE_BYTES,
            max_memory: None,
            tile: None,
            init: None,
            refiner_start: REFINER_START,
        }
    }

    /// Whether there are samples for guidance.
    pub(super) fn guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// Whether an image's generator is asked for anything: latents to begin with, the draw of the image encoder, or noise
    /// that the sampler adds.
    pub(crate) fn draws_noise<D>(&self, model: &Model<'_, D>) -> Result<bool> {
        let encodes = self.init.is_some() && model.image_encoder.is_some();
        Ok(self.latents.is_none() || encodes || self.stages(model)?.iter().any(|stage| stage.table.noise))
    }

    /// Samples of each image in a model call.
    pub(super) fn copies(&self) -> usize {
        if self.guided() { 2 } else { 1 }
    }

    /// The networks that run, one after the other, and their calls.
    pub(super) fn stages<D>(&self, model: &Model<'_, D>) -> Result<Vec<Stage>> {
        let start = self.init.as_ref().map_or(Start::Noise, |init| Start::Strength(init.strength));
        let refined = model.refiner.is_some() && self.refiner_start < 1.0;
        let span = Span { start, end: refined.then_some(self.refiner_start) };
        let mut stages = vec![Stage { role: Role::Denoiser, table: self.sampler.table_range(self.steps, &span)? }];
        if refined {
            let span = Span { start: Start::Fraction(self.refiner_start), end: None };
            stages.push(Stage { role: Role::Refiner, table: self.sampler.table_range(self.steps, &span)? });
        }
        Ok(stages)
    }

    fn check_embeddings<D>(&self, embeddings: &Embeddings, model: &Model<'_, D>) -> Result<()> {
        let Embeddings { prompts, of_image } = embeddings;
        if let Some(index) = of_image.iter().flatten().find(|&&index| index >= prompts.len()) {
            return Err(Error::request("prompts", format!("prompts below {}", prompts.len()), index));
        }
        let Some(text) = &model.text else { return Ok(()) };
        prompts.iter().try_for_each(|prompt| check_features(prompt, text))?;
        for &[prompt, negative] in of_image.iter().filter(|_| self.guided() && !text.lengths) {
            let tokens = [prompts[prompt].tokens(), prompts[negative].tokens()];
            if tokens[0] != tokens[1] {
                let got = format!("{} and {}", tokens[0], tokens[1]);
                return Err(Error::request("tokens of a prompt and its negative one", "as many", got));
            }
        }
        Ok(())
    }

    /// Pixels of an image's latents, or of all frames of a video's.
    pub(super) fn latent_pixels(&self) -> usize {
        self.frames * self.latent_size.iter().product::<usize>()
    }

    /// Floats of an image's or a video's latents.
    pub fn latents_len<D>(&self, model: &Model<'_, D>) -> usize {
        self.frames * model.latents.len(self.latent_size)
    }

    /// Pictures that are decoded: images, or frames of videos.
    pub fn pictures(&self) -> usize {
        self.prompts.len() * self.frames
    }

    /// Height and width of the pictures in the end, in pixels.
    pub fn picture_pixels<D>(&self, model: &Model<'_, D>) -> [usize; 2] {
        self.picture_size.unwrap_or(self.pixels(model))
    }

    /// Height and width of the images in pixels as they are decoded.
    pub fn pixels<D>(&self, model: &Model<'_, D>) -> [usize; 2] {
        self.latent_size.map(|n| n * model.latents.pixels)
    }

    /// Checks that the model can do what is asked, as far as numbers tell.
    pub(super) fn check<D: AsRef<[u8]>>(&self, model: &Model<'_, D>) -> Result<()> {
        if !(1..=MAX_IMAGES).contains(&self.prompts.len()) {
            return Err(Error::request("images", format!("1 to {MAX_IMAGES}"), self.prompts.len()));
        }
        let kind = match &self.prompts {
            Prompts::Unconditional(_) => "none",
            Prompts::Classes(_) => "classes",
            Prompts::Texts(_) | Prompts::Embeddings(_) => "prompts",
        };
        let wanted = match (&model.text, &model.classes) {
            (Some(_), _) => "prompts",
            (None, Some(_)) => "classes",
            (None, None) => "none",
        };
        if kind != wanted {
            return Err(Error::request("conditions of images", wanted, kind));
        }
        if let Some(classes) = &model.classes
            && let Some(bad) = self.prompts.classes().iter().find(|&&label| !classes.contains(label))
        {
            return Err(Error::class(format!("0 to {}", classes.count - 1), bad));
        }
        if let Prompts::Embeddings(embeddings) = &self.prompts {
            self.check_embeddings(embeddings, model)?;
        }
        if !model.conditional() && self.guided() {
            return Err(Error::request("guidance scale", "1 for a model without conditions", self.guidance_scale));
        }
        if self.batch_size == 0 {
            return Err(Error::request("batch size", "at least 1", 0));
        }
        if let Some(NoiseStream { images, first }) = self.stream {
            let n = self.prompts.len();
            if images > MAX_IMAGES || first.checked_add(n).is_none_or(|end| end > images) {
                let expected = format!("{n} of at most {MAX_IMAGES} images, behind each other");
                return Err(Error::request("stream of noise", expected, format!("{images} from {first}")));
            }
        }
        if self.tile == Some(0) {
            return Err(Error::request("tile", "at least 1 row of latents", 0));
        }
        if !self.guidance_scale.is_finite() {
            return Err(Error::request("guidance scale", "a finite number", self.guidance_scale));
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return Err(Error::request("guidance rescale", "0 to 1", self.guidance_rescale));
        }
        let [h, w] = self.latent_size;
        let multiple = model.latents.multiple;
        if [h, w].iter().any(|n| *n == 0 || !n.is_multiple_of(multiple)) {
            let expected =
                if multiple == 1 { "at least 1 latent".into() } else { format!("multiples of {multiple} latents") };
            return Err(Error::request("size", expected, format!("{h} x {w}")));
        }
        let most = MAX_SIDE / model.latents.pixels;
        if h.max(w) > most {
            return Err(Error::request("size", format!("at most {most} latents on a side"), format!("{h} x {w}")));
        }
        if let Some([h, w]) = self.picture_size.filter(|size| size.iter().any(|side| !(1..=MAX_SIDE).contains(side))) {
            return Err(Error::request("size of pictures", format!("1 to {MAX_SIDE} pixels"), format!("{h} x {w}")));
        }
        if self.frames != 1 && !model.latents.video {
            return Err(Error::request("frames", "1 for a model that makes images", self.frames));
        }
        // Together with the sides, far from overflowing anything.
        if !(1..=MAX_FRAMES).contains(&self.frames) {
            return Err(Error::request("frames", format!("1 to {MAX_FRAMES}"), self.frames));
        }
        let (n, channels) = (self.prompts.len(), model.latents.channels);
        if let Some(latents) = &self.latents
            && latents.len() != n * self.latents_len(model)
        {
            let values = n * self.latents_len(model);
            let frames = if model.latents.video { format!(" x {} frames", self.frames) } else { String::new() };
            let expected = format!("{n} x {channels}{frames} x {h} x {w} = {values} values");
            return Err(Error::request("latents", expected, latents.len()));
        }
        if self.init.is_some() && model.latents.video {
            return Err(Error::request("initial picture", "none for a model that makes videos", "one"));
        }
        self.check_init(model)
    }
}

/// Checks that a prompt has as many rows and columns as it says and the model's text encoders make.
fn check_features(prompt: &PromptFeatures, text: &TextModel) -> Result<()> {
    if prompt.encoders.len() != text.encoders.len() {
        let expected = format!("features of {} text encoders", text.encoders.len());
        return Err(Error::request("prompt", expected, prompt.encoders.len()));
    }
    for (told, encoder) in prompt.encoders.iter().zip(&text.encoders) {
        let EncoderFeatures { tokens, length, ref features, ref pooled } = *told;
        if !(1..=MAX_TOKENS).contains(&tokens) || !(1..=tokens).contains(&length) {
            let expected = format!("1 to {MAX_TOKENS}, of which at least 1 counts");
            return Err(Error::request("tokens of a prompt", expected, format!("{tokens}, of which {length} count")));
        }
        if encoder.length == TextLength::Masked && tokens != encoder.tokens {
            return Err(Error::request("tokens of a prompt", format!("{}, with padding", encoder.tokens), tokens));
        }
        let planned = features.is_empty() && pooled.is_empty();
        if !planned && [features.len(), pooled.len()] != [tokens * encoder.features, encoder.pooled] {
            let expected = format!("{tokens} x {} features and {} of the whole text", encoder.features, encoder.pooled);
            return Err(Error::request("prompt", expected, format!("{} and {}", features.len(), pooled.len())));
        }
    }
    // Features of several encoders lie side by side.
    let mut context = text.denoiser.context.iter().filter_map(|&i| prompt.encoders.get(i as usize));
    let shape = |told: &EncoderFeatures| [told.tokens, told.length];
    let first = context.next().map(shape);
    match context.find(|told| Some(shape(told)) != first) {
        None => Ok(()),
        Some(other) => {
            let expected = format!("{} tokens of every text encoder", first.map_or(0, |[tokens, _]| tokens));
            Err(Error::request("prompt", expected, other.tokens))
        }
    }
}
