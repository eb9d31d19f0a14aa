//! How much memory runs take, known without a device.

use super::{memory, norm, quantize, round};
use crate::backend::args::{Element, OpArgs};
use crate::backend::{Footprint, MemoryRules};

/// What the back end needs, known without a device.
#[derive(Clone, Copy, Debug)]
pub struct CudaSizing {
    /// How values that may be narrow are stored.
    pub narrow: Element,
}

impl MemoryRules for CudaSizing {
    fn narrow(&self) -> Element {
        self.narrow
    }

    fn makes_codes(&self) -> bool {
        false
    }

    fn thresholds(&self) -> bool {
        false
    }

    fn workspace<T>(&self, op: &OpArgs<T>) -> usize {
        match op {
            OpArgs::GroupNorm { args, .. } => norm::group_norm_workspace(args),
            OpArgs::Round(args) => round::workspace(args),
            OpArgs::Quantize { args, .. } => quantize::quantize_workspace(args),
            OpArgs::Linear { .. }
            | OpArgs::Conv2d { .. }
            | OpArgs::Attention(_)
            | OpArgs::LayerNorm { .. }
            | OpArgs::Pointwise(_)
            | OpArgs::Add(_)
            | OpArgs::Multiply(_)
            | OpArgs::Concat(_)
            | OpArgs::Slice(_)
            | OpArgs::PadRows { .. }
            | OpArgs::Rotary(_)
            | OpArgs::VectorQuantize { .. }
            | OpArgs::Resample(_)
            | OpArgs::Parameter { .. }
            | OpArgs::Embedding { .. }
            | OpArgs::TimestepEmbedding(_)
            | OpArgs::PositionEmbedding(_)
            | OpArgs::RelativeBias { .. }
            | OpArgs::Patch(_) => 0,
        }
    }

    /// All that the back end allocates. The driver takes some beside it, for its context, compiled kernels and recorded
    /// steps.
    fn footprint(&self, arena: usize, weights: usize) -> Footprint {
        Footprint { arena: memory::allocation(arena), weights }
    }
}
