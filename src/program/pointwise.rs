//! Pointwise functions, sums and products.

use super::op::{Act, Operation, Value};
use super::shape::{Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// `y = act(x) * mul + add`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pointwise {
    /// Any shape.
    pub x: Value,
    /// Applied first.
    pub act: Act,
    /// Factor.
    pub mul: f32,
    /// Summand.
    pub add: f32,
}

impl Operation for Pointwise {
    const CODE: u16 = 6;
    const NAME: &'static str = "pointwise";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.choice("act", &mut self.act);
        v.float("mul", &mut self.mul);
        v.float("add", &mut self.add);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        rule.float("x", self.x)
    }
}

/// `a + b`; the rows of `b` may be fewer and are then repeated cyclically.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Add {
    /// `(.., d)`.
    pub a: Value,
    /// `(.., d)`.
    pub b: Value,
}

impl Operation for Add {
    const CODE: u16 = 7;
    const NAME: &'static str = "add";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("a", &mut self.a);
        v.value("b", &mut self.b);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let a = rule.float("a", self.a)?;
        rule.residual(Some(self.b), &a, true)?;
        Ok(a)
    }
}

/// `a * b`, element by element.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Multiply {
    /// Any shape.
    pub a: Value,
    /// The same shape.
    pub b: Value,
}

impl Operation for Multiply {
    const CODE: u16 = 21;
    const NAME: &'static str = "multiply";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("a", &mut self.a);
        v.value("b", &mut self.b);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let (a, b) = (rule.float("a", self.a)?, rule.float("b", self.b)?);
        if a.dims() != b.dims() {
            return rule.err("b", format!("the axes of a, {:?}", a.dims()), b.dims());
        }
        Ok(a)
    }
}
