//! Arguments of each op.
#![allow(missing_docs)] // Fields carry the names and meanings of the ops in `program`.

use super::*;
use crate::sampler::Threshold;

/// Linear layer. A gated one has two rows of weights per column of `y`, and neither gate nor residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearArgs {
    pub x: Input,
    pub y: Output,
    pub act: Act,
    /// See [`Op::GatedLinear`](crate::program::Op::GatedLinear).
    pub gated: bool,
    /// Gate and its first column.
    pub gate: Option<(PerSample, usize)>,
    pub residual: Option<Floats>,
}

/// 3x3 convolution; `height` and `width` are the input's, `out` the result's. `shift` is a value per sample and its first
/// column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv2dArgs {
    pub x: Input,
    pub y: Floats,
    pub samples: usize,
    pub height: usize,
    pub width: usize,
    pub out: [usize; 2],
    pub sampling: ConvStride,
    pub shift: Option<(PerSample, usize)>,
    pub residual: Option<Floats>,
}

/// Attention over all rows of a sample. `workspace` is as large as `Backend::workspace` asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionArgs {
    pub q: Floats,
    pub k: Floats,
    pub v: Floats,
    pub y: Output,
    pub samples: usize,
    pub heads: usize,
    pub scale: f32,
    pub causal: bool,
    pub int8: bool,
    /// The u32 condition of each sample, if `k` and `v` hold rows per condition.
    pub condition: Option<Slot>,
    /// Keys of each query's sample.
    pub keys: usize,
    pub workspace: Slot,
    /// The grid of probabilities, if they are rounded.
    pub softmax: Option<SoftmaxArgs>,
    /// `(heads * queries, keys)`, f32, the same at every call.
    pub bias: Option<Floats>,
    /// How many keys are seen, u32: one per row of conditions if `k` and `v` hold those, else per sample.
    pub lengths: Option<Slot>,
}

/// See [`SoftmaxGrid`](crate::program::SoftmaxGrid).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxArgs {
    pub bits: u8,
    /// Of which the scales are read; otherwise they are those of the data.
    pub fixed: Option<RangeTable>,
}

/// Layer norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNormArgs {
    pub x: Floats,
    pub y: Output,
    pub eps: f32,
    /// Modulation and the first columns of scale and shift.
    pub modulation: Option<(PerSample, usize, usize)>,
    pub rms: bool,
    /// What is added, and its first column; only without a modulation.
    pub shift: Option<(PerSample, usize)>,
}

/// Group norm. `workspace` is as large as `Backend::workspace` asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormArgs {
    pub x: Floats,
    pub y: Output,
    pub samples: usize,
    pub groups: usize,
    pub eps: f32,
    /// Modulation and the first columns of scale and shift.
    pub modulation: Option<(PerSample, usize, usize)>,
    pub act: Act,
    pub workspace: Slot,
}

/// Pointwise function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PointwiseArgs {
    pub x: Floats,
    pub y: Floats,
    pub act: Act,
    pub mul: f32,
    pub add: f32,
}

/// Sum or product; rows of `b` repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairArgs {
    pub a: Floats,
    pub b: Floats,
    pub y: Floats,
}

/// Columns of `a`, then of `b`, whose rows repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConcatArgs {
    pub a: Floats,
    pub b: Floats,
    pub y: Floats,
}

/// Columns of `x` from `first` on, as many as `y` has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SliceArgs {
    pub x: Floats,
    pub y: Floats,
    pub first: usize,
}

/// Rows of a table in place of those behind the first `lengths` (u32) of each run of `tokens` rows; row `i` of a run may
/// become row `first + i` of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PadRowsArgs {
    pub x: Floats,
    pub y: Floats,
    pub lengths: Slot,
    pub tokens: usize,
    pub first: usize,
}

/// Pairs of features turned; rows of `table`, which has as many columns as a head, repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryArgs {
    pub x: Floats,
    pub table: Floats,
    pub y: Floats,
}

/// Float to codes. `workspace` is as large as `Backend::workspace` asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantizeArgs {
    pub x: Floats,
    pub y: QuantizeTo,
    /// Channels of a run that is rotated, or 0.
    pub block: usize,
    pub workspace: Slot,
}

/// Floats to floats on a grid; rows are runs of columns where these have ranges of their own. `workspace` is as large as
/// `Backend::workspace` asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundArgs {
    pub x: Floats,
    pub y: Floats,
    /// The greatest code.
    pub top: u8,
    /// Number of scales: one per row, or one per sample.
    pub groups: usize,
    /// Scales from a curve; otherwise from the data.
    pub fixed: Option<RangeTable>,
    pub workspace: Slot,
}

/// Nearest rows of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VectorQuantizeArgs {
    pub x: Floats,
    pub y: Floats,
}

/// More or fewer pixels; `height` and `width` are the input's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResampleArgs {
    pub x: Floats,
    pub y: Floats,
    pub samples: usize,
    pub height: usize,
    pub width: usize,
    pub how: Resampling,
}

/// A tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterArgs {
    pub y: Floats,
}

/// Rows of a table; `index` holds u32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingArgs {
    pub index: Slot,
    pub y: Floats,
}

/// Sinusoids of timesteps; of `numbers` per row, side by side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimestepEmbeddingArgs {
    pub t: Slot,
    pub numbers: usize,
    pub y: Floats,
    pub cos_first: bool,
    pub shift: f32,
}

/// Sinusoids of grid positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionEmbeddingArgs {
    pub y: Floats,
    pub height: usize,
    pub width: usize,
    /// First position and span of columns and of rows; see [`PositionEmbedding::spans`](crate::program::PositionEmbedding::spans).
    pub spans: [[u32; 2]; 2],
    pub interpolation: f32,
    /// Whether all of it is 0 instead.
    pub zero: bool,
}

/// Bias of attention by distance; `y` is `(heads * t, t)`. See [`bucket_starts`](crate::program::bucket_starts).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RelativeBiasArgs {
    pub y: Floats,
    pub buckets: u32,
    pub max_distance: u32,
}

/// Patchify, or back; `height`, `width` and `channels` are the pixels'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchArgs {
    pub x: Floats,
    pub y: Floats,
    pub samples: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub patch: usize,
    pub inverse: bool,
}

/// Scaled copies of the latents. `rows` holds the sampler's rows, one per call of the run; see `sampler::Row`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelInputArgs {
    pub rows: Slot,
    pub state: Slot,
    /// Floats per copy.
    pub len: usize,
    pub copies: usize,
    pub sample: Slot,
}

/// One sampler step on `len` floats per state; states lie `len * 4` bytes apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerStepArgs {
    pub rows: Slot,
    pub states: Slot,
    pub n_states: usize,
    pub len: usize,
    /// Latent channels; the model's output may have more, which are skipped, or if the rows have a
    /// [gain](crate::sampler::Row::gain) as many again, from which it is made.
    pub channels: usize,
    /// The model's output; with guidance, conditional samples first and unconditional ones after.
    pub model: Floats,
    pub guidance: Option<Guidance>,
    /// Only with guidance.
    pub rescale: Option<Rescale>,
    /// How the x0 of each of the images is thresholded; the floats of one image then lie free behind the states.
    pub threshold: Option<Thresholding>,
    pub noise: Option<Slot>,
    pub blend: Option<Inpaint>,
}

/// Classifier-free guidance, away from the unconditional output: `u + scale * (c - u)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    pub scale: f32,
    /// How many of the latents' channels are guided, the first ones; the others are the conditional output.
    pub channels: usize,
}

/// Guidance scaled back to the width of the conditional output (Lin et al., arXiv 2305.08891, section 3.4): each
/// image's by `share * deviation(conditional) / deviation(guided) + 1 - share`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rescale {
    /// 0 for none of it, 1 for all.
    pub share: f32,
    pub images: usize,
    /// Room for one float per image.
    pub factors: Slot,
}

/// Dynamic thresholding of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholding {
    pub threshold: Threshold,
    pub images: usize,
}

/// Inpainting: after the step, what lies outside of a mask becomes an image with noise of the run's level; see
/// [`Row::keep`](crate::sampler::Row::keep).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inpaint {
    /// One float per latent pixel, `len / channels` in all: 1 where the picture is made, 0 where it is kept.
    pub mask: Slot,
    /// The image's latents, `len` floats.
    pub init: Slot,
    /// Their noise, `len` floats; the same for all calls.
    pub noise: Slot,
}

impl LinearArgs {
    /// Rows of the weight.
    pub fn channels(&self) -> usize {
        self.y.cols() * if self.gated { 2 } else { 1 }
    }
}

impl AttentionArgs {
    /// Rows of samples or conditions that `k` and `v` hold.
    pub fn key_rows(&self) -> usize {
        self.k.rows / self.keys
    }
}

impl RelativeBiasArgs {
    /// Columns of the table.
    pub fn heads(&self) -> usize {
        self.y.rows / self.y.cols
    }
}
