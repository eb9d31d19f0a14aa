//! Arguments of norms.

use super::site::{Arguments, Site};
use crate::backend::args::{GroupNormArgs, LayerNormArgs, OpArgs};
use crate::program::{GroupNorm, LayerNorm, Tensor};

impl Arguments for LayerNorm {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let LayerNorm { x, weight, bias, eps, modulation, quantize, rms } = *self;
        let modulation = modulation.map(|m| at.modulation(m));
        let args = LayerNormArgs { x: at.floats(x), y: at.output(quantize), eps, modulation, rms };
        OpArgs::LayerNorm { args, weight, bias }
    }
}

impl Arguments for GroupNorm {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let GroupNorm { x, weight, bias, groups, eps, modulation, act, quantize } = *self;
        let (x, y, samples) = (at.floats(x), at.output(quantize), at.samples());
        let (groups, workspace) = (groups as usize, at.workspace);
        let modulation = modulation.map(|m| at.modulation(m));
        let args = GroupNormArgs { x, y, samples, groups, eps, modulation, act, workspace };
        OpArgs::GroupNorm { args, weight, bias }
    }
}
