//! "Comparison and Selection Instructions" and `testp`.

use crate::ast::Operand;
use crate::float::half_to_f32;
use crate::kernels::{Kernel, Test, W, kern, test};
use crate::op::{Bool, FloatClass, Op, Pred};
use crate::types::Ty;

use super::modifiers::Modifiers;
use super::{Body, Parsed};

#[derive(Clone, Copy, PartialEq)]
enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
    /// `lo`, `ls`, `hi`, `hs`: unsigned names.
    Lo,
    Ls,
    Hi,
    Hs,
}

const COMPARISONS: [(&str, Cmp); 18] = [
    ("eq", Cmp::Eq),
    ("ne", Cmp::Ne),
    ("lt", Cmp::Lt),
    ("le", Cmp::Le),
    ("gt", Cmp::Gt),
    ("ge", Cmp::Ge),
    ("equ", Cmp::Equ),
    ("neu", Cmp::Neu),
    ("ltu", Cmp::Ltu),
    ("leu", Cmp::Leu),
    ("gtu", Cmp::Gtu),
    ("geu", Cmp::Geu),
    ("num", Cmp::Num),
    ("nan", Cmp::Nan),
    ("lo", Cmp::Lo),
    ("ls", Cmp::Ls),
    ("hi", Cmp::Hi),
    ("hs", Cmp::Hs),
];

macro_rules! integer_tests {
    ($cmp:expr, $variant:ident, $elem:ty, $cast:ty) => {
        match $cmp {
            Cmp::Eq => Some(test!($variant, $elem, |a, b| |x: $elem| x as $cast, a == b)),
            Cmp::Ne => Some(test!($variant, $elem, |a, b| |x: $elem| x as $cast, a != b)),
            Cmp::Lt => Some(test!($variant, $elem, |a, b| |x: $elem| x as $cast, a < b)),
            Cmp::Le => Some(test!($variant, $elem, |a, b| |x: $elem| x as $cast, a <= b)),
            Cmp::Gt => Some(test!($variant, $elem, |a, b| |x: $elem| x as $cast, a > b)),
            Cmp::Ge => Some(test!($variant, $elem, |a, b| |x: $elem| x as $cast, a >= b)),
            _ => None,
        }
    };
}

macro_rules! float_tests {
    ($cmp:expr, $variant:ident, $elem:ty, $conv:expr) => {
        match $cmp {
            Cmp::Eq => Some(test!($variant, $elem, |a, b| $conv, a == b)),
            Cmp::Ne => Some(test!($variant, $elem, |a, b| $conv, !a.is_nan() && !b.is_nan() && a != b)),
            Cmp::Lt => Some(test!($variant, $elem, |a, b| $conv, a < b)),
            Cmp::Le => Some(test!($variant, $elem, |a, b| $conv, a <= b)),
            Cmp::Gt => Some(test!($variant, $elem, |a, b| $conv, a > b)),
            Cmp::Ge => Some(test!($variant, $elem, |a, b| $conv, a >= b)),
            Cmp::Equ => Some(test!($variant, $elem, |a, b| $conv, a == b || a.is_nan() || b.is_nan())),
            Cmp::Neu => Some(test!($variant, $elem, |a, b| $conv, a != b)),
            Cmp::Ltu => Some(test!($variant, $elem, |a, b| $conv, a < b || a.is_nan() || b.is_nan())),
            Cmp::Leu => Some(test!($variant, $elem, |a, b| $conv, a <= b || a.is_nan() || b.is_nan())),
            Cmp::Gtu => Some(test!($variant, $elem, |a, b| $conv, a > b || a.is_nan() || b.is_nan())),
            Cmp::Geu => Some(test!($variant, $elem, |a, b| $conv, a >= b || a.is_nan() || b.is_nan())),
            Cmp::Num => Some(test!($variant, $elem, |a, b| $conv, !a.is_nan() && !b.is_nan())),
            Cmp::Nan => Some(test!($variant, $elem, |a, b| $conv, a.is_nan() || b.is_nan())),
            _ => None,
        }
    };
}

/// The comparison of two operands of a type, where the type has it.
fn comparison(cmp: Cmp, ty: Ty) -> Option<Test> {
    let plain = match cmp {
        Cmp::Lo => Cmp::Lt,
        Cmp::Ls => Cmp::Le,
        Cmp::Hi => Cmp::Gt,
        Cmp::Hs => Cmp::Ge,
        other => other,
    };
    if plain != cmp && !matches!(ty, Ty::U16 | Ty::U32 | Ty::U64) {
        return None;
    }
    match ty {
        Ty::B16 | Ty::B32 | Ty::B64 if !matches!(cmp, Cmp::Eq | Cmp::Ne) => None,
        Ty::B16 | Ty::U16 => integer_tests!(plain, W, u32, u16),
        Ty::S16 => integer_tests!(plain, W, u32, i16),
        Ty::B32 | Ty::U32 => integer_tests!(plain, W, u32, u32),
        Ty::S32 => integer_tests!(plain, W, u32, i32),
        Ty::B64 | Ty::U64 => integer_tests!(plain, D, u64, u64),
        Ty::S64 => integer_tests!(plain, D, u64, i64),
        Ty::F16 | Ty::F16x2 => float_tests!(plain, W, u32, |x: u32| half_to_f32(x as u16)),
        Ty::F32 => float_tests!(plain, W, u32, f32::from_bits),
        Ty::F64 => float_tests!(plain, D, u64, f64::from_bits),
        _ => None,
    }
}

impl Body<'_> {
    pub(super) fn compare(&mut self, opcode: &str, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        match opcode {
            "setp" | "set" => self.test(opcode == "setp", mods, ops),
            "selp" => {
                let ty = mods.ty()?;
                let [d, a, b, p] = self.exactly(ops)?;
                let p = self.predicate(p)?;
                if ty.bits() < 16 {
                    return self.fail("selp has no such type");
                }
                let (d, a, b) = (self.dest(d, ty)?, self.source(a, ty)?, self.source(b, ty)?);
                Ok(if ty.bits() == 64 { Op::SelectD { d, a, b, p } } else { Op::SelectW { d, a, b, p } })
            }
            "slct" => {
                let ftz = mods.take("ftz");
                let (ty, by) = (mods.ty()?, mods.ty()?);
                // c >= 0 chooses a; a subnormal is flushed to a zero either way, and -0 >= 0.
                let kernel = match (ty.bits(), by) {
                    (32, Ty::S32) => {
                        kern!(WWWtoW(a: u32 as u32, b: u32 as u32, c: u32 as i32) -> u32 as u32 { if c >= 0 { a } else { b } })
                    }
                    (64, Ty::S32) => {
                        kern!(DDWtoD(a: u64 as u64, b: u64 as u64, c: u32 as i32) -> u64 as u64 { if c >= 0 { a } else { b } })
                    }
                    (32, Ty::F32) if !ftz => slct_f32(),
                    _ => return self.fail("slct with these types is not understood"),
                };
                self.alu(kernel, ty, &[ty, ty, by], ops)
            }
            _ => {
                let class = mods.need(&[
                    ("finite", FloatClass::Finite),
                    ("infinite", FloatClass::Infinite),
                    ("number", FloatClass::Number),
                    ("notanumber", FloatClass::NotANumber),
                    ("normal", FloatClass::Normal),
                    ("subnormal", FloatClass::Subnormal),
                ])?;
                let ty = mods.ty()?;
                if !matches!(ty, Ty::F32 | Ty::F64) {
                    return self.fail("testp has no such type");
                }
                let [d, a] = self.exactly(ops)?;
                let a = self.source(a, ty)?;
                Ok(Op::Class { class, d: self.dest(d, Ty::Pred)?, a: self.tagged(a, ty) })
            }
        }
    }

    fn test(&mut self, to_predicate: bool, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        let cmp = mods.need(&COMPARISONS)?;
        let bool_op = mods.one_of(&[("and", Bool::And), ("or", Bool::Or), ("xor", Bool::Xor)]);
        let ftz = mods.take("ftz");
        let result = if to_predicate { Ty::Pred } else { mods.ty()? };
        let ty = mods.ty()?;
        if ftz && ty != Ty::F32 {
            return self.fail("only .f32 has .ftz here");
        }
        let Some(test) = comparison(cmp, ty) else {
            return self.fail(format!("no such comparison for {ty:?}"));
        };
        if ops.len() != 3 + usize::from(bool_op.is_some()) {
            return self.fail("wrong number of operands");
        }
        let s = [self.source(&ops[1], ty)?, self.source(&ops[2], ty)?];
        let combine: Option<(Bool, Pred)> = match bool_op {
            Some(op) => Some((op, self.predicate(&ops[3])?)),
            None => None,
        };
        if !to_predicate {
            let one = match result {
                Ty::F32 => 1f32.to_bits(),
                Ty::U32 | Ty::S32 => u32::MAX,
                _ => return self.fail("set has no such result type"),
            };
            return Ok(Op::Set { test, ftz, one, d: self.dest(&ops[0], result)?, s, combine });
        }
        let (d, other) = match &ops[0] {
            Operand::Pair(d, other) => {
                let slot = |body: &mut Self, name: &String| body.dest(&Operand::Name(name.clone()), Ty::Pred);
                (slot(self, d)?, Some(slot(self, other)?))
            }
            single => (self.dest(single, Ty::Pred)?, None),
        };
        match (ty, other) {
            (Ty::F16x2, Some(other)) => Ok(Op::TestPacked { test, d, other, s, combine }),
            (Ty::F16x2, None) => self.fail("a packed comparison needs two predicates"),
            _ => Ok(Op::Test { test, ftz, d, other, s, combine }),
        }
    }
}

fn slct_f32() -> Kernel {
    fn run(out: &mut W, a: &W, b: &W, c: &W) {
        for lane in 0..32 {
            out[lane] = if f32::from_bits(c[lane]) >= 0.0 { a[lane] } else { b[lane] };
        }
    }
    Kernel::WWWtoW(run)
}
