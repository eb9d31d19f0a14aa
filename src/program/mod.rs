//! Programs: networks as flat lists of coarse ops.
//!
//! A [`Program`] is in SSA form and has no control flow. Values are numbered: the program's inputs come first, then one
//! value per node, in order; a node reads only values with smaller numbers. Quantization is not a property of a program
//! but of its tensors and of the `quantize` attributes: there is no quantized twin of any op.
//!
//! Axes, by one letter each: `n` samples in the batch, `f` frames, `h` and `w` rows and columns of pixels, `c`
//! channels, `t` tokens, `d` and `e` features, `i` and `o` input and output channels of a weight, `k` the elements that
//! one output sums, `p` the pixels along the side of a patch. Activations are channels-last, `(n, h, w, c)` or
//! `(n, t, d)`, so that a linear layer is a 1x1 convolution and pixels become tokens without moving.
//!
//! An op is a struct in the file of its family; [`Op`] is any of them, and [`shape`] runs their shape rules. Every op
//! lists its fields once ([`Visit`]): operands, tensors, the file's words and the specification's tables follow from
//! it.

mod attention;
mod conv;
mod embed;
mod fork;
mod layout;
mod linear;
mod mixed;
mod norm;
mod numbered;
mod op;
mod phases;
mod pointwise;
mod quantize;
mod resample;
mod rotary;
mod round;
pub mod shape;
mod vector_quantize;
mod visit;

pub use attention::{Attend, Attention, Reach, SoftmaxGrid, describe_attention};
pub use conv::{Conv2d, ConvStride};
pub use embed::{
    Embedding, Grid, MAX_BUCKETS, Parameter, PositionEmbedding, RelativeBias, TimestepEmbedding, bucket_starts,
};
pub use layout::{Concat, PadRows, Patchify, Slice, Unpatchify};
pub use linear::{GatedLinear, Linear};
pub use norm::{GroupNorm, LayerNorm, Modulation};
pub use numbered::Numbered;
pub(crate) use numbered::numbered;
pub use op::{Act, Columns, Op, Tensor, Value};
pub use phases::{MAX_PHASES, Phases, Variant};
pub use pointwise::{Add, Multiply, Pointwise};
pub use quantize::{
    CurveAxis, MAX_TURN, MIN_TURN, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, RangeCurve, Turn,
};
pub use resample::{Resample, Resampling};
pub use rotary::Rotary;
pub use round::Round;
pub use vector_quantize::VectorQuantize;
#[cfg(test)]
pub(crate) use visit::Range;
pub use visit::{Field, Visit};

numbered! {
    "Roles"
    /// What a program computes.
    pub enum Role {
        /// One evaluation of the denoising network.
        Denoiser = 0 "denoiser",
        /// Latents to an image.
        VaeDecoder = 1 "vae decoder",
        /// An image to the mean and log variance of its latents, side by side.
        VaeEncoder = 2 "vae encoder",
        /// Tokens to features.
        TextEncoder = 3 "text encoder",
        /// Tokens to features: the second text encoder.
        TextEncoder2 = 4 "second text encoder",
        /// The denoiser of the last steps.
        Refiner = 5 "refiner",
    }
}

/// How often a value changes while an image is made; slower rates are computed outside the step loop.
///
/// The order matters: a node's rate is the fastest of its inputs' rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rate {
    /// Depends on shapes only: computed once per bind.
    Bind,
    /// Depends on the prompt or class: computed once per prompt.
    Prompt,
    /// Depends on the timestep (and perhaps the prompt): computed for many steps at once, before they are needed.
    Step,
    /// Depends on the latents: computed in the loop.
    Loop,
}

numbered! {
    "Kinds of inputs"
    /// A program input.
    pub enum InputKind {
        /// Latents `(n, h, w, c)`, or of videos `(n, f, h, w, c)`, already scaled for the model; of encoders, pixels in -1..1.
        Sample = 0 "sample",
        /// Timesteps `(conditions)`, as f32.
        Timestep = 1 "timestep",
        /// Class numbers `(conditions)`, as u32, below the number of rows of every table that they index.
        ClassLabels = 2 "class labels",
        /// Token numbers `(n, t)`, as u32: a text encoder's only input. Each must be below the number of rows of every
        /// table that they index.
        Tokens = 3 "tokens",
        /// Features of the prompt's tokens `(conditions, t, d)`.
        Context = 4 "context",
        /// One vector per prompt `(conditions, d)`.
        Pooled = 5 "pooled vectors",
        /// Numbers beside the prompt `(conditions, k)`: sizes, crops, scores.
        Sizes = 6 "sizes",
        /// How many tokens of each prompt count, `(conditions)`, or of each text `(batch)`, as u32: at most as many as there
        /// are. What stands behind them is seen by no attention that is told so.
        Lengths = 7 "lengths",
        /// Features of the prompt's tokens as a second text encoder has them, `(conditions, t, d)`, where they are no columns of
        /// the context: of another number of tokens.
        Context2 = 8 "second context",
        /// How many tokens of the second context count, `(conditions)`, as u32.
        Lengths2 = 9 "second lengths",
    }
}

impl InputKind {
    /// How often the input changes.
    pub fn rate(self) -> Rate {
        match self {
            InputKind::Sample | InputKind::Tokens => Rate::Loop,
            InputKind::Timestep => Rate::Step,
            InputKind::ClassLabels
            | InputKind::Context
            | InputKind::Pooled
            | InputKind::Sizes
            | InputKind::Lengths
            | InputKind::Context2
            | InputKind::Lengths2 => Rate::Prompt,
        }
    }
}

/// One axis of a program input: fixed, or filled in when the program is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Known when packing.
    Fixed(u32),
    /// Samples in the batch.
    Batch,
    /// Distinct conditions (prompt or class rows) in the batch.
    Conditions,
    /// Rows of the latents.
    Height,
    /// Columns of the latents.
    Width,
    /// Tokens of a prompt.
    Tokens,
    /// Frames of a video.
    Frames,
}

/// Values of the symbolic axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Samples in the batch.
    pub batch: usize,
    /// Distinct conditions.
    pub conditions: usize,
    /// Rows of the latents.
    pub height: usize,
    /// Columns of the latents.
    pub width: usize,
    /// Tokens of a prompt; 1 where there are none.
    pub tokens: usize,
    /// Frames of a sample; 1 where there are none but images.
    pub frames: usize,
}

impl Dims {
    /// One of each: what others are written as a change of.
    pub const ONE: Dims = Dims { batch: 1, conditions: 1, height: 1, width: 1, tokens: 1, frames: 1 };

    /// The length of axis `dim`.
    pub fn resolve(&self, dim: Dim) -> usize {
        match dim {
            Dim::Fixed(n) => n as usize,
            Dim::Batch => self.batch,
            Dim::Conditions => self.conditions,
            Dim::Height => self.height,
            Dim::Width => self.width,
            Dim::Tokens => self.tokens,
            Dim::Frames => self.frames,
        }
    }
}

/// A declared input.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// What it is.
    pub kind: InputKind,
    /// Its axes, outermost first; 1 to [`MAX_AXES`](shape::MAX_AXES).
    pub dims: Vec<Dim>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What to compute, with its operands.
    pub op: Op,
    /// Module path in the source model; errors, traces and reports speak with it.
    pub path: String,
    /// Whether the result must be kept in 32 bits on back ends whose activations are narrower.
    pub wide: bool,
}

/// A network.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// What it computes.
    pub role: Role,
    /// Inputs; values `0..inputs.len()`.
    pub inputs: Vec<Input>,
    /// Operations; values `inputs.len()..`.
    pub nodes: Vec<Node>,
    /// The result.
    pub output: Value,
    /// What is other in other stretches of time.
    pub phases: Phases,
}

impl Program {
    /// Number of values.
    pub fn n_values(&self) -> usize {
        self.inputs.len() + self.nodes.len()
    }

    /// The value that node `node` makes.
    pub fn value_of(&self, node: usize) -> Value {
        Value((self.inputs.len() + node) as u32)
    }

    /// The node that makes `value`; `None` for an input.
    pub fn node_of(&self, value: Value) -> Option<usize> {
        (value.0 as usize).checked_sub(self.inputs.len())
    }

    /// `dims` as this program has them: what reads no frames works on one at a time.
    pub fn dims(&self, dims: Dims) -> Dims {
        let video = self.inputs.iter().any(|input| input.dims.contains(&Dim::Frames));
        Dims { frames: if video { dims.frames } else { 1 }, ..dims }
    }

    /// The input of `kind`, if the program has one.
    pub fn input(&self, kind: InputKind) -> Option<Value> {
        self.inputs.iter().position(|i| i.kind == kind).map(|i| Value(i as u32))
    }
}
