//! `cvt` ("Data Movement and Conversion Instructions: cvt").

use crate::float::{bits32, flush32, half_from_f64, half_to_f32, narrow, saturate16, saturate32};
use crate::types::{Round, Ty};

/// Rounding of a conversion: to an integral value, to a representable one, or none needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CvtRound {
    None,
    Integer(Round),
    Float(Round),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub to: Ty,
    pub from: Ty,
    pub round: CvtRound,
    pub sat: bool,
    pub ftz: bool,
}

/// Rounds to an integral value.
pub(crate) fn integral(value: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => value.round_ties_even(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
    }
}

/// Sign- or zero-extends the low bits of `bits` by its integer type.
fn extend(bits: u64, ty: Ty) -> i128 {
    let shift = 64 - ty.bits();
    if ty.is_signed() { i128::from((bits << shift) as i64 >> shift) } else { i128::from(bits << shift >> shift) }
}

/// The least and greatest value of an integer type.
fn limits(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

impl Conversion {
    /// Converts the bits of one value; the result is extended to 64 bits the way a wider register takes it.
    pub fn apply(&self, bits: u64) -> u64 {
        match (self.from.is_float(), self.to.is_float()) {
            (false, false) => self.integer_to_integer(bits),
            (false, true) => self.integer_to_float(extend(bits, self.from)),
            (true, false) => self.float_to_integer(bits),
            (true, true) => self.float_to_float(bits),
        }
    }

    fn widen(&self, value: i128) -> u64 {
        extend(value as u64, self.to) as u64
    }

    fn integer_to_integer(&self, bits: u64) -> u64 {
        let mut value = extend(bits, self.from);
        if self.sat {
            let (low, high) = limits(self.to);
            value = value.clamp(low, high);
        }
        self.widen(value)
    }

    fn integer_to_float(&self, value: i128) -> u64 {
        let round = match self.round {
            CvtRound::Float(round) => round,
            _ => Round::Nearest,
        };
        // An integer of at most 64 bits, rounded to odd in f64 where it does not fit.
        let near = value as f64;
        let rest = value - near as i128;
        let wide = match (rest != 0, self.to) {
            (false, _) => near,
            (true, Ty::F64) => crate::float::direct64(near, rest as f64, round),
            (true, _) if near.to_bits() & 1 == 0 => {
                f64::from_bits(if (rest > 0) == (near > 0.0) { near.to_bits() + 1 } else { near.to_bits() - 1 })
            }
            _ => near,
        };
        self.finish(wide, round)
    }

    /// The source as an exact f64, flushed where asked; the flag tells a NaN.
    fn source(&self, bits: u64) -> f64 {
        match self.from {
            Ty::F16 => f64::from(half_to_f32(bits as u16)),
            Ty::F32 => f64::from(f32::from_bits(if self.ftz { flush32(bits as u32) } else { bits as u32 })),
            _ => f64::from_bits(bits),
        }
    }

    fn float_to_integer(&self, bits: u64) -> u64 {
        let value = self.source(bits);
        let (low, high) = limits(self.to);
        if value.is_nan() {
            // Zero, unless either side has 64 bits: then the top bit of the destination alone.
            let wide = self.from == Ty::F64 || self.to.bits() == 64;
            return if wide { self.widen(1 << (self.to.bits() - 1)) } else { 0 };
        }
        let round = match self.round {
            CvtRound::Integer(round) => round,
            _ => Round::Zero,
        };
        let whole = integral(value, round);
        // Every f64 in range is exact as i128; the casts saturate, and so does the conversion.
        self.widen((whole as i128).clamp(low, high))
    }

    fn float_to_float(&self, bits: u64) -> u64 {
        let mut value = self.source(bits);
        let mut round = Round::Nearest;
        match self.round {
            CvtRound::Integer(mode) => value = integral(value, mode),
            CvtRound::Float(mode) => round = mode,
            CvtRound::None => {}
        }
        self.finish(value, round)
    }

    fn finish(&self, value: f64, round: Round) -> u64 {
        match self.to {
            Ty::F16 => {
                let bits = half_from_f64(value, round);
                u64::from(if self.sat { saturate16(bits) } else { bits })
            }
            Ty::F32 => {
                let mut bits = bits32(narrow(value, round));
                if self.ftz {
                    bits = flush32(bits);
                }
                u64::from(if self.sat { saturate32(bits) } else { bits })
            }
            _ => {
                let value = if !self.sat {
                    value
                } else if value > 0.0 {
                    value.min(1.0)
                } else {
                    0.0
                };
                value.to_bits()
            }
        }
    }
}
