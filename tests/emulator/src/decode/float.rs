//! "Floating Point Instructions" and "Half Precision Floating Point Instructions".
//!
//! `.approx` and `.full` results are computed accurately; the hardware's may differ within the documented errors.

use crate::ast::Operand;
use crate::float::{
    add32, add64, div32, fma16, fma32, half_from_f32, half_to_f32, max32, max32_nan, max64, min32, min32_nan, min64,
    mul32, mul64, saturate16, sqrt32,
};
use crate::kernels::{D, Kernel, W, float32, float64, half, kern};
use crate::op::Op;
use crate::types::{Round, Ty};

use super::modifiers::Modifiers;
use super::{Body, Parsed};

/// A kernel for each rounding mode.
macro_rules! rounded {
    ($round:expr, $build:ident, $variant:ident, |$($x:ident),*| $function:ident($($arg:expr),*)) => {
        match $round {
            Round::Nearest => $build!($variant, |$($x),*| $function($($arg,)* Round::Nearest)),
            Round::Zero => $build!($variant, |$($x),*| $function($($arg,)* Round::Zero)),
            Round::Down => $build!($variant, |$($x),*| $function($($arg,)* Round::Down)),
            Round::Up => $build!($variant, |$($x),*| $function($($arg,)* Round::Up)),
        }
    };
}

impl Body<'_> {
    pub(super) fn float(&mut self, opcode: &str, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        let round = mods.rounding();
        let approx = mods.one_of(&[("approx", false), ("full", true)]);
        let (ftz, sat) = (mods.take("ftz"), mods.take("sat"));
        let nan = mods.take("NaN");
        let ty = mods.ty()?;
        let need_round = matches!(opcode, "fma" | "mad") && round.is_none();
        let either = matches!(opcode, "div" | "rcp" | "sqrt") && round.is_none() && approx.is_none();
        if need_round || either {
            return self.fail(format!("{opcode} needs a rounding mode or .approx"));
        }
        let only_approx = matches!(opcode, "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh");
        if only_approx != (only_approx && approx == Some(false)) || round.is_some() && approx.is_some() {
            return self.fail(format!("{opcode}: rounding and .approx do not fit"));
        }
        if round.is_some() && matches!(opcode, "min" | "max" | "abs" | "neg" | "copysign") {
            return self.fail(format!("{opcode} has no rounding mode"));
        }
        if nan && !matches!(opcode, "min" | "max") || sat && !matches!(opcode, "add" | "sub" | "mul" | "fma" | "mad") {
            return self.fail(format!("{opcode}: .NaN or .sat does not fit"));
        }
        if approx == Some(true) && opcode != "div" {
            return self.fail(format!("{opcode} has no .full"));
        }
        let round = round.unwrap_or(Round::Nearest);
        let sources = match opcode {
            "fma" | "mad" => 3,
            "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => 2,
            _ => 1,
        };
        let kernel = match ty {
            Ty::F32 => kernel32(opcode, round, nan),
            Ty::F64 if sat || nan => None,
            Ty::F64 => {
                let gross = matches!((opcode, approx), ("rcp" | "rsqrt", Some(false)));
                if !gross && (ftz || approx.is_some()) {
                    return self.fail(format!("{opcode}.f64 has no .ftz or .approx"));
                }
                if gross { Some(gross64(opcode == "rcp")) } else { kernel64(opcode, round) }
            }
            Ty::F16 | Ty::F16x2 if !ftz && round == Round::Nearest => kernel16(opcode, ty == Ty::F16x2, sat, nan),
            _ => None,
        };
        let Some(kernel) = kernel else {
            return self.fail(format!("{opcode} with type {ty:?} and these modifiers is not understood"));
        };
        let op = self.alu(kernel, ty, &[ty; 3][..sources], ops)?;
        Ok(match op {
            Op::Alu { kernel, d, s } if ty == Ty::F32 && (ftz || sat) => Op::Float { kernel, ftz, sat, d, s },
            op => op,
        })
    }
}

fn kernel32(opcode: &str, round: Round, nan: bool) -> Option<Kernel> {
    Some(match (opcode, round) {
        ("add", Round::Nearest) => float32!(WWtoW, |a, b| a + b),
        ("sub", Round::Nearest) => float32!(WWtoW, |a, b| a - b),
        ("mul", Round::Nearest) => float32!(WWtoW, |a, b| a * b),
        ("div", Round::Nearest) => float32!(WWtoW, |a, b| a / b),
        ("add", _) => rounded!(round, float32, WWtoW, |a, b| add32(a, b)),
        ("sub", _) => rounded!(round, float32, WWtoW, |a, b| add32(a, -b)),
        ("mul", _) => rounded!(round, float32, WWtoW, |a, b| mul32(a, b)),
        ("fma" | "mad", _) => rounded!(round, float32, WWWtoW, |a, b, c| fma32(a, b, c)),
        ("div", _) => rounded!(round, float32, WWtoW, |a, b| div32(a, b)),
        ("rcp", _) => rounded!(round, float32, WtoW, |a| div32(1.0, a)),
        ("sqrt", _) => rounded!(round, float32, WtoW, |a| sqrt32(a)),
        ("rsqrt", _) => float32!(WtoW, |a| (1.0 / f64::from(a).sqrt()) as f32),
        ("ex2", _) => float32!(WtoW, |a| f64::from(a).exp2() as f32),
        ("lg2", _) => float32!(WtoW, |a| f64::from(a).log2() as f32),
        ("sin", _) => float32!(WtoW, |a| f64::from(a).sin() as f32),
        ("cos", _) => float32!(WtoW, |a| f64::from(a).cos() as f32),
        ("tanh", _) => float32!(WtoW, |a| f64::from(a).tanh() as f32),
        ("min", _) if nan => float32!(WWtoW, |a, b| min32_nan(a, b)),
        ("max", _) if nan => float32!(WWtoW, |a, b| max32_nan(a, b)),
        ("min", _) => float32!(WWtoW, |a, b| min32(a, b)),
        ("max", _) => float32!(WWtoW, |a, b| max32(a, b)),
        ("abs", _) => kern!(WtoW(a: u32 as u32) -> u32 as u32 { a & 0x7fff_ffff }),
        ("neg", _) => kern!(WtoW(a: u32 as u32) -> u32 as u32 { a ^ 0x8000_0000 }),
        // The sign is that of the first operand.
        ("copysign", _) => {
            kern!(WWtoW(a: u32 as u32, b: u32 as u32) -> u32 as u32 { a & 0x8000_0000 | b & 0x7fff_ffff })
        }
        _ => return None,
    })
}

fn kernel64(opcode: &str, round: Round) -> Option<Kernel> {
    Some(match (opcode, round) {
        ("add", Round::Nearest) => float64!(DDtoD, |a, b| a + b),
        ("sub", Round::Nearest) => float64!(DDtoD, |a, b| a - b),
        ("mul", Round::Nearest) => float64!(DDtoD, |a, b| a * b),
        ("add", _) => rounded!(round, float64, DDtoD, |a, b| add64(a, b)),
        ("sub", _) => rounded!(round, float64, DDtoD, |a, b| add64(a, -b)),
        ("mul", _) => rounded!(round, float64, DDtoD, |a, b| mul64(a, b)),
        ("fma" | "mad", Round::Nearest) => float64!(DDDtoD, |a, b, c| a.mul_add(b, c)),
        ("div", Round::Nearest) => float64!(DDtoD, |a, b| a / b),
        ("rcp", Round::Nearest) => float64!(DtoD, |a| 1.0 / a),
        ("sqrt", Round::Nearest) => float64!(DtoD, |a| a.sqrt()),
        ("min", _) => float64!(DDtoD, |a, b| min64(a, b)),
        ("max", _) => float64!(DDtoD, |a, b| max64(a, b)),
        ("abs", _) => kern!(DtoD(a: u64 as u64) -> u64 as u64 { a & !(1 << 63) }),
        ("neg", _) => kern!(DtoD(a: u64 as u64) -> u64 as u64 { a ^ 1 << 63 }),
        ("copysign", _) => kern!(DDtoD(a: u64 as u64, b: u64 as u64) -> u64 as u64 { a & 1 << 63 | b & !(1 << 63) }),
        _ => return None,
    })
}

/// `rcp.approx.ftz.f64` and `rsqrt.approx{.ftz}.f64`: the low word of the result is zero.
fn gross64(reciprocal: bool) -> Kernel {
    fn finish(value: f64) -> f64 {
        let bits = value.to_bits() & !0xffff_ffff;
        f64::from_bits(if value.is_subnormal() { bits & 1 << 63 } else { bits })
    }
    fn flush(value: f64) -> f64 {
        if value.is_subnormal() { 0f64.copysign(value) } else { value }
    }
    if reciprocal {
        float64!(DtoD, |a| finish(1.0 / flush(a)))
    } else {
        float64!(DtoD, |a| finish(1.0 / flush(a).sqrt()))
    }
}

fn kernel16(opcode: &str, packed: bool, sat: bool, nan: bool) -> Option<Kernel> {
    macro_rules! map {
        ($variant:ident, |$($x:ident),*| $e:expr) => {
            if sat {
                half!(packed, $variant, |$($x),*| saturate16(half_from_f32({ $(let $x = half_to_f32($x);)* $e })))
            } else {
                half!(packed, $variant, |$($x),*| half_from_f32({ $(let $x = half_to_f32($x);)* $e }))
            }
        };
    }
    Some(match opcode {
        "add" => map!(WWtoW, |a, b| a + b),
        "sub" => map!(WWtoW, |a, b| a - b),
        "mul" => map!(WWtoW, |a, b| a * b),
        "fma" if sat => half!(packed, WWWtoW, |a, b, c| saturate16(fma16(a, b, c))),
        "fma" => half!(packed, WWWtoW, |a, b, c| fma16(a, b, c)),
        "min" if nan => map!(WWtoW, |a, b| min32_nan(a, b)),
        "max" if nan => map!(WWtoW, |a, b| max32_nan(a, b)),
        "min" => map!(WWtoW, |a, b| min32(a, b)),
        "max" => map!(WWtoW, |a, b| max32(a, b)),
        "abs" => half!(packed, WtoW, |a| a & 0x7fff),
        "neg" => half!(packed, WtoW, |a| a ^ 0x8000),
        "ex2" => map!(WtoW, |a| a.exp2()),
        "tanh" => map!(WtoW, |a| a.tanh()),
        _ => return None,
    })
}
