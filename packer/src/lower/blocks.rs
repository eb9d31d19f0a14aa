//! Blocks that the networks of latent diffusion share: the residual block of two convolutions, and attention over all
//! pixels.
//!
//! ```text
//! resnet:    x + conv(silu(norm(conv(silu(norm(x))) + shift)))      shift = silu(time) W
//!            the sum before the second norm, or (1 + scale) and shift after it (`scale_shift`);
//!            x through a 1x1 convolution where channels change; both paths resampled where pixels do
//! attention: x + softmax(q k^T) v W, of norm(x)
//! ```
//!
//! Checkpoints older than diffusers 0.15 call the attention's layers `query`, `key`, `value` and `proj_attn`.

use super::builder::{Builder, Conv, GroupNorm, Linear};
use aquatint::raw::program::{Act, Attention, Columns, Modulation, Op, Pointwise, Resample, Resampling, Value};

/// What the blocks of one network share, with its builder.
pub struct Blocks<'a> {
    /// Appends ops and weights to the program.
    pub b: Builder<'a>,
    /// Groups of every norm.
    pub groups: u32,
    /// Epsilon of every norm.
    pub eps: f32,
    /// What residual blocks read beside pixels; autoencoders have none.
    pub time: Option<Time>,
    /// Whether the residual stream is kept in 32 bits.
    pub wide: bool,
    /// Whether the checkpoint holds a tensor of that name.
    pub has: &'a dyn Fn(&str) -> bool,
}

/// The embedding of the timestep, as residual blocks read it.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// SiLU of it, `(conditions, d)`: what every reader wants.
    pub silu: Value,
    /// Features of the embedding.
    pub d: usize,
    /// Whether blocks scale and shift after their second norm, instead of shifting before it.
    pub scale_shift: bool,
}

impl Blocks<'_> {
    /// A norm of these groups and epsilon.
    pub fn norm(&self) -> GroupNorm {
        GroupNorm::new(self.groups, self.eps)
    }

    /// Marks `value` as part of the residual stream.
    pub fn stream(&mut self, value: Value) -> Value {
        if self.wide { self.b.wide(value) } else { value }
    }

    /// A residual block from `i` to `o` channels.
    pub fn resnet(&mut self, path: &str, x: Value, [i, o]: [usize; 2]) -> Value {
        self.resampling_resnet(path, x, [i, o], None)
    }

    /// A residual block from `i` to `o` channels that resamples, both paths alike, if `how` says so.
    pub fn resampling_resnet(&mut self, path: &str, x: Value, [i, o]: [usize; 2], how: Option<Resampling>) -> Value {
        let norm = self.norm();
        let (mut shift, mut modulation) = (None, None);
        if let Some(time) = self.time {
            let columns = if time.scale_shift { 2 * o } else { o };
            let value =
                self.b.linear(&format!("{path}.time_emb_proj"), time.silu, &[columns, time.d], Linear::default());
            if time.scale_shift {
                modulation = Some(Modulation { value, scale: 0, shift: o as u32 });
            } else {
                shift = Some(Columns { value, offset: 0 });
            }
        }
        let mut skip = x;
        let mut hidden = self.b.group_norm(&format!("{path}.norm1"), x, i, norm.silu());
        if let Some(how) = how {
            let name = if how == Resampling::Nearest { "upsample" } else { "downsample" };
            hidden = self.b.push(&format!("{path}.{name}"), Op::Resample(Resample { x: hidden, how }));
            skip = self.b.push(&format!("{path}.{name}"), Op::Resample(Resample { x, how }));
            self.stream(skip);
        }
        let hidden = self.b.conv(&format!("{path}.conv1"), hidden, [i, o], Conv { shift, ..Conv::default() });
        let norm = GroupNorm { modulation, ..norm };
        let hidden = self.b.group_norm(&format!("{path}.norm2"), hidden, o, norm.silu());
        if i != o {
            skip = self.b.linear(&format!("{path}.conv_shortcut"), skip, &[o, i, 1, 1], Linear::default());
            self.stream(skip);
        }
        let with = Conv { residual: Some(skip), ..Conv::default() };
        let y = self.b.conv(&format!("{path}.conv2"), hidden, [o, o], with);
        self.stream(y)
    }

    /// Attention over all pixels of `d` channels, with a norm of `groups` groups before it, if any.
    pub fn attention(&mut self, path: &str, x: Value, d: usize, heads: u32, groups: Option<u32>) -> Value {
        let names = if (self.has)(&format!("{path}.query.weight")) {
            ["query", "key", "value", "proj_attn"]
        } else {
            ["to_q", "to_k", "to_v", "to_out.0"]
        };
        let [to_q, to_k, to_v, to_out] = names.map(|name| format!("{path}.{name}"));
        let eps = self.eps;
        let b = &mut self.b;
        let normed = match groups {
            Some(groups) => b.group_norm(&format!("{path}.group_norm"), x, d, GroupNorm::new(groups, eps)),
            None => x,
        };
        let [q, k, v] = [to_q, to_k, to_v].map(|name| b.linear(&name, normed, &[d, d], Linear::default()));
        let scale = ((d as u32 / heads) as f32).sqrt().recip();
        let attended = b.push(
            path,
            Op::Attention(Attention { q, k, v, heads, scale, attend: Default::default(), ..Attention::default() }),
        );
        let y = b.linear(&to_out, attended, &[d, d], Linear { residual: Some(x), ..Linear::default() });
        self.stream(y)
    }

    /// What every network ends with: a norm, SiLU and a convolution from `i` to `o` channels, kept in 32 bits.
    pub fn finish(&mut self, prefix: &str, x: Value, [i, o]: [usize; 2]) -> Value {
        let norm = self.norm().silu();
        let x = self.b.group_norm(&format!("{prefix}conv_norm_out"), x, i, norm);
        let x = self.b.conv(&format!("{prefix}conv_out"), x, [i, o], Conv::default());
        self.b.wide(x)
    }
}

/// `act(x)`, as an op of its own.
pub fn activate(b: &mut Builder, path: &str, x: Value, act: Act) -> Value {
    b.push(path, Op::Pointwise(Pointwise { x, act, mul: 1.0, add: 0.0 }))
}
