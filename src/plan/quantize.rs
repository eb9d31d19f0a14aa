//! Arguments of quantization.

use super::site::{Arguments, Site};
use crate::backend::args::{OpArgs, QuantizeArgs};
use crate::program::{Quantize, Tensor};

impl Arguments for Quantize {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let args = QuantizeArgs {
            x: at.floats(self.x),
            y: at.codes(self.spec),
            block: self.turn.map_or(0, |turn| turn.block as usize),
            workspace: at.workspace,
        };
        OpArgs::Quantize { args, factors: self.turn.map(|turn| turn.factors) }
    }
}
