//! Arguments of linear layers.

use super::site::{Arguments, Site};
use crate::backend::args::{LinearArgs, OpArgs};
use crate::program::{GatedLinear, Linear, Tensor};

impl Arguments for Linear {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let Linear { x, weight, bias, act, gate, residual } = *self;
        let gate = gate.map(|gate| at.columns(gate));
        let residual = residual.map(|residual| at.floats(residual));
        let args = LinearArgs { x: at.input(x), y: at.product(), act, gated: false, gate, residual };
        OpArgs::Linear { args, weight, bias }
    }
}

impl Arguments for GatedLinear {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let GatedLinear { x, weight, bias, act } = *self;
        let args = LinearArgs { x: at.input(x), y: at.product(), act, gated: true, gate: None, residual: None };
        OpArgs::Linear { args, weight, bias }
    }
}
