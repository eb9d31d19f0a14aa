//! "Integer Arithmetic", "Logic and Shift" and "Extended-Precision" instructions.

use crate::ast::Operand;
use crate::kernels::{Kernel, W, binary_int, kern, ternary_int, unary_int};
use crate::op::{Bool, Carry, CarryKind, Op};
use crate::types::Ty;

use super::modifiers::Modifiers;
use super::{Body, Parsed};

#[derive(Clone, Copy, PartialEq)]
enum Half {
    Lo,
    Hi,
    Wide,
}

const HALVES: [(&str, Half); 3] = [("lo", Half::Lo), ("hi", Half::Hi), ("wide", Half::Wide)];

/// `mul.hi` and `mad.hi` for any type.
macro_rules! mul_high {
    (mul) => {
        |ty: Ty| match ty {
            Ty::U16 => Some(kern!(WWtoW(a: u32 as u16, b: u32 as u16) -> u16 as u32 { (a as u32 * b as u32) >> 16 })),
            Ty::S16 => Some(kern!(WWtoW(a: u32 as i16, b: u32 as i16) -> u16 as u32 { (a as i32 * b as i32) >> 16 })),
            Ty::U32 => Some(kern!(WWtoW(a: u32 as u32, b: u32 as u32) -> u32 as u32 { (a as u64 * b as u64) >> 32 })),
            Ty::S32 => {
                Some(kern!(WWtoW(a: u32 as i32, b: u32 as i32) -> u32 as u32 { (i64::from(a) * i64::from(b)) >> 32 }))
            }
            Ty::U64 => {
                Some(kern!(DDtoD(a: u64 as u64, b: u64 as u64) -> u64 as u64 { (a as u128 * b as u128) >> 64 }))
            }
            _ => Some(kern!(DDtoD(a: u64 as i64, b: u64 as i64) -> u64 as u64 { (a as i128 * b as i128) >> 64 })),
        }
    };
    (mad) => {
        |ty: Ty| match ty {
            Ty::U16 => Some(kern!(WWWtoW(a: u32 as u16, b: u32 as u16, c: u32 as u32) -> u16 as u32 {
                ((a as u32 * b as u32) >> 16).wrapping_add(c)
            })),
            Ty::S16 => Some(kern!(WWWtoW(a: u32 as i16, b: u32 as i16, c: u32 as i32) -> u16 as u32 {
                ((a as i32 * b as i32) >> 16).wrapping_add(c)
            })),
            Ty::U32 => Some(kern!(WWWtoW(a: u32 as u64, b: u32 as u64, c: u32 as u64) -> u32 as u32 {
                ((a * b) >> 32).wrapping_add(c)
            })),
            Ty::S32 => Some(kern!(WWWtoW(a: u32 as i32, b: u32 as i32, c: u32 as i64) -> u32 as u32 {
                ((i64::from(a) * i64::from(b)) >> 32).wrapping_add(c)
            })),
            Ty::U64 => Some(kern!(DDDtoD(a: u64 as u64, b: u64 as u64, c: u64 as u64) -> u64 as u64 {
                (((a as u128 * b as u128) >> 64) as u64).wrapping_add(c)
            })),
            _ => Some(kern!(DDDtoD(a: u64 as i64, b: u64 as i64, c: u64 as i64) -> u64 as u64 {
                (((a as i128 * b as i128) >> 64) as i64).wrapping_add(c)
            })),
        }
    };
}

impl Body<'_> {
    /// An instruction with a destination and sources of given types.
    pub(super) fn alu(&mut self, kernel: Kernel, dest: Ty, sources: &[Ty], ops: &[Operand]) -> Parsed<Op> {
        if ops.len() != sources.len() + 1 {
            return self.fail(format!("expected {} operands, found {}", sources.len() + 1, ops.len()));
        }
        let mut s = [0; 4];
        for ((slot, &ty), operand) in s.iter_mut().zip(sources).zip(&ops[1..]) {
            *slot = self.source(operand, ty)?;
        }
        Ok(Op::Alu { kernel, d: self.dest(&ops[0], dest)?, s })
    }

    fn known(&self, kernel: Option<Kernel>, opcode: &str, ty: Ty) -> Parsed<Kernel> {
        match kernel {
            Some(kernel) => Ok(kernel),
            None => self.fail(format!("{opcode} has no type {ty:?}")),
        }
    }

    pub(super) fn integer(&mut self, opcode: &str, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        let half = match opcode {
            "mul" | "mad" | "madc" => Some(mods.need(&HALVES)?),
            _ => None,
        };
        let prmt_mode = match opcode {
            "prmt" => mods.one_of(&[("f4e", 1), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)]),
            _ => None,
        };
        let direction = match opcode {
            "shf" => Some((mods.need(&[("l", true), ("r", false)])?, mods.need(&[("wrap", true), ("clamp", false)])?)),
            _ => None,
        };
        let carry_out = mods.take("cc");
        let carry_in = matches!(opcode, "addc" | "subc" | "madc");
        let saturate = matches!(opcode, "add" | "sub") && mods.take("sat");
        let ty = mods.ty()?;
        if carry_in || carry_out {
            return self.carry(opcode, half, carry_in, carry_out, ty, ops);
        }
        if ty == Ty::Pred {
            return self.predicate_logic(opcode, ops);
        }
        if saturate {
            let kernel = match (opcode, ty) {
                ("add", Ty::S32) => kern!(WWtoW(a: u32 as i32, b: u32 as i32) -> u32 as u32 { a.saturating_add(b) }),
                ("sub", Ty::S32) => kern!(WWtoW(a: u32 as i32, b: u32 as i32) -> u32 as u32 { a.saturating_sub(b) }),
                _ => return self.fail("only .s32 saturates"),
            };
            return self.alu(kernel, ty, &[ty, ty], ops);
        }
        if let Some(half) = half {
            return self.multiply(opcode, half, ty, ops);
        }
        if let Some((left, wrap)) = direction {
            return self.alu(funnel(left, wrap), Ty::B32, &[Ty::B32, Ty::B32, Ty::U32], ops);
        }
        let bits = matches!(ty, Ty::B16 | Ty::B32 | Ty::B64);
        let logic = matches!(opcode, "and" | "or" | "xor" | "not" | "cnot" | "shl");
        if ty.is_float() || logic && !bits || bits && matches!(opcode, "add" | "sub" | "div" | "rem" | "min" | "max") {
            return self.fail(format!("{opcode} has no type {ty:?}"));
        }
        let packed = |opcode| matches!(opcode, "brev" | "clz" | "popc" | "bfe" | "bfi") && ty.bits() < 32;
        if packed(opcode) {
            return self.fail(format!("{opcode} has no type {ty:?}"));
        }
        match opcode {
            "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" => self.logic(opcode, ty, ops),
            "brev" | "popc" | "clz" | "bfind" | "bfe" | "bfi" => self.bit_field(opcode, mods, ty, ops),
            "prmt" | "lop3" | "dp4a" => self.byte_wise(opcode, mods, prmt_mode.unwrap_or(0), ty, ops),
            _ => self.arithmetic(opcode, ty, ops),
        }
    }

    fn arithmetic(&mut self, opcode: &str, ty: Ty, ops: &[Operand]) -> Parsed<Op> {
        match opcode {
            "add" => self.alu_n(opcode, binary_int!(ty, |a, b| a.wrapping_add(b)), ty, 2, ops),
            "sub" => self.alu_n(opcode, binary_int!(ty, |a, b| a.wrapping_sub(b)), ty, 2, ops),
            // Division by zero is unspecified; the hardware gives all ones.
            "div" => {
                self.alu_n(opcode, binary_int!(ty, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) }), ty, 2, ops)
            }
            "rem" => self.alu_n(opcode, binary_int!(ty, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }), ty, 2, ops),
            "min" => self.alu_n(opcode, binary_int!(ty, |a, b| a.min(b)), ty, 2, ops),
            "max" => self.alu_n(opcode, binary_int!(ty, |a, b| a.max(b)), ty, 2, ops),
            "abs" if ty.is_signed() => {
                let kernel = match ty {
                    Ty::S16 => kern!(WtoW(a: u32 as i16) -> u16 as u32 { a.wrapping_abs() }),
                    Ty::S32 => kern!(WtoW(a: u32 as i32) -> u32 as u32 { a.wrapping_abs() }),
                    _ => kern!(DtoD(a: u64 as i64) -> u64 as u64 { a.wrapping_abs() }),
                };
                self.alu_n(opcode, Some(kernel), ty, 1, ops)
            }
            "neg" if ty.is_signed() => self.alu_n(opcode, unary_int!(ty, |a| a.wrapping_neg()), ty, 1, ops),
            "sad" if ty.is_int() => {
                let kernel = ternary_int!(ty, |a, b, c| c.wrapping_add(if a > b {
                    a.wrapping_sub(b)
                } else {
                    b.wrapping_sub(a)
                }));
                self.alu_n(opcode, kernel, ty, 3, ops)
            }
            _ => self.not_understood(opcode, ty),
        }
    }

    /// "Logic and Shift" instructions of whole registers.
    fn logic(&mut self, opcode: &str, ty: Ty, ops: &[Operand]) -> Parsed<Op> {
        match opcode {
            "and" => self.alu_n(opcode, binary_int!(ty, |a, b| a & b), ty, 2, ops),
            "or" => self.alu_n(opcode, binary_int!(ty, |a, b| a | b), ty, 2, ops),
            "xor" => self.alu_n(opcode, binary_int!(ty, |a, b| a ^ b), ty, 2, ops),
            "not" => self.alu_n(opcode, unary_int!(ty, |a| !a), ty, 1, ops),
            "cnot" => self.alu_n(opcode, unary_int!(ty, |a| if a == 0 { 1 } else { 0 }), ty, 1, ops),
            "shl" | "shr" => self.alu(shift(opcode == "shl", ty), ty, &[ty, Ty::U32], ops),
            _ => self.not_understood(opcode, ty),
        }
    }

    /// Instructions that find, count, take and place bits.
    fn bit_field(&mut self, opcode: &str, mods: &mut Modifiers, ty: Ty, ops: &[Operand]) -> Parsed<Op> {
        match opcode {
            "brev" => self.alu_n(opcode, unary_int!(ty, |a| a.reverse_bits()), ty, 1, ops),
            "popc" | "clz" | "bfind" => {
                let shift_amount = opcode == "bfind" && mods.take("shiftamt");
                let kernel = match (opcode, ty.bits()) {
                    ("popc", 32) => kern!(WtoW(a: u32 as u32) -> u32 as u32 { a.count_ones() }),
                    ("popc", _) => kern!(DtoW(a: u64 as u64) -> u32 as u32 { a.count_ones() }),
                    ("clz", 32) => kern!(WtoW(a: u32 as u32) -> u32 as u32 { a.leading_zeros() }),
                    ("clz", _) => kern!(DtoW(a: u64 as u64) -> u32 as u32 { a.leading_zeros() }),
                    _ => find(ty, shift_amount),
                };
                self.alu(kernel, Ty::U32, &[ty], ops)
            }
            "bfe" if ty.is_int() => self.alu(extract(ty), ty, &[ty, Ty::U32, Ty::U32], ops),
            "bfi" if matches!(ty, Ty::B32 | Ty::B64) => self.alu(insert(ty), ty, &[ty, ty, Ty::U32, Ty::U32], ops),
            _ => self.not_understood(opcode, ty),
        }
    }

    /// Instructions of words taken as bytes, or bit by bit from three words.
    fn byte_wise(&mut self, opcode: &str, mods: &mut Modifiers, mode: u32, ty: Ty, ops: &[Operand]) -> Parsed<Op> {
        match opcode {
            "prmt" if ty == Ty::B32 => self.alu(permute(mode), ty, &[Ty::B32, Ty::B32, Ty::B32], ops),
            "lop3" if ty == Ty::B32 => {
                if !matches!(ops.get(4), Some(Operand::Int(0..=255))) {
                    return self.fail("immLut must be a constant of 8 bits");
                }
                self.alu(Kernel::WWWWtoW(lop3), ty, &[ty, ty, ty, Ty::U32], ops)
            }
            "dp4a" => {
                let other = mods.ty()?;
                self.alu(dot4(ty, other), Ty::B32, &[Ty::B32, Ty::B32, Ty::B32], ops)
            }
            _ => self.not_understood(opcode, ty),
        }
    }

    fn not_understood(&self, opcode: &str, ty: Ty) -> Parsed<Op> {
        self.fail(format!("instruction {opcode} with type {ty:?} is not understood"))
    }

    /// An instruction whose operands all have the same type.
    fn alu_n(&mut self, opcode: &str, kernel: Option<Kernel>, ty: Ty, sources: usize, ops: &[Operand]) -> Parsed<Op> {
        let kernel = self.known(kernel, opcode, ty)?;
        self.alu(kernel, ty, &[ty; 3][..sources], ops)
    }

    fn multiply(&mut self, opcode: &str, half: Half, ty: Ty, ops: &[Operand]) -> Parsed<Op> {
        if !ty.is_int() || ty.bits() < 16 {
            return self.fail(format!("{opcode} has no type {ty:?}"));
        }
        let mad = opcode == "mad";
        let sources = if mad { 3 } else { 2 };
        match half {
            Half::Lo if mad => {
                self.alu_n(opcode, ternary_int!(ty, |a, b, c| a.wrapping_mul(b).wrapping_add(c)), ty, sources, ops)
            }
            Half::Lo => self.alu_n(opcode, binary_int!(ty, |a, b| a.wrapping_mul(b)), ty, sources, ops),
            Half::Hi => {
                let kernel = if mad {
                    let high = mul_high!(mad);
                    high(ty)
                } else {
                    let high = mul_high!(mul);
                    high(ty)
                };
                self.alu_n(opcode, kernel, ty, sources, ops)
            }
            Half::Wide => {
                let (kernel, wide) = match (mad, ty) {
                    (false, Ty::U16) => (
                        kern!(WWtoW(a: u32 as u16, b: u32 as u16) -> u32 as u32 { u32::from(a) * u32::from(b) }),
                        Ty::U32,
                    ),
                    (false, Ty::S16) => (
                        kern!(WWtoW(a: u32 as i16, b: u32 as i16) -> u32 as u32 { i32::from(a) * i32::from(b) }),
                        Ty::S32,
                    ),
                    (false, Ty::U32) => (kern!(WWtoD(a: u32 as u64, b: u32 as u64) -> u64 as u64 { a * b }), Ty::U64),
                    (false, Ty::S32) => (
                        kern!(WWtoD(a: u32 as i32, b: u32 as i32) -> u64 as u64 { i64::from(a) * i64::from(b) }),
                        Ty::S64,
                    ),
                    (true, Ty::U16) => (
                        kern!(WWWtoW(a: u32 as u16, b: u32 as u16, c: u32 as u32) -> u32 as u32 {
                            (u32::from(a) * u32::from(b)).wrapping_add(c)
                        }),
                        Ty::U32,
                    ),
                    (true, Ty::S16) => (
                        kern!(WWWtoW(a: u32 as i16, b: u32 as i16, c: u32 as i32) -> u32 as u32 {
                            (i32::from(a) * i32::from(b)).wrapping_add(c)
                        }),
                        Ty::S32,
                    ),
                    (true, Ty::U32) => (
                        kern!(WWDtoD(a: u32 as u64, b: u32 as u64, c: u64 as u64) -> u64 as u64 {
                            (a * b).wrapping_add(c)
                        }),
                        Ty::U64,
                    ),
                    (true, Ty::S32) => (
                        kern!(WWDtoD(a: u32 as i32, b: u32 as i32, c: u64 as i64) -> u64 as u64 {
                            (i64::from(a) * i64::from(b)).wrapping_add(c)
                        }),
                        Ty::S64,
                    ),
                    _ => return self.fail(format!("{opcode}.wide has no type {ty:?}")),
                };
                self.alu(kernel, wide, &[ty, ty, wide][..sources], ops)
            }
        }
    }

    fn carry(
        &mut self,
        opcode: &str,
        half: Option<Half>,
        cin: bool,
        cout: bool,
        ty: Ty,
        ops: &[Operand],
    ) -> Parsed<Op> {
        if !(ty.is_int() || ty == Ty::B32) || ty.bits() < 32 {
            return self.fail(format!("{opcode} has no type {ty:?}"));
        }
        let kind = match (opcode, half) {
            ("add" | "addc", None) => CarryKind::Add,
            ("sub" | "subc", None) => CarryKind::Sub,
            ("mad" | "madc", Some(Half::Lo)) => CarryKind::MadLo,
            ("mad" | "madc", Some(Half::Hi)) => CarryKind::MadHi { signed: ty.is_signed() },
            _ => return self.fail(format!("{opcode} has no carry")),
        };
        let mut s = [0; 3];
        let sources = if half.is_some() { 3 } else { 2 };
        if ops.len() != sources + 1 {
            return self.fail(format!("expected {} operands", sources + 1));
        }
        for (slot, operand) in s.iter_mut().zip(&ops[1..]) {
            *slot = self.source(operand, ty)?;
        }
        let d = self.dest(&ops[0], ty)?;
        Ok(Op::Carry(Carry { kind, wide: ty.bits() == 64, carry_in: cin, carry_out: cout, d, s }))
    }

    fn predicate_logic(&mut self, opcode: &str, ops: &[Operand]) -> Parsed<Op> {
        let op = match opcode {
            "not" => {
                let [d, a] = self.exactly(ops)?;
                let mut a = self.predicate(a)?;
                a.negated = !a.negated;
                return Ok(Op::PredMov { d: self.dest(d, Ty::Pred)?, a });
            }
            "and" => Bool::And,
            "or" => Bool::Or,
            "xor" => Bool::Xor,
            _ => return self.fail(format!("{opcode}.pred is not understood")),
        };
        let [d, a, b] = self.exactly(ops)?;
        Ok(Op::Logic { op, d: self.dest(d, Ty::Pred)?, a: self.predicate(a)?, b: self.predicate(b)? })
    }
}

/// `shl` and `shr`; amounts beyond the width shift everything out.
fn shift(left: bool, ty: Ty) -> Kernel {
    match (left, ty) {
        (true, Ty::B16) => kern!(WWtoW(a: u32 as u16, n: u32 as u32) -> u16 as u32 { if n < 16 { a << n } else { 0 } }),
        (true, Ty::B32) => kern!(WWtoW(a: u32 as u32, n: u32 as u32) -> u32 as u32 { if n < 32 { a << n } else { 0 } }),
        (true, _) => kern!(DWtoD(a: u64 as u64, n: u32 as u32) -> u64 as u64 { if n < 64 { a << n } else { 0 } }),
        (_, Ty::S16) => kern!(WWtoW(a: u32 as i16, n: u32 as u32) -> u16 as u32 { a >> n.min(15) }),
        (_, Ty::S32) => kern!(WWtoW(a: u32 as i32, n: u32 as u32) -> u32 as u32 { a >> n.min(31) }),
        (_, Ty::S64) => kern!(DWtoD(a: u64 as i64, n: u32 as u32) -> u64 as u64 { a >> n.min(63) }),
        (_, Ty::B16 | Ty::U16) => {
            kern!(WWtoW(a: u32 as u16, n: u32 as u32) -> u16 as u32 { if n < 16 { a >> n } else { 0 } })
        }
        (_, Ty::B32 | Ty::U32) => {
            kern!(WWtoW(a: u32 as u32, n: u32 as u32) -> u32 as u32 { if n < 32 { a >> n } else { 0 } })
        }
        _ => kern!(DWtoD(a: u64 as u64, n: u32 as u32) -> u64 as u64 { if n < 64 { a >> n } else { 0 } }),
    }
}

/// `shf`: shifts the 64-bit value {b, a} and keeps its upper (left) or lower (right) half.
fn funnel(left: bool, wrap: bool) -> Kernel {
    match (left, wrap) {
        (true, true) => kern!(WWWtoW(a: u32 as u64, b: u32 as u64, n: u32 as u32) -> u32 as u32 {
            ((b << 32 | a) << (n & 31)) >> 32
        }),
        (true, false) => kern!(WWWtoW(a: u32 as u64, b: u32 as u64, n: u32 as u32) -> u32 as u32 {
            ((b << 32 | a) << n.min(32)) >> 32
        }),
        (false, true) => kern!(WWWtoW(a: u32 as u64, b: u32 as u64, n: u32 as u32) -> u32 as u32 {
            (b << 32 | a) >> (n & 31)
        }),
        (false, false) => kern!(WWWtoW(a: u32 as u64, b: u32 as u64, n: u32 as u32) -> u32 as u32 {
            (b << 32 | a) >> n.min(32)
        }),
    }
}

/// `bfind`: position of the most significant bit that is not a sign bit.
fn find(ty: Ty, shift_amount: bool) -> Kernel {
    macro_rules! position {
        ($variant:ident, $elem:ty, $cast:ty, $bits:literal, $flip:expr) => {
            if shift_amount {
                kern!($variant(a: $elem as $cast) -> u32 as u32 {
                    { let a = ($flip)(a); if a == 0 { !0 } else { a.leading_zeros() } }
                })
            } else {
                kern!($variant(a: $elem as $cast) -> u32 as u32 {
                    { let a = ($flip)(a); if a == 0 { !0 } else { $bits - 1 - a.leading_zeros() } }
                })
            }
        };
    }
    match ty {
        Ty::S32 => position!(WtoW, u32, i32, 32, |a: i32| if a < 0 { !a } else { a }),
        Ty::S64 => position!(DtoW, u64, i64, 64, |a: i64| if a < 0 { !a } else { a }),
        Ty::U64 | Ty::B64 => position!(DtoW, u64, u64, 64, |a: u64| a),
        _ => position!(WtoW, u32, u32, 32, |a: u32| a),
    }
}

/// `bfe`: field of `len` bits at `pos`, both taken modulo 256; beyond the value come zeros or its sign.
fn extract(ty: Ty) -> Kernel {
    fn field(a: i128, bits: u32, pos: u32, len: u32, signed: bool) -> u64 {
        let (pos, len) = (pos & 255, len & 255);
        if len == 0 {
            return 0;
        }
        let top = (pos + len - 1).min(bits - 1);
        let sign = signed && a >> top & 1 != 0;
        let mut out = if sign { u64::MAX } else { 0 };
        for at in 0..len.min(bits) {
            let source = pos + at;
            if source < bits {
                let bit = (a >> source & 1) as u64;
                out = out & !(1 << at) | bit << at;
            }
        }
        out
    }
    match ty {
        Ty::U32 => kern!(WWWtoW(a: u32 as u32, p: u32 as u32, n: u32 as u32) -> u32 as u32 {
            field(a.into(), 32, p, n, false)
        }),
        Ty::S32 => kern!(WWWtoW(a: u32 as u32, p: u32 as u32, n: u32 as u32) -> u32 as u32 {
            field(a.into(), 32, p, n, true)
        }),
        Ty::U64 => kern!(DWWtoD(a: u64 as u64, p: u32 as u32, n: u32 as u32) -> u64 as u64 {
            field(a.into(), 64, p, n, false)
        }),
        _ => kern!(DWWtoD(a: u64 as u64, p: u32 as u32, n: u32 as u32) -> u64 as u64 {
            field(a.into(), 64, p, n, true)
        }),
    }
}

/// `bfi f, a, b, pos, len`: the low `len` bits of a at `pos` of b.
fn insert(ty: Ty) -> Kernel {
    fn field(a: u64, b: u64, bits: u32, pos: u32, len: u32) -> u64 {
        let (pos, len) = (pos & 255, len & 255);
        if pos >= bits || len == 0 {
            return b;
        }
        let keep = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
        b & !(keep << pos) | (a & keep) << pos
    }
    if ty == Ty::B32 {
        kern!(WWWWtoW(a: u32 as u64, b: u32 as u64, p: u32 as u32, n: u32 as u32) -> u32 as u32 {
            field(a, b, 32, p, n)
        })
    } else {
        kern!(DDWWtoD(a: u64 as u64, b: u64 as u64, p: u32 as u32, n: u32 as u32) -> u64 as u64 {
            field(a, b, 64, p, n)
        })
    }
}

/// `lop3`: the table is the same for all lanes.
fn lop3(out: &mut W, a: &W, b: &W, c: &W, table: &W) {
    let table = table[0];
    let sides = |index: u32, bit: u32| if index >> bit & 1 != 0 { 0 } else { u32::MAX };
    for index in (0..8).filter(|index| table >> index & 1 != 0) {
        let (x, y, z) = (sides(index, 2), sides(index, 1), sides(index, 0));
        for lane in 0..32 {
            out[lane] |= (a[lane] ^ x) & (b[lane] ^ y) & (c[lane] ^ z);
        }
    }
}

/// `prmt`: picks bytes of {b, a} by nibbles; bit 3 of a nibble replicates the sign in the default mode.
fn permute(mode: u32) -> Kernel {
    macro_rules! picked {
        ($select:expr) => {
            kern!(WWWtoW(a: u32 as u64, b: u32 as u64, c: u32 as u32) -> u32 as u32 {
                {
                    let all = b << 32 | a;
                    (0..4u32).fold(0u32, |out, index| {
                        let nibble: u32 = $select(c, index);
                        let byte = (all >> ((nibble & 7) * 8)) as u8;
                        let byte = if nibble & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
                        out | u32::from(byte) << (index * 8)
                    })
                }
            })
        };
    }
    match mode {
        0 => picked!(|c: u32, index: u32| c >> (index * 4) & 15),
        1 => picked!(|c: u32, index: u32| ((c & 3) + index) & 7),
        2 => picked!(|c: u32, index: u32| (c & 3).wrapping_sub(index) & 7),
        3 => picked!(|c: u32, _| c & 3),
        4 => picked!(|c: u32, index: u32| index.max(c & 3)),
        5 => picked!(|c: u32, index: u32| index.min(c & 3)),
        _ => picked!(|c: u32, index: u32| (c & 1) * 2 + (index & 1)),
    }
}

/// `dp4a`: four byte products, each operand signed or not, added to c.
fn dot4(a: Ty, b: Ty) -> Kernel {
    macro_rules! dot {
        ($a:ty, $b:ty) => {
            kern!(WWWtoW(a: u32 as u32, b: u32 as u32, c: u32 as u32) -> u32 as u32 {
                (0..4).fold(c, |sum, index| {
                    let (x, y) = ((a >> (index * 8)) as $a, (b >> (index * 8)) as $b);
                    sum.wrapping_add((i32::from(x) * i32::from(y)) as u32)
                })
            })
        };
    }
    match (a.is_signed(), b.is_signed()) {
        (false, false) => dot!(u8, u8),
        (false, true) => dot!(u8, i8),
        (true, false) => dot!(i8, u8),
        (true, true) => dot!(i8, i8),
    }
}
