//! Hunyuan-DiT (Li et al., arXiv 2405.08748): a transformer over image patches that reads a timestep and a prompt as two text
//! encoders tell it, versions up to 1.1 sizes and a style too (`HunyuanDiT2DModel`).
//!
//! ```text
//! text = rows of the first encoder, then MLP(rows of the second); learned rows in place of padding
//! e = attention pool(rows of the second, padding too) [| sincos(sizes) | style]       c = MLP(sincos(t)) + MLP(e)
//! x = patches W                         turn: rotary embedding of patches, after a norm of each head
//! block:  [second half: x = norm(x | skip) W]
//!         x += attention(norm(x) + silu(c) W)                 queries and keys turned
//!         x += attention(norm(x), text)                       queries turned; no token of the text is masked
//!         x += MLP(norm(x))
//! out:    scale, shift = silu(c) W      norm(x) * (1 + scale) + shift, W, pixels
//! ```
//!
//! Of `n` blocks the first `n / 2 - 1` keep their results as skips, and the last as many take one each, the newest first. Keys
//! and values of the text, and all that comes of `c`, are worked out before the loop.

use super::builder::{Builder, Linear};
use super::{DENOISER, Fields};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{
    Act, Add, Attend, Attention, Columns, Concat, Dim, Grid, Input, InputKind, LayerNorm, Modulation, Op, PadRows,
    Patchify, Pointwise, PositionEmbedding, Program, Role, Rotary, Slice, TimestepEmbedding, Unpatchify, Value,
};
use serde_json::json;

/// Features of the sinusoids of a timestep and of each number of a size.
const SINUSOIDS: u32 = 256;
/// Numbers beside the prompt in versions up to 1.1.
pub const SIZE_NUMBERS: u32 = 6;
/// Heads of the attention that makes one vector of a text.
const POOL_HEADS: u32 = 8;
/// Latents on a side of the pictures whose patches have the positions 0, 1, 2, ..: 512 pixels.
const WHOLE_POSITIONS: u32 = 64;
/// Epsilon of all norms.
const EPS: f32 = 1e-6;

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
    /// Number of transformer blocks, even.
    pub layers: u32,
    /// Height and width of a patch.
    pub patch: u32,
    /// Height and width of the latents the model was trained on.
    pub sample_size: u32,
    /// Features inside the MLPs.
    pub inner: usize,
    /// Tokens of the first and of the second text encoder.
    pub tokens: [u32; 2],
    /// Features of a token of either.
    pub text_features: [u32; 2],
    /// Features of the vector that is made of the second one's tokens.
    pub pooled: usize,
    /// Whether it reads sizes and a style.
    pub styled: bool,
}

impl Config {
    /// Reads the configuration of a component of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(class: &str, object: &Object) -> Result<Self> {
        if class != "HunyuanDiT2DModel" {
            let what = format!("{DENOISER}/config.json: _class_name");
            return Err(Error::request(what, "HunyuanDiT2DModel", format!("{class:?}")));
        }
        let fields = Fields::new(DENOISER, object);
        fields.must_be("activation_fn", json!("gelu-approximate"), json!("gelu-approximate"))?;
        fields.must_be("norm_type", json!("layer_norm"), json!("layer_norm"))?;
        let required = |field| fields.count(field)?.ok_or_else(|| fields.error(field, "a number", "none"));
        let in_channels = required("in_channels")?;
        let config = Config {
            in_channels,
            out_channels: in_channels * if fields.flag_or("learn_sigma", true)? { 2 } else { 1 },
            heads: fields.count_or("num_attention_heads", 16)?,
            head_dim: fields.count_or("attention_head_dim", 88)?,
            layers: fields.count_or("num_layers", 28)?,
            patch: required("patch_size")?,
            sample_size: fields.count_or("sample_size", 32)?,
            inner: 0,
            tokens: [fields.count_or("text_len", 77)?, fields.count_or("text_len_t5", 256)?],
            text_features: [
                fields.count_or("cross_attention_dim", 1024)?,
                fields.count_or("cross_attention_dim_t5", 2048)?,
            ],
            pooled: fields.count_or("pooled_projection_dim", 1024)? as usize,
            styled: fields.flag_or("use_style_cond_and_image_meta_size", true)?,
        };
        let ratio = fields.float_or("mlp_ratio", 4.0)?;
        let inner = (config.dim() as f64 * ratio) as usize;
        config.check(&fields, inner)?;
        Ok(Config { inner, ..config })
    }

    fn check(&self, fields: &Fields, inner: usize) -> Result<()> {
        let d = self.dim();
        let hidden = fields.count_or("hidden_size", 1152)?;
        if hidden as usize != d {
            return Err(fields.error("hidden_size", format!("{d}, num_attention_heads x attention_head_dim"), hidden));
        }
        if !self.head_dim.is_multiple_of(4) {
            return Err(fields.error(
                "attention_head_dim",
                "a multiple of 4, two of which turn by either axis",
                self.head_dim,
            ));
        }
        if !self.layers.is_multiple_of(2) {
            return Err(fields.error("num_layers", "an even number", self.layers));
        }
        if !self.sample_size.is_multiple_of(self.patch) || !WHOLE_POSITIONS.is_multiple_of(self.patch) {
            let expected = format!("a divisor of {} and of {WHOLE_POSITIONS}", self.sample_size);
            return Err(fields.error("patch_size", expected, self.patch));
        }
        if !(1..=1 << 16).contains(&inner) {
            return Err(fields.error("mlp_ratio", format!("1 to {} features inside the MLPs", 1 << 16), inner));
        }
        if !self.text_features[1].is_multiple_of(POOL_HEADS) {
            let expected = format!("a multiple of {POOL_HEADS}");
            return Err(fields.error("cross_attention_dim_t5", expected, self.text_features[1]));
        }
        Ok(())
    }

    /// Features of a token.
    fn dim(&self) -> usize {
        self.heads as usize * self.head_dim as usize
    }
}

/// The inputs of the program, in their order.
struct Inputs {
    sample: Value,
    timestep: Value,
    context: [Value; 2],
    lengths: [Value; 2],
    sizes: Option<Value>,
}

fn inputs(c: &Config) -> (Vec<Input>, Inputs) {
    let mut list = Vec::new();
    let mut input = |kind, dims: &[Dim]| {
        list.push(Input { kind, dims: dims.to_vec() });
        Value(list.len() as u32 - 1)
    };
    let [features, features_2] = c.text_features.map(Dim::Fixed);
    let inputs = Inputs {
        sample: input(InputKind::Sample, &[Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(c.in_channels)]),
        timestep: input(InputKind::Timestep, &[Dim::Conditions]),
        context: [
            input(InputKind::Context, &[Dim::Conditions, Dim::Fixed(c.tokens[0]), features]),
            input(InputKind::Context2, &[Dim::Conditions, Dim::Fixed(c.tokens[1]), features_2]),
        ],
        lengths: [input(InputKind::Lengths, &[Dim::Conditions]), input(InputKind::Lengths2, &[Dim::Conditions])],
        sizes: c.styled.then(|| input(InputKind::Sizes, &[Dim::Conditions, Dim::Fixed(SIZE_NUMBERS)])),
    };
    (list, inputs)
}

/// The denoiser: `(n, h, w, in_channels)` to `(n, h, w, out_channels)`.
pub fn lower(config: &Config, weights: &mut Weights) -> Program {
    let c = config;
    let (list, inputs) = inputs(c);
    let (d, p) = (c.dim(), c.patch as usize);
    let mut builder = Builder::new(Role::Denoiser, DENOISER, list, weights);
    let b = &mut builder;

    let text = text(b, c, &inputs);
    let condition = condition(b, c, &inputs);
    let patches = b.push("pos_embed", Op::Patchify(Patchify { x: inputs.sample, patch: c.patch }));
    let positions = PositionEmbedding {
        x: patches,
        dim: c.head_dim,
        base: WHOLE_POSITIONS / c.patch,
        interpolation: 1.0,
        keep_ratio: true,
        grid: Grid::Frame,
    };
    let table = b.push("image_rotary_emb", Op::PositionEmbedding(positions));
    let mut x = b.linear("pos_embed.proj", patches, &[d, c.in_channels as usize, p, p], Linear::default());

    let mut skips = Vec::new();
    for layer in 0..c.layers {
        let path = format!("blocks.{layer}");
        if layer > c.layers / 2
            && let Some(skip) = skips.pop()
        {
            let both = b.push(&format!("{path}.skip"), Op::Concat(Concat { a: x, b: skip, tokens: false }));
            let normed = b.layer_norm(&format!("{path}.skip_norm"), both, 2 * d, EPS);
            x = b.linear(&format!("{path}.skip_linear"), normed, &[d, 2 * d], Linear::default());
        }
        x = block(b, c, &path, x, Given { text, condition, table });
        if layer + 1 < c.layers / 2 {
            skips.push(x);
        }
    }

    let m = b.linear("norm_out.linear", condition, &[2 * d, d], Linear::default());
    x = b.adaptive_layer_norm("norm_out.norm", x, EPS, Modulation { value: m, scale: 0, shift: d as u32 });
    // The result drives a sampler whose coefficients reach 1 / alpha, so it keeps its 32 bits.
    x = b.linear("proj_out", x, &[p * p * c.out_channels as usize, d], Linear::default());
    b.wide(x);
    x = b.push("unpatchify", Op::Unpatchify(Unpatchify { x, patch: c.patch }));
    b.wide(x);
    builder.finish(x)
}

/// What both encoders tell of a prompt, `(conditions, t + u, d)`.
fn text(b: &mut Builder, c: &Config, inputs: &Inputs) -> Value {
    let [first, second] = c.tokens;
    let [context, context_2] = c.text_features.map(|n| n as usize);
    let act = Linear { act: Act::Silu, ..Linear::default() };
    let hidden = b.linear("text_embedder.linear_1", inputs.context[1], &[4 * context_2, context_2], act);
    let embedded = b.linear("text_embedder.linear_2", hidden, &[context, 4 * context_2], Linear::default());
    let name = "text_embedding_padding";
    let table = b.rows(name.into(), [(first + second) as usize, context]);
    let mut padded = |x, lengths, first| b.push(name, Op::PadRows(PadRows { x, lengths, table, first }));
    let a = padded(inputs.context[0], inputs.lengths[0], 0);
    let rest = padded(embedded, inputs.lengths[1], first);
    b.push("encoder_hidden_states", Op::Concat(Concat { a, b: rest, tokens: true }))
}

/// `silu` of the embedding of timestep, text, sizes and style, `(conditions, d)`: all that blocks need of them.
fn condition(b: &mut Builder, c: &Config, inputs: &Inputs) -> Value {
    let (path, d) = ("time_extra_emb", c.dim());
    let sinusoids = |t| Op::TimestepEmbedding(TimestepEmbedding { t, dim: SINUSOIDS, cos_first: true, shift: 0.0 });
    let act = Linear { act: Act::Silu, ..Linear::default() };
    let time = b.push(&format!("{path}.time_proj"), sinusoids(inputs.timestep));
    let hidden = b.linear(&format!("{path}.timestep_embedder.linear_1"), time, &[d, SINUSOIDS as usize], act);
    let time = b.linear(&format!("{path}.timestep_embedder.linear_2"), hidden, &[d, d], Linear::default());

    let mut extra = pool(b, c, &format!("{path}.pooler"), inputs.context[1]);
    let mut features = c.pooled;
    if let Some(sizes) = inputs.sizes {
        let sizes = b.push(&format!("{path}.size_proj"), sinusoids(sizes));
        extra = b.push(&format!("{path}.sizes"), Op::Concat(Concat { a: extra, b: sizes, tokens: false }));
        let style = b.table(&format!("{path}.style_embedder"), 1, d);
        extra = b.push(&format!("{path}.style"), Op::Concat(Concat { a: extra, b: style, tokens: false }));
        features += (SIZE_NUMBERS * SINUSOIDS) as usize + d;
    }
    let hidden = b.linear(&format!("{path}.extra_embedder.linear_1"), extra, &[4 * d, features], act);
    let extra = b.linear(&format!("{path}.extra_embedder.linear_2"), hidden, &[d, 4 * d], Linear::default());
    let sum = b.push(path, Op::Add(Add { a: time, b: extra }));
    b.push(&format!("{path}.silu"), Op::Pointwise(Pointwise { x: sum, act: Act::Silu, mul: 1.0, add: 0.0 }))
}

/// One vector of all tokens of `x`, `(n, t, d)` to `(n, 1, pooled)`: what the mean of them, put before them, attends to. The
/// mean is that of an attention to which all tokens are alike.
fn pool(b: &mut Builder, c: &Config, path: &str, x: Value) -> Value {
    let (d, tokens) = (c.text_features[1] as usize, c.tokens[1] as usize);
    let first = |x| Op::Slice(Slice { x, first: 0, count: 1, tokens: true });
    let q = b.push(path, first(x));
    let alike = Attention { q, k: x, v: x, heads: POOL_HEADS, scale: 0.0, ..Attention::default() };
    let mean = b.push(&format!("{path}.mean"), Op::Attention(alike));
    let all = b.push(path, Op::Concat(Concat { a: mean, b: x, tokens: true }));
    let positions = b.parameter(path, format!("{path}.positional_embedding"), [tokens + 1, d]);
    let all = b.push(path, Op::Add(Add { a: all, b: positions }));
    let query = b.push(path, first(all));
    let q = b.linear(&format!("{path}.q_proj"), query, &[d, d], Linear::default());
    let [k, v] = ["k_proj", "v_proj"].map(|name| b.linear(&format!("{path}.{name}"), all, &[d, d], Linear::default()));
    let scale = ((d as u32 / POOL_HEADS) as f32).sqrt().recip();
    let pooled = b.push(path, Op::Attention(Attention { q, k, v, heads: POOL_HEADS, scale, ..Attention::default() }));
    b.linear(&format!("{path}.c_proj"), pooled, &[c.pooled, d], Linear::default())
}

/// What all blocks read beside what goes through them.
#[derive(Clone, Copy)]
struct Given {
    text: Value,
    condition: Value,
    /// Sines and cosines that heads turn by.
    table: Value,
}

fn block(b: &mut Builder, c: &Config, path: &str, x: Value, given: Given) -> Value {
    let d = c.dim();
    let shift = b.linear(&format!("{path}.norm1.linear"), given.condition, &[d, d], Linear::default());
    let shift = Some(Columns { value: shift, offset: 0 });
    let normed = b.shifted_layer_norm(&format!("{path}.norm1.norm"), x, d, EPS, shift);
    let x = attention(b, c, &format!("{path}.attn1"), x, [normed, normed], given.table);
    let normed = b.layer_norm(&format!("{path}.norm2"), x, d, EPS);
    let x = attention(b, c, &format!("{path}.attn2"), x, [normed, given.text], given.table);
    let normed = b.layer_norm(&format!("{path}.norm3"), x, d, EPS);
    let gelu = Linear { act: Act::GeluTanh, ..Linear::default() };
    let hidden = b.linear(&format!("{path}.ff.net.0.proj"), normed, &[c.inner, d], gelu);
    b.linear(&format!("{path}.ff.net.2"), hidden, &[d, c.inner], Linear { residual: Some(x), ..Linear::default() })
}

/// `x` plus attention of queries from `reads[0]` to keys and values from `reads[1]`: patches, or the text if that is another.
fn attention(b: &mut Builder, c: &Config, path: &str, x: Value, reads: [Value; 2], table: Value) -> Value {
    let (d, heads) = (c.dim(), c.heads);
    let [queries, keys] = reads;
    let of_text = keys != queries;
    let features = if of_text { c.text_features[0] as usize } else { d };
    let q = b.linear(&format!("{path}.to_q"), queries, &[d, d], Linear::default());
    let [k, v] =
        ["to_k", "to_v"].map(|name| b.linear(&format!("{path}.{name}"), keys, &[d, features], Linear::default()));
    let normed = |b: &mut Builder, name: &str, x| {
        let path = format!("{path}.{name}");
        let vector = |b: &mut Builder, of| Some(b.vector(format!("{path}.{of}"), c.head_dim as usize));
        let (weight, bias) = (vector(b, "weight"), vector(b, "bias"));
        let norm = LayerNorm { x, weight, bias, eps: EPS, parts: heads, ..LayerNorm::default() };
        b.push(&path, Op::LayerNorm(norm))
    };
    let turned = |b: &mut Builder, x| b.push(&format!("{path}.rotary"), Op::Rotary(Rotary { x, table, heads }));
    let (q, mut k) = (normed(b, "norm_q", q), normed(b, "norm_k", k));
    let q = turned(b, q);
    if !of_text {
        k = turned(b, k);
    }
    let scale = (c.head_dim as f32).sqrt().recip();
    let attend = Attend { per_condition: of_text, ..Attend::default() };
    let attended = b.push(path, Op::Attention(Attention { q, k, v, heads, scale, attend, ..Attention::default() }));
    b.linear(&format!("{path}.to_out.0"), attended, &[d, d], Linear { residual: Some(x), ..Linear::default() })
}
