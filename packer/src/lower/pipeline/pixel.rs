//! `DDPMPipeline` and `DDIMPipeline`: a UNet on pixels.

use super::meta;
use crate::lower::{Lowered, UNET, unet2d};
use crate::source::diffusers::Model;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::model::PICTURE_CHANNELS;
use aquatint::raw::format::meta::PipelineMeta;

pub(super) fn lower(model: &Model) -> Result<Lowered> {
    let unet = model.component(UNET);
    let config = unet2d::Config::read(UNET, &unet.class, &unet.config)?;
    if !PICTURE_CHANNELS.contains(&(config.in_channels as usize)) {
        let expected = "1, 3 or 4 for pixels that are grey, RGB or RGBA";
        return Err(Error::request(format!("{UNET}/config.json: in_channels"), expected, config.in_channels));
    }
    let mut weights = Weights::new();
    let denoiser = unet2d::lower(&config, &|key| unet.weights.has(key), &mut weights);
    let pipeline = PipelineMeta {
        // The defaults of DDIMPipeline.__call__ and DDPMPipeline.__call__.
        steps: if model.class == "DDIMPipeline" { 50 } else { 1000 },
        latent_multiple: config.levels.multiple(),
        ..meta(model, config.in_channels, config.sample_size, 1)?
    };
    Ok(Lowered { programs: vec![denoiser], weights, files: Vec::new(), pipeline, unused: Vec::new() })
}
