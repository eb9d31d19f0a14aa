//! Ops that move numbers and change none.

use super::op::{Operation, Value};
use super::shape::{Kind, Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// `(n, h, w, c) -> (n, h / p, w / p, p * p * c)`, features ordered (row, column, channel).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Patchify {
    /// The pixels.
    pub x: Value,
    /// Patch size `p`.
    pub patch: u32,
}

impl Operation for Patchify {
    const CODE: u16 = 12;
    const NAME: &'static str = "patchify";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.number("patch", &mut self.patch);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let (x, [n, h, w, c]) = rule.float_image("x", self.x)?;
        let p = self.patch as usize;
        if p == 0 || h % p != 0 || w % p != 0 {
            return rule.err("x", format!("height and width in multiples of the patch size {p}"), x.dims());
        }
        Ok(Type::new(&[n, h / p, w / p, p * p * c], Kind::Float))
    }
}

/// The inverse of [`Patchify`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unpatchify {
    /// The patches.
    pub x: Value,
    /// Patch size `p`.
    pub patch: u32,
}

impl Operation for Unpatchify {
    const CODE: u16 = 13;
    const NAME: &'static str = "unpatchify";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.number("patch", &mut self.patch);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let (x, [n, h, w, f]) = rule.float_image("x", self.x)?;
        let p = self.patch as usize;
        let fits = p != 0 && p <= 1 << 12 && f % (p * p) == 0;
        if !fits {
            return rule.err("x", format!("features in multiples of {p} x {p}"), x.dims());
        }
        Ok(Type::new(&[n, h * p, w * p, f / (p * p)], Kind::Float))
    }
}

/// `a` and `b` side by side along the last axis.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Concat {
    /// `(.., d)`.
    pub a: Value,
    /// `(.., e)`.
    pub b: Value,
}

impl Operation for Concat {
    const CODE: u16 = 14;
    const NAME: &'static str = "concat";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("a", &mut self.a);
        v.value("b", &mut self.b);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let (a, b) = (rule.float("a", self.a)?, rule.float("b", self.b)?);
        let last = a.rank() - 1;
        if a.rank() != b.rank() || a.dims()[..last] != b.dims()[..last] {
            return rule.err("b", format!("the axes of {:?} but for the last", a.dims()), b.dims());
        }
        let Some(cols) = a.cols().checked_add(b.cols()) else {
            return rule.err("b", "fewer columns", b.dims());
        };
        Ok(a.with_cols(cols))
    }
}

/// Some columns of `x`, side by side there: `(.., d) -> (.., count)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slice {
    /// `(.., d)`, d at least `first + count`.
    pub x: Value,
    /// The first column.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl Operation for Slice {
    const CODE: u16 = 19;
    const NAME: &'static str = "slice";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.number("first column", &mut self.first);
        v.number("columns", &mut self.count);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        let (first, count) = (self.first as usize, self.count as usize);
        match first.checked_add(count) {
            Some(end) if count > 0 && end <= x.cols() => Ok(x.with_cols(count)),
            _ => {
                rule.err("columns", format!("some of the {} that x has", x.cols()), format!("{count} from {first} on"))
            }
        }
    }
}
