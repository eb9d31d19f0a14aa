//! Embeddings and constants: rows of tables, sinusoids of timesteps and of positions, tensors as values.

use super::op::{Operation, Tensor, Value};
use super::shape::{Kind, Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// Rows of a table: `(conditions) -> (conditions, d)`, `(n, t) -> (n, t, d)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Embedding {
    /// Row numbers: an input, each below the number of rows of the table, which whoever sets the input checks.
    pub index: Value,
    /// `(rows, d)`, f16 or f32.
    pub table: Tensor,
}

impl Operation for Embedding {
    const CODE: u16 = 9;
    const NAME: &'static str = "embedding";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("index", &mut self.index);
        v.tensor("table", &mut self.table);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let index = rule.value("index", self.index)?;
        let t = rule.tensor("table", self.table)?;
        if index.kind != Kind::Index || index.rank() > 2 {
            return rule.err("index", "(conditions) or (n, t) row numbers", (index.dims(), index.kind));
        }
        if t.dims.len() != 2 || t.codes {
            return rule.err("table", "f16 or f32 [rows, d]", &t.dims);
        }
        let dims = [index.dims(), &[t.dims[1]]].concat();
        Ok(Type::new(&dims, Kind::Float))
    }
}

/// Sinusoidal embedding of timesteps: `(conditions) -> (conditions, dim)`, frequencies
/// `exp(-ln(10000) i / (dim / 2 - shift))`; of several numbers each: `(conditions, k) -> (conditions, k * dim)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimestepEmbedding {
    /// Timesteps, or other numbers.
    pub t: Value,
    /// Features, even.
    pub dim: u32,
    /// Whether the cosines come first.
    pub cos_first: bool,
    /// See above.
    pub shift: f32,
}

impl Operation for TimestepEmbedding {
    const CODE: u16 = 10;
    const NAME: &'static str = "timestep_embedding";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("t", &mut self.t);
        v.number("dim", &mut self.dim);
        v.flag("cos first", &mut self.cos_first);
        v.float("shift", &mut self.shift);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let TimestepEmbedding { dim, shift, .. } = *self;
        let t = rule.float("t", self.t)?;
        let (conditions, numbers) = match *t.dims() {
            [conditions] => (conditions, 1),
            [conditions, numbers] => (conditions, numbers),
            _ => return rule.err("t", "(conditions) or (conditions, k)", t.dims()),
        };
        if dim < 4 || dim % 2 != 0 || !(shift.is_finite() && shift < dim as f32 / 2.0) {
            return rule.err("dim, shift", "an even dim of at least 4 and a shift below half of it", (dim, shift));
        }
        let Some(cols) = numbers.checked_mul(dim as usize) else {
            return rule.err("dim", "fewer features", dim);
        };
        Ok(Type::new(&[conditions, cols], Kind::Float))
    }
}

/// 2-D sin-cos position embedding of the grid of `x`: `(n, h, w, _) -> (h, w, dim)`. Depends on shapes only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PositionEmbedding {
    /// `(n, h, w, _)`; only its shape is used.
    pub x: Value,
    /// Features, a multiple of 4.
    pub dim: u32,
    /// Grid size at which positions are `0, 1, 2, ..`.
    pub base: u32,
    /// Divides the positions.
    pub interpolation: f32,
}

impl Operation for PositionEmbedding {
    const CODE: u16 = 11;
    const NAME: &'static str = "position_embedding";

    fn visit(&mut self, v: &mut impl Visit) {
        v.shape("x", &mut self.x);
        v.number("dim", &mut self.dim);
        v.number("base", &mut self.base);
        v.float("interpolation", &mut self.interpolation);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let PositionEmbedding { dim, base, interpolation, .. } = *self;
        let x = rule.value("x", self.x)?;
        let [_, h, w, _] = *x.dims() else {
            return rule.err("x", "(n, h, w, c)", x.dims());
        };
        if dim == 0 || dim % 4 != 0 || base == 0 || !(interpolation.is_finite() && interpolation > 0.0) {
            let expected = "a multiple of 4, and two positive numbers";
            return rule.err("dim, base, interpolation", expected, (dim, base, interpolation));
        }
        Ok(Type::new(&[h, w, dim as usize], Kind::Float))
    }
}

/// A tensor as a value, with the tensor's axes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parameter {
    /// f16 or f32.
    pub tensor: Tensor,
}

impl Operation for Parameter {
    const CODE: u16 = 18;
    const NAME: &'static str = "parameter";

    fn visit(&mut self, v: &mut impl Visit) {
        v.tensor("tensor", &mut self.tensor);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let t = rule.tensor("tensor", self.tensor)?;
        if !(1..=4).contains(&t.dims.len()) || t.codes {
            return rule.err("tensor", "f16 or f32, 1 to 4 axes", &t.dims);
        }
        Ok(Type::new(&t.dims, Kind::Float))
    }
}
