//! The op set and its attributes.
//!
//! Ops are coarse: a linear layer carries its bias, activation, gate and residual; a norm carries its modulation and
//! the quantization of its result. A new op needs a shape rule, a back end method, its implementations, the scalar
//! oracle and test cases; it must not know its model.

/// Number of a value within its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u32);

/// Number of a tensor within its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tensor(pub u32);

/// A pointwise activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Act {
    /// The identity.
    #[default]
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// GELU itself: `x * (1 + erf(x / sqrt(2))) / 2`.
    GeluErf,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
}

/// A run of columns of a two-dimensional value: `value[:, offset..offset + d]`, `d` known from the other operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The value, `(conditions, at least offset + d)`.
    pub value: Value,
    /// The first column.
    pub offset: u32,
}

/// How a convolution moves over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Sampling {
    /// As many pixels out as in: stride 1, zero padding 1.
    #[default]
    Same,
    /// Nearest-neighbour upsampling by 2 before a convolution of stride 1 and zero padding 1.
    Up,
    /// Stride 2, zero padding 1: `ceil(h / 2)` rows out.
    Down,
    /// Stride 2, zero padding 1 below and to the right only: `floor(h / 2)` rows out.
    DownAfter,
}

impl Sampling {
    /// All of them.
    pub const ALL: [Sampling; 4] = [Sampling::Same, Sampling::Up, Sampling::Down, Sampling::DownAfter];

    /// Factor by which the input is upsampled first.
    pub fn upsample(self) -> usize {
        if self == Sampling::Up { 2 } else { 1 }
    }

    /// Pixels from one window to the next.
    pub fn stride(self) -> usize {
        if matches!(self, Sampling::Down | Sampling::DownAfter) { 2 } else { 1 }
    }

    /// Rows of zeros above the input.
    pub fn before(self) -> usize {
        usize::from(self != Sampling::DownAfter)
    }

    /// Rows of the result for `rows` of input; `None` if it does not fit a number.
    pub fn rows(self, rows: usize) -> Option<usize> {
        match self {
            Sampling::Same => Some(rows),
            Sampling::Up => rows.checked_mul(2),
            Sampling::Down => Some(rows.div_ceil(2)),
            Sampling::DownAfter => Some(rows / 2),
        }
    }
}

/// Which keys a query sees, and how exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Attend {
    /// A query sees the keys up to its own position only.
    pub causal: bool,
    /// `k` and `v` hold rows per condition, not per sample: those of a prompt. A value of two axes is one row each.
    pub per_condition: bool,
    /// Scores and sums may be made of 8-bit codes of `q`, `k`, `v` and of the probabilities.
    pub int8: bool,
}

/// How [`Op::Resample`] changes the number of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resampling {
    /// Twice as many per axis, nearest neighbour.
    Nearest,
    /// Half as many per axis, means of 2 x 2; odd ones at the end are dropped.
    Mean,
}

/// Adaptive norm: `y = norm(x) * (1 + scale) + shift`, both taken from columns of `value` at the sample's condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modulation {
    /// `(conditions, columns)`.
    pub value: Value,
    /// First column of the scale.
    pub scale: u32,
    /// First column of the shift.
    pub shift: u32,
}

/// Which activations share one scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizeGrain {
    /// Each row: a token, or a pixel.
    Row,
    /// Each sample of the batch.
    Sample,
}

/// What a curve's position counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CurveAxis {
    /// The model's timestep.
    Timestep,
    /// Fraction of the sampler's calls done, 0 for the first.
    StepFraction,
}

/// Where the scale and zero point come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizeRange {
    /// From the minimum and maximum of what shares them, when it is computed.
    Dynamic,
    /// From a curve over time: an f32 tensor of rows `(position, scale, zero)`, positions ascending. Row `i` holds
    /// from its position up to the next one's; the first row also holds before.
    Curve(Tensor, CurveAxis),
}

/// How activations become integer codes: `x = scale * (q - zero)`, `q` in `0..2^bits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quantize {
    /// 8 or 6; stored as bytes either way.
    pub bits: u8,
    /// What shares a scale.
    pub grain: QuantizeGrain,
    /// Where the scale comes from.
    pub range: QuantizeRange,
}

/// An operation with its operands and attributes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `y = act(x W^T + bias) * gate + residual` over the last axis; each of the epilogues may be absent.
    /// `x` is float or codes; codes need a weight with an integer codebook.
    Linear {
        /// `(.., k)`.
        x: Value,
        /// `(o, k)`, or `(o, h, w, i)` with `k = h * w * i`: a convolution whose windows were laid out as rows.
        weight: Tensor,
        /// `(o)`.
        bias: Option<Tensor>,
        /// Applied before gate and residual.
        act: Act,
        /// Multiplies, per sample and output channel.
        gate: Option<Columns>,
        /// Added; its rows may be fewer and are then repeated cyclically.
        residual: Option<Value>,
    },
    /// `y[j] = (x W[2j]^T + bias[2j]) * act(x W[2j + 1]^T + bias[2j + 1])`: a gated linear unit whose weight holds the
    /// rows of values and gates by turns.
    GatedLinear {
        /// `(.., k)`.
        x: Value,
        /// `(2 o, k)`.
        weight: Tensor,
        /// `(2 o)`.
        bias: Option<Tensor>,
        /// Applied to the gate.
        act: Act,
    },
    /// 3x3 convolution, `(n, h, w, c) -> (n, h', w', o)`: `y = conv(x) + bias + shift + residual`.
    Conv2d {
        /// `(n, h, w, c)`, float or codes with one scale per sample.
        x: Value,
        /// `(o, 3, 3, c)`.
        weight: Tensor,
        /// `(o)`.
        bias: Option<Tensor>,
        /// How many pixels come out.
        sampling: Sampling,
        /// Added per sample and output channel, as time embeddings are.
        shift: Option<Columns>,
        /// Added last; same shape as the result.
        residual: Option<Value>,
    },
    /// Softmax attention per head, over all tokens of a sample: `softmax(q k^T * scale) v`.
    Attention {
        /// `(n, .., heads * e)`.
        q: Value,
        /// `(n, .., heads * e)`, or with conditions instead of samples.
        k: Value,
        /// Like `k`.
        v: Value,
        /// Number of heads.
        heads: u32,
        /// Multiplies the scores.
        scale: f32,
        /// Who sees whom.
        attend: Attend,
    },
    /// Layer norm over the last axis, statistics in f32.
    LayerNorm {
        /// `(n, .., d)`.
        x: Value,
        /// `(d)`.
        weight: Option<Tensor>,
        /// `(d)`.
        bias: Option<Tensor>,
        /// Added to the variance.
        eps: f32,
        /// Applied after the affine part.
        modulation: Option<Modulation>,
        /// Quantizes the result.
        quantize: Option<Quantize>,
    },
    /// Group norm over `(h, w, c / groups)` of each sample, perhaps modulated, then an activation.
    GroupNorm {
        /// `(n, h, w, c)`.
        x: Value,
        /// `(c)`.
        weight: Tensor,
        /// `(c)`.
        bias: Tensor,
        /// Number of groups; divides `c`.
        groups: u32,
        /// Added to the variance.
        eps: f32,
        /// Applied after the affine part.
        modulation: Option<Modulation>,
        /// Applied last.
        act: Act,
        /// Quantizes the result.
        quantize: Option<Quantize>,
    },
    /// `y = act(x) * mul + add`.
    Pointwise {
        /// Any shape.
        x: Value,
        /// Applied first.
        act: Act,
        /// Factor.
        mul: f32,
        /// Summand.
        add: f32,
    },
    /// `a + b`; the rows of `b` may be fewer and are then repeated cyclically.
    Add {
        /// `(.., d)`.
        a: Value,
        /// `(.., d)`.
        b: Value,
    },
    /// `a` and `b` side by side along the last axis.
    Concat {
        /// `(.., d)`.
        a: Value,
        /// `(.., e)`.
        b: Value,
    },
    /// Float to codes.
    Quantize {
        /// `(n, .., d)`.
        x: Value,
        /// How.
        spec: Quantize,
    },
    /// The nearest row of a table, by squared distance, the first among equals: `(.., d) -> (.., d)`.
    VectorQuantize {
        /// `(.., d)`.
        x: Value,
        /// `(rows, d)`, f32.
        table: Tensor,
    },
    /// More or fewer pixels.
    Resample {
        /// `(n, h, w, c)`.
        x: Value,
        /// Which.
        how: Resampling,
    },
    /// A tensor as a value, with the tensor's axes.
    Parameter {
        /// f16 or f32.
        tensor: Tensor,
    },
    /// Rows of a table: `(conditions) -> (conditions, d)`, `(n, t) -> (n, t, d)`.
    Embedding {
        /// Row numbers: an input, each below the number of rows of the table, which whoever sets the input checks.
        index: Value,
        /// `(rows, d)`, f16 or f32.
        table: Tensor,
    },
    /// Sinusoidal embedding of timesteps: `(conditions) -> (conditions, dim)`, frequencies
    /// `exp(-ln(10000) i / (dim / 2 - shift))`; of several numbers each: `(conditions, k) -> (conditions, k * dim)`.
    TimestepEmbedding {
        /// Timesteps, or other numbers.
        t: Value,
        /// Features, even.
        dim: u32,
        /// Whether the cosines come first.
        cos_first: bool,
        /// See above.
        shift: f32,
    },
    /// 2-D sin-cos position embedding of the grid of `x`: `(n, h, w, _) -> (h, w, dim)`. Depends on shapes only.
    PositionEmbedding {
        /// `(n, h, w, _)`; only its shape is used.
        x: Value,
        /// Features, a multiple of 4.
        dim: u32,
        /// Grid size at which positions are `0, 1, 2, ..`.
        base: u32,
        /// Divides the positions.
        interpolation: f32,
    },
    /// `(n, h, w, c) -> (n, h / p, w / p, p * p * c)`, features ordered (row, column, channel).
    Patchify {
        /// The pixels.
        x: Value,
        /// Patch size `p`.
        patch: u32,
    },
    /// The inverse of `Patchify`.
    Unpatchify {
        /// The patches.
        x: Value,
        /// Patch size `p`.
        patch: u32,
    },
}

impl Op {
    /// The op's name in listings and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Linear { .. } => "linear",
            Op::GatedLinear { .. } => "gated_linear",
            Op::Conv2d { .. } => "conv2d",
            Op::Attention { .. } => "attention",
            Op::LayerNorm { .. } => "layer_norm",
            Op::GroupNorm { .. } => "group_norm",
            Op::Pointwise { .. } => "pointwise",
            Op::Add { .. } => "add",
            Op::Concat { .. } => "concat",
            Op::Quantize { .. } => "quantize",
            Op::VectorQuantize { .. } => "vector_quantize",
            Op::Resample { .. } => "resample",
            Op::Parameter { .. } => "parameter",
            Op::Embedding { .. } => "embedding",
            Op::TimestepEmbedding { .. } => "timestep_embedding",
            Op::PositionEmbedding { .. } => "position_embedding",
            Op::Patchify { .. } => "patchify",
            Op::Unpatchify { .. } => "unpatchify",
        }
    }

    /// The values whose *contents* the op reads. (A position embedding reads only a shape.)
    pub fn reads(&self) -> impl Iterator<Item = Value> {
        let list = match *self {
            Op::Linear { x, gate, residual, .. } => [Some(x), gate.map(|g| g.value), residual],
            Op::Conv2d { x, shift, residual, .. } => [Some(x), residual, shift.map(|s| s.value)],
            Op::Attention { q, k, v, .. } => [Some(q), Some(k), Some(v)],
            Op::LayerNorm { x, modulation, .. } | Op::GroupNorm { x, modulation, .. } => {
                [Some(x), modulation.map(|m| m.value), None]
            }
            Op::GatedLinear { x, .. }
            | Op::VectorQuantize { x, .. }
            | Op::Resample { x, .. }
            | Op::Pointwise { x, .. }
            | Op::Quantize { x, .. }
            | Op::Patchify { x, .. }
            | Op::Unpatchify { x, .. } => [Some(x), None, None],
            Op::Add { a, b } | Op::Concat { a, b } => [Some(a), Some(b), None],
            Op::Embedding { index, .. } => [Some(index), None, None],
            Op::TimestepEmbedding { t, .. } => [Some(t), None, None],
            Op::PositionEmbedding { .. } | Op::Parameter { .. } => [None; 3],
        };
        list.into_iter().flatten()
    }

    /// Mutable access to every operand, shapes included; used to renumber values.
    pub fn operands_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        let list = match self {
            Op::Linear { x, gate, residual, .. } => [Some(x), gate.as_mut().map(|g| &mut g.value), residual.as_mut()],
            Op::Conv2d { x, shift, residual, .. } => [Some(x), residual.as_mut(), shift.as_mut().map(|s| &mut s.value)],
            Op::Attention { q, k, v, .. } => [Some(q), Some(k), Some(v)],
            Op::LayerNorm { x, modulation, .. } | Op::GroupNorm { x, modulation, .. } => {
                [Some(x), modulation.as_mut().map(|m| &mut m.value), None]
            }
            Op::GatedLinear { x, .. }
            | Op::VectorQuantize { x, .. }
            | Op::Resample { x, .. }
            | Op::Pointwise { x, .. }
            | Op::Quantize { x, .. }
            | Op::PositionEmbedding { x, .. }
            | Op::Patchify { x, .. }
            | Op::Unpatchify { x, .. } => [Some(x), None, None],
            Op::Add { a, b } | Op::Concat { a, b } => [Some(a), Some(b), None],
            Op::Embedding { index, .. } => [Some(index), None, None],
            Op::TimestepEmbedding { t, .. } => [Some(t), None, None],
            Op::Parameter { .. } => [None, None, None],
        };
        list.into_iter().flatten()
    }

    /// The tensors the op uses.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> {
        let curve = |q: &Option<Quantize>| match q {
            Some(Quantize { range: QuantizeRange::Curve(tensor, _), .. }) => Some(*tensor),
            _ => None,
        };
        let list = match self {
            Op::Linear { weight, bias, .. }
            | Op::GatedLinear { weight, bias, .. }
            | Op::Conv2d { weight, bias, .. } => [Some(*weight), *bias, None],
            Op::LayerNorm { weight, bias, quantize, .. } => [*weight, *bias, curve(quantize)],
            Op::GroupNorm { weight, bias, quantize, .. } => [Some(*weight), Some(*bias), curve(quantize)],
            Op::Quantize { spec, .. } => [curve(&Some(*spec)), None, None],
            Op::Embedding { table, .. } | Op::VectorQuantize { table, .. } => [Some(*table), None, None],
            Op::Parameter { tensor } => [Some(*tensor), None, None],
            _ => [None; 3],
        };
        list.into_iter().flatten()
    }

    /// The quantization attribute, if the op's result is codes.
    pub fn quantizes(&self) -> Option<Quantize> {
        match self {
            Op::LayerNorm { quantize, .. } | Op::GroupNorm { quantize, .. } => *quantize,
            Op::Quantize { spec, .. } => Some(*spec),
            _ => None,
        }
    }
}
