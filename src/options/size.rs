//! The size of images.

use crate::error::{Error, Result};
use crate::model::{MAX_SIDE, Model};
use crate::pipeline::Request;

/// The size of images in pixels; what is absent is the model's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeOptions {
    /// Width.
    pub width: Option<usize>,
    /// Height.
    pub height: Option<usize>,
}

impl SizeOptions {
    /// Whether a size was asked for.
    pub(super) fn given(&self) -> bool {
        self.width.or(self.height).is_some()
    }

    /// Sets the latents' size of `request`.
    pub(super) fn apply<D>(&self, request: &mut Request, model: &Model<'_, D>) -> Result<()> {
        let (scale, multiple) = (model.latents.pixels, model.latents.pixel_multiple());
        for (axis, name, pixels) in [(0, "height", self.height), (1, "width", self.width)] {
            let Some(pixels) = pixels else { continue };
            if pixels == 0 || !pixels.is_multiple_of(multiple) || pixels > MAX_SIDE {
                let expected = match multiple {
                    1 => format!("1 to {MAX_SIDE} pixels"),
                    _ => format!("a multiple of {multiple} pixels, at most {MAX_SIDE}"),
                };
                return Err(Error::request(name, expected, pixels));
            }
            if request.latents.is_some() && request.latent_size[axis] != pixels / scale {
                let expected = format!("{} pixels, as the latents have", request.latent_size[axis] * scale);
                return Err(Error::request(name, expected, pixels));
            }
            request.latent_size[axis] = pixels / scale;
        }
        Ok(())
    }
}
