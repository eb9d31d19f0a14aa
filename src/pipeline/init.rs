//! Runs that begin with a picture: image to image, and inpainting.

use super::denoise::{Given, Stage};
use super::noise::NoiseSource;
use super::tiles::{Blend, Tiles};
use super::{DECODE_BYTES, Pipeline, Request, permute};
use crate::backend::{Backend, Needs};
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::plan::{Binding, Plan};
use crate::program::{Dims, Role};
use crate::rng::{FastRng, TorchRng};

/// Bounds of the log variance that an encoder gives, as diffusers' DiagonalGaussianDistribution has them.
const LOG_VARIANCE: [f32; 2] = [-30.0, 20.0];
/// Distinguishes the noise of encoding from that of the latents.
const ENCODER_STREAM: u64 = 1 << 63;

/// The picture that a run begins with.
#[derive(Clone, Debug)]
pub struct Init {
    /// `(m, h, w, 3)` in 0..1 at the size of the result; one picture for all images, or one per image.
    pub pictures: Vec<f32>,
    /// Share of the steps to make, 0 to 1: how far the result may stray.
    pub strength: f64,
    /// `(h, w)`: 1 where the picture is made anew, 0 where it stays; the whole picture is made anew if absent.
    pub mask: Option<Vec<f32>>,
}

/// What the step loop needs of the picture.
pub(super) struct Begin {
    /// Clean latents `(n, h, w, c)` of each image.
    pub clean: Vec<f32>,
    /// Standard normal noise `(n, h, w, c)` of each image.
    pub noise: Vec<f32>,
    /// `(h, w)` in latents; empty if everything is made anew.
    pub mask: Vec<f32>,
}

impl Begin {
    /// The latents that the loop begins with.
    ///
    /// Inpainting at full strength begins with pure noise, as diffusers' pipelines do; everything else with the picture,
    /// noised to the level of the first call.
    pub fn latents(&self, strength: f64, first: &Stage) -> Vec<f32> {
        if !self.mask.is_empty() && strength >= 1.0 {
            return self.noise.iter().map(|x| x * first.table.init_scale).collect();
        }
        let [clean, noise] = first.table.rows[0].level;
        self.clean.iter().zip(&self.noise).map(|(c, n)| clean * c + noise * n).collect()
    }
}

impl<D: AsRef<[u8]>> Pipeline<'_, D> {
    /// Checks the picture of a request against its size.
    pub(super) fn check_init(&self, request: &Request) -> Result<()> {
        let Some(init) = &request.init else { return Ok(()) };
        if self.has(Role::VaeDecoder) && !self.has(Role::VaeEncoder) {
            return Err(Error::request("initial picture", "a file that holds the image encoder", "one without"));
        }
        let [h, w] = self.pixels(request);
        let n = request.subjects.len();
        let pictures = init.pictures.len() / (h * w * 3);
        if !(pictures == 1 || pictures == n) || init.pictures.len() % (h * w * 3) != 0 {
            let expected = format!("1 or {n} of {h} x {w} pixels");
            return Err(Error::request("initial picture", expected, format!("{} values", init.pictures.len())));
        }
        match &init.mask {
            Some(mask) if mask.len() != h * w => {
                Err(Error::request("mask", format!("{h} x {w} pixels"), format!("{} values", mask.len())))
            }
            _ => Ok(()),
        }
    }

    /// Height and width of the result in pixels.
    pub(super) fn pixels(&self, request: &Request) -> [usize; 2] {
        request.latent_size.map(|n| n * self.meta().pipeline.pixels_per_latent as usize)
    }

    /// The latents that the loop begins with, `(n, h, w, c)`, and what it is given beside.
    pub(super) fn begin<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        stages: &[Stage],
    ) -> Result<(Vec<f32>, Given)> {
        let mut torch = TorchRng::new(request.seed);
        let Some(init) = &request.init else {
            let (mut latents, noise) = self.noise(request, stages, &mut torch);
            latents.iter_mut().for_each(|x| *x *= stages[0].table.init_scale);
            return Ok((latents, Given { noise, begin: None }));
        };
        let [h, w] = self.pixels(request);
        let m = init.pictures.len() / (h * w * 3);
        // diffusers' pipelines draw in this order: encoding, then the latents, then the calls.
        let encoder_noise = self.encoder_noise(request, m, &mut torch);
        let mut clean = self.encode_pictures(backend, request, &init.pictures, &encoder_noise)?;
        if m == 1 {
            clean = clean.repeat(request.subjects.len());
        }
        let (latents, noise) = self.noise(request, stages, &mut torch);
        let mask = init.mask.as_ref().map(|mask| self.latent_mask(request, mask)).unwrap_or_default();
        let begin = Begin { clean, noise: latents, mask };
        Ok((begin.latents(init.strength, &stages[0]), Given { noise, begin: Some(begin) }))
    }

    /// The plan of the image encoder.
    pub(super) fn encoder_plan<N: Needs>(&self, needs: &N, request: &Request) -> Result<Plan> {
        let scale = self.meta().pipeline.pixels_per_latent as usize;
        Plan::of_role(needs, self.packed, Role::VaeEncoder, &shape(self.encoder_tile(needs, request)?, scale))
    }

    /// Latents that are encoded at once, like [`tile`](Self::tile) for decoding.
    fn encoder_tile<N: Needs>(&self, needs: &N, request: &Request) -> Result<[usize; 2]> {
        let scale = self.meta().pipeline.pixels_per_latent as usize;
        let most = request.max_memory.unwrap_or(DECODE_BYTES);
        let arena = |tile| Ok(Plan::of_role(needs, self.packed, Role::VaeEncoder, &shape(tile, scale))?.arena);
        super::tiles::largest(request.latent_size, most, &arena)
    }

    /// Latents `(m, h, w, c)` of the pictures of `request`, drawn from what the encoder says of them; `noise` is
    /// `(m, h, w, c)`.
    fn encode_pictures<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        pictures: &[f32],
        noise: &[f32],
    ) -> Result<Vec<f32>> {
        let p = &self.meta().pipeline;
        if !self.has(Role::VaeEncoder) {
            // The latents are the picture.
            return Ok(pictures.iter().map(|x| 2.0 * x - 1.0).collect());
        }
        let (scale, channels) = (p.pixels_per_latent as usize, p.latent_channels as usize);
        let encoder = p.encoder.ok_or_else(|| Error::request("META", "the scale of encoded latents", "none"))?;
        let tile = self.encoder_tile(backend, request)?;
        let mut executor = Executor::new(backend, self.packed, Role::VaeEncoder, shape(tile, scale))?;
        let out = executor.plan().output;
        if [out.rows, out.cols] != [tile[0] * tile[1], 2 * channels] {
            let expected = format!("{} latents of 2 x {channels} channels", tile[0] * tile[1]);
            return Err(Error::request("vae encoder", expected, format!("{} of {}", out.rows, out.cols)));
        }
        let tiles = Tiles::of(request.latent_size, tile);
        let [height, width] = request.latent_size;
        let (latents, pixels) = (height * width, height * width * scale * scale);
        let mut cut = vec![0.0; tile[0] * tile[1] * scale * scale * 3];
        let mut made = vec![0.0; out.rows * out.cols];
        let mut moments = vec![0.0; latents * 2 * channels];
        let mut result = Vec::with_capacity(noise.len());
        for (picture, noise) in pictures.chunks_exact(pixels * 3).zip(noise.chunks_exact(latents * channels)) {
            let mut sum = Blend::new(latents, 2 * channels);
            for t in 0..tiles.len() {
                tiles.cut(t, scale, picture, &mut cut);
                cut.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
                executor.write_sample(&cut)?;
                executor.call(0)?;
                executor.read_output(&mut made)?;
                tiles.blend(t, 1, &made, &mut sum);
            }
            sum.finish(&mut moments);
            for (moments, noise) in moments.chunks_exact(2 * channels).zip(noise.chunks_exact(channels)) {
                let (means, variances) = moments.split_at(channels);
                for ((mean, log_variance), noise) in means.iter().zip(variances).zip(noise) {
                    let [least, most] = LOG_VARIANCE;
                    let deviation = (0.5 * log_variance.clamp(least, most)).exp();
                    result.push((mean + deviation * noise - encoder.shift) * encoder.scale);
                }
            }
        }
        Ok(result)
    }

    /// Noise for encoding `m` pictures, `(m, h, w, c)`; the torch generator is advanced.
    fn encoder_noise(&self, request: &Request, m: usize, torch: &mut TorchRng) -> Vec<f32> {
        let len = self.latent_len(request);
        let mut noise = vec![0.0; m * len];
        if self.has(Role::VaeEncoder) {
            match request.noise {
                NoiseSource::Torch => torch.randn(&mut noise),
                NoiseSource::Fast => {
                    for (k, noise) in noise.chunks_exact_mut(len).enumerate() {
                        FastRng::for_image(request.seed ^ ENCODER_STREAM, k as u64).randn(noise);
                    }
                }
            }
        }
        let channels = self.meta().pipeline.latent_channels as usize;
        permute(&noise, [m, channels, len / channels])
    }

    /// The mask in latents: the pixel at the corner of each, as nearest interpolation takes it; above one half is 1.
    fn latent_mask(&self, request: &Request, mask: &[f32]) -> Vec<f32> {
        let scale = self.meta().pipeline.pixels_per_latent as usize;
        let [_, width] = self.pixels(request);
        let [h, w] = request.latent_size;
        let pixels = (0..h).flat_map(|y| (0..w).map(move |x| y * scale * width + x * scale));
        pixels.map(|i| if mask[i] >= 0.5 { 1.0 } else { 0.0 }).collect()
    }
}

fn shape([height, width]: [usize; 2], scale: usize) -> Binding {
    let dims = Dims { batch: 1, conditions: 1, height: height * scale, width: width * scale, tokens: 1 };
    Binding { dims, calls: 1, table_bytes: 0, reserve: 0 }
}
