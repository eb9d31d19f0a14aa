//! What ops must do at the least: the yardstick of benches.

use super::args::*;

/// The most a device can do, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Operations per second of int8 matrix products, two per multiply-add.
    pub int8: f64,
    /// The same of f16 products with f32 sums.
    pub f16: f64,
    /// Bytes per second that a copy reads and writes.
    pub bandwidth: f64,
}

impl<T> OpArgs<T> {
    /// Arithmetic operations of matrix products, two per multiply-add; 0 for ops that are bound by memory.
    pub fn operations(&self) -> f64 {
        let product = |rows: usize, inputs: usize, outputs: usize| 2.0 * (rows * inputs) as f64 * outputs as f64;
        match self {
            OpArgs::Linear { args: a, .. } => product(a.y.rows(), a.x.cols(), a.channels()),
            OpArgs::Conv2d { args: a, .. } => product(a.y.rows, 9 * a.x.cols(), a.y.cols),
            OpArgs::Attention(a) => 2.0 * product(a.q.rows, a.q.cols, a.keys),
            OpArgs::LayerNorm { .. }
            | OpArgs::GroupNorm { .. }
            | OpArgs::Pointwise(_)
            | OpArgs::Add(_)
            | OpArgs::Multiply(_)
            | OpArgs::Concat(_)
            | OpArgs::Slice(_)
            | OpArgs::PadRows { .. }
            | OpArgs::Rotary(_)
            | OpArgs::Quantize { .. }
            | OpArgs::Round(_)
            | OpArgs::VectorQuantize { .. }
            | OpArgs::Resample(_)
            | OpArgs::Parameter { .. }
            | OpArgs::Embedding { .. }
            | OpArgs::TimestepEmbedding(_)
            | OpArgs::PositionEmbedding(_)
            | OpArgs::RelativeBias { .. }
            | OpArgs::Patch(_) => 0.0,
        }
    }

    /// Bytes of operands and result in the arena, each counted once. Weights are not counted.
    pub fn bytes(&self) -> f64 {
        let optional = |f: &Option<Floats>| f.as_ref().map_or(0, Floats::bytes);
        let bytes = match self {
            OpArgs::Linear { args: a, .. } => a.x.bytes() + a.y.bytes() + optional(&a.residual),
            OpArgs::Conv2d { args: a, .. } => a.x.bytes() + a.y.bytes() + optional(&a.residual),
            OpArgs::Attention(a) => a.q.bytes() + a.k.bytes() + a.v.bytes() + a.y.bytes() + optional(&a.bias),
            OpArgs::LayerNorm { args: a, .. } => a.x.bytes() + a.y.bytes(),
            OpArgs::GroupNorm { args: a, .. } => a.x.bytes() + a.y.bytes(),
            OpArgs::Pointwise(a) => a.x.bytes() + a.y.bytes(),
            OpArgs::Add(a) | OpArgs::Multiply(a) => a.a.bytes() + a.b.bytes() + a.y.bytes(),
            OpArgs::Concat(a) => 2 * a.y.bytes(),
            OpArgs::Slice(a) => 2 * a.y.bytes(),
            OpArgs::PadRows { args: a, .. } => a.x.bytes() + a.y.bytes(),
            OpArgs::Rotary(a) => a.x.bytes() + a.table.bytes() + a.y.bytes(),
            OpArgs::Quantize { args: a, .. } => a.x.bytes() + a.y.codes.bytes(),
            OpArgs::Round(a) => a.x.bytes() + a.y.bytes(),
            OpArgs::VectorQuantize { args: a, .. } => a.x.bytes() + a.y.bytes(),
            OpArgs::Resample(a) => a.x.bytes() + a.y.bytes(),
            OpArgs::Parameter { args: a, .. } => 2 * a.y.bytes(),
            OpArgs::Embedding { args: a, .. } => 2 * a.y.bytes(),
            OpArgs::TimestepEmbedding(a) => a.y.bytes(),
            OpArgs::PositionEmbedding(a) => a.y.bytes(),
            OpArgs::RelativeBias { args: a, .. } => a.y.bytes(),
            OpArgs::Patch(a) => a.x.bytes() + a.y.bytes(),
        };
        bytes as f64
    }
}
