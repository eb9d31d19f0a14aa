//! PixArt (Chen et al. 2023, arXiv 2310.00426, and 2024, arXiv 2403.04692): a transformer over image patches that reads a
//! timestep, a caption's tokens, and perhaps the image's size (`PixArtTransformer2DModel`).
//!
//! ```text
//! x = patches W + position     c = W gelu(W caption)     t = MLP(sincos(t)) [+ (MLP(height), MLP(width), MLP(aspect))]
//! m = silu(t) W                six runs of columns for all blocks, adaLN-single
//! block:  shift, scale, gate of attention, shift, scale, gate of MLP = table + m
//!         x += gate * attention(norm(x) * (1 + scale) + shift)
//!         x += attention(x, c), neither normed nor gated, over the tokens that a caption has
//!         x += gate * MLP(norm(x) * (1 + scale) + shift)
//! out:    shift, scale = table + t      norm(x) * (1 + scale) + shift, W, pixels
//! ```
//!
//! All that comes of the timestep and the caption is worked out before the loop: in the loop there is no matrix of one row,
//! and of cross-attention only what queries need.

use super::builder::{Builder, Linear};
use super::{DENOISER, Fields};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{
    Act, Add, Attend, Attention, Columns, Concat, Dim, Grid, Input, InputKind, Modulation, Op, Patchify,
    PositionEmbedding, Program, Reach, Role, Slice, TimestepEmbedding, Unpatchify, Value,
};
use serde_json::json;

/// Features of the sinusoids of a timestep and of each number of a size.
const SINUSOIDS: u32 = 256;
/// Numbers of a size: height, width, and their ratio.
pub const SIZE_NUMBERS: u32 = 3;
/// The layer by which a checkpoint shows that it reads sizes.
const RESOLUTION: &str = "adaln_single.emb.resolution_embedder.linear_1.weight";

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Channels of the latents.
    pub in_channels: u32,
    /// Channels of the result: with a learned variance twice as many.
    pub out_channels: u32,
    /// Heads of attention.
    pub heads: u32,
    /// Features per head.
    pub head_dim: u32,
    /// Number of transformer blocks.
    pub layers: u32,
    /// Height and width of a patch.
    pub patch: u32,
    /// Height and width of the latents the model was trained on.
    pub sample_size: u32,
    /// What positions are divided by; see [`PositionEmbedding::interpolation`].
    pub interpolation: f32,
    /// Features of a caption's token.
    pub caption_features: u32,
    /// Whether it reads the size of the image.
    pub sizes: bool,
    /// Whether queries, keys and values have biases.
    pub attention_bias: bool,
    /// Epsilon of the norms of blocks.
    pub norm_eps: f32,
}

impl Config {
    /// Reads the configuration of a component of class `class`. `has` tells whether the checkpoint holds a tensor of that
    /// name: whether a model reads sizes is what its weights say, unless the configuration says it.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(class: &str, object: &Object, has: &dyn Fn(&str) -> bool) -> Result<Self> {
        // Checkpoints older than PixArtTransformer2DModel have the general class, whose defaults differ.
        let general = match class {
            "PixArtTransformer2DModel" => false,
            "Transformer2DModel" => true,
            other => {
                let expected = "PixArtTransformer2DModel, or Transformer2DModel with norm_type ada_norm_single";
                let what = format!("{DENOISER}/config.json: _class_name");
                return Err(Error::request(what, expected, format!("{other:?}")));
            }
        };
        let fields = Fields::new(DENOISER, object);
        let default = |own, of_general| if general { of_general } else { own };
        let norm = "ada_norm_single";
        fields.must_be("norm_type", default(json!(norm), json!("layer_norm")), json!(norm))?;
        let act = "gelu-approximate";
        fields.must_be("activation_fn", default(json!(act), json!("geglu")), json!(act))?;
        fields.must_be("norm_elementwise_affine", json!(general), json!(false))?;
        fields.must_be("attention_type", json!("default"), json!("default"))?;
        for field in ["double_self_attention", "only_cross_attention", "use_linear_projection"] {
            fields.must_be(field, json!(false), json!(false))?;
        }
        fields.must_be("num_vector_embeds", json!(null), json!(null))?;
        let required = |field| fields.count(field)?.ok_or_else(|| fields.error(field, "a number", "none"));
        let count = |field, own| if general { required(field) } else { fields.count_or(field, own) };
        let sample_size = count("sample_size", 128)?;
        let config = Config {
            in_channels: count("in_channels", 4)?,
            out_channels: count("out_channels", 8)?,
            heads: fields.count_or("num_attention_heads", 16)?,
            head_dim: fields.count_or("attention_head_dim", if general { 88 } else { 72 })?,
            layers: count("num_layers", 28)?,
            patch: count("patch_size", 2)?,
            sample_size,
            interpolation: fields.float_or("interpolation_scale", f64::from((sample_size / 64).max(1)))? as f32,
            caption_features: required("caption_channels")?,
            sizes: fields.flag_or("use_additional_conditions", has(RESOLUTION))?,
            attention_bias: fields.flag_or("attention_bias", !general)?,
            norm_eps: fields.float_or("norm_eps", if general { 1e-5 } else { 1e-6 })? as f32,
        };
        config.check(&fields)?;
        Ok(config)
    }

    pub(super) fn check(&self, fields: &Fields) -> Result<()> {
        let dim = self.dim();
        if !dim.is_multiple_of(if self.sizes { 12 } else { 4 }) {
            let expected = "heads times features in multiples of 4, for the position embedding, and of 3 for sizes";
            return Err(fields.error("attention_head_dim", expected, format!("{} x {}", self.heads, self.head_dim)));
        }
        let context = fields.count_or("cross_attention_dim", 1152)?;
        if context != dim {
            return Err(fields.error("cross_attention_dim", format!("{dim}, heads times features"), context));
        }
        if !self.sample_size.is_multiple_of(self.patch) {
            let expected = format!("a multiple of patch_size {}", self.patch);
            return Err(fields.error("sample_size", expected, self.sample_size));
        }
        if self.interpolation <= 0.0 {
            return Err(fields.error("interpolation_scale", "a positive number", self.interpolation));
        }
        Ok(())
    }

    /// Features of a token.
    pub fn dim(&self) -> u32 {
        self.heads * self.head_dim
    }

    /// What scores of attention are multiplied by.
    fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }
}

/// What a block reads beside the image.
#[derive(Clone, Copy)]
pub(super) struct Conditions {
    /// `(conditions, 6 d)`: [`Config::dim`] columns each for shift, scale and gate of attention and of the MLP.
    pub modulation: Value,
    /// What of the caption it reads; blocks that read none have no attention for it.
    pub caption: Option<Caption>,
}

/// A caption.
#[derive(Clone, Copy)]
pub(super) struct Caption {
    /// `(conditions, tokens, d)`.
    pub features: Value,
    /// How many tokens of it count.
    pub lengths: Value,
}

/// The denoiser: `(n, h, w, in_channels)`, timesteps, captions with their lengths, and perhaps sizes, to
/// `(n, h, w, out_channels)`.
pub fn lower(config: &Config, weights: &mut Weights) -> Program {
    let c = config;
    let d = c.dim() as usize;
    let (mut inputs, [sample, timestep, context, lengths]) = inputs(c, false);
    let sizes = Value(inputs.len() as u32);
    if c.sizes {
        inputs.push(Input { kind: InputKind::Sizes, dims: vec![Dim::Conditions, Dim::Fixed(SIZE_NUMBERS)] });
    }
    let mut builder = Builder::new(Role::Denoiser, DENOISER, inputs, weights);
    let b = &mut builder;

    let mut x = patches(b, c, sample, c.sample_size / c.patch);

    let time = time(b, c, timestep, c.sizes.then_some(sizes));
    let silu = super::blocks::activate(b, "adaln_single.silu", time, Act::Silu);
    let modulation = b.linear("adaln_single.linear", silu, &[6 * d, d], Linear::default());
    let caption = mlp(b, "caption_projection", context, [c.caption_features as usize, d], Act::GeluTanh);
    let conditions = Conditions { modulation, caption: Some(Caption { features: caption, lengths }) };
    for block in 0..c.layers {
        x = transformer_block(b, c, &format!("transformer_blocks.{block}"), x, conditions, Reach::Sample);
    }
    let out = pixels(b, c, x, time);
    builder.finish(out)
}

/// Inputs: images, or the frames of videos, timesteps, captions, and how many tokens of each count; and the values that they
/// are.
pub(super) fn inputs(c: &Config, videos: bool) -> (Vec<Input>, [Value; 4]) {
    let input = |kind, dims: &[Dim]| Input { kind, dims: dims.to_vec() };
    let (image, frames) = ([Dim::Height, Dim::Width, Dim::Fixed(c.in_channels)], [Dim::Batch, Dim::Frames]);
    let inputs = vec![
        input(InputKind::Sample, &[&frames[..1 + usize::from(videos)], &image[..]].concat()),
        input(InputKind::Timestep, &[Dim::Conditions]),
        input(InputKind::Context, &[Dim::Conditions, Dim::Tokens, Dim::Fixed(c.caption_features)]),
        input(InputKind::Lengths, &[Dim::Conditions]),
    ];
    (inputs, [0, 1, 2, 3].map(Value))
}

/// The patches of `sample` as tokens that know their place, as positions are that are whole numbers in a grid of `base`; see
/// [`PositionEmbedding::base`].
pub(super) fn patches(b: &mut Builder, c: &Config, sample: Value, base: u32) -> Value {
    let (d, p) = (c.dim() as usize, c.patch as usize);
    let patches = b.push("pos_embed", Op::Patchify(Patchify { x: sample, patch: c.patch }));
    let (dim, interpolation) = (c.dim(), c.interpolation);
    let position = PositionEmbedding { x: patches, dim, base, interpolation, keep_ratio: false, grid: Grid::Frame };
    let position = b.push("pos_embed.pos_embed", position.into());
    let with = Linear { residual: Some(position), ..Linear::default() };
    b.linear("pos_embed.proj", patches, &[d, c.in_channels as usize, p, p], with)
}

/// The result of tokens `x`, `(n, h, w, out_channels)`; `time` is the embedding of the timestep.
pub(super) fn pixels(b: &mut Builder, c: &Config, x: Value, time: Value) -> Value {
    let (d, p) = (c.dim() as usize, c.patch as usize);
    // Both shift and scale are the embedded timestep itself and a row of the table.
    let twice = b.push("norm_out", Op::Concat(Concat { a: time, b: time, tokens: false }));
    let table = b.flat("scale_shift_table", "scale_shift_table".into(), [2, d]);
    let out = b.push("scale_shift_table", Op::Add(Add { a: twice, b: table }));
    let x = b.adaptive_layer_norm("norm_out", x, EPS_OUT, Modulation { value: out, shift: 0, scale: d as u32 });
    // The result drives a sampler whose coefficients reach 1 / alpha, so it keeps its 32 bits.
    let x = b.linear("proj_out", x, &[p * p * c.out_channels as usize, d], Linear::default());
    b.wide(x);
    let x = b.push("unpatchify", Op::Unpatchify(Unpatchify { x, patch: c.patch }));
    b.wide(x)
}

/// Epsilon of the last norm, which no configuration sets.
const EPS_OUT: f32 = 1e-6;

/// Two layers from `k` to `d` features with `act` between them.
pub(super) fn mlp(b: &mut Builder, path: &str, x: Value, [k, d]: [usize; 2], act: Act) -> Value {
    let hidden = b.linear(&format!("{path}.linear_1"), x, &[d, k], Linear { act, ..Linear::default() });
    b.linear(&format!("{path}.linear_2"), hidden, &[d, d], Linear::default())
}

/// The embedding of the timestep, and of the image's size where a model reads it: `(conditions, d)`.
pub(super) fn time(b: &mut Builder, c: &Config, t: Value, sizes: Option<Value>) -> Value {
    let (d, k) = (c.dim() as usize, SINUSOIDS as usize);
    let path = "adaln_single.emb";
    let sinusoids = |t| Op::TimestepEmbedding(TimestepEmbedding { t, dim: SINUSOIDS, cos_first: true, shift: 0.0 });
    let time = b.push(&format!("{path}.time_proj"), sinusoids(t));
    let time = mlp(b, &format!("{path}.timestep_embedder"), time, [k, d], Act::Silu);
    let Some(sizes) = sizes else { return time };
    let all = b.push(&format!("{path}.additional_condition_proj"), sinusoids(sizes));
    let [height, width, aspect] = [0, 1, 2].map(|number| {
        let slice = Slice { x: all, first: number * SINUSOIDS, count: SINUSOIDS, tokens: false };
        b.push(&format!("{path}.additional_condition_proj"), slice.into())
    });
    // Height and width go through the same layers.
    let resolution = format!("{path}.resolution_embedder");
    let first = mlp(b, &resolution, height, [k, d / 3], Act::Silu);
    let second = b.again(&[format!("{resolution}.linear_1"), format!("{resolution}.linear_2")], width);
    let aspect = mlp(b, &format!("{path}.aspect_ratio_embedder"), aspect, [k, d / 3], Act::Silu);
    let both = b.push(&resolution, Op::Concat(Concat { a: first, b: second, tokens: false }));
    let size = b.push(path, Op::Concat(Concat { a: both, b: aspect, tokens: false }));
    b.push(path, Op::Add(Add { a: time, b: size }))
}

/// The modulation of the block at module `path`: what all blocks have in common and the block's own table.
pub(super) fn modulated(b: &mut Builder, path: &str, modulation: Value, d: usize) -> Value {
    let path = format!("{path}.scale_shift_table");
    let table = b.flat(&path, path.clone(), [6, d]);
    b.push(&path, Op::Add(Add { a: modulation, b: table }))
}

/// A block at module `path`, whose tokens attend to those within `reach`.
pub(super) fn transformer_block(
    b: &mut Builder,
    c: &Config,
    path: &str,
    x: Value,
    Conditions { modulation, caption }: Conditions,
    reach: Reach,
) -> Value {
    let d = c.dim() as usize;
    let m = modulated(b, path, modulation, d);
    let column = |run: usize| (run * d) as u32;
    let gate = |run| Some(Columns { value: m, offset: column(run) });
    let norm = |b: &mut Builder, name: &str, x, run| {
        let modulation = Modulation { value: m, shift: column(run), scale: column(run + 1) };
        b.adaptive_layer_norm(&format!("{path}.{name}"), x, c.norm_eps, modulation)
    };

    let normed = norm(b, "norm1", x, 0);
    let attended = attention(b, c, &format!("{path}.attn1"), normed, reach);
    let with = Linear { gate: gate(2), residual: Some(x), ..Linear::default() };
    let mut x = b.linear(&format!("{path}.attn1.to_out.0"), attended, &[d, d], with);

    if let Some(caption) = caption {
        x = read_caption(b, c, &format!("{path}.attn2"), x, caption);
    }

    let normed = norm(b, "norm2", x, 3);
    feed_forward(b, path, [normed, x], gate(5), d)
}

/// The gated MLP of the block at module `path` from `normed`, added to `x`.
pub(super) fn feed_forward(
    b: &mut Builder,
    path: &str,
    [normed, x]: [Value; 2],
    gate: Option<Columns>,
    d: usize,
) -> Value {
    let gelu = Linear { act: Act::GeluTanh, ..Linear::default() };
    let hidden = b.linear(&format!("{path}.ff.net.0.proj"), normed, &[4 * d, d], gelu);
    let with = Linear { gate, residual: Some(x), ..Linear::default() };
    b.linear(&format!("{path}.ff.net.2"), hidden, &[d, 4 * d], with)
}

/// `x` and what it reads of a caption in the attention at module `path`.
pub(super) fn read_caption(b: &mut Builder, c: &Config, path: &str, x: Value, caption: Caption) -> Value {
    let [q, k, v] = queries_keys_values(b, c, path, [x, caption.features]);
    let attend = Attend { per_condition: true, ..Attend::default() };
    let lengths = Some(caption.lengths);
    let attention = Attention { q, k, v, heads: c.heads, scale: c.scale(), attend, lengths, ..Attention::default() };
    let attended = b.push(path, attention.into());
    let d = c.dim() as usize;
    b.linear(&format!("{path}.to_out.0"), attended, &[d, d], Linear { residual: Some(x), ..Linear::default() })
}

/// Attention at module `path` among tokens within `reach`, without the layer after it.
pub(super) fn attention(b: &mut Builder, c: &Config, path: &str, x: Value, reach: Reach) -> Value {
    let [q, k, v] = queries_keys_values(b, c, path, [x; 2]);
    let attention = Attention { q, k, v, heads: c.heads, scale: c.scale(), reach, ..Attention::default() };
    b.push(path, attention.into())
}

/// Queries of `reads[0]`, keys and values of `reads[1]`.
fn queries_keys_values(b: &mut Builder, c: &Config, path: &str, [x, context]: [Value; 2]) -> [Value; 3] {
    let d = c.dim() as usize;
    let with = Linear { bias: c.attention_bias, ..Linear::default() };
    [("to_q", x), ("to_k", context), ("to_v", context)]
        .map(|(name, x)| b.linear(&format!("{path}.{name}"), x, &[d, d], with))
}

/// The position embedding of the frames of tokens `x`, `(n, f h, w, d)`, a row for each token of a sample: sines, then cosines
/// of `frame / scale` (MAE's `get_1d_sincos_pos_embed`). `grid` is one of frames.
pub(super) fn frames(b: &mut Builder, path: &str, x: Value, d: u32, scale: f32, grid: Grid) -> Value {
    // Of a grid of two axes, the second half is that of rows.
    let positions = PositionEmbedding { x, dim: 2 * d, base: 0, interpolation: scale, keep_ratio: false, grid };
    let positions = b.push(path, positions.into());
    b.push(path, Slice { x: positions, first: d, count: d, tokens: false }.into())
}
