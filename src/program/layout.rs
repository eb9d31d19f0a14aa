//! Ops that move numbers and change none.

use super::op::{Operation, Tensor, Value};
use super::shape::{Kind, Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// `(n, h, w, c) -> (n, h / p, w / p, p * p * c)`, features ordered (row, column, channel). Of videos frames lie below each
/// other: `(n, f, h, w, c) -> (n, f h / p, w / p, p * p * c)`.
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
        let x = rule.float("x", self.x)?;
        let [n, f, h, w, c] = match *x.dims() {
            [n, h, w, c] => [n, 1, h, w, c],
            [n, f, h, w, c] => [n, f, h, w, c],
            _ => return rule.err("x", "(n, h, w, c) or (n, f, h, w, c)", x.dims()),
        };
        let p = self.patch as usize;
        if p == 0 || h % p != 0 || w % p != 0 {
            return rule.err("x", format!("height and width in multiples of the patch size {p}"), x.dims());
        }
        let Some(rows) = f.checked_mul(h / p) else {
            return rule.err("x", "fewer frames", x.dims());
        };
        Ok(Type::new(&[n, rows, w / p, p * p * c], Kind::Float))
    }
}

/// The inverse of [`Patchify`], but that frames stay below each other.
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

/// `a` and `b` side by side along the last axis, or one after the other along the axis of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Concat {
    /// `(.., d)`; if `tokens`, `(n, t, d)`.
    pub a: Value,
    /// `(.., e)`, of as many rows or fewer, which are then repeated cyclically; if `tokens`, `(n, u, d)`.
    pub b: Value,
    /// Whether the result is `(n, t + u, d)`; else it is `(.., d + e)`, with the axes of `a`.
    pub tokens: bool,
}

impl Operation for Concat {
    const CODE: u16 = 14;
    const NAME: &'static str = "concat";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("a", &mut self.a);
        v.value("b", &mut self.b);
        v.flag("tokens", &mut self.tokens);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let (a, b) = (rule.float("a", self.a)?, rule.float("b", self.b)?);
        if self.tokens {
            return match (a.dims(), b.dims()) {
                (&[n, t, d], &[m, u, e]) if [n, d] == [m, e] && t.checked_add(u).is_some() => {
                    Ok(Type::new(&[n, t + u, d], Kind::Float))
                }
                _ => rule.err("a, b", "(n, t, d) and (n, u, d)", (a.dims(), b.dims())),
            };
        }
        if !a.rows().is_multiple_of(b.rows()) {
            return rule.err("b", format!("rows dividing those of {:?}", a.dims()), b.dims());
        }
        let Some(cols) = a.cols().checked_add(b.cols()) else {
            return rule.err("b", "fewer columns", b.dims());
        };
        Ok(a.with_cols(cols))
    }
}

/// Some columns of `x`, side by side there: `(.., d) -> (.., count)`; or some tokens, `(n, t, d) -> (n, count, d)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slice {
    /// `(.., d)`, d at least `first + count`; if `tokens`, `(n, t, d)`, t likewise.
    pub x: Value,
    /// The first column or token.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// Whether tokens are meant.
    pub tokens: bool,
}

impl Operation for Slice {
    const CODE: u16 = 19;
    const NAME: &'static str = "slice";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.number("first column", &mut self.first);
        v.number("columns", &mut self.count);
        v.flag("tokens", &mut self.tokens);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        let (first, count) = (self.first as usize, self.count as usize);
        let (what, have, sliced) = match (self.tokens, x.dims()) {
            (false, _) => ("columns", x.cols(), x.with_cols(count)),
            (true, &[n, t, d]) => ("tokens", t, Type::new(&[n, count, d], Kind::Float)),
            (true, dims) => return rule.err("x", "(n, t, d)", dims),
        };
        match first.checked_add(count) {
            Some(end) if count > 0 && end <= have => Ok(sliced),
            _ => rule.err(what, format!("some of the {have} that x has"), format!("{count} from {first} on")),
        }
    }
}

/// Rows of a table in place of the tokens behind the first `lengths` of each text: `(n, t, d) -> (n, t, d)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PadRows {
    /// `(n, t, d)`.
    pub x: Value,
    /// u32 `(n)`: how many tokens are left as they are. An input; what is more than there are counts as all of them.
    pub lengths: Value,
    /// `(rows, d)`, f16 or f32, rows at least `first + t`: token `i` may become row `first + i`.
    pub table: Tensor,
    /// The first token's row.
    pub first: u32,
}

impl Operation for PadRows {
    const CODE: u16 = 24;
    const NAME: &'static str = "pad_rows";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.value("lengths", &mut self.lengths);
        v.tensor("table", &mut self.table);
        v.number("first row", &mut self.first);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        let &[n, t, d] = x.dims() else { return rule.err("x", "(n, t, d)", x.dims()) };
        let lengths = rule.value("lengths", self.lengths)?;
        if lengths.kind != Kind::Index || lengths.dims() != [n] {
            return rule.err("lengths", format!("u32 [{n}]"), (lengths.dims(), lengths.kind));
        }
        let table = rule.tensor("table", self.table)?;
        let least = (self.first as usize).checked_add(t);
        match table.dims[..] {
            [rows, cols] if cols == d && !table.codes && least.is_some_and(|least| rows >= least) => Ok(x),
            _ => {
                let expected = format!("f16 or f32 [at least {t} rows from {} on, {d}]", self.first);
                rule.err("table", expected, &table.dims)
            }
        }
    }
}
