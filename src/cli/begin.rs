//! Runs that begin or end in the middle: with a picture, or with another network for the last steps.

use super::MOST_PIXELS;
use aquatint::format::meta::PipelineMeta;
use aquatint::image::Picture;
use aquatint::pipeline::{Init, Request};
use aquatint::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// Where a run begins, and who ends it.
#[derive(Args, Clone)]
pub struct Begin {
    /// Begin with this picture, PNG or JPEG; without a size, the result has the picture's, cut to what the model can make
    #[arg(long, alias = "init-img", alias = "init_image", value_name = "FILE")]
    init_image: Option<PathBuf>,
    /// Make only the white part of this picture anew
    #[arg(long, requires = "init_image", value_name = "FILE")]
    mask: Option<PathBuf>,
    /// How far the result may stray from the picture, 0 to 1
    #[arg(long, requires = "init_image", default_value_t = 0.75, value_name = "SHARE")]
    strength: f64,
    /// Share of the steps after which the refiner takes over, in files that hold one; 1 leaves it out [default: 0.8]
    #[arg(long, alias = "high-noise-frac", value_name = "SHARE")]
    refiner_start: Option<f64>,
}

impl Begin {
    /// The files that are read.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.init_image.iter().chain(&self.mask)
    }

    /// Sets where `request` begins; `sized` tells whether its size was asked for.
    pub fn apply(&self, request: &mut Request, meta: &PipelineMeta, sized: bool) -> Result<()> {
        if let Some(share) = self.refiner_start {
            if meta.refiner.is_none() {
                return Err(Error::request("--refiner-start", "a file that holds a refiner", "one without"));
            }
            if !(share > 0.0 && share <= 1.0) {
                return Err(Error::request("--refiner-start", "above 0 to 1", share));
            }
            request.handover = share;
        }
        let Some(path) = &self.init_image else { return Ok(()) };
        let picture = Picture::read(path)?;
        let scale = meta.pixels_per_latent as usize;
        if !sized && request.latents.is_none() {
            let multiple = (scale * meta.latent_multiple as usize).max(1);
            let size = picture.size().map(|pixels| pixels / multiple * multiple);
            if size.contains(&0) || size.iter().any(|&pixels| pixels > MOST_PIXELS) {
                let expected = format!("{multiple} to {MOST_PIXELS} pixels on each side, or a size to bring it to");
                let [h, w] = picture.size();
                return Err(Error::request("--init-image", expected, format!("{h} x {w}")));
            }
            request.latent_size = size.map(|pixels| pixels / scale);
        }
        let size = request.latent_size.map(|n| n * scale);
        let mask = self.mask.as_ref().map(|path| Ok::<_, Error>(Picture::read(path)?.brightness(size))).transpose()?;
        request.init = Some(Init { pictures: picture.colours(size), strength: self.strength, mask });
        Ok(())
    }
}
