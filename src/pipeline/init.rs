//! What a run begins with: noise, or an image (image to image, and inpainting).

use super::noise::{self, Generators, RunNoise};
use super::plans::Plans;
use super::request::{Request, Stage};
use super::session::Session;
use super::tiles::{TileSum, Tiles};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::format::meta::EncoderMeta;
use crate::model::Model;
use crate::plan::Binding;
use crate::program::{Dims, Role};

/// Bounds of the log variance that an encoder gives, as diffusers' DiagonalGaussianDistribution has them.
const LOG_VARIANCE: [f32; 2] = [-30.0, 20.0];

/// The image that a run begins with.
#[derive(Clone, Debug)]
pub struct InitImage {
    /// `(m, h, w, c)` in 0..1, of the result's size and [channels](Model::picture_channels); one image for all, or one
    /// per image.
    pub pictures: Vec<f32>,
    /// Share of the steps to make, 0 to 1: how far the result may stray.
    pub strength: f64,
    /// `(h, w)`: 1 where the image is made anew, 0 where it stays; all of it is made anew if absent.
    pub mask: Option<Vec<f32>>,
}

/// What the step loop needs of the initial image.
pub(super) struct InitLatents {
    /// Clean latents `(n, h, w, c)` of each image.
    pub clean: Vec<f32>,
    /// Standard normal noise `(n, h, w, c)` of each image.
    pub noise: Vec<f32>,
    /// `(h, w)` in latents; empty if everything is made anew.
    pub mask: Vec<f32>,
}

impl InitLatents {
    /// The latents that the loop begins with.
    ///
    /// Inpainting at full strength begins with pure noise, as diffusers' pipelines do; everything else with the image,
    /// noised to the level of the first call.
    fn noised(&self, strength: f64, first: &Stage) -> Vec<f32> {
        if !self.mask.is_empty() && strength >= 1.0 {
            return self.noise.iter().map(|x| x * first.table.init_scale).collect();
        }
        let [clean, noise] = first.table.rows[0].level;
        self.clean.iter().zip(&self.noise).map(|(c, n)| clean * c + noise * n).collect()
    }
}

impl Request {
    /// Checks the initial image against the size of the result.
    pub(super) fn check_init<D: AsRef<[u8]>>(&self, model: &Model<'_, D>) -> Result<()> {
        let Some(init) = &self.init else { return Ok(()) };
        if model.decoder && model.image_encoder.is_none() {
            return Err(Error::request("initial picture", "a file that holds the image encoder", "one without"));
        }
        let [h, w] = self.pixels(model);
        let (n, channels) = (self.prompts.len(), model.picture_channels());
        let len = h * w * channels;
        let pictures = init.pictures.len() / len;
        if !(pictures == 1 || pictures == n) || init.pictures.len() % len != 0 {
            let expected = format!("1 or {n} of {h} x {w} pixels of {channels} channels");
            return Err(Error::request("initial picture", expected, format!("{} values", init.pictures.len())));
        }
        match &init.mask {
            Some(mask) if mask.len() != h * w => {
                Err(Error::request("mask", format!("{h} x {w} pixels"), format!("{} values", mask.len())))
            }
            _ => Ok(()),
        }
    }

    /// The mask in latents of `scale` pixels: the pixel at the corner of each, as nearest interpolation takes it; above
    /// one half is 1.
    fn latent_mask(&self, mask: &[f32], scale: usize) -> Vec<f32> {
        let [h, w] = self.latent_size;
        let pixels = (0..h).flat_map(|y| (0..w).map(move |x| y * scale * w * scale + x * scale));
        pixels.map(|i| if mask[i] >= 0.5 { 1.0 } else { 0.0 }).collect()
    }
}

/// The latents that the loop begins with, `(n, h, w, c)`, the noise of its calls, and the initial image.
pub(super) fn begin<B: Backend, D: AsRef<[u8]>>(
    session: &mut Session<'_, B, D>,
    request: &Request,
    plans: &Plans,
) -> Result<(Vec<f32>, RunNoise, Option<InitLatents>)> {
    let (model, stages) = (session.model(), &plans.stages);
    let mut generators = Generators::new(request, model.latents.channels);
    let Some(init) = &request.init else {
        let mut latents = noise::latents(request, &mut generators);
        latents.iter_mut().for_each(|x| *x *= stages[0].table.init_scale);
        return Ok((latents, RunNoise::draw(stages, &mut generators), None));
    };
    let [h, w] = request.pixels(model);
    let m = init.pictures.len() / (h * w * model.picture_channels());
    let clean = match model.image_encoder {
        Some(encoder) => {
            let noise = generators.draw_encoding(m);
            sampled(&encode(session, request, plans)?, &noise, model.latents.channels, encoder)
        }
        // The latents are the picture.
        None => {
            let clean: Vec<f32> = init.pictures.iter().map(|x| 2.0 * x - 1.0).collect();
            clean.repeat(request.prompts.len() / m)
        }
    };
    let latents = noise::latents(request, &mut generators);
    let scale = model.latents.pixels;
    let mask = init.mask.as_ref().map(|mask| request.latent_mask(mask, scale)).unwrap_or_default();
    let begin = InitLatents { clean, noise: latents, mask };
    Ok((begin.noised(init.strength, &stages[0]), RunNoise::draw(stages, &mut generators), Some(begin)))
}

/// What the encoder says of the pictures of `request`: means and log variances `(m, h, w, 2 c)` of their latents.
fn encode<B: Backend, D: AsRef<[u8]>>(
    session: &mut Session<'_, B, D>,
    request: &Request,
    plans: &Plans,
) -> Result<Vec<f32>> {
    let model = session.model();
    let (scale, channels) = (model.latents.pixels, model.latents.channels);
    let pictures = request.init.as_ref().map_or(&[][..], |init| &init.pictures);
    let (size, tile) = (request.latent_size, plans.encoder_tile);
    let executor = session.executor(Role::VaeEncoder, binding(tile, scale), Some(plans))?;
    let tiles = Tiles::of(size, tile);
    let (latents, pixels) = (size[0] * size[1], size[0] * size[1] * scale * scale);
    let colours = model.picture_channels();
    let mut cut = vec![0.0; tile[0] * tile[1] * scale * scale * colours];
    let mut made = vec![0.0; tile[0] * tile[1] * 2 * channels];
    let mut moments = vec![0.0; pictures.len() / (pixels * colours) * latents * 2 * channels];
    let each = moments.chunks_exact_mut(latents * 2 * channels);
    for (picture, moments) in pictures.chunks_exact(pixels * colours).zip(each) {
        let mut sum = TileSum::new(latents, 2 * channels);
        for t in 0..tiles.len() {
            tiles.cut(t, scale, picture, &mut cut);
            cut.iter_mut().for_each(|x| *x = 2.0 * *x - 1.0);
            executor.write_sample(&cut)?;
            executor.call(0)?;
            executor.read_output(&mut made)?;
            tiles.add(t, 1, &made, &mut sum);
        }
        sum.finish(moments);
    }
    Ok(moments)
}

/// Latents `(n, h, w, c)` drawn with `noise` `(n, h, w, c)` from what the encoder says of one picture for all images, or
/// of one for each.
fn sampled(moments: &[f32], noise: &[f32], channels: usize, encoder: EncoderMeta) -> Vec<f32> {
    let [least, most] = LOG_VARIANCE;
    let pixels = moments.chunks_exact(2 * channels).cycle().zip(noise.chunks_exact(channels));
    let latents = pixels.flat_map(|(moments, noise)| {
        let (means, variances) = moments.split_at(channels);
        means.iter().zip(variances).zip(noise).map(move |((mean, log_variance), noise)| {
            let deviation = (0.5 * log_variance.clamp(least, most)).exp();
            (mean + deviation * noise - encoder.shift) * encoder.scale
        })
    });
    latents.collect()
}

/// What the image encoder is bound to for one tile of latents of `scale` pixels.
pub(super) fn binding([height, width]: [usize; 2], scale: usize) -> Binding {
    let dims = Dims { height: height * scale, width: width * scale, ..Dims::ONE };
    Binding { dims, calls: 1, table_bytes: 0, reserve: 0 }
}
