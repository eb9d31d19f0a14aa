//! `UNet2DModel`: the unconditional UNet of DDPM, DDIM and latent diffusion (Ho et al. 2020, Rombach et al. 2022), as
//! diffusers saves it.
//!
//! One field is not diffusers': `num_attention_heads` gives the number of heads at every level, whatever its channels,
//! where diffusers only has one size for all heads. LSUN-churches of latent diffusion needs it.

use super::Fields;
use super::blocks::Blocks;
use super::builder::Builder;
use super::unet::{Change, Level, Levels, TimeConfig};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{ConvStride, Dim, Input, InputKind, Program, Role, Value};
use serde_json::json;

/// What the builder needs of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    component: &'static str,
    /// Channels of the image in, and of the result.
    pub in_channels: u32,
    /// Height and width it was made for.
    pub sample_size: [u32; 2],
    /// Channels and blocks of each level.
    pub levels: Levels,
    heads: Heads,
    groups: u32,
    /// Groups of the norm before the middle's attention, if the configuration says.
    mid_groups: Option<u32>,
    eps: f32,
    time: TimeConfig,
}

/// How channels are divided between heads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Heads {
    One,
    /// Features per head.
    Of(u32),
    Number(u32),
}

impl Heads {
    /// Heads for `channels`; `None` if they cannot be divided.
    fn count(self, channels: u32) -> Option<u32> {
        match self {
            Heads::One => Some(1),
            Heads::Of(d) => channels.is_multiple_of(d).then_some(channels / d),
            Heads::Number(n) => channels.is_multiple_of(n).then_some(n),
        }
    }
}

impl Config {
    /// Reads the configuration of `component`, which is of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported, and what was found.
    pub fn read(component: &'static str, class: &str, object: &Object) -> Result<Self> {
        if class != "UNet2DModel" {
            return Err(Error::request(format!("{component}/config.json: _class_name"), "UNet2DModel", class));
        }
        let fields = Fields::new(component, object);
        fields.must_be("act_fn", json!("silu"), json!("silu"))?;
        fields.must_be("time_embedding_type", json!("positional"), json!("positional"))?;
        fields.must_be("center_input_sample", json!(false), json!(false))?;
        fields.must_be("mid_block_type", json!("UNetMidBlock2D"), json!("UNetMidBlock2D"))?;
        fields.must_be_one("mid_block_scale_factor")?;
        for field in ["time_embedding_dim", "class_embed_type", "num_class_embeds", "num_train_timesteps"] {
            fields.must_be(field, json!(null), json!(null))?;
        }
        let channels = fields.counts("block_out_channels")?.unwrap_or_else(|| vec![224, 448, 672, 896]);
        let change = |field: &str| match fields.text_or(field, "conv")? {
            "conv" => Ok(Change::Conv),
            "resnet" => Ok(Change::Resnet),
            other => Err(fields.error(field, "conv or resnet", other)),
        };
        let down = blocks(&fields, "down", channels.len(), change("downsample_type")?)?;
        let up = blocks(&fields, "up", channels.len(), change("upsample_type")?)?;
        // The class's default is 8, but a null in the file means one head.
        let head_dim =
            if object.contains_key("attention_head_dim") { fields.count("attention_head_dim")? } else { Some(8) };
        let heads = match (fields.count("num_attention_heads")?, head_dim) {
            (Some(heads), _) => Heads::Number(heads),
            (None, Some(d)) => Heads::Of(d),
            (None, None) => Heads::One,
        };
        let in_channels = fields.count_or("in_channels", 3)?;
        let out_channels = fields.count_or("out_channels", 3)?;
        let config = Config {
            component,
            in_channels,
            sample_size: fields.size("sample_size")?.unwrap_or([32; 2]),
            heads,
            groups: fields.count_or("norm_num_groups", 32)?,
            mid_groups: fields.count("attn_norm_num_groups")?,
            eps: fields.float_or("norm_eps", 1e-5)? as f32,
            time: TimeConfig::read(&fields, channels[0])?,
            levels: Levels {
                layers: vec![fields.count_or("layers_per_block", 2)?; channels.len()],
                down,
                up,
                attend_mid: fields.flag_or("add_attention", true)?,
                sampling: match fields.float_or("downsample_padding", 1.0)? {
                    0.0 => ConvStride::DownPadEnd,
                    1.0 => ConvStride::Down,
                    other => return Err(fields.error("downsample_padding", "0 or 1", other)),
                },
                // diffusers' class cannot be called with other sizes.
                any_size: false,
                channels,
            },
        };
        if in_channels != out_channels {
            return Err(fields.error("out_channels", format!("{in_channels}, as in_channels"), out_channels));
        }
        config.levels.check(&fields, config.groups, config.sample_size)?;
        if let Some(level) = config.levels.channels.iter().find(|&&c| heads.count(c).is_none()) {
            let (field, got) = match heads {
                Heads::Number(n) => ("num_attention_heads", n),
                Heads::Of(n) => ("attention_head_dim", n),
                Heads::One => unreachable!("one head fits all"),
            };
            return Err(fields.error(field, format!("a divisor of {level} channels"), got));
        }
        if let Some(groups) = config.mid_groups
            && let Some(mid) = config.levels.channels.last().filter(|c| !c.is_multiple_of(groups))
        {
            return Err(fields.error("attn_norm_num_groups", format!("a divisor of {mid} channels"), groups));
        }
        Ok(config)
    }
}

/// The levels of one way, from its block classes; `change` is what the field of that name says.
fn blocks(fields: &Fields, way: &str, count: usize, change: Change) -> Result<Vec<Level>> {
    let field = format!("{way}_block_types");
    let Some(list) = fields.texts(&field)? else {
        return Err(fields.error(&field, "a list of block classes", "none"));
    };
    if list.len() != count {
        return Err(fields.error(&field, format!("{count} blocks, one per level"), list.len()));
    }
    let names = match way {
        "down" => ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"],
        _ => ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    };
    let level = |name: &&str| match names.iter().position(|known| known == name) {
        Some(0) => Ok(Level { attend: false, change }),
        Some(1) => Ok(Level { attend: true, change }),
        Some(2) => Ok(Level { attend: false, change: Change::Resnet }),
        _ => Err(fields.error(&field, format!("{}, {} or {}", names[0], names[1], names[2]), name)),
    };
    list.iter().map(level).collect()
}

/// The denoiser: `(n, h, w, in_channels)` and timesteps to `(n, h, w, in_channels)`. `has` tells whether the checkpoint
/// holds a tensor of that name. It decides between the old and the new names of attention, and where configurations are
/// not plain: blocks without attention are resampled by a convolution in diffusers, whatever the configuration says of
/// the others, and the middle has a norm before attention unless blocks scale and shift.
pub fn lower(config: &Config, has: &dyn Fn(&str) -> bool, weights: &mut Weights) -> Program {
    let c = config;
    let dims = vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(c.in_channels)];
    let inputs =
        vec![Input { kind: InputKind::Sample, dims }, Input { kind: InputKind::Timestep, dims: vec![Dim::Conditions] }];
    let (sample, timestep) = (Value(0), Value(1));
    let mut b = Builder::new(Role::Denoiser, c.component, inputs, weights);
    let time = c.time.lower(&mut b, timestep, None);
    let mut blocks = Blocks { b, groups: c.groups, eps: c.eps, time: Some(time), wide: false, has };
    let mut levels = c.levels.clone();
    for (way, levels) in [("down", &mut levels.down), ("up", &mut levels.up)] {
        for (i, level) in levels.iter_mut().enumerate() {
            if has(&format!("{way}_blocks.{i}.{way}samplers.0.conv.weight")) {
                level.change = Change::Conv;
            }
        }
    }
    let plain = !c.time.scale_shift || has("mid_block.attentions.0.group_norm.weight");
    let mid_groups = c.mid_groups.or(plain.then_some(c.groups));
    let channels = [c.in_channels as usize; 2];
    let output = levels.lower(&mut blocks, sample, channels, &mut |blocks, site, x| {
        let groups = if site.level.is_some() { Some(c.groups) } else { mid_groups };
        let heads = c.heads.count(site.channels as u32).unwrap_or(1);
        blocks.attention(site.path, x, site.channels, heads, groups)
    });
    blocks.b.finish(output)
}
