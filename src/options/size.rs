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
    /// Whether images are made in the nearest size that the model was made for, by its ratio, and then resized and cropped to what
    /// was asked for, which may be any size.
    pub binning: bool,
}

impl SizeOptions {
    /// Whether a size was asked for.
    pub(super) fn given(&self) -> bool {
        self.width.or(self.height).is_some()
    }

    /// Sets the latents' size of `request`, and that of its pictures if it is another. `own` is the size of the picture that it
    /// begins with, which is taken where no size is asked for.
    ///
    /// # Errors
    /// [`Error::Request`] if the model cannot make the size, or latents are given that have another.
    pub fn apply<D: AsRef<[u8]>>(
        &self,
        request: &mut Request,
        model: &Model<'_, D>,
        own: Option<[usize; 2]>,
    ) -> Result<()> {
        let own = own.filter(|_| !self.given() && request.latents.is_none());
        if self.binning {
            return self.apply_bin(request, model, own);
        }
        let (scale, multiple) = (model.latents.pixels, model.latents.pixel_multiple());
        if let Some(own) = own {
            let size = own.map(|pixels| pixels / multiple * multiple);
            if size.contains(&0) || size.iter().any(|&pixels| pixels > MAX_SIDE) {
                let expected = format!("{multiple} to {MAX_SIDE} pixels on each side, or a size to bring it to");
                return Err(Error::request("init-image", expected, format!("{} x {}", own[0], own[1])));
            }
            request.latent_size = size.map(|pixels| pixels / scale);
        }
        for (axis, name, pixels) in [(0, "height", self.height), (1, "width", self.width)] {
            let Some(pixels) = pixels else { continue };
            if pixels == 0 || !pixels.is_multiple_of(multiple) || pixels > MAX_SIDE {
                let expected = match multiple {
                    1 => format!("1 to {MAX_SIDE} pixels"),
                    _ => format!("a multiple of {multiple} pixels, at most {MAX_SIDE}"),
                };
                return Err(Error::request(name, expected, pixels));
            }
            set(request, axis, pixels, scale)?;
        }
        Ok(())
    }

    /// [`apply`](Self::apply) with a size of the model's list.
    fn apply_bin<D: AsRef<[u8]>>(
        &self,
        request: &mut Request,
        model: &Model<'_, D>,
        own: Option<[usize; 2]>,
    ) -> Result<()> {
        let scale = model.latents.pixels;
        let [height, width] = own.unwrap_or(request.latent_size.map(|n| n * scale));
        let asked = [self.height.unwrap_or(height), self.width.unwrap_or(width)];
        for (name, pixels) in [("height", asked[0]), ("width", asked[1])] {
            if !(1..=MAX_SIDE).contains(&pixels) {
                return Err(Error::request(name, format!("1 to {MAX_SIDE} pixels"), pixels));
            }
        }
        let Some(bin) = model.nearest_bin(asked) else {
            let expected = "a model with a list of the sizes that it was made for";
            return Err(Error::request("resolution-binning", expected, "one without"));
        };
        (0..2).try_for_each(|axis| set(request, axis, bin[axis], scale))?;
        request.picture_size = (bin != asked).then_some(asked);
        Ok(())
    }
}

/// Makes an axis of the latents as long as so many pixels, if it is not given.
fn set(request: &mut Request, axis: usize, pixels: usize, scale: usize) -> Result<()> {
    if request.latents.is_some() && request.latent_size[axis] != pixels / scale {
        let expected = format!("{} pixels, as the latents have", request.latent_size[axis] * scale);
        return Err(Error::request(["height", "width"][axis], expected, pixels));
    }
    request.latent_size[axis] = pixels / scale;
    Ok(())
}
