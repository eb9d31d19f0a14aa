//! Arguments of ops that move numbers.

use super::site::{Arguments, Site};
use crate::backend::args::{ConcatArgs, OpArgs, PadRowsArgs, PatchArgs, SliceArgs};
use crate::program::shape::Type;
use crate::program::{Concat, PadRows, Patchify, Slice, Tensor, Unpatchify, Value};

impl Arguments for Patchify {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        patch(at, self.x, at.shape(self.x), self.patch, false)
    }
}

impl Arguments for Unpatchify {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        patch(at, self.x, &at.ty, self.patch, true)
    }
}

/// `pixels` is the type of those, which are what goes in or what comes out.
fn patch(at: &Site<'_>, x: Value, pixels: &Type, patch: u32, inverse: bool) -> OpArgs<Tensor> {
    let [samples, height, width, channels] = match *pixels.dims() {
        [n, h, w, c] => [n, h, w, c],
        [n, f, h, w, c] => [n, f * h, w, c],
        _ => unreachable!("checked by the shape rules"),
    };
    let (x, y, patch) = (at.floats(x), at.y(), patch as usize);
    OpArgs::Patch(PatchArgs { x, y, samples, height, width, channels, patch, inverse })
}

impl Arguments for Concat {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let [a, b] = [self.a, self.b].map(|value| at.floats(value));
        if !self.tokens {
            return OpArgs::Concat(ConcatArgs { a, b, y: at.y() });
        }
        // A text's tokens are one row.
        let [of_a, of_b] = [self.a, self.b].map(|value| at.shape(value).rows_per_sample());
        OpArgs::Concat(ConcatArgs { a: a.joined(of_a), b: b.joined(of_b), y: at.y().joined(of_a + of_b) })
    }
}

impl Arguments for Slice {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let (x, y, first) = (at.floats(self.x), at.y(), self.first as usize);
        if !self.tokens {
            return OpArgs::Slice(SliceArgs { x, y, first });
        }
        let (x, y) = (x.joined(at.shape(self.x).rows_per_sample()), y.joined(at.ty.rows_per_sample()));
        OpArgs::Slice(SliceArgs { x, y, first: first * at.ty.cols() })
    }
}

impl Arguments for PadRows {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let (tokens, first) = (at.ty.rows_per_sample(), self.first as usize);
        let args = PadRowsArgs { x: at.floats(self.x), y: at.y(), lengths: at.slot(self.lengths), tokens, first };
        OpArgs::PadRows { args, table: self.table }
    }
}
