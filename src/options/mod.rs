//! What a person asks for, and how it becomes a request.
//!
//! Every option has a default that is the model's own setting. A command line, a server and bindings fill
//! [`RequestOptions`] each in their way; what options mean, and what is wrong with them, is said here, once. Errors name an
//! option as the command line spells it, without its dashes.

mod bytes;
mod describe;
mod init;
mod prompts;
mod recall;
mod sampling;
mod size;
mod tensors;
mod web_ui;

pub use bytes::parse_bytes;
pub use describe::{Made, infotext};
pub use init::InitOptions;
pub use prompts::{PromptOptions, read_prompts};
pub use sampling::{SamplingOptions, Sigmas};
pub use size::SizeOptions;
pub use tensors::{NamedTensor, Tensors};

use crate::error::{Error, Result};
use crate::model::{MAX_FRAMES, Model};
pub use crate::pipeline::MAX_IMAGES;
use crate::pipeline::{NoiseSource, NoiseStream, Prompts, Request};

/// Options of a request.
#[derive(Clone, Debug, Default)]
pub struct RequestOptions {
    /// What images show.
    pub prompts: PromptOptions,
    /// Steps, guidance and sampler.
    pub sampling: SamplingOptions,
    /// The size of images.
    pub size: SizeOptions,
    /// Frames of each video.
    pub frames: Option<usize>,
    /// The image to begin with.
    pub init: Option<InitOptions>,
    /// Share of the run after which the refiner takes over, above 0 to 1.
    pub refiner_start: Option<f64>,
    /// Seed.
    pub seed: Option<u64>,
    /// Where noise comes from.
    pub noise: Option<NoiseSource>,
    /// The larger request whose stream of noise the images share, if noise comes from torch's generator.
    pub stream: Option<NoiseStream>,
    /// Images per pass through the network.
    pub batch_size: Option<usize>,
    /// Most bytes of working memory.
    pub max_memory: Option<usize>,
    /// Rows and columns of latents that are decoded at once.
    pub vae_tile: Option<usize>,
    /// Whether [`warnings`](Self::warnings) are errors.
    pub strict: bool,
}

impl RequestOptions {
    /// The request that these options are of `model`. What `tensors` holds replaces prompts and initial noise.
    ///
    /// # Errors
    /// [`Error::Request`] that names an option, what would be accepted and what was given; for
    /// tensors that nobody has a use for, too.
    pub fn request<D: AsRef<[u8]>>(&self, model: &Model<'_, D>, tensors: Option<Tensors>) -> Result<Request> {
        if let Some(warning) = self.warnings().into_iter().next().filter(|_| self.strict) {
            return Err(Error::request("prompt", "nothing that this program does not do", warning));
        }
        let guided = self.sampling.cfg_scale.unwrap_or(model.guidance_scale) > 1.0;
        let (prompts, latents) = match tensors {
            None => (self.prompts.prompts(model, None, true)?, None),
            Some(mut tensors) => {
                let latents = tensors.latents(model)?;
                let mut prompts = self.prompts.prompts(model, Some(&mut tensors), guided)?;
                tensors.finish()?;
                if let Some(([n, ..], _)) = &latents {
                    prompts.repeat(*n, "--inputs latents")?;
                }
                (prompts, latents)
            }
        };
        let mut request = Request::new(model, prompts);
        if let Some(([_, _, f, h, w], values)) = latents {
            (request.latent_size, request.frames) = ([h, w], f);
            request.latents = Some(values);
        }
        self.set_frames(&mut request, model)?;
        request.seed = self.seed.unwrap_or(request.seed);
        request.noise = self.noise.unwrap_or(request.noise);
        request.stream = self.stream.filter(|_| request.noise == NoiseSource::Torch);
        request.batch_size = self.batch_size.unwrap_or(request.batch_size);
        (request.max_memory, request.tile) = (self.max_memory, self.vae_tile);
        self.sampling.apply(&mut request)?;
        init::check(self, model)?;
        self.size.apply(&mut request, model, self.init.as_ref().map(|init| init.image.size()))?;
        init::apply(self, &mut request, model)?;
        self.check_effect(&request, model)?;
        Ok(request)
    }

    /// Sets the frames of the videos of `request`.
    fn set_frames<D>(&self, request: &mut Request, model: &Model<'_, D>) -> Result<()> {
        let Some(frames) = self.frames else { return Ok(()) };
        if !model.latents.video {
            return Err(Error::request("frames", "a model that makes videos", "one that makes images"));
        }
        if !(1..=MAX_FRAMES).contains(&frames) {
            return Err(Error::request("frames", format!("1 to {MAX_FRAMES}"), frames));
        }
        if request.latents.is_some() && request.frames != frames {
            return Err(Error::request("frames", format!("{}, as the latents have", request.frames), frames));
        }
        request.frames = frames;
        Ok(())
    }

    /// What of the prompts other programs would act on, and this one reads as words; for people.
    pub fn warnings(&self) -> Vec<String> {
        self.prompts.warnings()
    }

    /// Refuses options without an effect on `request`.
    fn check_effect<D: AsRef<[u8]>>(&self, request: &Request, model: &Model<'_, D>) -> Result<()> {
        let idle = |option: &str, expected: &str, got: &dyn std::fmt::Display| {
            Err(Error::request(option, format!("{expected}, or it has no effect"), got))
        };
        if request.guidance_scale <= 1.0 {
            let got = format!("cfg-scale {}", request.guidance_scale);
            if !self.prompts.negatives.is_empty() {
                return idle("negative", "a cfg-scale above 1", &got);
            }
            if request.guidance_rescale != 0.0 {
                return idle("guidance-rescale", "a cfg-scale above 1", &got);
            }
        }
        if self.vae_tile.is_some() && !model.decoder {
            return idle("vae-tile", "a model with a decoder", &"one without");
        }
        if !request.draws_noise(model)? {
            let given = [("seed", self.seed.is_some()), ("rng", self.noise.is_some())];
            if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
                return idle(option, "a request that draws noise", &"one whose latents are given");
            }
        }
        Ok(())
    }

    /// A request for `images` that differ in nothing but their noise, for memory plans.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub fn blank<D: AsRef<[u8]>>(&self, model: &Model<'_, D>, images: usize) -> Result<Request> {
        let mut request = Request::new(model, Prompts::blank(model, images));
        request.batch_size = images;
        self.sampling.apply(&mut request)?;
        self.size.apply(&mut request, model, None)?;
        self.set_frames(&mut request, model)?;
        Ok(request)
    }
}
