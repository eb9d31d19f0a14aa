//! Arguments of ops after binding: places in the arena and plain numbers.

use crate::program::{Act, ConvStride, QuantizeGrain, Resampling};

/// Alignment of everything in the arena, in bytes.
pub const ALIGN: usize = 64;

/// A place in the arena. Values that a table holds once per model call lie `stride` bytes apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// First byte, a multiple of [`ALIGN`].
    pub at: usize,
    /// Bytes from one call's value to the next one's; 0 if all calls share it.
    pub stride: usize,
}

impl Slot {
    /// First byte at call `call` of the table's window.
    pub fn of(&self, call: usize) -> usize {
        self.at + call * self.stride
    }
}

/// How a float is stored in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Element {
    /// Narrow.
    F16,
    /// Wide.
    #[default]
    F32,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F16 => 2,
            Element::F32 => 4,
        }
    }
}

/// A float matrix, row-major, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floats {
    /// Where.
    pub slot: Slot,
    /// Product of all axes but the last.
    pub rows: usize,
    /// The last axis.
    pub cols: usize,
    /// f16 only on back ends that ask for it, and only for values of the loop that the packer did not mark as wide.
    pub element: Element,
}

impl Floats {
    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.element.bytes()
    }
}

/// A matrix of activation codes with what is needed to read them: `x = scale * (q - zero)`.
///
/// In the arena: codes, `rows` times `stride` bytes; then f32 scales and zero points, one each per group of
/// `rows / groups` rows; then the i32 sum of each row's codes. Columns beyond `cols` hold code 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// Where.
    pub slot: Slot,
    /// Rows: tokens or pixels.
    pub rows: usize,
    /// Features or channels.
    pub cols: usize,
    /// Number of scales.
    pub groups: usize,
    /// 8 or 6.
    pub bits: u8,
}

impl Codes {
    /// Bytes from one row of codes to the next.
    pub fn stride(&self) -> usize {
        self.cols.next_multiple_of(16)
    }

    /// Offset of the scales from the first code.
    pub fn scale_at(&self) -> usize {
        (self.rows * self.stride()).next_multiple_of(ALIGN)
    }

    /// Offset of the zero points.
    pub fn zero_at(&self) -> usize {
        self.scale_at() + (self.groups * 4).next_multiple_of(ALIGN)
    }

    /// Offset of the row sums.
    pub fn sum_at(&self) -> usize {
        self.zero_at() + (self.groups * 4).next_multiple_of(ALIGN)
    }

    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        self.sum_at() + self.rows * 4
    }
}

/// Activations of a matrix product: float or codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Real numbers.
    Floats(Floats),
    /// Integer codes.
    Codes(Codes),
}

impl Input {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Input::Floats(f) => f.rows,
            Input::Codes(c) => c.rows,
        }
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        match self {
            Input::Floats(f) => f.cols,
            Input::Codes(c) => c.cols,
        }
    }

    /// Bytes in the arena.
    pub fn bytes(&self) -> usize {
        match self {
            Input::Floats(f) => f.bytes(),
            Input::Codes(c) => c.bytes(),
        }
    }

    /// Where it lies.
    pub fn slot(&self) -> Slot {
        match self {
            Input::Floats(f) => f.slot,
            Input::Codes(c) => c.slot,
        }
    }
}

/// Columns of a per-condition matrix, looked up per sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerSample {
    /// `(conditions, columns)`.
    pub table: Floats,
    /// The u32 condition of each sample.
    pub condition: Slot,
    /// Samples in the batch.
    pub samples: usize,
    /// Rows of the op's result per sample.
    pub rows_per_sample: usize,
}

/// Fixed scales for a quantization, from a curve over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedRange {
    /// `(calls, 2)`: scale and zero point.
    pub table: Slot,
    /// Rows of the quantized matrix per entry of the table.
    pub rows_per_entry: usize,
}

/// How an op quantizes its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeTo {
    /// The result.
    pub codes: Codes,
    /// What shares a scale.
    pub grain: QuantizeGrain,
    /// Scales from a curve; otherwise from the data.
    pub fixed: Option<FixedRange>,
}

/// The result of an op that may quantize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Real numbers.
    Floats(Floats),
    /// Codes.
    Codes(QuantizeTo),
}

#[allow(missing_docs)] // Fields carry the names and meanings of the ops in `program::op`.
mod structs {
    use super::*;

    /// Linear layer. A gated one has two rows of weights per column of `y`, and neither gate nor residual.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct LinearArgs {
        pub x: Input,
        pub y: Floats,
        pub act: Act,
        /// See [`Op::GatedLinear`](crate::program::Op::GatedLinear).
        pub gated: bool,
        /// Gate and its first column.
        pub gate: Option<(PerSample, usize)>,
        pub residual: Option<Floats>,
    }

    /// 3x3 convolution; `height` and `width` are the input's. `shift` is a value per sample and its first column.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Conv2dArgs {
        pub x: Input,
        pub y: Floats,
        pub samples: usize,
        pub height: usize,
        pub width: usize,
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
        pub y: Floats,
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
    }

    /// Layer norm.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct LayerNormArgs {
        pub x: Floats,
        pub y: Output,
        pub eps: f32,
        /// Modulation and the first columns of scale and shift.
        pub modulation: Option<(PerSample, usize, usize)>,
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

    /// Sum; rows of `b` repeat.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct AddArgs {
        pub a: Floats,
        pub b: Floats,
        pub y: Floats,
    }

    /// Columns of `a`, then of `b`.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct ConcatArgs {
        pub a: Floats,
        pub b: Floats,
        pub y: Floats,
    }

    /// Float to codes. `workspace` is as large as `Backend::workspace` asked.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct QuantizeArgs {
        pub x: Floats,
        pub y: QuantizeTo,
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
        pub base: usize,
        pub interpolation: f32,
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
        pub guidance: Option<f32>,
        /// Only with guidance.
        pub rescale: Option<Rescale>,
        pub noise: Option<Slot>,
        pub blend: Option<Blend>,
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

    /// Inpainting: after the step, what lies outside of a mask becomes an image with noise of the run's level; see
    /// [`Row::keep`](crate::sampler::Row::keep).
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Blend {
        /// One float per latent pixel, `len / channels` in all: 1 where the picture is made, 0 where it is kept.
        pub mask: Slot,
        /// The image's latents, `len` floats.
        pub init: Slot,
        /// Their noise, `len` floats; the same for all calls.
        pub noise: Slot,
    }
}
pub use structs::*;

impl LinearArgs {
    /// Rows of the weight.
    pub fn channels(&self) -> usize {
        self.y.cols * if self.gated { 2 } else { 1 }
    }
}

/// An op that is ready to run but for the call: its arguments, and handles of its tensors. A plan has a [`Tensor`](crate::program::Tensor) as
/// handle, a bound program what the back end made of it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // Variants and fields carry the names and meanings of the ops in `program::op`.
pub enum OpArgs<T> {
    Linear { args: LinearArgs, weight: T, bias: Option<T> },
    Conv2d { args: Conv2dArgs, weight: T, bias: Option<T> },
    Attention(AttentionArgs),
    LayerNorm { args: LayerNormArgs, weight: Option<T>, bias: Option<T> },
    GroupNorm { args: GroupNormArgs, weight: T, bias: T },
    Pointwise(PointwiseArgs),
    Add(AddArgs),
    Concat(ConcatArgs),
    Quantize(QuantizeArgs),
    VectorQuantize { args: VectorQuantizeArgs, table: T },
    Resample(ResampleArgs),
    Parameter { args: ParameterArgs, tensor: T },
    Embedding { args: EmbeddingArgs, table: T },
    TimestepEmbedding(TimestepEmbeddingArgs),
    PositionEmbedding(PositionEmbeddingArgs),
    Patch(PatchArgs),
}

impl<T> OpArgs<T> {
    /// The same op with other handles: those that `f` gives for these.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<OpArgs<U>, E> {
        Ok(match self {
            OpArgs::Linear { args, weight, bias } => {
                OpArgs::Linear { args, weight: f(weight)?, bias: bias.map(f).transpose()? }
            }
            OpArgs::Conv2d { args, weight, bias } => {
                OpArgs::Conv2d { args, weight: f(weight)?, bias: bias.map(f).transpose()? }
            }
            OpArgs::Attention(args) => OpArgs::Attention(args),
            OpArgs::LayerNorm { args, weight, bias } => {
                OpArgs::LayerNorm { args, weight: weight.map(&mut f).transpose()?, bias: bias.map(f).transpose()? }
            }
            OpArgs::GroupNorm { args, weight, bias } => OpArgs::GroupNorm { args, weight: f(weight)?, bias: f(bias)? },
            OpArgs::Pointwise(args) => OpArgs::Pointwise(args),
            OpArgs::Add(args) => OpArgs::Add(args),
            OpArgs::Concat(args) => OpArgs::Concat(args),
            OpArgs::Quantize(args) => OpArgs::Quantize(args),
            OpArgs::VectorQuantize { args, table } => OpArgs::VectorQuantize { args, table: f(table)? },
            OpArgs::Resample(args) => OpArgs::Resample(args),
            OpArgs::Parameter { args, tensor } => OpArgs::Parameter { args, tensor: f(tensor)? },
            OpArgs::Embedding { args, table } => OpArgs::Embedding { args, table: f(table)? },
            OpArgs::TimestepEmbedding(args) => OpArgs::TimestepEmbedding(args),
            OpArgs::PositionEmbedding(args) => OpArgs::PositionEmbedding(args),
            OpArgs::Patch(args) => OpArgs::Patch(args),
        })
    }

    /// Where the result lies.
    pub fn result(&self) -> Input {
        let output = |y: &Output| match y {
            Output::Floats(y) => Input::Floats(*y),
            Output::Codes(to) => Input::Codes(to.codes),
        };
        match self {
            OpArgs::Linear { args, .. } => Input::Floats(args.y),
            OpArgs::Conv2d { args, .. } => Input::Floats(args.y),
            OpArgs::Attention(args) => Input::Floats(args.y),
            OpArgs::LayerNorm { args, .. } => output(&args.y),
            OpArgs::GroupNorm { args, .. } => output(&args.y),
            OpArgs::Pointwise(args) => Input::Floats(args.y),
            OpArgs::Add(args) => Input::Floats(args.y),
            OpArgs::Concat(args) => Input::Floats(args.y),
            OpArgs::Quantize(args) => Input::Codes(args.y.codes),
            OpArgs::VectorQuantize { args, .. } => Input::Floats(args.y),
            OpArgs::Resample(args) => Input::Floats(args.y),
            OpArgs::Parameter { args, .. } => Input::Floats(args.y),
            OpArgs::Embedding { args, .. } => Input::Floats(args.y),
            OpArgs::TimestepEmbedding(args) => Input::Floats(args.y),
            OpArgs::PositionEmbedding(args) => Input::Floats(args.y),
            OpArgs::Patch(args) => Input::Floats(args.y),
        }
    }

    /// Where the operands lie that hold activations, the first one first: of a matrix product what multiplies the weight,
    /// of attention `q`, `k` and `v`. Gates and modulations are their whole tables, a row per condition.
    pub fn operands(&self) -> impl Iterator<Item = Input> {
        let float = |f: Floats| Some(Input::Floats(f));
        let table = |p: PerSample| float(p.table);
        let list = match self {
            OpArgs::Linear { args: a, .. } => {
                [Some(a.x), a.gate.and_then(|(gate, _)| table(gate)), a.residual.and_then(float)]
            }
            OpArgs::Conv2d { args: a, .. } => {
                [Some(a.x), a.shift.and_then(|(shift, _)| table(shift)), a.residual.and_then(float)]
            }
            OpArgs::Attention(a) => [float(a.q), float(a.k), float(a.v)],
            OpArgs::LayerNorm { args: a, .. } => [float(a.x), a.modulation.and_then(|(m, ..)| table(m)), None],
            OpArgs::GroupNorm { args: a, .. } => [float(a.x), a.modulation.and_then(|(m, ..)| table(m)), None],
            OpArgs::Pointwise(a) => [float(a.x), None, None],
            OpArgs::Add(a) => [float(a.a), float(a.b), None],
            OpArgs::Concat(a) => [float(a.a), float(a.b), None],
            OpArgs::Quantize(a) => [float(a.x), None, None],
            OpArgs::VectorQuantize { args: a, .. } => [float(a.x), None, None],
            OpArgs::Resample(a) => [float(a.x), None, None],
            OpArgs::Patch(a) => [float(a.x), None, None],
            OpArgs::Parameter { .. }
            | OpArgs::Embedding { .. }
            | OpArgs::TimestepEmbedding(_)
            | OpArgs::PositionEmbedding(_) => [None; 3],
        };
        list.into_iter().flatten()
    }
}
