//! Linear layers.

use super::op::{Act, Columns, Operation, Tensor, Value};
use super::shape::{Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// `y = act(x W^T + bias) * gate + residual` over the last axis; each of the epilogues may be absent.
/// `x` is float or codes; codes need a weight with an integer codebook.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Linear {
    /// `(.., k)`.
    pub x: Value,
    /// `(o, k)`, or `(o, h, w, i)` with `k = h * w * i`: a convolution whose windows were laid out as rows.
    pub weight: Tensor,
    /// `(o)`.
    pub bias: Option<Tensor>,
    /// Applied before gate and residual.
    pub act: Act,
    /// Multiplies, per sample and output channel.
    pub gate: Option<Columns>,
    /// Added; its rows may be fewer and are then repeated cyclically.
    pub residual: Option<Value>,
}

impl Operation for Linear {
    const CODE: u16 = 1;
    const NAME: &'static str = "linear";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.tensor("weight", &mut self.weight);
        v.optional_tensor("bias", &mut self.bias);
        v.choice("act", &mut self.act);
        v.columns(["gate", "first column of gate"], &mut self.gate);
        v.optional_value("residual", &mut self.residual);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.value("x", self.x)?;
        let w = rule.tensor("weight", self.weight)?;
        let (o, k) = match w.dims[..] {
            [o, k] => (o, k),
            [o, h, w, i] => (o, h * w * i),
            _ => return rule.err("weight", "[o, k]", &w.dims),
        };
        rule.product(&x, w, k)?;
        rule.vector("bias", self.bias, o)?;
        let y = x.with_cols(o);
        if let Some(gate) = self.gate {
            rule.columns("gate", gate.value, gate.offset, &y)?;
        }
        rule.residual(self.residual, &y, true)?;
        Ok(y)
    }
}

/// `y[j] = (x W[2j]^T + bias[2j]) * act(x W[2j + 1]^T + bias[2j + 1])`: a gated linear unit whose weight holds the
/// rows of values and gates by turns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GatedLinear {
    /// `(.., k)`.
    pub x: Value,
    /// `(2 o, k)`.
    pub weight: Tensor,
    /// `(2 o)`.
    pub bias: Option<Tensor>,
    /// Applied to the gate.
    pub act: Act,
}

impl Operation for GatedLinear {
    const CODE: u16 = 15;
    const NAME: &'static str = "gated_linear";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.tensor("weight", &mut self.weight);
        v.optional_tensor("bias", &mut self.bias);
        v.choice("act", &mut self.act);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.value("x", self.x)?;
        let w = rule.tensor("weight", self.weight)?;
        let (rows, k) = match w.dims[..] {
            [rows, k] if rows > 0 && rows % 2 == 0 => (rows, k),
            _ => return rule.err("weight", "[2 o, k]", &w.dims),
        };
        rule.product(&x, w, k)?;
        rule.vector("bias", self.bias, rows)?;
        Ok(x.with_cols(rows / 2))
    }
}
