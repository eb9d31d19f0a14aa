//! The noise of a request: what the image encoder draws, initial latents, and what samplers add on the way.
//!
//! Each image has a generator of its own, seeded with the request's seed plus the image's number, so an image is the same
//! alone and in any batch. It draws in the order of diffusers' pipelines that are given a list of generators: encoding,
//! the latents, then the calls.

use super::request::{Request, Stage};
use super::swap_last_axes;
use crate::rng::{FastRng, Normals, TorchRng};

/// Which generators make the noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoiseSource {
    /// Small and fast ones of this crate.
    #[default]
    Fast,
    /// torch's for the CPU, bit for bit.
    Torch,
}

/// The generators of a request's images.
pub(super) struct Generators {
    images: Vec<Box<dyn Normals>>,
    channels: usize,
    /// Pixels of an image's latents.
    pixels: usize,
}

impl Generators {
    /// Those of `request`, whose latents have `channels` channels.
    pub fn new(request: &Request, channels: usize) -> Self {
        let image = |k: usize| -> Box<dyn Normals> {
            let seed = request.seed.wrapping_add(k as u64);
            match request.noise {
                NoiseSource::Fast => Box::new(FastRng::new(seed)),
                NoiseSource::Torch => Box::new(TorchRng::new(seed)),
            }
        };
        let images = (0..request.prompts.len()).map(image).collect();
        Generators { images, channels, pixels: request.latent_size[0] * request.latent_size[1] }
    }

    /// The next standard normal noise of each image, `(n, h, w, c)`.
    pub fn draw(&mut self) -> Vec<f32> {
        let (n, len) = (self.images.len(), self.pixels * self.channels);
        let mut noise = vec![0.0; n * len];
        self.images.iter_mut().zip(noise.chunks_exact_mut(len)).for_each(|(image, noise)| image.randn(noise));
        // Generators speak (n, c, h, w); the loop is channels-last.
        swap_last_axes(&noise, [n, self.channels, self.pixels])
    }
}

/// The noise that samplers add.
#[derive(Debug, Default)]
pub(super) struct RunNoise {
    /// Of each call `(n, h, w, c)`, over all networks; empty where a call adds none.
    calls: Vec<Vec<f32>>,
}

impl RunNoise {
    /// The noise of the images at the calls of `stages`.
    pub fn draw(stages: &[Stage], generators: &mut Generators) -> Self {
        let rows = stages.iter().flat_map(|stage| &stage.table.rows);
        RunNoise { calls: rows.map(|row| if row.noise() { generators.draw() } else { Vec::new() }).collect() }
    }

    /// The noise of all images at a call, `(n, h, w, c)`, if it adds any.
    pub fn of_call(&self, call: usize) -> Option<&[f32]> {
        self.calls.get(call).map(Vec::as_slice).filter(|noise| !noise.is_empty())
    }
}

/// Noise that initial latents are made of, `(n, h, w, c)`: what the request gives, or else the next of `generators`.
pub(super) fn latents(request: &Request, generators: &mut Generators) -> Vec<f32> {
    match &request.latents {
        Some(given) => swap_last_axes(given, [request.prompts.len(), generators.channels, generators.pixels]),
        None => generators.draw(),
    }
}
