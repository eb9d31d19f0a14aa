//! Arguments of attention.

use super::site::{Arguments, Site};
use crate::backend::args::{AttentionArgs, Floats, OpArgs, Output, SoftmaxArgs};
use crate::program::{Attention, Reach, Tensor};

impl Arguments for Attention {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let Attention { q, k, v, heads, scale, attend, softmax, bias, lengths, reach } = *self;
        let args = AttentionArgs {
            q: at.floats(q),
            k: at.floats(k),
            v: at.floats(v),
            y: at.product(),
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
        };
        OpArgs::Attention(within(args, reach, at.frames()))
    }
}

/// The same for queries that see no more than `reach` of their sample, which has so many frames.
///
/// Tokens `(n, f s, heads e)`, frame by frame, are in memory what `n f` samples of s tokens are; and, as a row of all tokens of
/// a frame is `(s heads) e` features, what n samples of f tokens with `s heads` heads are.
fn within(args: AttentionArgs, reach: Reach, frames: usize) -> AttentionArgs {
    let places = args.keys / frames;
    match reach {
        Reach::Sample => args,
        Reach::Frame => AttentionArgs { samples: args.samples * frames, keys: places, ..args },
        Reach::Place => {
            let wide = |x: Floats| Floats { rows: x.rows / places, cols: x.cols * places, ..x };
            let [q, k, v, y] = [args.q, args.k, args.v, args.y.floats()].map(wide);
            AttentionArgs { q, k, v, y: Output::Floats(y), heads: args.heads * places, keys: frames, ..args }
        }
    }
}
