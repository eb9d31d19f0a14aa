//! What a person asks for, and how it becomes a request.
//!
//! Every option has a default that is the model's own setting. A command line, a server and bindings fill
//! [`RequestOptions`] each in their way; what options mean, and what is wrong with them, is said here, once. Errors name an
//! option as the command line spells it, without its dashes.

mod init;
mod prompts;
mod sampling;
mod size;
mod tensors;

pub use init::InitOptions;
pub use prompts::PromptOptions;
pub use sampling::{SamplingOptions, Sigmas};
pub use size::SizeOptions;
pub use tensors::{NamedTensor, Tensors};

use crate::error::Result;
use crate::model::Model;
pub use crate::pipeline::MAX_IMAGES;
use crate::pipeline::{NoiseSource, Prompts, Request};

/// Options of a request.
#[derive(Clone, Debug, Default)]
pub struct RequestOptions {
    /// What images show.
    pub prompts: PromptOptions,
    /// Steps, guidance and sampler.
    pub sampling: SamplingOptions,
    /// The size of images.
    pub size: SizeOptions,
    /// The image to begin with.
    pub init: Option<InitOptions>,
    /// Share of the run after which the refiner takes over, above 0 to 1.
    pub refiner_start: Option<f64>,
    /// Seed.
    pub seed: Option<u64>,
    /// Where noise comes from.
    pub noise: NoiseSource,
    /// Images per pass through the network.
    pub batch_size: Option<usize>,
    /// Most bytes of working memory.
    pub max_memory: Option<usize>,
    /// Rows and columns of latents that are decoded at once.
    pub vae_tile: Option<usize>,
}

impl RequestOptions {
    /// The request that these options are of `model`. What `tensors` holds replaces prompts and initial noise.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) that names an option, what would be accepted and what was given; for
    /// tensors that nobody has a use for, too.
    pub fn request<D: AsRef<[u8]>>(&self, model: &Model<'_, D>, tensors: Option<Tensors>) -> Result<Request> {
        let guided = self.sampling.cfg_scale.unwrap_or(model.guidance_scale) > 1.0;
        let (prompts, latents) = match tensors {
            None => (self.prompts.prompts(model, None, true)?, None),
            Some(mut tensors) => {
                let latents = tensors.latents(model.latents.channels)?;
                let mut prompts = self.prompts.prompts(model, Some(&mut tensors), guided)?;
                tensors.finish()?;
                if let Some(([n, ..], _)) = &latents {
                    prompts.repeat(*n, "--inputs latents")?;
                }
                (prompts, latents)
            }
        };
        let mut request = Request::new(model, prompts);
        if let Some(([_, _, h, w], values)) = latents {
            request.latent_size = [h, w];
            request.latents = Some(values);
        }
        request.seed = self.seed.unwrap_or(request.seed);
        request.noise = self.noise;
        request.batch_size = self.batch_size.unwrap_or(request.batch_size);
        (request.max_memory, request.tile) = (self.max_memory, self.vae_tile);
        self.sampling.apply(&mut request)?;
        self.size.apply(&mut request, model)?;
        init::apply(self, &mut request, model)?;
        Ok(request)
    }

    /// A request for `images` that differ in nothing but their noise, for memory plans.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    pub fn blank<D: AsRef<[u8]>>(&self, model: &Model<'_, D>, images: usize) -> Result<Request> {
        let mut request = Request::new(model, Prompts::blank(model, images));
        request.batch_size = images;
        self.sampling.apply(&mut request)?;
        self.size.apply(&mut request, model)?;
        Ok(request)
    }
}
