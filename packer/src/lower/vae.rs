//! The decoder of `AutoencoderKL`: latents, as the sampler leaves them, to an image in about -1..1, not clamped.
//!
//! ```text
//! z / scaling_factor + shift_factor -> post_quant_conv 1x1 -> conv_in
//!   -> resnet, attention, resnet -> per up block: resnets, 2x upsampling with a convolution (but not the last)
//!   -> group norm, silu, conv_out
//! resnet: x + conv(silu(norm(conv(silu(norm(x))))))     x through a 1x1 convolution where channels change
//! ```
//!
//! The encoder is not lowered. The residual stream grows large in some trained models, so every value on it is wide.
//! Checkpoints older than diffusers 0.15 call the attention's layers `query`, `key`, `value` and `proj_attn`.

use super::builder::{Builder, Conv, Linear, Weight};
use super::{Fields, VAE};
use crate::source::diffusers::Object;
use aquatint::error::{Error, Result};
use aquatint::program::{Act, Dim, Input, InputKind, Op, Program, Role, Sampling, Value};
use serde_json::json;

/// Epsilon of every norm of the decoder.
const EPS: f32 = 1e-6;
/// Channels of an image.
const IMAGE_CHANNELS: u32 = 3;

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
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
    /// Whether there is a 1x1 convolution before the decoder.
    pub post_quant_conv: bool,
    /// Whether the middle has attention.
    pub mid_attention: bool,
}

impl Config {
    /// Reads the configuration of a component of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(class: &str, object: &Object) -> Result<Self> {
        if class != "AutoencoderKL" {
            return Err(Error::request(
                format!("{VAE}/config.json: _class_name"),
                "AutoencoderKL",
                format!("{class:?}"),
            ));
        }
        let fields = Fields::new(VAE, object);
        fields.only("act_fn", json!("silu"), json!("silu"))?;
        fields.only("out_channels", json!(IMAGE_CHANNELS), json!(IMAGE_CHANNELS))?;
        for field in ["latents_mean", "latents_std"] {
            fields.only(field, json!(null), json!(null))?;
        }
        let channels = fields.counts("block_out_channels")?.unwrap_or_else(|| vec![64]);
        let blocks = vec!["UpDecoderBlock2D"; channels.len()];
        fields.only("up_block_types", json!(["UpDecoderBlock2D"]), json!(blocks))?;
        let config = Config {
            latent_channels: fields.count_or("latent_channels", 4)?,
            layers: fields.count_or("layers_per_block", 1)?,
            groups: fields.count_or("norm_num_groups", 32)?,
            scaling_factor: fields.float_or("scaling_factor", 0.18215)?,
            shift_factor: fields.float_or("shift_factor", 0.0)?,
            post_quant_conv: fields.flag_or("use_post_quant_conv", true)?,
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

    /// Pixels of the image per latent pixel, per axis.
    pub fn pixels_per_latent(&self) -> u32 {
        1 << (self.channels.len() - 1)
    }
}

/// The decoder: `(n, h, w, latent_channels)` to `(n, h * pixels, w * pixels, 3)`. `has` tells whether the checkpoint
/// holds a tensor of that name; it decides between the old and the new names of attention.
pub fn lower(config: &Config, has: &dyn Fn(&str) -> bool, weights: &mut Vec<Weight>) -> Program {
    let c = config;
    let latent = c.latent_channels as usize;
    let dims = vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(c.latent_channels)];
    let inputs = vec![Input { kind: InputKind::Sample, dims }];
    let mut b = Builder::new(Role::VaeDecoder, VAE, inputs, weights);

    let (mul, add) = ((1.0 / c.scaling_factor) as f32, c.shift_factor as f32);
    let mut x = b.push("scaling_factor", Op::Pointwise { x: Value(0), act: Act::None, mul, add });
    b.wide(x);
    if c.post_quant_conv {
        x = b.linear("post_quant_conv", x, &[latent, latent, 1, 1], Linear::default());
        b.wide(x);
    }
    let mut levels = c.channels.iter().rev().map(|&n| n as usize).peekable();
    let mut width = levels.peek().copied().unwrap_or(latent);
    x = b.conv("decoder.conv_in", x, [latent, width], Conv::default());
    b.wide(x);

    let mut decoder = Decoder { b, groups: c.groups };
    x = decoder.resnet("decoder.mid_block.resnets.0", x, width, width);
    if c.mid_attention {
        x = decoder.attention("decoder.mid_block.attentions.0", x, width, has);
    }
    x = decoder.resnet("decoder.mid_block.resnets.1", x, width, width);
    for (level, channels) in levels.enumerate() {
        let path = format!("decoder.up_blocks.{level}");
        for i in 0..=c.layers {
            x = decoder.resnet(&format!("{path}.resnets.{i}"), x, width, channels);
            width = channels;
        }
        if level + 1 < c.channels.len() {
            let up = Conv { sampling: Sampling::Up, ..Conv::default() };
            x = decoder.b.conv(&format!("{path}.upsamplers.0.conv"), x, [width; 2], up);
            decoder.b.wide(x);
        }
    }
    let Decoder { mut b, groups } = decoder;
    x = b.group_norm("decoder.conv_norm_out", x, width, groups, EPS, Act::Silu);
    x = b.conv("decoder.conv_out", x, [width, IMAGE_CHANNELS as usize], Conv::default());
    b.wide(x);
    b.finish(x)
}

/// The builder, with what all blocks share.
struct Decoder<'a> {
    b: Builder<'a>,
    groups: u32,
}

impl Decoder<'_> {
    /// A residual block from `i` to `o` channels.
    fn resnet(&mut self, path: &str, x: Value, i: usize, o: usize) -> Value {
        let b = &mut self.b;
        let normed = b.group_norm(&format!("{path}.norm1"), x, i, self.groups, EPS, Act::Silu);
        let hidden = b.conv(&format!("{path}.conv1"), normed, [i, o], Conv::default());
        let normed = b.group_norm(&format!("{path}.norm2"), hidden, o, self.groups, EPS, Act::Silu);
        let mut skip = x;
        if i != o {
            skip = b.linear(&format!("{path}.conv_shortcut"), x, &[o, i, 1, 1], Linear::default());
            b.wide(skip);
        }
        let y = b.conv(&format!("{path}.conv2"), normed, [o, o], Conv { residual: Some(skip), ..Conv::default() });
        b.wide(y)
    }

    /// Attention over all pixels with a single head of `d` features.
    fn attention(&mut self, path: &str, x: Value, d: usize, has: &dyn Fn(&str) -> bool) -> Value {
        let b = &mut self.b;
        let names = if has(&format!("{path}.query.weight")) {
            ["query", "key", "value", "proj_attn"]
        } else {
            ["to_q", "to_k", "to_v", "to_out.0"]
        };
        let [to_q, to_k, to_v, to_out] = names.map(|name| format!("{path}.{name}"));
        let normed = b.group_norm(&format!("{path}.group_norm"), x, d, self.groups, EPS, Act::None);
        let [q, k, v] = [to_q, to_k, to_v].map(|name| b.linear(&name, normed, &[d, d], Linear::default()));
        let attended = b.push(path, Op::Attention { q, k, v, heads: 1, scale: (d as f32).sqrt().recip() });
        let with = Linear { residual: Some(x), ..Linear::default() };
        let y = b.linear(&to_out, attended, &[d, d], with);
        b.wide(y)
    }
}
