//! What a back end must do: one method per op, over one arena.
//!
//! A back end sees matrices in an arena and weights in the file; it never sees a tensor name, a symbolic axis or a
//! model. The shape rules have proved every length before a back end is called. All methods are required: an op that a
//! back end lacks is a compile error, never a surprise in the loop.

pub mod args;
pub mod cost;
pub mod cpu;
pub mod cuda;

use crate::error::Result;
use crate::format::TensorView;
use args::*;
use cost::Ceilings;
use zerocopy::IntoBytes;

/// The model call that ops belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The row of the tables that ops read: counted from the first call that the tables hold.
    pub row: usize,
    /// Counted from the first call of the run: the row of the sampler's table.
    pub step: usize,
}

/// What tells the time to a back end whose work has no clock of its own.
pub type Clock = fn() -> std::time::Instant;

/// Memory that a bound program takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// For itself.
    pub arena: usize,
    /// For the tensors that it reads, once for all that is bound of one program; 0 where they are read from the file.
    pub weights: usize,
}

impl Footprint {
    /// All of it.
    pub fn total(self) -> usize {
        self.arena + self.weights
    }
}

/// What a memory plan must know of a back end.
pub trait MemoryRules {
    /// How values that may be narrow are stored.
    fn narrow(&self) -> Element;

    /// Whether linear layers and attention can write codes of ranges that are known beforehand, in place of floats.
    fn makes_codes(&self) -> bool;

    /// Whether a sampler's step may threshold x0; see [`Threshold`](crate::sampler::Threshold).
    fn thresholds(&self) -> bool;

    /// Bytes of arena an op needs beside its operands and result, while it runs.
    fn workspace<T>(&self, op: &OpArgs<T>) -> usize;

    /// What a program takes that has an arena of `arena` bytes and reads `weights` bytes of tensors.
    fn footprint(&self, arena: usize, weights: usize) -> Footprint;
}

/// Executes ops.
///
/// Ops may be asynchronous: they are issued in order, and what goes wrong in one is told by the next method that
/// returns a `Result`.
pub trait Backend: MemoryRules {
    /// Working memory for one bound program.
    type Arena;
    /// A handle of a tensor; for the CPU, the file's own bytes.
    type Weight<'a>: Copy;
    /// Tensors that ops can read, which they can for as long as this lives, or an arena that was made with it.
    type Weights: Clone;
    /// A moment in the work issued.
    type Mark;

    /// The instruction set or device, for reports.
    fn name(&self) -> String;

    /// The most the device can do, measured now, for reports; none where nobody wrote a measurement.
    fn ceilings(&self) -> Result<Option<Ceilings>>;

    /// Bytes that can still be allocated on the device; none for the CPU, where an arena that does not fit is refused when it
    /// is mapped.
    fn free_memory(&self) -> Result<Option<usize>>;

    /// The handle of a tensor. Called once per tensor and bind.
    fn weight<'a>(&self, tensor: TensorView<'a>) -> Result<Self::Weight<'a>>;

    /// Brings tensors to where ops can read them. Called when a program is bound of which nothing else is.
    fn ready(&self, tensors: &[Self::Weight<'_>]) -> Result<Self::Weights>;

    /// Allocates working memory for ops that read `weights` and no other tensors. Called once per bind.
    fn arena(&self, bytes: usize, weights: &Self::Weights) -> Result<Self::Arena>;

    /// Called once per bind with every op that will run, before the first does: the place to size private memory.
    fn prepare<'a, T: 'a>(&self, ops: impl Iterator<Item = &'a OpArgs<T>>);

    /// Called once per bind, when there is an arena: readies the code that ops need. `body` issues every op that will run,
    /// and none of them is run by it.
    fn load(&self, arena: &mut Self::Arena, body: impl FnOnce(&Self, &mut Self::Arena)) -> Result<()>;

    /// Copies floats into the arena, starting at byte `at`.
    fn write_f32(&self, arena: &mut Self::Arena, at: usize, data: &[f32]) -> Result<()>;
    /// Copies integers into the arena, starting at byte `at`.
    fn write_u32(&self, arena: &mut Self::Arena, at: usize, data: &[u32]) -> Result<()>;
    /// Copies bytes out of the arena, starting at byte `at`, when everything issued before is done.
    fn read_bytes(&self, arena: &Self::Arena, at: usize, out: &mut [u8]) -> Result<()>;
    /// [`read_bytes`](Self::read_bytes) of f32 values.
    fn read_f32(&self, arena: &Self::Arena, at: usize, out: &mut [f32]) -> Result<()> {
        self.read_bytes(arena, at, out.as_mut_bytes())
    }
    /// Returns when everything issued before is done.
    fn wait(&self) -> Result<()>;

    /// Marks the end of what was issued so far. `clock` is asked where ops are done when they return.
    fn mark(&self, clock: Clock) -> Result<Self::Mark>;
    /// Moves a mark to the end of what was issued so far.
    fn move_mark(&self, mark: &mut Self::Mark, clock: Clock) -> Result<()>;
    /// Seconds from one mark to a later one. Waits for the later.
    fn between(&self, from: &Self::Mark, to: &Self::Mark) -> Result<f64>;

    /// Announces the call that the ops issued next belong to; they find their operands by it.
    fn begin(&self, arena: &mut Self::Arena, call: Call) -> Result<()>;

    /// Runs `body`, which issues the ops of `call`. Until [`forget`](Self::forget), all bodies of one arena issue the same
    /// ops but for the call, so a back end may record the first and replay it; then it need not call `body` again.
    fn replay(
        &self,
        arena: &mut Self::Arena,
        call: Call,
        body: impl Fn(&Self, &mut Self::Arena) -> Result<()>,
    ) -> Result<()>;

    /// Forgets what [`replay`](Self::replay) recorded, since the next body issues other ops.
    fn forget(&self, arena: &mut Self::Arena);

    /// See [`Op::Linear`](crate::program::Op::Linear) and [`Op::GatedLinear`](crate::program::Op::GatedLinear).
    fn linear(
        &self,
        arena: &mut Self::Arena,
        args: &LinearArgs,
        weight: &Self::Weight<'_>,
        bias: Option<&Self::Weight<'_>>,
    );
    /// See [`Op::Conv2d`](crate::program::Op::Conv2d).
    fn conv2d(
        &self,
        arena: &mut Self::Arena,
        args: &Conv2dArgs,
        weight: &Self::Weight<'_>,
        bias: Option<&Self::Weight<'_>>,
    );
    /// See [`Op::Attention`](crate::program::Op::Attention).
    fn attention(&self, arena: &mut Self::Arena, args: &AttentionArgs);
    /// See [`Op::LayerNorm`](crate::program::Op::LayerNorm).
    fn layer_norm(
        &self,
        arena: &mut Self::Arena,
        args: &LayerNormArgs,
        weight: Option<&Self::Weight<'_>>,
        bias: Option<&Self::Weight<'_>>,
    );
    /// See [`Op::GroupNorm`](crate::program::Op::GroupNorm).
    fn group_norm(
        &self,
        arena: &mut Self::Arena,
        args: &GroupNormArgs,
        weight: &Self::Weight<'_>,
        bias: &Self::Weight<'_>,
    );
    /// See [`Op::Pointwise`](crate::program::Op::Pointwise).
    fn pointwise(&self, arena: &mut Self::Arena, args: &PointwiseArgs);
    /// See [`Op::Add`](crate::program::Op::Add).
    fn add(&self, arena: &mut Self::Arena, args: &PairArgs);
    /// See [`Op::Multiply`](crate::program::Op::Multiply).
    fn multiply(&self, arena: &mut Self::Arena, args: &PairArgs);
    /// See [`Op::Concat`](crate::program::Op::Concat).
    fn concat(&self, arena: &mut Self::Arena, args: &ConcatArgs);
    /// See [`Op::Slice`](crate::program::Op::Slice).
    fn slice(&self, arena: &mut Self::Arena, args: &SliceArgs);
    /// See [`Op::PadRows`](crate::program::Op::PadRows).
    fn pad_rows(&self, arena: &mut Self::Arena, args: &PadRowsArgs, table: &Self::Weight<'_>);
    /// See [`Op::Rotary`](crate::program::Op::Rotary).
    fn rotary(&self, arena: &mut Self::Arena, args: &RotaryArgs);
    /// See [`Op::Quantize`](crate::program::Op::Quantize).
    fn quantize(&self, arena: &mut Self::Arena, args: &QuantizeArgs, factors: Option<&Self::Weight<'_>>);
    /// See [`Op::Round`](crate::program::Op::Round).
    fn round(&self, arena: &mut Self::Arena, args: &RoundArgs);
    /// See [`Op::VectorQuantize`](crate::program::Op::VectorQuantize).
    fn vector_quantize(&self, arena: &mut Self::Arena, args: &VectorQuantizeArgs, table: &Self::Weight<'_>);
    /// See [`Op::Resample`](crate::program::Op::Resample).
    fn resample(&self, arena: &mut Self::Arena, args: &ResampleArgs);
    /// See [`Op::Parameter`](crate::program::Op::Parameter).
    fn parameter(&self, arena: &mut Self::Arena, args: &ParameterArgs, tensor: &Self::Weight<'_>);
    /// See [`Op::Embedding`](crate::program::Op::Embedding).
    fn embedding(&self, arena: &mut Self::Arena, args: &EmbeddingArgs, table: &Self::Weight<'_>);
    /// See [`Op::TimestepEmbedding`](crate::program::Op::TimestepEmbedding).
    fn timestep_embedding(&self, arena: &mut Self::Arena, args: &TimestepEmbeddingArgs);
    /// See [`Op::PositionEmbedding`](crate::program::Op::PositionEmbedding).
    fn position_embedding(&self, arena: &mut Self::Arena, args: &PositionEmbeddingArgs);
    /// See [`Op::RelativeBias`](crate::program::Op::RelativeBias).
    fn relative_bias(&self, arena: &mut Self::Arena, args: &RelativeBiasArgs, table: &Self::Weight<'_>);
    /// See [`Op::Patchify`](crate::program::Op::Patchify) and [`Op::Unpatchify`](crate::program::Op::Unpatchify).
    fn patch(&self, arena: &mut Self::Arena, args: &PatchArgs);

    /// Writes the latents, scaled as the call's row of the sampler's table says, into the model's sample input, `copies`
    /// times over the batch.
    fn model_input(&self, arena: &mut Self::Arena, args: &ModelInputArgs);
    /// Applies guidance and the call's row of the sampler's table to the states, in place, and blends.
    fn sampler_step(&self, arena: &mut Self::Arena, args: &SamplerStepArgs);
}
