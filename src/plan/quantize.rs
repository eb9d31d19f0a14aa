//! Arguments of quantization.

use super::site::{Arguments, Site};
use crate::backend::args::{OpArgs, QuantizeArgs};
use crate::program::{Quantize, Tensor};

impl Arguments for Quantize {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Quantize(QuantizeArgs { x: at.floats(self.x), y: at.codes(self.spec), workspace: at.workspace })
    }
}
