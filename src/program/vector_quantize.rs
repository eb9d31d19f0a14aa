//! Vector quantization.

use super::op::{Operation, Tensor, Value};
use super::shape::{Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// The nearest row of a table, by squared distance, the first among equals: `(.., d) -> (.., d)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VectorQuantize {
    /// `(.., d)`.
    pub x: Value,
    /// `(rows, d)`, f32.
    pub table: Tensor,
}

impl Operation for VectorQuantize {
    const CODE: u16 = 16;
    const NAME: &'static str = "vector_quantize";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.tensor("table", &mut self.table);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        let t = rule.tensor("table", self.table)?;
        match t.dims[..] {
            [rows, d] if t.f32 && rows > 0 && d == x.cols() => Ok(x),
            _ => rule.err("table", format!("f32 [rows, {}]", x.cols()), &t.dims),
        }
    }
}
