//! Any op with its arguments and the handles of its tensors.

use super::*;

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
    Add(PairArgs),
    Multiply(PairArgs),
    Concat(ConcatArgs),
    Slice(SliceArgs),
    PadRows { args: PadRowsArgs, table: T },
    Rotary(RotaryArgs),
    Quantize { args: QuantizeArgs, factors: Option<T> },
    Round(RoundArgs),
    VectorQuantize { args: VectorQuantizeArgs, table: T },
    Resample(ResampleArgs),
    Parameter { args: ParameterArgs, tensor: T },
    Embedding { args: EmbeddingArgs, table: T },
    TimestepEmbedding(TimestepEmbeddingArgs),
    PositionEmbedding(PositionEmbeddingArgs),
    RelativeBias { args: RelativeBiasArgs, table: T },
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
            OpArgs::Multiply(args) => OpArgs::Multiply(args),
            OpArgs::Concat(args) => OpArgs::Concat(args),
            OpArgs::Slice(args) => OpArgs::Slice(args),
            OpArgs::PadRows { args, table } => OpArgs::PadRows { args, table: f(table)? },
            OpArgs::Rotary(args) => OpArgs::Rotary(args),
            OpArgs::Quantize { args, factors } => OpArgs::Quantize { args, factors: factors.map(f).transpose()? },
            OpArgs::Round(args) => OpArgs::Round(args),
            OpArgs::VectorQuantize { args, table } => OpArgs::VectorQuantize { args, table: f(table)? },
            OpArgs::Resample(args) => OpArgs::Resample(args),
            OpArgs::Parameter { args, tensor } => OpArgs::Parameter { args, tensor: f(tensor)? },
            OpArgs::Embedding { args, table } => OpArgs::Embedding { args, table: f(table)? },
            OpArgs::TimestepEmbedding(args) => OpArgs::TimestepEmbedding(args),
            OpArgs::PositionEmbedding(args) => OpArgs::PositionEmbedding(args),
            OpArgs::RelativeBias { args, table } => OpArgs::RelativeBias { args, table: f(table)? },
            OpArgs::Patch(args) => OpArgs::Patch(args),
        })
    }

    /// Where the result lies.
    pub fn result(&self) -> Input {
        match self {
            OpArgs::Linear { args, .. } => args.y.as_input(),
            OpArgs::Conv2d { args, .. } => Input::Floats(args.y),
            OpArgs::Attention(args) => args.y.as_input(),
            OpArgs::LayerNorm { args, .. } => args.y.as_input(),
            OpArgs::GroupNorm { args, .. } => args.y.as_input(),
            OpArgs::Pointwise(args) => Input::Floats(args.y),
            OpArgs::Add(args) => Input::Floats(args.y),
            OpArgs::Multiply(args) => Input::Floats(args.y),
            OpArgs::Concat(args) => Input::Floats(args.y),
            OpArgs::Slice(args) => Input::Floats(args.y),
            OpArgs::PadRows { args, .. } => Input::Floats(args.y),
            OpArgs::Rotary(args) => Input::Floats(args.y),
            OpArgs::Quantize { args, .. } => Input::Codes(args.y.codes),
            OpArgs::Round(args) => Input::Floats(args.y),
            OpArgs::VectorQuantize { args, .. } => Input::Floats(args.y),
            OpArgs::Resample(args) => Input::Floats(args.y),
            OpArgs::Parameter { args, .. } => Input::Floats(args.y),
            OpArgs::Embedding { args, .. } => Input::Floats(args.y),
            OpArgs::TimestepEmbedding(args) => Input::Floats(args.y),
            OpArgs::PositionEmbedding(args) => Input::Floats(args.y),
            OpArgs::RelativeBias { args, .. } => Input::Floats(args.y),
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
            OpArgs::LayerNorm { args: a, .. } => {
                let beside = a.modulation.map(|(m, ..)| m).or(a.shift.map(|(shift, _)| shift));
                [float(a.x), beside.and_then(table), None]
            }
            OpArgs::GroupNorm { args: a, .. } => [float(a.x), a.modulation.and_then(|(m, ..)| table(m)), None],
            OpArgs::Pointwise(a) => [float(a.x), None, None],
            OpArgs::Add(a) | OpArgs::Multiply(a) => [float(a.a), float(a.b), None],
            OpArgs::Concat(a) => [float(a.a), float(a.b), None],
            OpArgs::Slice(a) => [float(a.x), None, None],
            OpArgs::PadRows { args: a, .. } => [float(a.x), None, None],
            OpArgs::Rotary(a) => [float(a.x), float(a.table), None],
            OpArgs::Quantize { args: a, .. } => [float(a.x), None, None],
            OpArgs::Round(a) => [float(a.x), None, None],
            OpArgs::VectorQuantize { args: a, .. } => [float(a.x), None, None],
            OpArgs::Resample(a) => [float(a.x), None, None],
            OpArgs::Patch(a) => [float(a.x), None, None],
            OpArgs::Parameter { .. }
            | OpArgs::Embedding { .. }
            | OpArgs::TimestepEmbedding(_)
            | OpArgs::PositionEmbedding(_)
            | OpArgs::RelativeBias { .. } => [None; 3],
        };
        list.into_iter().flatten()
    }
}
