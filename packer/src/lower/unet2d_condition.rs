//! `UNet2DConditionModel`: the UNet of Stable Diffusion 1 and XL and of class-conditional latent diffusion (Rombach et al.
//! 2022, Podell et al. 2023), as diffusers saves it.
//!
//! Its attention is a transformer that also reads a context: features of a prompt's tokens, or one vector for a class.
//! SDXL adds an embedding of a vector for the whole prompt and of a few numbers to that of the timestep.
//!
//! The field `attention_head_dim` holds *numbers of heads*; diffusers keeps the misnomer for old files' sake.

use super::Fields;
use super::blocks::Blocks;
use super::builder::{Builder, Linear};
use super::transformer2d::Transformer;
use super::unet::{Change, Level, Levels, TimeConfig};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{
    Act, Concat, ConvStride, Dim, Input, InputKind, Op, Program, Role, TimestepEmbedding, Value,
};
use serde_json::json;

/// Fields that must have one value, which is also what an absent one means.
fn fixed() -> [(&'static str, serde_json::Value); 19] {
    [
        ("act_fn", json!("silu")),
        ("attention_type", json!("default")),
        ("center_input_sample", json!(false)),
        ("class_embed_type", json!(null)),
        ("class_embeddings_concat", json!(false)),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("cross_attention_norm", json!(null)),
        ("dual_cross_attention", json!(false)),
        ("encoder_hid_dim", json!(null)),
        ("encoder_hid_dim_type", json!(null)),
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("num_attention_heads", json!(null)),
        ("num_class_embeds", json!(null)),
        ("resnet_skip_time_act", json!(false)),
        ("time_cond_proj_dim", json!(null)),
        ("time_embedding_act_fn", json!(null)),
        ("time_embedding_type", json!("positional")),
        ("timestep_post_act", json!(null)),
    ]
}

/// What the builder needs of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    component: &'static str,
    /// Channels of the latents in, and of the result.
    pub in_channels: u32,
    /// Height and width it was made for.
    pub sample_size: [u32; 2],
    /// Features of the context.
    pub context: u32,
    /// The vector and numbers it reads beside the context, if any.
    pub added: Option<Added>,
    /// Channels and blocks of each level.
    pub levels: Levels,
    /// Heads per level.
    heads: Vec<u32>,
    /// Blocks of each transformer, per level.
    depth: Vec<u32>,
    linear_projection: bool,
    groups: u32,
    eps: f32,
    time: TimeConfig,
}

/// A vector and numbers, whose embedding is added to the timestep's (`addition_embed_type` `text_time`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// Features that each number is embedded in.
    pub number_dim: u32,
    /// Features of the vector and all numbers.
    pub features: u32,
}

impl Added {
    /// How many numbers there are beside a vector of `pooled` features.
    ///
    /// # Errors
    /// [`Error::Request`] if it is no whole number.
    pub fn numbers(&self, component: &str, pooled: u32) -> Result<u32> {
        match self.features.checked_sub(pooled) {
            Some(rest) if rest > 0 && rest.is_multiple_of(self.number_dim) => Ok(rest / self.number_dim),
            _ => {
                let expected = format!("{pooled} for the text and a multiple of {}", self.number_dim);
                let what = format!("{component}/config.json: projection_class_embeddings_input_dim");
                Err(Error::request(what, expected, self.features))
            }
        }
    }
}

impl Config {
    /// Reads the configuration of `component`, which is of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported, and what was found.
    pub fn read(component: &'static str, class: &str, object: &Object) -> Result<Self> {
        if class != "UNet2DConditionModel" {
            let what = format!("{component}/config.json: _class_name");
            return Err(Error::request(what, "UNet2DConditionModel", class));
        }
        let fields = Fields::new(component, object);
        for (field, value) in fixed() {
            fields.must_be(field, value.clone(), value)?;
        }
        for field in ["time_embedding_dim", "reverse_transformer_layers_per_block"] {
            fields.must_be(field, json!(null), json!(null))?;
        }
        for field in ["mid_block_scale_factor", "resnet_out_scale_factor"] {
            fields.must_be_one(field)?;
        }
        for field in ["only_cross_attention", "mid_block_only_cross_attention"] {
            if fields.flags(field)?.contains(&true) {
                return Err(fields.error(field, false, &object[field]));
            }
        }
        let channels = fields.counts("block_out_channels")?.unwrap_or_else(|| vec![320, 640, 1280, 1280]);
        let n = channels.len();
        let down = attends(&fields, "down_block_types", n, ["DownBlock2D", "CrossAttnDownBlock2D"])?;
        let up = attends(&fields, "up_block_types", n, ["UpBlock2D", "CrossAttnUpBlock2D"])?;
        let contexts = fields.counts_per_level("cross_attention_dim", n, 1280)?;
        if contexts.iter().any(|&d| d != contexts[0]) {
            return Err(fields.error("cross_attention_dim", "one number for all levels", format!("{contexts:?}")));
        }
        let in_channels = fields.count_or("in_channels", 4)?;
        let out_channels = fields.count_or("out_channels", 4)?;
        if in_channels != out_channels {
            // Inpainting and editing models read a mask or an image beside the latents.
            return Err(fields.error("in_channels", format!("{out_channels}, as out_channels"), in_channels));
        }
        let sampling = match fields.float_or("downsample_padding", 1.0)? {
            0.0 => ConvStride::DownPadEnd,
            1.0 => ConvStride::Down,
            other => return Err(fields.error("downsample_padding", "0 or 1", other)),
        };
        let config = Config {
            component,
            in_channels,
            sample_size: fields.size("sample_size")?.unwrap_or([64; 2]),
            context: contexts[0],
            added: added(&fields)?,
            heads: fields.counts_per_level("attention_head_dim", n, 8)?,
            depth: fields.counts_per_level("transformer_layers_per_block", n, 1)?,
            linear_projection: fields.flag_or("use_linear_projection", false)?,
            groups: fields.count_or("norm_num_groups", 32)?,
            eps: fields.float_or("norm_eps", 1e-5)? as f32,
            time: TimeConfig::read(&fields, channels[0])?,
            levels: Levels {
                layers: fields.counts_per_level("layers_per_block", n, 2)?,
                down,
                up,
                attend_mid: true,
                sampling,
                any_size: sampling == ConvStride::Down,
                channels,
            },
        };
        config.levels.check(&fields, config.groups, config.sample_size)?;
        let pairs = config.levels.channels.iter().zip(&config.heads);
        if let Some((level, heads)) = pairs.into_iter().find(|(c, heads)| !c.is_multiple_of(**heads)) {
            return Err(fields.error("attention_head_dim", format!("a divisor of {level} channels"), heads));
        }
        Ok(config)
    }
}

/// Which levels attend, by their block classes: `[plain, attending]`.
fn attends(fields: &Fields, field: &str, count: usize, names: [&str; 2]) -> Result<Vec<Level>> {
    let Some(list) = fields.texts(field)? else {
        return Err(fields.error(field, "a list of block classes", "none"));
    };
    if list.len() != count {
        return Err(fields.error(field, format!("{count} blocks, one per level"), list.len()));
    }
    let level = |name: &&str| match names.iter().position(|known| known == name) {
        Some(i) => Ok(Level { attend: i == 1, change: Change::Conv }),
        None => Err(fields.error(field, format!("{} or {}", names[0], names[1]), name)),
    };
    list.iter().map(level).collect()
}

fn added(fields: &Fields) -> Result<Option<Added>> {
    let required = |field: &str| fields.count(field)?.ok_or_else(|| fields.error(field, "a number", "none"));
    match fields.text_or("addition_embed_type", "none")? {
        "none" => Ok(None),
        "text_time" => {
            let number_dim = required("addition_time_embed_dim")?;
            if number_dim < 4 || !number_dim.is_multiple_of(2) {
                return Err(fields.error("addition_time_embed_dim", "an even number of at least 4", number_dim));
            }
            let features = required("projection_class_embeddings_input_dim")?;
            Ok(Some(Added { number_dim, features }))
        }
        other => Err(fields.error("addition_embed_type", "text_time, or none", other)),
    }
}

/// Where the context comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context<'a> {
    /// Features of a prompt's tokens; and where the model reads them, a vector of `pooled` features and `numbers`
    /// numbers.
    Text {
        /// Features of the vector; 0 if there is none.
        pooled: u32,
        /// How many numbers it reads beside the prompt.
        numbers: u32,
    },
    /// One vector per class.
    Classes {
        /// The component that holds the table.
        component: &'static str,
        /// Name of its table without `.weight`.
        table: &'a str,
        /// Rows of that table.
        rows: u32,
    },
}

/// The denoiser or refiner: `(n, h, w, in_channels)`, timesteps and context to `(n, h, w, in_channels)`.
pub fn lower(config: &Config, role: Role, context: Context, weights: &mut Weights) -> Program {
    let c = config;
    let mut inputs = Vec::new();
    let mut input = |kind, dims: &[Dim]| {
        inputs.push(Input { kind, dims: dims.to_vec() });
        Value(inputs.len() as u32 - 1)
    };
    let sample = input(InputKind::Sample, &[Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(c.in_channels)]);
    let timestep = input(InputKind::Timestep, &[Dim::Conditions]);
    let (source, mut beside) = match context {
        Context::Text { pooled, numbers } => {
            let tokens = input(InputKind::Context, &[Dim::Conditions, Dim::Tokens, Dim::Fixed(c.context)]);
            let beside = c.added.map(|added| {
                let pooled = input(InputKind::Pooled, &[Dim::Conditions, Dim::Fixed(pooled)]);
                let sizes = input(InputKind::Sizes, &[Dim::Conditions, Dim::Fixed(numbers)]);
                (added, pooled, sizes)
            });
            (tokens, beside)
        }
        Context::Classes { .. } => (input(InputKind::ClassLabels, &[Dim::Conditions]), None),
    };
    let mut b = Builder::new(role, c.component, inputs, weights);
    let features = c.context as usize;
    let context = match context {
        Context::Text { .. } => source,
        Context::Classes { component, table, rows } => {
            b.of(component, |b| b.embedding(table, source, rows as usize, features))
        }
    };
    let time = match &mut beside {
        None => c.time.lower(&mut b, timestep, None),
        Some((added, pooled, sizes)) => {
            c.time.lower(&mut b, timestep, Some(&mut |b| embed(b, c, *added, *pooled, *sizes)))
        }
    };
    let mut blocks = Blocks { b, groups: c.groups, eps: c.eps, time: Some(time), wide: false, has: &|_| false };
    let transformer = Transformer { context, features, linear: c.linear_projection };
    let channels = [c.in_channels as usize; 2];
    let last = c.heads.len() - 1;
    let output = c.levels.lower(&mut blocks, sample, channels, &mut |blocks, site, x| {
        let level = site.level.unwrap_or(last);
        transformer.lower(blocks, site.path, x, site.channels, c.depth[level], c.heads[level])
    });
    blocks.b.finish(output)
}

/// The embedding of the prompt's vector and of numbers.
fn embed(b: &mut Builder, c: &Config, added: Added, pooled: Value, sizes: Value) -> Value {
    let TimeConfig { cos_first, freq_shift: shift, .. } = c.time;
    let numbers = Op::TimestepEmbedding(TimestepEmbedding { t: sizes, dim: added.number_dim, cos_first, shift });
    let numbers = b.push("add_time_proj", numbers);
    let x = b.push("add_embedding.concat", Op::Concat(Concat { a: pooled, b: numbers, tokens: false }));
    let d = c.time.d();
    let silu = Linear { act: Act::Silu, ..Linear::default() };
    let x = b.linear("add_embedding.linear_1", x, &[d, added.features as usize], silu);
    b.linear("add_embedding.linear_2", x, &[d, d], Linear::default())
}
