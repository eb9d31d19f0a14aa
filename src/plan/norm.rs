//! Arguments of norms.

use super::site::{Arguments, Site};
use crate::backend::args::{GroupNormArgs, LayerNormArgs, OpArgs, Output};
use crate::program::{GroupNorm, LayerNorm, Tensor};

impl Arguments for LayerNorm {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let LayerNorm { x, weight, bias, eps, modulation, quantize, rms, shift, parts } = *self;
        let (modulation, shift) = (modulation.map(|m| at.modulation(m)), shift.map(|shift| at.columns(shift)));
        let parts = parts.max(1) as usize;
        let y = match at.output(quantize) {
            Output::Floats(y) => Output::Floats(y.in_parts(parts)),
            codes => codes,
        };
        let args = LayerNormArgs { x: at.floats(x).in_parts(parts), y, eps, modulation, rms, shift };
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
