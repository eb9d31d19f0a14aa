//! `AutoencoderKL`: the decoder, latents as the sampler leaves them to an image in about -1..1, not clamped; and the
//! encoder, an image in -1..1 to mean and log variance of its latents, side by side.
//!
//! ```text
//! decoder: z / scaling_factor + shift_factor -> post_quant_conv 1x1 -> conv_in
//!   -> resnet, attention, resnet -> per up block: resnets, 2x upsampling with a convolution (but not the last)
//!   -> group norm, silu, conv_out
//! encoder: conv_in -> per down block: resnets, a convolution of stride 2 (but not the last)
//!   -> resnet, attention, resnet -> group norm, silu, conv_out -> quant_conv 1x1
//! ```
//!
//! The residual stream grows large in some trained models, so every value on it is wide. [`super::vq`] has the same
//! decoder.

use super::Fields;
use super::blocks::Blocks;
use super::builder::{Builder, Conv, Linear};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::EncoderMeta;
use aquatint::raw::program::{Act, ConvStride, Dim, Input, InputKind, Op, Pointwise, Program, Role, Value};
use serde_json::json;

/// Epsilon of every norm.
const EPS: f32 = 1e-6;
/// Channels of an image.
const IMAGE_CHANNELS: u32 = 3;

/// What the programs depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub(super) component: &'static str,
    /// Channels of the latents.
    pub latent_channels: u32,
    /// Channels per level, finest first.
    pub channels: Vec<u32>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers: u32,
    /// Groups of every norm.
    pub groups: u32,
    /// Divides the latents.
    pub scaling_factor: f64,
    /// Added to the latents afterwards.
    pub shift_factor: f64,
    /// Whether there is a 1x1 convolution after the encoder.
    pub quant_conv: bool,
    /// Whether there is a 1x1 convolution before the decoder.
    pub post_quant_conv: bool,
    /// Whether the middle has attention.
    pub mid_attention: bool,
}

impl Config {
    /// Reads the configuration of `component`, which is of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(component: &'static str, class: &str, object: &Object) -> Result<Self> {
        if class != "AutoencoderKL" {
            let what = format!("{component}/config.json: _class_name");
            return Err(Error::request(what, "AutoencoderKL", format!("{class:?}")));
        }
        let fields = Fields::new(component, object);
        for field in ["latents_mean", "latents_std"] {
            fields.must_be(field, json!(null), json!(null))?;
        }
        Ok(Config {
            shift_factor: fields.float_or("shift_factor", 0.0)?,
            quant_conv: fields.flag_or("use_quant_conv", true)?,
            post_quant_conv: fields.flag_or("use_post_quant_conv", true)?,
            ..Config::shared(component, &fields, 4)?
        })
    }

    /// What the configurations of all autoencoders have; `latents` is the class's default of their channels.
    pub(super) fn shared(component: &'static str, fields: &Fields, latents: u32) -> Result<Self> {
        fields.must_be("act_fn", json!("silu"), json!("silu"))?;
        fields.must_be("out_channels", json!(IMAGE_CHANNELS), json!(IMAGE_CHANNELS))?;
        let channels = fields.counts("block_out_channels")?.unwrap_or_else(|| vec![64]);
        let blocks = |name| vec![name; channels.len()];
        fields.must_be("up_block_types", json!(["UpDecoderBlock2D"]), json!(blocks("UpDecoderBlock2D")))?;
        let config = Config {
            component,
            latent_channels: fields.count_or("latent_channels", latents)?,
            layers: fields.count_or("layers_per_block", 1)?,
            groups: fields.count_or("norm_num_groups", 32)?,
            scaling_factor: fields.float_or("scaling_factor", 0.18215)?,
            shift_factor: 0.0,
            quant_conv: true,
            post_quant_conv: true,
            mid_attention: fields.flag_or("mid_block_add_attention", true)?,
            channels,
        };
        if config.scaling_factor <= 0.0 {
            return Err(fields.error("scaling_factor", "a positive number", config.scaling_factor));
        }
        if let Some(level) = config.channels.iter().find(|c| !c.is_multiple_of(config.groups)) {
            let expected = format!("channels in multiples of norm_num_groups {}", config.groups);
            return Err(fields.error("block_out_channels", expected, level));
        }
        if config.channels.len() > 8 {
            return Err(fields.error("block_out_channels", "at most 8 levels", config.channels.len()));
        }
        Ok(config)
    }

    /// Refuses an encoder that is not the decoder's mirror image; `object` is the configuration that this one was read
    /// from.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn check_encoder(&self, object: &Object) -> Result<()> {
        let fields = Fields::new(self.component, object);
        fields.must_be("in_channels", json!(IMAGE_CHANNELS), json!(IMAGE_CHANNELS))?;
        let blocks = json!(vec!["DownEncoderBlock2D"; self.channels.len()]);
        fields.must_be("down_block_types", json!(["DownEncoderBlock2D"]), blocks)
    }

    /// Pixels of the image per latent pixel, per axis.
    pub fn pixels_per_latent(&self) -> u32 {
        1 << (self.channels.len() - 1)
    }

    /// What the encoder's result is multiplied with.
    pub fn encoder_meta(&self) -> EncoderMeta {
        EncoderMeta { scale: self.scaling_factor as f32, shift: self.shift_factor as f32 }
    }

    pub(super) fn builder<'a>(&self, role: Role, channels: u32, weights: &'a mut Weights) -> Builder<'a> {
        let dims = vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(channels)];
        Builder::new(role, self.component, vec![Input { kind: InputKind::Sample, dims }], weights)
    }
}

/// The decoder: `(n, h, w, latent_channels)` to `(n, h * pixels, w * pixels, 3)`. `has` tells whether the checkpoint
/// holds a tensor of that name; it decides between the old and the new names of attention.
pub fn lower(config: &Config, has: &dyn Fn(&str) -> bool, weights: &mut Weights) -> Program {
    let mut b = config.builder(Role::VaeDecoder, config.latent_channels, weights);
    let mut x = unscale(config, &mut b);
    if config.post_quant_conv {
        let latent = config.latent_channels as usize;
        x = b.linear("post_quant_conv", x, &[latent, latent, 1, 1], Linear::default());
        b.wide(x);
    }
    decode(config, b, x, has)
}

/// The input divided by the scaling factor and shifted.
pub(super) fn unscale(config: &Config, b: &mut Builder) -> Value {
    let (mul, add) = ((1.0 / config.scaling_factor) as f32, config.shift_factor as f32);
    let x = b.push("scaling_factor", Op::Pointwise(Pointwise { x: Value(0), act: Act::None, mul, add }));
    b.wide(x)
}

/// The rest of the decoder, from the convolution at its beginning.
pub(super) fn decode(c: &Config, mut b: Builder, x: Value, has: &dyn Fn(&str) -> bool) -> Program {
    let mut levels = c.channels.iter().rev().map(|&n| n as usize).peekable();
    let latent = c.latent_channels as usize;
    let mut width = levels.peek().copied().unwrap_or(latent);
    let mut x = b.conv("decoder.conv_in", x, [latent, width], Conv::default());
    b.wide(x);
    let mut blocks = Blocks { b, groups: c.groups, eps: EPS, time: None, wide: true, has };
    x = middle(c, &mut blocks, "decoder.mid_block", x, width);
    for (level, channels) in levels.enumerate() {
        let path = format!("decoder.up_blocks.{level}");
        for i in 0..=c.layers {
            x = blocks.resnet(&format!("{path}.resnets.{i}"), x, [width, channels]);
            width = channels;
        }
        if level + 1 < c.channels.len() {
            let up = Conv { sampling: ConvStride::Up, ..Conv::default() };
            x = blocks.b.conv(&format!("{path}.upsamplers.0.conv"), x, [width; 2], up);
            blocks.b.wide(x);
        }
    }
    let output = blocks.finish("decoder.", x, [width, IMAGE_CHANNELS as usize]);
    blocks.b.finish(output)
}

/// The encoder: `(n, h, w, 3)` to `(n, h / pixels, w / pixels, 2 latent_channels)`, means then log variances; `has` as
/// for [`lower`].
pub fn lower_encoder(config: &Config, has: &dyn Fn(&str) -> bool, weights: &mut Weights) -> Program {
    let c = config;
    let mut b = c.builder(Role::VaeEncoder, IMAGE_CHANNELS, weights);
    let mut width = c.channels[0] as usize;
    let mut x = b.conv("encoder.conv_in", Value(0), [IMAGE_CHANNELS as usize, width], Conv::default());
    b.wide(x);
    let mut blocks = Blocks { b, groups: c.groups, eps: EPS, time: None, wide: true, has };
    for (level, &channels) in c.channels.iter().enumerate() {
        let path = format!("encoder.down_blocks.{level}");
        for i in 0..c.layers {
            x = blocks.resnet(&format!("{path}.resnets.{i}"), x, [width, channels as usize]);
            width = channels as usize;
        }
        if level + 1 < c.channels.len() {
            let down = Conv { sampling: ConvStride::DownPadEnd, ..Conv::default() };
            x = blocks.b.conv(&format!("{path}.downsamplers.0.conv"), x, [width; 2], down);
            blocks.b.wide(x);
        }
    }
    x = middle(c, &mut blocks, "encoder.mid_block", x, width);
    let moments = 2 * c.latent_channels as usize;
    let mut output = blocks.finish("encoder.", x, [width, moments]);
    if c.quant_conv {
        output = blocks.b.linear("quant_conv", output, &[moments, moments, 1, 1], Linear::default());
        blocks.b.wide(output);
    }
    blocks.b.finish(output)
}

/// Residual block, attention with a single head if there is any, residual block.
fn middle(c: &Config, blocks: &mut Blocks, path: &str, x: Value, width: usize) -> Value {
    let mut x = blocks.resnet(&format!("{path}.resnets.0"), x, [width; 2]);
    if c.mid_attention {
        x = blocks.attention(&format!("{path}.attentions.0"), x, width, 1, Some(c.groups));
    }
    blocks.resnet(&format!("{path}.resnets.1"), x, [width; 2])
}
