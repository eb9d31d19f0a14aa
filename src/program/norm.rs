//! Norms, with their modulation and the quantization of their result.

use super::op::{Act, Columns, Operation, Tensor, Value};
use super::quantize::{QuantizeGrain, QuantizeSpec};
use super::shape::{Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// Adaptive norm: `y = norm(x) * (1 + scale) + shift`, both taken from columns of `value` at the sample's condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modulation {
    /// `(conditions, columns)`.
    pub value: Value,
    /// First column of the scale.
    pub scale: u32,
    /// First column of the shift.
    pub shift: u32,
}

/// Layer norm over the last axis, statistics in f32: `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias`; or
/// without means, `x / sqrt(mean(x^2) + eps) * weight` (RMSNorm; Zhang & Sennrich, arXiv 1910.07467).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerNorm {
    /// `(n, .., d)`.
    pub x: Value,
    /// `(d)`, or `(d / parts)`.
    pub weight: Option<Tensor>,
    /// Likewise; none if [`rms`](Self::rms).
    pub bias: Option<Tensor>,
    /// Added to the variance, or to the mean of squares.
    pub eps: f32,
    /// Applied after the affine part.
    pub modulation: Option<Modulation>,
    /// Quantizes the result.
    pub quantize: Option<QuantizeSpec>,
    /// Whether no mean is taken off.
    pub rms: bool,
    /// Added per sample and feature after the affine part, where there is no modulation.
    pub shift: Option<Columns>,
    /// Runs of equally many columns that are each normed on their own and by the same weights, as the heads of an attention
    /// are; neither modulated nor quantized then. 0 is one.
    pub parts: u32,
}

impl Operation for LayerNorm {
    const CODE: u16 = 4;
    const NAME: &'static str = "layer_norm";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.optional_tensor("weight", &mut self.weight);
        v.optional_tensor("bias", &mut self.bias);
        v.float("eps", &mut self.eps);
        v.modulation(&mut self.modulation);
        v.optional_quantize(&mut self.quantize);
        v.quantize_top(self.quantize.as_mut());
        v.flag("rms", &mut self.rms);
        v.columns(["shift", "first column of the shift alone"], &mut self.shift);
        v.number("parts", &mut self.parts);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        if let Some(bias) = self.bias.filter(|_| self.rms) {
            return rule.err("bias", "none in a norm without means", bias.0);
        }
        let parts = self.parts.max(1) as usize;
        if !x.cols().is_multiple_of(parts) {
            return rule.err("parts", format!("a divisor of {}", x.cols()), parts);
        }
        if parts > 1 && (self.quantize.is_some() || self.modulation.is_some() || self.shift.is_some()) {
            return rule.err("parts", "1 in a norm that is modulated or quantized", parts);
        }
        rule.vector("weight", self.weight, x.cols() / parts)?;
        rule.vector("bias", self.bias, x.cols() / parts)?;
        rule.eps(self.eps)?;
        rule.modulation(self.modulation, &x)?;
        if let Some(shift) = self.shift {
            if self.modulation.is_some() {
                return rule.err("shift", "none beside a modulation", shift.offset);
            }
            rule.columns("shift", shift.value, shift.offset, &x)?;
        }
        if self.quantize.is_some_and(|q| q.grain != QuantizeGrain::Row) {
            return rule.err("quantize grain", "one scale per row", self.quantize);
        }
        rule.quantized(x, self.quantize)
    }
}

/// Group norm over `(h, w, c / groups)` of each sample, perhaps modulated, then an activation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupNorm {
    /// `(n, h, w, c)`.
    pub x: Value,
    /// `(c)`.
    pub weight: Tensor,
    /// `(c)`.
    pub bias: Tensor,
    /// Number of groups; divides `c`.
    pub groups: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Applied after the affine part.
    pub modulation: Option<Modulation>,
    /// Applied last.
    pub act: Act,
    /// Quantizes the result.
    pub quantize: Option<QuantizeSpec>,
}

impl Operation for GroupNorm {
    const CODE: u16 = 5;
    const NAME: &'static str = "group_norm";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.tensor("weight", &mut self.weight);
        v.tensor("bias", &mut self.bias);
        v.number("groups", &mut self.groups);
        v.float("eps", &mut self.eps);
        v.modulation(&mut self.modulation);
        v.choice("act", &mut self.act);
        v.optional_quantize(&mut self.quantize);
        v.quantize_top(self.quantize.as_mut());
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let (x, _) = rule.float_image("x", self.x)?;
        rule.vector("weight", Some(self.weight), x.cols())?;
        rule.vector("bias", Some(self.bias), x.cols())?;
        rule.eps(self.eps)?;
        if self.groups == 0 || !x.cols().is_multiple_of(self.groups as usize) {
            return rule.err("groups", format!("a divisor of {}", x.cols()), self.groups);
        }
        rule.modulation(self.modulation, &x)?;
        rule.quantized(x, self.quantize)
    }
}
