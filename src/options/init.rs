//! Runs that begin or end in the middle: with an image, or with another network for the last steps.

use super::RequestOptions;
use crate::error::{Error, Result};
use crate::image::{Picture, ResizeMode};
use crate::model::Model;
use crate::pipeline::{InitImage, Request};

/// How far results stray from the image they begin with, unless the caller says otherwise: the web UI's default.
pub const STRENGTH: f64 = 0.75;

/// The image that a run begins with.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The image. Unless a size is asked for, results have its size, or the next smaller one that the model can make.
    pub image: Picture,
    /// White where the image is made anew; everything is if absent.
    pub mask: Option<Picture>,
    /// How image and mask are brought to the result's size; stretched if absent.
    pub resize: Option<ResizeMode>,
    /// How far the result may stray from the image, 0 to 1; 0.75 if absent.
    pub strength: Option<f64>,
}

/// Refuses an image to begin with where there is no use for one.
pub(super) fn check<D>(options: &RequestOptions, model: &Model<'_, D>) -> Result<()> {
    if options.init.is_some() && model.latents.video {
        let expected = "a model that makes images; those of videos begin with noise, as their authors' do";
        return Err(Error::request("init-image", expected, "one that makes videos"));
    }
    Ok(())
}

/// Sets where `request` begins, and when the refiner takes over.
pub(super) fn apply<D: AsRef<[u8]>>(
    options: &RequestOptions,
    request: &mut Request,
    model: &Model<'_, D>,
) -> Result<()> {
    if let Some(share) = options.refiner_start {
        if model.refiner.is_none() {
            return Err(Error::request("refiner-start", "a file that holds a refiner", "one without"));
        }
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::request("refiner-start", "above 0 to 1", share));
        }
        request.refiner_start = share;
    }
    let Some(init) = &options.init else { return Ok(()) };
    let size = request.pixels(model);
    let resize = init.resize.unwrap_or_default();
    let mask = init.mask.as_ref().map(|mask| mask.mask(size, resize));
    let pictures = init.image.values(size, resize, model.picture_channels());
    request.init = Some(InitImage { pictures, strength: init.strength.unwrap_or(STRENGTH), mask });
    Ok(())
}
