//! `cvt`.

use crate::ast::Operand;
use crate::convert::{Conversion, CvtRound};
use crate::float::{half_from_f32, half_to_f32};
use crate::kernels::{Kernel, W, kern};
use crate::op::{Op, Reg};
use crate::types::{Round, Ty};

use super::modifiers::Modifiers;
use super::{Body, Parsed};

impl Body<'_> {
    pub(super) fn convert(&mut self, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        if mods.take("pack") {
            return self.convert_pack(mods, ops);
        }
        let round = match (mods.integer_rounding(), mods.rounding()) {
            (Some(round), None) => CvtRound::Integer(round),
            (None, Some(round)) => CvtRound::Float(round),
            (None, None) => CvtRound::None,
            _ => return self.fail("two rounding modes"),
        };
        let (ftz, sat) = (mods.take("ftz"), mods.take("sat"));
        let (to, from) = (mods.ty()?, mods.ty()?);
        if to == Ty::F16x2 {
            if from != Ty::F32 || round != CvtRound::Float(Round::Nearest) || ftz || sat {
                return self.fail("cvt to .f16x2 with these modifiers is not understood");
            }
            // The first source goes to the upper half.
            fn pack(out: &mut W, a: &W, b: &W) {
                for lane in 0..32 {
                    let half = |x| u32::from(half_from_f32(f32::from_bits(x)));
                    out[lane] = half(a[lane]) << 16 | half(b[lane]);
                }
            }
            return self.alu(Kernel::WWtoW(pack), Ty::B32, &[Ty::F32, Ty::F32], ops);
        }
        let simple = |ty: Ty| ty.is_int() || matches!(ty, Ty::F16 | Ty::F32 | Ty::F64);
        if !simple(to) || !simple(from) || ftz && to != Ty::F32 && from != Ty::F32 {
            return self.fail(format!("cvt from {from:?} to {to:?} is not understood"));
        }
        let narrows = to.is_float() && (!from.is_float() || to.bits() < from.bits());
        let fits = match round {
            CvtRound::None => !(narrows || from.is_float() && to.is_int()),
            CvtRound::Integer(_) => from.is_float() && (to.is_int() || to == from),
            CvtRound::Float(_) => narrows,
        };
        if !fits {
            return self.fail(format!("cvt from {from:?} to {to:?}: the rounding mode does not fit"));
        }
        let [d, a] = self.exactly(ops)?;
        let (a, d) = (self.loose(a, from, false)?, self.loose(d, to, true)?);
        let conversion = Conversion { to, from, round, sat, ftz };
        if !sat
            && !ftz
            && let Some(op) = shortcut(conversion, d, a)
        {
            return Ok(op);
        }
        Ok(Op::Convert { conversion, d, a })
    }

    /// `cvt.pack.sat.{u8,s8,u16,s16}.s32{.b32}`.
    fn convert_pack(&mut self, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        let sat = mods.take("sat");
        let (to, from) = (mods.ty()?, mods.ty()?);
        if !sat || from != Ty::S32 {
            return self.fail("cvt.pack with these modifiers is not understood");
        }
        let (three, two) = ([Ty::S32, Ty::S32, Ty::B32], [Ty::S32, Ty::S32]);
        macro_rules! bytes {
            ($ty:ty) => {
                kern!(WWWtoW(a: u32 as i32, b: u32 as i32, c: u32 as u32) -> u32 as u32 {
                    {
                        let pack = |x: i32| u32::from(x.clamp(<$ty>::MIN.into(), <$ty>::MAX.into()) as u8);
                        c << 16 | pack(a) << 8 | pack(b)
                    }
                })
            };
        }
        macro_rules! shorts {
            ($ty:ty) => {
                kern!(WWtoW(a: u32 as i32, b: u32 as i32) -> u32 as u32 {
                    {
                        let pack = |x: i32| u32::from(x.clamp(<$ty>::MIN.into(), <$ty>::MAX.into()) as u16);
                        pack(a) << 16 | pack(b)
                    }
                })
            };
        }
        match to {
            Ty::U8 | Ty::S8 => {
                if mods.ty()? != Ty::B32 {
                    return self.fail("cvt.pack to bytes needs .b32");
                }
                let kernel = if to == Ty::U8 { bytes!(u8) } else { bytes!(i8) };
                self.alu(kernel, Ty::B32, &three, ops)
            }
            Ty::U16 => self.alu(shorts!(u16), Ty::B32, &two, ops),
            Ty::S16 => self.alu(shorts!(i16), Ty::B32, &two, ops),
            _ => self.fail("cvt.pack has no such type"),
        }
    }
}

/// Whole-warp kernels of the most common conversions.
fn shortcut(conversion: Conversion, d: Reg, a: Reg) -> Option<Op> {
    let Conversion { to, from, round, .. } = conversion;
    let near = round == CvtRound::Float(Round::Nearest);
    let op = |kernel, d, a| Some(Op::Alu { kernel, d, s: [a, 0, 0, 0] });
    match (d, a) {
        (Reg::D(d), Reg::W(a)) => match (to, from) {
            (Ty::U64 | Ty::S64, Ty::U32) => op(kern!(WtoD(x: u32 as u32) -> u64 as u64 { x }), d, a),
            (Ty::U64 | Ty::S64, Ty::S32) => op(kern!(WtoD(x: u32 as i32) -> u64 as u64 { i64::from(x) }), d, a),
            _ => None,
        },
        (Reg::W(d), Reg::D(a)) => match (to.bits(), from) {
            (32, Ty::U64 | Ty::S64) if to.is_int() => op(kern!(DtoW(x: u64 as u32) -> u32 as u32 { x }), d, a),
            _ => None,
        },
        (Reg::W(d), Reg::W(a) | Reg::H(a)) => match (to, from) {
            (Ty::F32, Ty::S32) if near => op(kern!(WtoW(x: u32 as i32) -> u32 as u32 { (x as f32).to_bits() }), d, a),
            (Ty::F32, Ty::U32) if near => op(kern!(WtoW(x: u32 as u32) -> u32 as u32 { (x as f32).to_bits() }), d, a),
            (Ty::S32, Ty::F32) if round == CvtRound::Integer(Round::Nearest) => {
                op(kern!(WtoW(x: u32 as u32) -> u32 as u32 { f32::from_bits(x).round_ties_even() as i32 }), d, a)
            }
            (Ty::S32, Ty::F32) if round == CvtRound::Integer(Round::Zero) => {
                op(kern!(WtoW(x: u32 as u32) -> u32 as u32 { f32::from_bits(x) as i32 }), d, a)
            }
            (Ty::F32, Ty::F16) => {
                op(kern!(WtoW(x: u32 as u16) -> u32 as u32 { crate::float::bits32(half_to_f32(x)) }), d, a)
            }
            (Ty::U32 | Ty::S32, Ty::U16) => op(kern!(WtoW(x: u32 as u16) -> u32 as u32 { x }), d, a),
            (Ty::U32 | Ty::S32, Ty::S16) => op(kern!(WtoW(x: u32 as i16) -> u32 as u32 { i32::from(x) }), d, a),
            (Ty::U32 | Ty::S32, Ty::U8) => op(kern!(WtoW(x: u32 as u8) -> u32 as u32 { x }), d, a),
            (Ty::U32 | Ty::S32, Ty::S8) => op(kern!(WtoW(x: u32 as i8) -> u32 as u32 { i32::from(x) }), d, a),
            _ => None,
        },
        (Reg::H(d), Reg::W(a)) => match (to, from) {
            (Ty::F16, Ty::F32) if near => {
                op(kern!(WtoW(x: u32 as u32) -> u32 as u32 { half_from_f32(f32::from_bits(x)) }), d, a)
            }
            (Ty::U16 | Ty::S16, Ty::U32 | Ty::S32) => op(kern!(WtoW(x: u32 as u16) -> u32 as u32 { x }), d, a),
            _ => None,
        },
        _ => None,
    }
}
