//! `UNet2DModel`: the unconditional UNet of DDPM and DDIM on pixels (Ho et al. 2020), as diffusers saves it.
//!
//! Residual blocks of two convolutions, a shift per channel from the timestep between them; attention over all pixels at
//! some levels; every block of the way down is concatenated to one of the way up.

use super::builder::{Builder, Conv, Linear, Weight};
use super::{Fields, UNET};
use crate::source::diffusers::Object;
use aquatint::error::{Error, Result};
use aquatint::program::{Act, Columns, Dim, Input, InputKind, Op, Program, Role, Sampling, Value};
use serde_json::json;

/// What the builder needs of `unet/config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Channels of the image in, and of the result.
    pub in_channels: u32,
    out_channels: u32,
    /// Height and width it was made for.
    pub sample_size: u32,
    layers: u32,
    channels: Vec<u32>,
    /// Whether each level attends, on the way down and on the way up.
    attend_down: Vec<bool>,
    attend_up: Vec<bool>,
    attend_mid: bool,
    /// Features per head; a single head if absent.
    head_dim: Option<u32>,
    groups: u32,
    eps: f32,
    cos_first: bool,
    freq_shift: f32,
    /// Zero padding of the convolutions that halve the image.
    down: Sampling,
}

impl Config {
    /// Reads the configuration of a component of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported, and what was found.
    pub fn read(class: &str, object: &Object) -> Result<Self> {
        if class != "UNet2DModel" {
            return Err(Error::request("unet/config.json: _class_name", "UNet2DModel", class));
        }
        let fields = Fields::new(UNET, object);
        fields.only("act_fn", json!("silu"), json!("silu"))?;
        fields.only("time_embedding_type", json!("positional"), json!("positional"))?;
        fields.only("resnet_time_scale_shift", json!("default"), json!("default"))?;
        fields.only("downsample_type", json!("conv"), json!("conv"))?;
        fields.only("upsample_type", json!("conv"), json!("conv"))?;
        let scale = fields.float_or("mid_block_scale_factor", 1.0)?;
        if scale != 1.0 {
            return Err(fields.error("mid_block_scale_factor", 1, scale));
        }
        fields.only("center_input_sample", json!(false), json!(false))?;
        fields.only("mid_block_type", json!("UNetMidBlock2D"), json!("UNetMidBlock2D"))?;
        for field in [
            "time_embedding_dim",
            "class_embed_type",
            "num_class_embeds",
            "num_train_timesteps",
            "attn_norm_num_groups",
        ] {
            fields.only(field, json!(null), json!(null))?;
        }
        let channels = fields.counts("block_out_channels")?.unwrap_or_else(|| vec![224, 448, 672, 896]);
        let sides = |field: &str, plain: &str, attending: &str| -> Result<Vec<bool>> {
            let Some(list) = fields.texts(field)? else {
                return Err(fields.error(field, "a list of block classes", "none"));
            };
            if list.len() != channels.len() {
                return Err(fields.error(field, format!("{} blocks, one per level", channels.len()), list.len()));
            }
            let attends = |name: &&str| match *name {
                name if name == plain => Ok(false),
                name if name == attending => Ok(true),
                other => Err(fields.error(field, format!("{plain} or {attending}"), other)),
            };
            list.iter().map(attends).collect()
        };
        let config = Config {
            in_channels: fields.count_or("in_channels", 3)?,
            out_channels: fields.count_or("out_channels", 3)?,
            sample_size: fields.count_or("sample_size", 32)?,
            layers: fields.count_or("layers_per_block", 2)?,
            attend_down: sides("down_block_types", "DownBlock2D", "AttnDownBlock2D")?,
            attend_up: sides("up_block_types", "UpBlock2D", "AttnUpBlock2D")?,
            attend_mid: fields.flag_or("add_attention", true)?,
            // The class's default is 8, but a null in the file means one head.
            head_dim: if object.contains_key("attention_head_dim") {
                fields.count("attention_head_dim")?
            } else {
                Some(8)
            },
            groups: fields.count_or("norm_num_groups", 32)?,
            eps: fields.float_or("norm_eps", 1e-5)? as f32,
            cos_first: fields.flag_or("flip_sin_to_cos", true)?,
            freq_shift: fields.float_or("freq_shift", 0.0)? as f32,
            down: match fields.float_or("downsample_padding", 1.0)? {
                0.0 => Sampling::DownAfter,
                1.0 => Sampling::Down,
                other => return Err(fields.error("downsample_padding", "0 or 1", other)),
            },
            channels,
        };
        if config.in_channels != config.out_channels {
            return Err(fields.error(
                "out_channels",
                format!("{}, as in_channels", config.in_channels),
                config.out_channels,
            ));
        }
        if let Some(level) = config.channels.iter().find(|c| !c.is_multiple_of(config.groups)) {
            let expected = format!("channels in multiples of norm_num_groups {}", config.groups);
            return Err(fields.error("block_out_channels", expected, level));
        }
        if config.channels[0] < 4 || config.channels[0] % 2 != 0 || config.channels.len() > 8 {
            let expected = "at most 8 levels, the first of an even number of channels";
            return Err(fields.error("block_out_channels", expected, format!("{:?}", config.channels)));
        }
        if let Some(d) = config.head_dim
            && let Some(level) = config.channels.iter().find(|c| !c.is_multiple_of(d))
        {
            return Err(fields.error("attention_head_dim", format!("a divisor of {level} channels"), d));
        }
        let halvings = config.channels.len() as u32 - 1;
        if !config.sample_size.is_multiple_of(1 << halvings) {
            return Err(fields.error("sample_size", format!("a multiple of {}", 1 << halvings), config.sample_size));
        }
        Ok(config)
    }
}

/// The denoiser: `(n, h, w, in_channels)` and timesteps to `(n, h, w, out_channels)`. `has` tells whether the checkpoint
/// holds a tensor of that name; it decides between the old and the new names of attention.
pub fn lower(config: &Config, has: &dyn Fn(&str) -> bool, weights: &mut Vec<Weight>) -> Program {
    let c = config;
    let dims = vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(c.in_channels)];
    let inputs =
        vec![Input { kind: InputKind::Sample, dims }, Input { kind: InputKind::Timestep, dims: vec![Dim::Conditions] }];
    let (sample, timestep) = (Value(0), Value(1));
    let mut b = Builder::new(Role::Denoiser, UNET, inputs, weights);
    let channels: Vec<usize> = c.channels.iter().map(|&n| n as usize).collect();
    let (first, d) = (channels[0], 4 * channels[0]);

    let embedding =
        Op::TimestepEmbedding { t: timestep, dim: c.channels[0], cos_first: c.cos_first, shift: c.freq_shift };
    let t = b.push("time_proj", embedding);
    let with = Linear { act: Act::Silu, ..Linear::default() };
    let t = b.linear("time_embedding.linear_1", t, &[d, first], with);
    // Every reader wants the SiLU of the embedding.
    let time = b.linear("time_embedding.linear_2", t, &[d, d], with);

    let x = b.conv("conv_in", sample, [c.in_channels as usize, first], Conv::default());
    let mut unet = Unet { b, config: c, has, time, d };
    let mut skips = vec![(x, first)];
    let (mut x, mut width) = (x, first);
    for (level, &out) in channels.iter().enumerate() {
        let path = format!("down_blocks.{level}");
        for i in 0..c.layers {
            x = unet.resnet(&format!("{path}.resnets.{i}"), x, width, out);
            width = out;
            if c.attend_down[level] {
                x = unet.attention(&format!("{path}.attentions.{i}"), x, width);
            }
            skips.push((x, width));
        }
        if level + 1 < channels.len() {
            let with = Conv { sampling: c.down, ..Conv::default() };
            x = unet.b.conv(&format!("{path}.downsamplers.0.conv"), x, [width; 2], with);
            skips.push((x, width));
        }
    }
    x = unet.resnet("mid_block.resnets.0", x, width, width);
    if c.attend_mid {
        x = unet.attention("mid_block.attentions.0", x, width);
    }
    x = unet.resnet("mid_block.resnets.1", x, width, width);
    for (level, &out) in channels.iter().rev().enumerate() {
        let path = format!("up_blocks.{level}");
        for i in 0..=c.layers {
            let Some((skip, skip_width)) = skips.pop() else { unreachable!("one per block of the way down") };
            x = unet.b.push(&format!("{path}.concat.{i}"), Op::Concat { a: x, b: skip });
            x = unet.resnet(&format!("{path}.resnets.{i}"), x, width + skip_width, out);
            width = out;
            if c.attend_up[level] {
                x = unet.attention(&format!("{path}.attentions.{i}"), x, width);
            }
        }
        if level + 1 < channels.len() {
            let with = Conv { sampling: Sampling::Up, ..Conv::default() };
            x = unet.b.conv(&format!("{path}.upsamplers.0.conv"), x, [width; 2], with);
        }
    }
    let Unet { mut b, .. } = unet;
    x = b.group_norm("conv_norm_out", x, width, c.groups, c.eps, Act::Silu);
    x = b.conv("conv_out", x, [width, c.out_channels as usize], Conv::default());
    b.wide(x);
    b.finish(x)
}

/// The builder, with what all blocks share.
struct Unet<'a> {
    b: Builder<'a>,
    config: &'a Config,
    has: &'a dyn Fn(&str) -> bool,
    /// SiLU of the embedding of the timestep, and its features.
    time: Value,
    d: usize,
}

impl Unet<'_> {
    /// A residual block from `i` to `o` channels.
    fn resnet(&mut self, path: &str, x: Value, i: usize, o: usize) -> Value {
        let (b, c) = (&mut self.b, self.config);
        let shift = b.linear(&format!("{path}.time_emb_proj"), self.time, &[o, self.d], Linear::default());
        let normed = b.group_norm(&format!("{path}.norm1"), x, i, c.groups, c.eps, Act::Silu);
        let with = Conv { shift: Some(Columns { value: shift, offset: 0 }), ..Conv::default() };
        let hidden = b.conv(&format!("{path}.conv1"), normed, [i, o], with);
        let normed = b.group_norm(&format!("{path}.norm2"), hidden, o, c.groups, c.eps, Act::Silu);
        let skip =
            if i == o { x } else { b.linear(&format!("{path}.conv_shortcut"), x, &[o, i, 1, 1], Linear::default()) };
        b.conv(&format!("{path}.conv2"), normed, [o, o], Conv { residual: Some(skip), ..Conv::default() })
    }

    /// Attention over all pixels.
    fn attention(&mut self, path: &str, x: Value, d: usize) -> Value {
        let (b, c) = (&mut self.b, self.config);
        let names = if (self.has)(&format!("{path}.query.weight")) {
            ["query", "key", "value", "proj_attn"]
        } else {
            ["to_q", "to_k", "to_v", "to_out.0"]
        };
        let [to_q, to_k, to_v, to_out] = names.map(|name| format!("{path}.{name}"));
        let normed = b.group_norm(&format!("{path}.group_norm"), x, d, c.groups, c.eps, Act::None);
        let [q, k, v] = [to_q, to_k, to_v].map(|name| b.linear(&name, normed, &[d, d], Linear::default()));
        let head = c.head_dim.unwrap_or(d as u32);
        let heads = d as u32 / head;
        let attended = b.push(path, Op::Attention { q, k, v, heads, scale: (head as f32).sqrt().recip() });
        b.linear(&to_out, attended, &[d, d], Linear { residual: Some(x), ..Linear::default() })
    }
}
