//! Rounding of activations that stay floats.

use super::op::{Operation, Value};
use super::quantize::{QuantizeGrain, QuantizeSpec};
use super::shape::{Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// Floats to the nearest of a grid: `scale * (q - zero)`, with the codes `q` of [`QuantizeSpec`]. What [`Quantize`](super::Quantize) would make codes of, read again: for what is not multiplied in integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Round {
    /// `(n, .., d)`.
    pub x: Value,
    /// Which grid.
    pub spec: QuantizeSpec,
    /// Runs of equally many columns that each have a range of their own, as the heads of an attention do; only where each row
    /// has. 0 is one.
    pub parts: u32,
}

impl Operation for Round {
    const CODE: u16 = 20;
    const NAME: &'static str = "round";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.spec(&mut self.spec);
        v.number("parts", &mut self.parts);
        v.quantize_top(Some(&mut self.spec));
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        rule.grid(&x, self.spec)?;
        let parts = self.parts.max(1);
        if !x.cols().is_multiple_of(parts as usize) {
            return rule.err("parts", format!("a divisor of {}", x.cols()), parts);
        }
        if parts > 1 && self.spec.grain != QuantizeGrain::Row {
            return rule.err("quantize grain", "one scale per row, as there are parts", self.spec.grain.name());
        }
        Ok(x)
    }
}
