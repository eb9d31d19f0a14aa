//! Arguments of ops that move numbers.

use super::site::{Arguments, Site};
use crate::backend::args::{ConcatArgs, OpArgs, PatchArgs, SliceArgs};
use crate::program::shape::Type;
use crate::program::{Concat, Patchify, Slice, Tensor, Unpatchify, Value};

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
    let [samples, height, width, channels] = *pixels.dims() else { unreachable!("checked by the shape rules") };
    let (x, y, patch) = (at.floats(x), at.y(), patch as usize);
    OpArgs::Patch(PatchArgs { x, y, samples, height, width, channels, patch, inverse })
}

impl Arguments for Concat {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Concat(ConcatArgs { a: at.floats(self.a), b: at.floats(self.b), y: at.y() })
    }
}

impl Arguments for Slice {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Slice(SliceArgs { x: at.floats(self.x), y: at.y(), first: self.first as usize })
    }
}
