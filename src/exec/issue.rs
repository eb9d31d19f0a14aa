//! From an op to the back end's method for it.

use crate::backend::Backend;
use crate::backend::args::OpArgs;

/// Calls the back end's method for one op.
pub(super) fn issue<B: Backend>(backend: &B, arena: &mut B::Arena, op: &OpArgs<B::Weight<'_>>) {
    match op {
        OpArgs::Linear { args, weight, bias } => backend.linear(arena, args, weight, bias.as_ref()),
        OpArgs::Conv2d { args, weight, bias } => backend.conv2d(arena, args, weight, bias.as_ref()),
        OpArgs::Attention(args) => backend.attention(arena, args),
        OpArgs::LayerNorm { args, weight, bias } => backend.layer_norm(arena, args, weight.as_ref(), bias.as_ref()),
        OpArgs::GroupNorm { args, weight, bias } => backend.group_norm(arena, args, weight, bias),
        OpArgs::Pointwise(args) => backend.pointwise(arena, args),
        OpArgs::Add(args) => backend.add(arena, args),
        OpArgs::Multiply(args) => backend.multiply(arena, args),
        OpArgs::Concat(args) => backend.concat(arena, args),
        OpArgs::Slice(args) => backend.slice(arena, args),
        OpArgs::PadRows { args, table } => backend.pad_rows(arena, args, table),
        OpArgs::Rotary(args) => backend.rotary(arena, args),
        OpArgs::Quantize { args, factors } => backend.quantize(arena, args, factors.as_ref()),
        OpArgs::Round(args) => backend.round(arena, args),
        OpArgs::VectorQuantize { args, table } => backend.vector_quantize(arena, args, table),
        OpArgs::Resample(args) => backend.resample(arena, args),
        OpArgs::Parameter { args, tensor } => backend.parameter(arena, args, tensor),
        OpArgs::Embedding { args, table } => backend.embedding(arena, args, table),
        OpArgs::TimestepEmbedding(args) => backend.timestep_embedding(arena, args),
        OpArgs::PositionEmbedding(args) => backend.position_embedding(arena, args),
        OpArgs::RelativeBias { args, table } => backend.relative_bias(arena, args, table),
        OpArgs::Patch(args) => backend.patch(arena, args),
    }
}
