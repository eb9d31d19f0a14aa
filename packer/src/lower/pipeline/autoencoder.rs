//! The autoencoder of pipelines that make images, of which both halves are packed where a checkpoint has them.

use super::fits;
use crate::lower::{VAE, vae};
use crate::source::diffusers::Component;
use crate::weight::Weights;
use aquatint::error::Result;
use aquatint::raw::format::meta::EncoderMeta;
use aquatint::raw::program::Program;

/// What became of the autoencoder.
pub(super) struct Images {
    pub config: vae::Config,
    /// Whether its checkpoint has the encoder too.
    encodes: bool,
}

impl Images {
    /// Appends the decoder, and the encoder if the checkpoint has it, of latents with as many channels as the `denoiser` of that
    /// folder has; and to `unused` what neither uses.
    ///
    /// # Errors
    /// [`Error::Request`](aquatint::Error::Request) naming the field, what is supported and what it is.
    pub fn lower(
        component: &Component,
        (denoiser, channels): (&str, u32),
        programs: &mut Vec<Program>,
        weights: &mut Weights,
        unused: &mut Vec<String>,
    ) -> Result<Self> {
        let config = vae::Config::read(VAE, &component.class, &component.config)?;
        fits(component, "latent_channels", config.latent_channels, denoiser, channels)?;
        let has = |key: &str| component.weights.has(key);
        programs.push(vae::lower(&config, &has, weights));
        let encodes = has("encoder.conv_in.weight");
        if encodes {
            config.check_encoder(&component.config)?;
            programs.push(vae::lower_encoder(&config, &has, weights));
        } else {
            unused.push(format!("{VAE}/quant_conv."));
        }
        Ok(Images { config, encodes })
    }

    /// What META says of the encoder.
    pub fn encoder(&self) -> Option<EncoderMeta> {
        self.encodes.then(|| self.config.encoder_meta())
    }
}
