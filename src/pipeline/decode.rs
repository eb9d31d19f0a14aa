//! Latents to images, whole or in tiles.

use super::plans::{Plans, decoder_binding};
use super::request::Request;
use super::session::Session;
use super::tiles::{TileSum, Tiles};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::image::cover;
use crate::program::Role;

impl<B: Backend, D: AsRef<[u8]>> Session<'_, B, D> {
    /// The images `(n, h, w, c)` in 0..1 of final latents `(n, h, w, c)`, which another model may have made, in the size and
    /// tiles of `request`, on whose images it does not depend.
    ///
    /// # Errors
    /// [`Error::Request`] if `latents` are no whole images, and those of [`plans`](Self::plans).
    pub fn decode(&mut self, request: &Request, latents: &[f32]) -> Result<Vec<f32>> {
        let len = self.model().latents.len(request.latent_size);
        if latents.is_empty() || !latents.len().is_multiple_of(len) {
            return Err(Error::request("latents", format!("a multiple of {len} values"), latents.len()));
        }
        let plans = self.plans(request)?;
        let mut images = Vec::new();
        for latents in latents.chunks_exact(len) {
            images.extend(image(self, request, &plans, latents)?);
        }
        Ok(images)
    }
}

/// The image `(h, w, c)` in 0..1 of latents `(h, w, c)`, in the sizes of `request` and the tiles of `plans`. One image is work
/// enough for all threads, and so memory does not grow with the batch.
pub(super) fn image<B: Backend, D: AsRef<[u8]>>(
    session: &mut Session<'_, B, D>,
    request: &Request,
    plans: &Plans,
    latents: &[f32],
) -> Result<Vec<f32>> {
    let (model, size) = (session.model(), request.latent_size);
    let finish = |image: Vec<f32>| {
        let (from, channels) = (request.pixels(model), model.picture_channels());
        // Before anything is clamped, as diffusers has it.
        let mut image = match request.picture_size {
            Some(to) => cover(&image, from, to, channels),
            None => image,
        };
        image.iter_mut().for_each(|x| *x = (*x / 2.0 + 0.5).clamp(0.0, 1.0));
        image
    };
    if !model.decoder {
        // The latents are the picture.
        return Ok(finish(latents.to_vec()));
    }
    let (scale, tile, channels) = (model.latents.pixels, plans.tile, model.picture_channels());
    let executor = session.executor(Role::VaeDecoder, decoder_binding(tile), Some(plans))?;
    let [height, width] = size.map(|n| n * scale);
    let tiles = Tiles::of(size, tile);
    let mut made = vec![0.0; tile[0] * tile[1] * scale * scale * channels];
    if tiles.len() == 1 {
        executor.write_sample(latents)?;
        executor.call(0)?;
        executor.read_output(&mut made)?;
        return Ok(finish(made));
    }
    let mut image = vec![0.0; height * width * channels];
    let mut cut = vec![0.0; model.latents.len(tile)];
    let mut sum = TileSum::new(height * width, channels);
    for t in 0..tiles.len() {
        tiles.cut(t, 1, latents, &mut cut);
        executor.write_sample(&cut)?;
        executor.call(0)?;
        executor.read_output(&mut made)?;
        tiles.add(t, scale, &made, &mut sum);
    }
    sum.finish(&mut image);
    Ok(finish(image))
}
