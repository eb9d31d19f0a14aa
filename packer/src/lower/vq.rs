//! `VQModel`: the decoder of a vector-quantized autoencoder (Rombach et al. 2022): latents, as the sampler leaves them,
//! are snapped to the nearest of the codebook's vectors, pixel by pixel, and decoded to an image in about -1..1.
//!
//! ```text
//! z / scaling_factor -> nearest vector -> post_quant_conv 1x1 -> the decoder of super::vae
//! ```
//!
//! `scaling_factor` is what the configuration says. diffusers divides by it too, and its default is 0.18215; latent
//! diffusion itself does not scale the latents of these models, and checkpoints in its own layout get 1.

use super::Fields;
use super::builder::Linear;
use super::vae;
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{Program, Role};
use serde_json::json;

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What it shares with other autoencoders.
    pub shared: vae::Config,
    /// Vectors of the codebook.
    pub vectors: u32,
    /// Features of a vector: channels of the latents that are sampled.
    pub vector_dim: u32,
}

impl Config {
    /// Reads the configuration of `component`, which is of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(component: &'static str, class: &str, object: &Object) -> Result<Self> {
        if class != "VQModel" {
            let what = format!("{component}/config.json: _class_name");
            return Err(Error::request(what, "VQModel", format!("{class:?}")));
        }
        let fields = Fields::new(component, object);
        fields.must_be("norm_type", json!("group"), json!("group"))?;
        let shared = vae::Config::shared(component, &fields, 3)?;
        Ok(Config {
            vectors: fields.count_or("num_vq_embeddings", 256)?,
            vector_dim: fields.count_or("vq_embed_dim", shared.latent_channels)?,
            shared,
        })
    }
}

/// The decoder: `(n, h, w, vector_dim)` to `(n, h * pixels, w * pixels, 3)`; `has` as for [`vae::lower`].
pub fn lower(config: &Config, has: &dyn Fn(&str) -> bool, weights: &mut Weights) -> Program {
    let Config { shared, vectors, vector_dim } = config;
    let (latent, d) = (shared.latent_channels as usize, *vector_dim as usize);
    let mut b = shared.builder(Role::VaeDecoder, *vector_dim, weights);
    let x = vae::unscale(shared, &mut b);
    let x = b.vector_quantize("quantize", "quantize.embedding", x, *vectors as usize, d);
    b.wide(x);
    let x = b.linear("post_quant_conv", x, &[latent, d, 1, 1], Linear::default());
    b.wide(x);
    vae::decode(shared, b, x, has)
}
