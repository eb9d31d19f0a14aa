//! Arguments of convolutions.

use super::site::{Arguments, Site};
use crate::backend::args::{Conv2dArgs, OpArgs};
use crate::program::{Conv2d, Tensor};

impl Arguments for Conv2d {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let Conv2d { x, weight, bias, sampling, shift, residual, size_of: _ } = *self;
        let (height, width) = at.pixels(x);
        let shift = shift.map(|shift| at.columns(shift));
        let residual = residual.map(|residual| at.floats(residual));
        let (x, y, samples) = (at.input(x), at.y(), at.samples());
        let out = [at.ty.dims()[1], at.ty.dims()[2]];
        let args = Conv2dArgs { x, y, samples, height, width, out, sampling, shift, residual };
        OpArgs::Conv2d { args, weight, bias }
    }
}
