//! Rotary position embedding.

use super::op::{Operation, Value};
use super::shape::{Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// Turns pairs of neighbouring features by angles that depend on where a token is (RoPE; Su et al., arXiv 2104.09864):
/// `(a, b) -> (a cos - b sin, b cos + a sin)`. Of a head's `e` features the first half is turned by the angles of one axis, the
/// second by those of the other; each has `e / 4` of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rotary {
    /// `(.., heads * e)`.
    pub x: Value,
    /// `(.., e)`: per token the sines of the first axis's angles, their cosines, then both of the second axis, as
    /// [`PositionEmbedding`](super::PositionEmbedding) makes them. Its rows may be fewer than those of `x` and then repeat.
    pub table: Value,
    /// Number of heads.
    pub heads: u32,
}

impl Operation for Rotary {
    const CODE: u16 = 23;
    const NAME: &'static str = "rotary";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.value("table", &mut self.table);
        v.number("heads", &mut self.heads);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        let heads = self.heads as usize;
        if heads == 0 || !x.cols().is_multiple_of(heads) || !(x.cols() / heads).is_multiple_of(4) {
            return rule.err("heads", format!("a divisor of {} that leaves multiples of 4", x.cols()), self.heads);
        }
        let table = rule.float("table", self.table)?;
        if table.cols() != x.cols() / heads || !x.rows().is_multiple_of(table.rows()) {
            let expected = format!("{} columns, and rows dividing those of {:?}", x.cols() / heads, x.dims());
            return rule.err("table", expected, table.dims());
        }
        Ok(x)
    }
}
