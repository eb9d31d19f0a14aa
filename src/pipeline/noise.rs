//! The noise of a request: what the image encoder draws, initial latents, and what samplers add on the way, drawn in this
//! order, as diffusers' pipelines do.

use super::request::{Request, Stage};
use super::swap_last_axes;
use crate::rng::{FastRng, Normals, TorchRng};

/// Which generators make the noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoiseSource {
    /// One of this crate for each image, seeded with the request's seed plus the image's number: an image is the same
    /// alone and in any batch.
    #[default]
    Fast,
    /// One for all images, as diffusers' pipelines take it: torch's for the CPU, bit for bit. Images get different noise
    /// in different company, unless [`Request::stream`] says which company it was.
    Torch,
    /// One of torch's for each image, seeded with the request's seed plus the image's number, as diffusers' pipelines take a
    /// list of generators: an image is what [`Torch`](Self::Torch) makes of it alone.
    TorchEach,
}

/// Images of a larger request, whose stream of noise they share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseStream {
    /// Images of the larger request.
    pub images: usize,
    /// Which of them comes first.
    pub first: usize,
}

/// The generators of a request's images.
pub(super) struct Generators {
    rng: Rng,
    /// Images.
    n: usize,
    channels: usize,
    /// Pixels of an image's latents, of all its frames.
    pixels: usize,
}

enum Rng {
    /// One per image.
    Each(Vec<FastRng>),
    TorchEach(Vec<TorchRng>),
    One(Box<TorchRng>, NoiseStream),
}

impl Generators {
    /// Those of `request`, whose latents have `channels` channels.
    pub fn new(request: &Request, channels: usize) -> Self {
        let n = request.prompts.len();
        let rng = match request.noise {
            NoiseSource::Fast => Rng::Each((0..n as u64).map(|k| FastRng::for_image(request.seed, k)).collect()),
            NoiseSource::TorchEach => {
                Rng::TorchEach((0..n as u64).map(|k| TorchRng::new(request.seed.wrapping_add(k))).collect())
            }
            NoiseSource::Torch => {
                let stream = request.stream.unwrap_or(NoiseStream { images: n, first: 0 });
                Rng::One(Box::new(TorchRng::new(request.seed)), stream)
            }
        };
        Generators { rng, n, channels, pixels: request.latent_pixels() }
    }

    /// The next standard normal noise of each image, `(n, h, w, c)`, or video, `(n, f, h, w, c)`.
    pub fn draw(&mut self) -> Vec<f32> {
        let len = self.pixels * self.channels;
        let mut noise = vec![0.0; self.n * len];
        match &mut self.rng {
            Rng::Each(images) => draw_each(images, &mut noise, len),
            Rng::TorchEach(images) => draw_each(images, &mut noise, len),
            Rng::One(rng, stream) => {
                let mut all = vec![0.0; stream.images * len];
                rng.randn(&mut all);
                noise.copy_from_slice(&all[stream.first * len..][..self.n * len]);
            }
        }
        self.channels_last(&noise)
    }

    /// The next noise of each image, to encode `pictures` pictures with: one of each image, or one for all, which have
    /// torch's draw for it in common.
    pub fn draw_encoding(&mut self, pictures: usize) -> Vec<f32> {
        match &mut self.rng {
            Rng::One(rng, _) if pictures == 1 => {
                let mut one = vec![0.0; self.pixels * self.channels];
                rng.randn(&mut one);
                self.channels_last(&one.repeat(self.n))
            }
            _ => self.draw(),
        }
    }

    /// Generators speak (n, c, h, w) or (n, c, f, h, w); the loop is channels-last.
    fn channels_last(&self, noise: &[f32]) -> Vec<f32> {
        swap_last_axes(noise, [self.n, self.channels, self.pixels])
    }
}

/// Fills `noise`, `len` values of each image, by the image's own generator.
fn draw_each(images: &mut [impl Normals], noise: &mut [f32], len: usize) {
    images.iter_mut().zip(noise.chunks_exact_mut(len)).for_each(|(image, noise)| image.randn(noise));
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
        Some(given) => swap_last_axes(given, [generators.n, generators.channels, generators.pixels]),
        None => generators.draw(),
    }
}
