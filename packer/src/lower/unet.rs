//! The shape that all UNets share: levels of residual blocks on the way down, a middle, and the way up, where each block
//! also takes the result of its counterpart on the way down.

use super::Fields;
use super::blocks::{Blocks, Time, activate};
use super::builder::{Builder, Conv, Linear};
use aquatint::error::Result;
use aquatint::raw::program::{Act, Add, Concat, ConvStride, Op, Resampling, TimestepEmbedding, Value};

/// Most levels of a network.
pub const MAX_LEVELS: usize = 8;

/// How one level turns into the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// By a convolution.
    Conv,
    /// By a residual block between resampled pixels.
    Resnet,
}

/// One level on one of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Whether its residual blocks are followed by attention.
    pub attend: bool,
    /// How the next level is reached.
    pub change: Change,
}

/// The levels of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    /// Channels per level, finest first.
    pub channels: Vec<u32>,
    /// Residual blocks per level on the way down, finest first; one more on the way up.
    pub layers: Vec<u32>,
    /// The way down, finest first.
    pub down: Vec<Level>,
    /// The way up, coarsest first.
    pub up: Vec<Level>,
    /// Whether the middle attends.
    pub attend_mid: bool,
    /// The convolutions that halve the image.
    pub sampling: ConvStride,
    /// Whether levels take the size of their counterparts on the way down, so that any size will do. What halves must round
    /// up then.
    pub any_size: bool,
}

/// Where attention takes place.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Its module path.
    pub path: &'a str,
    /// The level, 0 for the finest; `None` in the middle.
    pub level: Option<usize>,
    /// Channels of the pixels that attend.
    pub channels: usize,
}

impl Levels {
    /// Checks channels against `groups` of norms, and the size against the number of levels.
    ///
    /// # Errors
    /// [`Error::Request`](aquatint::Error::Request) naming the field.
    pub fn check(&self, fields: &Fields, groups: u32, sample_size: [u32; 2]) -> Result<()> {
        if let Some(level) = self.channels.iter().find(|c| !c.is_multiple_of(groups)) {
            let expected = format!("channels in multiples of norm_num_groups {groups}");
            return Err(fields.error("block_out_channels", expected, level));
        }
        if self.channels[0] < 4 || !self.channels[0].is_multiple_of(2) || self.channels.len() > MAX_LEVELS {
            let expected = format!("at most {MAX_LEVELS} levels, the first of an even number of channels");
            return Err(fields.error("block_out_channels", expected, format!("{:?}", self.channels)));
        }
        let pixels = self.multiple();
        match sample_size.iter().find(|n| !n.is_multiple_of(pixels)) {
            Some(size) => Err(fields.error("sample_size", format!("a multiple of {pixels}"), size)),
            None => Ok(()),
        }
    }

    /// What heights and widths are multiples of: every level but the last halves them.
    pub fn multiple(&self) -> u32 {
        if self.any_size { 1 } else { 1 << (self.channels.len() - 1) }
    }

    /// The network from `sample` of `inputs` channels to `outputs` channels; `attend` appends attention to a value.
    pub fn lower(
        &self,
        blocks: &mut Blocks,
        sample: Value,
        [inputs, outputs]: [usize; 2],
        attend: &mut dyn FnMut(&mut Blocks, Site, Value) -> Value,
    ) -> Value {
        let channels: Vec<usize> = self.channels.iter().map(|&n| n as usize).collect();
        let last = channels.len() - 1;
        let mut width = channels[0];
        let mut x = blocks.b.conv("conv_in", sample, [inputs, width], Conv::default());
        let mut skips = vec![(x, width)];
        for (level, &out) in channels.iter().enumerate() {
            let path = format!("down_blocks.{level}");
            for i in 0..self.layers[level] {
                x = blocks.resnet(&format!("{path}.resnets.{i}"), x, [width, out]);
                width = out;
                if self.down[level].attend {
                    let path = format!("{path}.attentions.{i}");
                    x = attend(blocks, Site { path: &path, level: Some(level), channels: width }, x);
                }
                skips.push((x, width));
            }
            if level < last {
                let with = Conv { sampling: self.sampling, ..Conv::default() };
                x = self.change(blocks, &path, self.down[level].change, x, width, with);
                skips.push((x, width));
            }
        }
        x = blocks.resnet("mid_block.resnets.0", x, [width; 2]);
        if self.attend_mid {
            x = attend(blocks, Site { path: "mid_block.attentions.0", level: None, channels: width }, x);
        }
        x = blocks.resnet("mid_block.resnets.1", x, [width; 2]);
        for (step, &out) in channels.iter().rev().enumerate() {
            let (path, level) = (format!("up_blocks.{step}"), last - step);
            for i in 0..=self.layers[level] {
                let Some((skip, skip_width)) = skips.pop() else { unreachable!("one per block of the way down") };
                x = blocks.b.push(&format!("{path}.concat.{i}"), Op::Concat(Concat { a: x, b: skip, tokens: false }));
                x = blocks.resnet(&format!("{path}.resnets.{i}"), x, [width + skip_width, out]);
                width = out;
                if self.up[step].attend {
                    let path = format!("{path}.attentions.{i}");
                    x = attend(blocks, Site { path: &path, level: Some(level), channels: width }, x);
                }
            }
            if step < last {
                // The next block's counterpart, whose pixels may have been odd.
                let size_of = skips.last().filter(|_| self.any_size).map(|&(skip, _)| skip);
                let with = Conv { sampling: ConvStride::Up, size_of, ..Conv::default() };
                x = self.change(blocks, &path, self.up[step].change, x, width, with);
            }
        }
        blocks.finish("", x, [width, outputs])
    }

    fn change(&self, blocks: &mut Blocks, path: &str, by: Change, x: Value, width: usize, with: Conv) -> Value {
        let (name, how) = match with.sampling {
            ConvStride::Up => ("upsamplers", Resampling::Nearest),
            _ => ("downsamplers", Resampling::Mean),
        };
        match by {
            Change::Conv => blocks.b.conv(&format!("{path}.{name}.0.conv"), x, [width; 2], with),
            Change::Resnet => blocks.resampling_resnet(&format!("{path}.{name}.0"), x, [width; 2], Some(how)),
        }
    }
}

/// Settings of the embedding of the timestep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeConfig {
    /// Features of the sinusoids; the embedding has four times as many.
    pub features: u32,
    /// Whether the cosines come first.
    pub cos_first: bool,
    /// Subtracted from half the features in the exponent of frequencies; see [`Op::TimestepEmbedding`].
    pub freq_shift: f32,
    /// Whether the embedding scales and shifts after norms; see [`Time::scale_shift`].
    pub scale_shift: bool,
}

impl TimeConfig {
    /// Reads what all UNets' configurations call alike; `features` are the first level's channels.
    ///
    /// # Errors
    /// [`Error::Request`](aquatint::Error::Request) naming the field.
    pub fn read(fields: &Fields, features: u32) -> Result<Self> {
        Ok(TimeConfig {
            features,
            cos_first: fields.flag_or("flip_sin_to_cos", true)?,
            freq_shift: fields.float_or("freq_shift", 0.0)? as f32,
            scale_shift: match fields.text_or("resnet_time_scale_shift", "default")? {
                "default" => false,
                "scale_shift" => true,
                other => return Err(fields.error("resnet_time_scale_shift", "default or scale_shift", other)),
            },
        })
    }

    /// Features of the embedding.
    pub fn d(&self) -> usize {
        4 * self.features as usize
    }

    /// The embedding of timesteps `t`; `more`, if any, makes what is added to it.
    pub fn lower(&self, b: &mut Builder, t: Value, more: Option<&mut dyn FnMut(&mut Builder) -> Value>) -> Time {
        let &TimeConfig { features, cos_first, freq_shift, scale_shift } = self;
        let d = self.d();
        let sinusoids = Op::TimestepEmbedding(TimestepEmbedding { t, dim: features, cos_first, shift: freq_shift });
        let x = b.push("time_proj", sinusoids);
        let silu = Linear { act: Act::Silu, ..Linear::default() };
        let x = b.linear("time_embedding.linear_1", x, &[d, features as usize], silu);
        let silu = match more {
            None => b.linear("time_embedding.linear_2", x, &[d, d], silu),
            Some(more) => {
                let time = b.linear("time_embedding.linear_2", x, &[d, d], Linear::default());
                let more = more(b);
                let sum = b.push("add_embedding", Op::Add(Add { a: time, b: more }));
                activate(b, "add_embedding.silu", sum, Act::Silu)
            }
        };
        Time { silu, d, scale_shift }
    }
}
