//! Latte (Ma et al. 2024, arXiv 2401.03048): a transformer over the patches of a video's frames that reads a timestep and a
//! caption's tokens (`LatteTransformer3DModel`).
//!
//! ```text
//! spatial block:   a block of PixArt, whose tokens attend to those of their frame, and which reads the caption
//! temporal block:  the same without the caption, whose tokens attend to those at their place in all frames
//! ```
//!
//! Blocks take turns. Before the first temporal one, tokens learn of which frame they are. Frames lie below each other in all
//! values, so that no token moves; see [`pixart`] for the rest.

use super::pixart::{self, Caption, Conditions};
use super::{DENOISER, Fields, builder::Builder, builder::Linear};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{Act, Add, Grid, Program, Reach, Role};
use serde_json::json;

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What a frame's tokens depend on; the number of layers is that of pairs of blocks.
    pub frame: pixart::Config,
    /// Frames that the model was made for.
    pub frames: u32,
}

impl Config {
    /// Reads the configuration of a component of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(class: &str, object: &Object) -> Result<Self> {
        if class != "LatteTransformer3DModel" {
            let what = format!("{DENOISER}/config.json: _class_name");
            return Err(Error::request(what, "LatteTransformer3DModel", format!("{class:?}")));
        }
        let fields = Fields::new(DENOISER, object);
        let of_class = [
            ("norm_type", json!("layer_norm"), json!("ada_norm_single")),
            ("activation_fn", json!("geglu"), json!("gelu-approximate")),
            ("norm_elementwise_affine", json!(true), json!(false)),
        ];
        for (field, default, supported) in of_class {
            fields.must_be(field, default, supported)?;
        }
        let required = |field| fields.count(field)?.ok_or_else(|| fields.error(field, "a number", "none"));
        let sample_size = fields.count_or("sample_size", 64)?;
        let in_channels = required("in_channels")?;
        let frame = pixart::Config {
            in_channels,
            out_channels: fields.count_or("out_channels", in_channels)?,
            heads: fields.count_or("num_attention_heads", 16)?,
            head_dim: fields.count_or("attention_head_dim", 88)?,
            layers: fields.count_or("num_layers", 1)?,
            patch: required("patch_size")?,
            sample_size,
            interpolation: (sample_size / 64).max(1) as f32,
            caption_features: required("caption_channels")?,
            sizes: false,
            attention_bias: fields.flag_or("attention_bias", false)?,
            norm_eps: fields.float_or("norm_eps", 1e-5)? as f32,
        };
        frame.check(&fields)?;
        Ok(Config { frame, frames: fields.count_or("video_length", 16)? })
    }
}

/// The denoiser: `(n, f, h, w, in_channels)`, timesteps, and captions with their lengths, to `(n, f h, w, out_channels)`.
pub fn lower(config: &Config, weights: &mut Weights) -> Program {
    let c = &config.frame;
    let d = c.dim() as usize;
    let (inputs, [sample, timestep, context, lengths]) = pixart::inputs(c, true);
    let mut builder = Builder::new(Role::Denoiser, DENOISER, inputs, weights);
    let b = &mut builder;

    let mut x = pixart::patches(b, c, sample, c.sample_size / c.patch);
    let time = pixart::time(b, c, timestep, None);
    let silu = super::blocks::activate(b, "adaln_single.silu", time, Act::Silu);
    let modulation = b.linear("adaln_single.linear", silu, &[6 * d, d], Linear::default());
    let features = pixart::mlp(b, "caption_projection", context, [c.caption_features as usize, d], Act::GeluTanh);
    let spatial = Conditions { modulation, caption: Some(Caption { features, lengths }) };
    let temporal = Conditions { modulation, caption: None };
    for block in 0..c.layers {
        x = pixart::transformer_block(b, c, &format!("transformer_blocks.{block}"), x, spatial, Reach::Frame);
        if block == 0 {
            // A frame alone is not told that it is the first.
            let frames = pixart::frames(b, "temp_pos_embed", x, c.dim(), 1.0, Grid::SeveralFrames);
            x = b.push("temp_pos_embed", Add { a: x, b: frames }.into());
        }
        let path = format!("temporal_transformer_blocks.{block}");
        x = pixart::transformer_block(b, c, &path, x, temporal, Reach::Place);
    }
    let out = pixart::pixels(b, c, x, time);
    builder.finish(out)
}
