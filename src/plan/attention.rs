//! Arguments of attention.

use super::site::{Arguments, Site};
use crate::backend::args::{AttentionArgs, OpArgs, SoftmaxArgs};
use crate::program::{Attention, Tensor};

impl Arguments for Attention {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let Attention { q, k, v, heads, scale, attend, softmax, bias, lengths } = *self;
        OpArgs::Attention(AttentionArgs {
            q: at.floats(q),
            k: at.floats(k),
            v: at.floats(v),
            y: at.y(),
            samples: at.samples(),
            heads: heads as usize,
            scale,
            causal: attend.causal,
            int8: attend.int8,
            condition: attend.per_condition.then_some(at.condition()),
            keys: at.shape(k).rows_per_sample(),
            workspace: at.workspace,
            softmax: softmax.map(|grid| SoftmaxArgs { bits: grid.bits, fixed: at.fixed(grid.range) }),
            bias: bias.map(|bias| at.floats(bias)),
            lengths: lengths.map(|lengths| at.slot(lengths)),
        })
    }
}
