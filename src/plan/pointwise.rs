//! Arguments of pointwise functions and sums.

use super::site::{Arguments, Site};
use crate::backend::args::{AddArgs, OpArgs, PointwiseArgs};
use crate::program::{Add, Pointwise, Tensor};

impl Arguments for Pointwise {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let Pointwise { x, act, mul, add } = *self;
        OpArgs::Pointwise(PointwiseArgs { x: at.floats(x), y: at.y(), act, mul, add })
    }
}

impl Arguments for Add {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Add(AddArgs { a: at.floats(self.a), b: at.floats(self.b), y: at.y() })
    }
}
