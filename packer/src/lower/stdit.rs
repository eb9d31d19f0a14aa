//! STDiT of Open-Sora 1.0 (hpcaitech, tag v1.0.0): a transformer over the patches of a video's frames that reads a timestep and
//! a caption's tokens.
//!
//! ```text
//! shift, scale, gate of attention, shift, scale, gate of MLP = table + silu(t) W, as in PixArt
//! block:  x += gate * attention within a frame(norm(x) * (1 + scale) + shift)
//!         x += gate * attention across frames(x), the same gate; in the first block of x + position of the frame
//!         x += attention(x, caption)
//!         x += gate * MLP(norm(x) * (1 + scale) + shift)
//! ```
//!
//! Frames lie below each other in all values, so that no token moves; see [`pixart`] for the rest.

use super::pixart::{self, Caption};
use super::{DENOISER, Fields, builder::Builder, builder::Linear};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{Act, Add, Columns, Grid, Modulation, Program, Reach, Role, Value};

/// The class that configurations of this network name; diffusers has none.
pub const CLASS: &str = "STDiT";
/// Epsilon of all norms.
const EPS: f32 = 1e-6;

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What a frame's tokens depend on; its interpolation is what places of patches, counted from 0, are divided by.
    pub frame: pixart::Config,
    /// Frames that the model was made for.
    pub frames: u32,
    /// What numbers of frames are divided by for their positions.
    pub time_scale: f32,
}

impl Config {
    /// Reads the configuration of a component of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(class: &str, object: &Object) -> Result<Self> {
        if class != CLASS {
            return Err(Error::request(format!("{DENOISER}/config.json: _class_name"), CLASS, format!("{class:?}")));
        }
        let fields = Fields::new(DENOISER, object);
        let frame = pixart::Config {
            in_channels: fields.count_or("in_channels", 4)?,
            out_channels: fields.count_or("out_channels", 8)?,
            heads: fields.count_or("num_attention_heads", 16)?,
            head_dim: fields.count_or("attention_head_dim", 72)?,
            layers: fields.count_or("num_layers", 28)?,
            patch: fields.count_or("patch_size", 2)?,
            sample_size: fields.count_or("sample_size", 64)?,
            interpolation: fields.float_or("space_scale", 1.0)? as f32,
            caption_features: fields.count_or("caption_channels", 4096)?,
            sizes: false,
            attention_bias: true,
            norm_eps: EPS,
        };
        frame.check(&fields)?;
        let time_scale = fields.float_or("time_scale", 1.0)? as f32;
        if time_scale <= 0.0 {
            return Err(fields.error("time_scale", "a positive number", time_scale));
        }
        Ok(Config { frame, frames: fields.count_or("video_length", 16)?, time_scale })
    }
}

/// The denoiser: `(n, f, h, w, in_channels)`, timesteps, and captions with their lengths, to `(n, f h, w, out_channels)`.
pub fn lower(config: &Config, weights: &mut Weights) -> Program {
    let c = &config.frame;
    let d = c.dim() as usize;
    let (inputs, [sample, timestep, context, lengths]) = pixart::inputs(c, true);
    let mut builder = Builder::new(Role::Denoiser, DENOISER, inputs, weights);
    let b = &mut builder;

    let mut x = pixart::patches(b, c, sample, 0);
    let frames = pixart::frames(b, "pos_embed_temporal", x, c.dim(), config.time_scale, Grid::Frames);
    let time = pixart::time(b, c, timestep, None);
    let silu = super::blocks::activate(b, "adaln_single.silu", time, Act::Silu);
    let modulation = b.linear("adaln_single.linear", silu, &[6 * d, d], Linear::default());
    let features = pixart::mlp(b, "caption_projection", context, [c.caption_features as usize, d], Act::GeluTanh);
    let conditions = (modulation, Caption { features, lengths });
    for block in 0..c.layers {
        let frames = (block == 0).then_some(frames);
        x = transformer_block(b, c, &format!("transformer_blocks.{block}"), x, conditions, frames);
    }
    let out = pixart::pixels(b, c, x, time);
    builder.finish(out)
}

/// A block at module `path`; `frames` are positions of frames that it adds to what attends across them.
fn transformer_block(
    b: &mut Builder,
    c: &pixart::Config,
    path: &str,
    x: Value,
    (modulation, caption): (Value, Caption),
    frames: Option<Value>,
) -> Value {
    let d = c.dim() as usize;
    let m = pixart::modulated(b, path, modulation, d);
    let column = |run: usize| (run * d) as u32;
    let gate = |run| Some(Columns { value: m, offset: column(run) });
    let norm = |b: &mut Builder, name: &str, x, run| {
        let modulation = Modulation { value: m, shift: column(run), scale: column(run + 1) };
        b.adaptive_layer_norm(&format!("{path}.{name}"), x, c.norm_eps, modulation)
    };

    let normed = norm(b, "norm1", x, 0);
    let attended = pixart::attention(b, c, &format!("{path}.attn1"), normed, Reach::Frame);
    let with = Linear { gate: gate(2), residual: Some(x), ..Linear::default() };
    let x = b.linear(&format!("{path}.attn1.to_out.0"), attended, &[d, d], with);

    let temporal = format!("{path}.attn_temp");
    let known = frames.map_or(x, |frames| b.push(&temporal, Add { a: x, b: frames }.into()));
    let attended = pixart::attention(b, c, &temporal, known, Reach::Place);
    let with = Linear { gate: gate(2), residual: Some(x), ..Linear::default() };
    let x = b.linear(&format!("{temporal}.to_out.0"), attended, &[d, d], with);

    let x = pixart::read_caption(b, c, &format!("{path}.attn2"), x, caption);
    let normed = norm(b, "norm2", x, 3);
    pixart::feed_forward(b, path, [normed, x], gate(5), d)
}
