//! Arguments of pointwise functions, sums and products.

use super::site::{Arguments, Site};
use crate::backend::args::{OpArgs, PairArgs, PointwiseArgs};
use crate::program::{Add, Multiply, Pointwise, Tensor};

impl Arguments for Pointwise {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let Pointwise { x, act, mul, add } = *self;
        OpArgs::Pointwise(PointwiseArgs { x: at.floats(x), y: at.y(), act, mul, add })
    }
}

impl Arguments for Add {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Add(PairArgs { a: at.floats(self.a), b: at.floats(self.b), y: at.y() })
    }
}

impl Arguments for Multiply {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Multiply(PairArgs { a: at.floats(self.a), b: at.floats(self.b), y: at.y() })
    }
}
