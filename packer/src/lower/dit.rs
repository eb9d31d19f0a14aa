//! DiT: a transformer over image patches, conditioned on timestep and class (`DiTTransformer2DModel`).
//!
//! ```text
//! x = patches W + position                c = MLP(sincos(t)) + table[class]        s = silu(c)
//! block:  m = s W -> shift, scale, gate of attention, shift, scale, gate of MLP
//!         x += gate * attention(norm(x) * (1 + scale) + shift)
//!         x += gate * MLP(norm(x) * (1 + scale) + shift)
//! out:    shift, scale = s W              norm(x) * (1 + scale) + shift, W, pixels
//! ```
//!
//! Every block of the checkpoint has a timestep MLP and a class table of its own, and the last norm reads block 0's. In the
//! published models they are all the same, and in those that diffusers trained they are not: what is equal is stored and
//! computed once, and every block reads its own of what is not. diffusers' version differs from the authors' in the frequencies of the timestep
//! embedding (shift 1 instead of 0) and in the epsilon of the second norm (`norm_eps`).
//!
//! The Latte that makes videos of classes (Ma et al., arXiv 2401.03048) has the same blocks, whose tokens attend by turns to those
//! of their frame and to those at their place in all frames. Behind the first block they learn of which frame they are.

use super::builder::{Builder, Linear, Same};
use super::pixart;
use super::{DENOISER, Fields};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{
    Act, Add, Attention, Columns, Dim, Grid, Input, InputKind, Modulation, Op, Patchify, Pointwise, PositionEmbedding,
    Program, Reach, Role, TimestepEmbedding, Unpatchify, Value,
};
use serde_json::json;

/// The class of the transformer that makes videos in its authors' code, for which diffusers has none.
pub const VIDEO_CLASS: &str = "Latte";
/// Features of the sinusoidal timestep embedding.
const TIME_FEATURES: u32 = 256;
/// Epsilon of the norms whose epsilon the configuration does not set (`norm1`, `norm_out`).
const EPS: f32 = 1e-6;

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Channels of the latents.
    pub in_channels: u32,
    /// Channels of the result.
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
    /// Classes; the table has one more row, for no class.
    pub classes: u32,
    /// Whether queries, keys and values have biases.
    pub attention_bias: bool,
    /// Epsilon of the norm before the MLP.
    pub norm_eps: f32,
    /// Subtracted from the number of frequencies of the timestep's embedding; see [`TimestepEmbedding::shift`].
    pub freq_shift: f32,
    /// Frames that the model was made for, if it makes videos.
    pub frames: Option<u32>,
}

impl Config {
    /// Reads the configuration of a component of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(class: &str, object: &Object) -> Result<Self> {
        // Checkpoints older than DiTTransformer2DModel have the general class, whose defaults differ.
        let general = match class {
            "DiTTransformer2DModel" | VIDEO_CLASS => false,
            "Transformer2DModel" => true,
            other => {
                let expected = "DiTTransformer2DModel, or Transformer2DModel with norm_type ada_norm_zero";
                return Err(Error::request(
                    format!("{DENOISER}/config.json: _class_name"),
                    expected,
                    format!("{other:?}"),
                ));
            }
        };
        let fields = Fields::new(DENOISER, object);
        let default = |own, general_default| if general { general_default } else { own };
        fields.must_be("norm_type", default(json!("ada_norm_zero"), json!("layer_norm")), json!("ada_norm_zero"))?;
        fields.must_be(
            "activation_fn",
            default(json!("gelu-approximate"), json!("geglu")),
            json!("gelu-approximate"),
        )?;
        fields.must_be("norm_elementwise_affine", json!(general), json!(false))?;
        for field in ["cross_attention_dim", "num_vector_embeds", "caption_channels"] {
            fields.must_be(field, json!(null), json!(null))?;
        }
        for field in ["double_self_attention", "only_cross_attention"] {
            fields.must_be(field, json!(false), json!(false))?;
        }
        if fields.float_or("interpolation_scale", 1.0)? != 1.0 {
            return Err(fields.error("interpolation_scale", "1, as DiT has it", &object["interpolation_scale"]));
        }
        let required = |field| fields.count(field)?.ok_or_else(|| fields.error(field, "a number", "none"));
        let in_channels = fields.count_or("in_channels", 4)?;
        let config = Config {
            in_channels,
            out_channels: fields.count_or("out_channels", in_channels)?,
            heads: fields.count_or("num_attention_heads", 16)?,
            head_dim: fields
                .count_or("attention_head_dim", default(json!(72), json!(88)).as_u64().unwrap_or(72) as u32)?,
            layers: if general { required("num_layers")? } else { fields.count_or("num_layers", 28)? },
            patch: if general { required("patch_size")? } else { fields.count_or("patch_size", 2)? },
            sample_size: if general { required("sample_size")? } else { fields.count_or("sample_size", 32)? },
            classes: if general {
                required("num_embeds_ada_norm")?
            } else {
                fields.count_or("num_embeds_ada_norm", 1000)?
            },
            attention_bias: fields.flag_or("attention_bias", !general)?,
            norm_eps: fields.float_or("norm_eps", 1e-5)? as f32,
            freq_shift: fields.float_or("freq_shift", 1.0)? as f32,
            frames: (class == VIDEO_CLASS).then(|| fields.count_or("video_length", 16)).transpose()?,
        };
        if !config.dim().is_multiple_of(4) {
            let expected = "heads times features in multiples of 4, for the position embedding";
            return Err(fields.error(
                "attention_head_dim",
                expected,
                format!("{} x {}", config.heads, config.head_dim),
            ));
        }
        if !config.sample_size.is_multiple_of(config.patch) {
            let expected = format!("a multiple of patch_size {}", config.patch);
            return Err(fields.error("sample_size", expected, config.sample_size));
        }
        Ok(config)
    }

    /// Features of a token.
    pub fn dim(&self) -> u32 {
        self.heads * self.head_dim
    }
}

/// The denoiser: `(n, h, w, in_channels)`, of videos `(n, f, h, w, in_channels)`, timesteps and classes to
/// `(n, h, w, out_channels)`, of videos `(n, f h, w, out_channels)`. `same` tells which tensors
/// of the checkpoint are equal; of embedders that are, one is used.
pub fn lower(config: &Config, same: &dyn Fn(&str, &str) -> bool, weights: &mut Weights) -> Program {
    let c = config;
    let (d, p) = (c.dim() as usize, c.patch as usize);
    let (channels, out_channels) = (c.in_channels as usize, c.out_channels as usize);
    let pixels = [Dim::Height, Dim::Width, Dim::Fixed(c.in_channels)];
    let frames = c.frames.map(|_| Dim::Frames);
    let inputs = vec![
        Input { kind: InputKind::Sample, dims: [Dim::Batch].into_iter().chain(frames).chain(pixels).collect() },
        Input { kind: InputKind::Timestep, dims: vec![Dim::Conditions] },
        Input { kind: InputKind::ClassLabels, dims: vec![Dim::Conditions] },
    ];
    let (sample, timestep, labels) = (Value(0), Value(1), Value(2));
    // Nothing is shared between different layers, even where both are zero.
    let same = |a: &str, b: &str| in_block(a) == in_block(b) && same(a, b);
    let mut builder = Builder::new(Role::Denoiser, DENOISER, inputs, weights);
    let b = &mut builder;

    let patches = b.push("pos_embed", Op::Patchify(Patchify { x: sample, patch: c.patch }));
    let base = c.sample_size / c.patch;
    let position = Op::PositionEmbedding(PositionEmbedding {
        x: patches,
        dim: c.dim(),
        base,
        interpolation: 1.0,
        keep_ratio: false,
        grid: Grid::Frame,
    });
    let position = b.push("pos_embed.pos_embed", position);
    let with = Linear { residual: Some(position), ..Linear::default() };
    let mut x = b.linear("pos_embed.proj", patches, &[d, channels, p, p], with);

    let first = condition(b, c, 0, [timestep, labels], &same);
    for block in 0..c.layers {
        let silu = if block == 0 { first } else { condition(b, c, block, [timestep, labels], &same) };
        let reach = match (c.frames, block % 2) {
            (None, _) => Reach::Sample,
            (Some(_), 0) => Reach::Frame,
            (Some(_), _) => Reach::Place,
        };
        x = transformer_block(b, c, &format!("transformer_blocks.{block}"), x, silu, reach);
        if c.frames.is_some() && block == 0 {
            let frames = pixart::frames(b, "temp_embed", x, c.dim(), 1.0, Grid::Frames);
            x = b.push("temp_embed", Op::Add(Add { a: x, b: frames }));
        }
    }

    let out = b.linear("proj_out_1", first, &[2 * d, d], Linear::default());
    x = b.adaptive_layer_norm("norm_out", x, EPS, Modulation { value: out, shift: 0, scale: d as u32 });
    // The result drives a sampler whose coefficients reach 1 / alpha, so it keeps its 32 bits.
    x = b.linear("proj_out_2", x, &[p * p * out_channels, d], Linear::default());
    b.wide(x);
    x = b.push("unpatchify", Op::Unpatchify(Unpatchify { x, patch: c.patch }));
    b.wide(x);
    builder.finish(x)
}

/// The name of a tensor without the block that it is in.
fn in_block(key: &str) -> Option<&str> {
    key.strip_prefix("transformer_blocks.")?.split_once('.').map(|(_, inner)| inner)
}

/// `silu` of `block`'s embedding of timestep and class, (conditions, d): all that it needs of either.
fn condition<'a>(b: &mut Builder<'a>, c: &Config, block: u32, inputs: [Value; 2], same: Same<'a>) -> Value {
    let d = c.dim() as usize;
    let [t, labels] = inputs;
    let norm = format!("transformer_blocks.{block}.norm1");
    let path = format!("{norm}.emb");
    b.sharing(same, |b| {
        let time =
            Op::TimestepEmbedding(TimestepEmbedding { t, dim: TIME_FEATURES, cos_first: true, shift: c.freq_shift });
        let time = b.push(&format!("{path}.time_proj"), time);
        let mlp = format!("{path}.timestep_embedder");
        let act = Linear { act: Act::Silu, ..Linear::default() };
        let hidden = b.linear(&format!("{mlp}.linear_1"), time, &[d, TIME_FEATURES as usize], act);
        let time = b.linear(&format!("{mlp}.linear_2"), hidden, &[d, d], Linear::default());
        let table = format!("{path}.class_embedder.embedding_table");
        let class = b.embedding(&table, labels, c.classes as usize + 1, d);
        let sum = b.push(&path, Op::Add(Add { a: time, b: class }));
        b.push(&format!("{norm}.silu"), Op::Pointwise(Pointwise { x: sum, act: Act::Silu, mul: 1.0, add: 0.0 }))
    })
}

/// A block at module `path`, whose tokens attend to those within `reach`.
fn transformer_block(b: &mut Builder, c: &Config, path: &str, x: Value, silu: Value, reach: Reach) -> Value {
    let d = c.dim() as usize;
    let m = b.linear(&format!("{path}.norm1.linear"), silu, &[6 * d, d], Linear::default());
    // Six runs of d columns: shift, scale and gate for attention, then for the MLP.
    let column = |run: usize| (run * d) as u32;
    let gated = |run, residual| Linear {
        gate: Some(Columns { value: m, offset: column(run) }),
        residual: Some(residual),
        ..Linear::default()
    };

    let modulation = Modulation { value: m, shift: column(0), scale: column(1) };
    let normed = b.adaptive_layer_norm(&format!("{path}.norm1.norm"), x, EPS, modulation);
    let projection = Linear { bias: c.attention_bias, ..Linear::default() };
    let [q, k, v] =
        ["to_q", "to_k", "to_v"].map(|name| b.linear(&format!("{path}.attn1.{name}"), normed, &[d, d], projection));
    let scale = (c.head_dim as f32).sqrt().recip();
    let attended = b.push(
        &format!("{path}.attn1"),
        Op::Attention(Attention { q, k, v, heads: c.heads, scale, reach, ..Attention::default() }),
    );
    let x = b.linear(&format!("{path}.attn1.to_out.0"), attended, &[d, d], gated(2, x));

    let modulation = Modulation { value: m, shift: column(3), scale: column(4) };
    let normed = b.adaptive_layer_norm(&format!("{path}.norm3"), x, c.norm_eps, modulation);
    let gelu = Linear { act: Act::GeluTanh, ..Linear::default() };
    let hidden = b.linear(&format!("{path}.ff.net.0.proj"), normed, &[4 * d, d], gelu);
    b.linear(&format!("{path}.ff.net.2"), hidden, &[d, 4 * d], gated(5, x))
}
