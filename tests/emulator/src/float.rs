//! Floating-point arithmetic with the rounding modes of PTX, bit-exact ("Floating Point Instructions").
//!
//! Results in a narrower format are computed in f64 and rounded to odd, which makes the following rounding to the
//! narrower format correct in every mode.

use crate::types::Round;

/// Bits of an f32 result; every NaN becomes the canonical one.
#[inline(always)]
pub(crate) fn bits32(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

/// Rounds an f64 that is exact, or was rounded to odd, to f32.
#[inline(always)]
pub(crate) fn narrow(value: f64, round: Round) -> f32 {
    let near = value as f32;
    let back = f64::from(near);
    match round {
        Round::Nearest => near,
        Round::Zero if back.abs() > value.abs() => {
            if value > 0.0 {
                near.next_down()
            } else {
                near.next_up()
            }
        }
        Round::Down if back > value => near.next_down(),
        Round::Up if back < value => near.next_up(),
        _ => near,
    }
}

/// Moves an inexact even `value` to its odd neighbour on the side of `error`.
#[inline(always)]
fn to_odd(value: f64, error: f64) -> f64 {
    let bits = value.to_bits();
    // Without branches, for whole warps; the error of an infinite value is a NaN.
    let step = u64::from(error.abs() > 0.0) & !bits & 1;
    let away = u64::from((error > 0.0) == (value > 0.0));
    f64::from_bits(bits.wrapping_add(step * 2 * away).wrapping_sub(step))
}

/// `a + b` rounded to odd.
#[inline(always)]
pub(crate) fn sum_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let part = sum - a;
    to_odd(sum, (a - (sum - part)) + (b - part))
}

/// An exact zero sum is -0 when rounding down, unless both terms are +0.
#[inline(always)]
fn zero_sum(sum: f64, a: f64, b: f64, round: Round) -> f64 {
    let both_plus = a == 0.0 && b == 0.0 && a.is_sign_positive() && b.is_sign_positive();
    if round == Round::Down && sum == 0.0 && !both_plus { -0.0 } else { sum }
}

#[inline(always)]
pub(crate) fn add32(a: f32, b: f32, round: Round) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    narrow(zero_sum(sum_odd(a, b), a, b, round), round)
}

#[inline(always)]
pub(crate) fn mul32(a: f32, b: f32, round: Round) -> f32 {
    narrow(f64::from(a) * f64::from(b), round)
}

#[inline(always)]
pub(crate) fn fma32(a: f32, b: f32, c: f32, round: Round) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    narrow(zero_sum(sum_odd(product, c), product, c, round), round)
}

#[inline(always)]
pub(crate) fn div32(a: f32, b: f32, round: Round) -> f32 {
    if round == Round::Nearest {
        return a / b;
    }
    let (a, b) = (f64::from(a), f64::from(b));
    let quotient = a / b;
    // The remainder is exact; it has the sign of the error times the sign of the divisor.
    let rest = (-quotient).mul_add(b, a);
    narrow(to_odd(quotient, if b < 0.0 { -rest } else { rest }), round)
}

#[inline(always)]
pub(crate) fn sqrt32(a: f32, round: Round) -> f32 {
    if round == Round::Nearest {
        return a.sqrt();
    }
    let a = f64::from(a);
    let root = a.sqrt();
    narrow(to_odd(root, (-root).mul_add(root, a)), round)
}

/// Steps a nearest f64 result with a known error to the directed result.
#[inline(always)]
pub(crate) fn direct64(value: f64, error: f64, round: Round) -> f64 {
    if error == 0.0 || !value.is_finite() || error.is_nan() {
        return value;
    }
    match round {
        Round::Zero if value > 0.0 && error < 0.0 => value.next_down(),
        Round::Zero if value < 0.0 && error > 0.0 => value.next_up(),
        Round::Down if error < 0.0 => value.next_down(),
        Round::Up if error > 0.0 => value.next_up(),
        _ => value,
    }
}

pub(crate) fn add64(a: f64, b: f64, round: Round) -> f64 {
    let sum = a + b;
    let part = sum - a;
    zero_sum(direct64(sum, (a - (sum - part)) + (b - part), round), a, b, round)
}

pub(crate) fn mul64(a: f64, b: f64, round: Round) -> f64 {
    let product = a * b;
    direct64(product, a.mul_add(b, -product), round)
}

/// The value of f16 bits.
#[inline(always)]
pub(crate) fn half_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    let value = if bits & 0x7c00 == 0x7c00 {
        magnitude | 0x7f80_0000
    } else {
        (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits()
    };
    f32::from_bits(value | sign)
}

/// Rounds an f64 that is exact, or was rounded to odd, to f16 bits; NaN becomes the canonical 0x7fff.
#[inline(always)]
pub(crate) fn half_from_f64(value: f64, round: Round) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 48) as u16 & 0x8000;
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1023;
    if exponent == 1024 {
        return if value.is_nan() { 0x7fff } else { sign | 0x7c00 };
    }
    // Bits of the significand below the last place of the result: 42, and more for subnormal results.
    let significand = bits & ((1 << 52) - 1) | u64::from(exponent > -1023) << 52;
    let drop = (42 + (-14 - exponent).max(0)).min(63) as u32;
    let whole = significand >> drop;
    let rest = significand & ((1 << drop) - 1);
    let middle = 1 << (drop - 1);
    let up = match round {
        Round::Nearest => rest > middle || rest == middle && whole & 1 == 1,
        Round::Zero => false,
        Round::Down => sign != 0 && rest > 0,
        Round::Up => sign == 0 && rest > 0,
    };
    let base = (exponent.clamp(-14, 16) + 14) as u64;
    let result = (base << 10) + whole + u64::from(up);
    if result < 0x7c00 {
        return sign | result as u16;
    }
    let infinite = match round {
        Round::Nearest => true,
        Round::Zero => false,
        Round::Down => sign != 0,
        Round::Up => sign == 0,
    };
    sign | if infinite { 0x7c00 } else { 0x7bff }
}

/// `f16` arithmetic with one rounding to nearest; f32 is wide enough to make the intermediate rounding harmless.
#[inline(always)]
pub(crate) fn half_from_f32(value: f32) -> u16 {
    half_from_f64(f64::from(value), Round::Nearest)
}

pub(crate) fn fma16(a: u16, b: u16, c: u16) -> u16 {
    let product = f64::from(half_to_f32(a)) * f64::from(half_to_f32(b));
    half_from_f64(sum_odd(product, f64::from(half_to_f32(c))), Round::Nearest)
}

/// Flushes a subnormal to zero of the same sign (`.ftz`).
#[inline(always)]
pub(crate) fn flush32(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// Clamps to [0, 1]; NaN becomes +0 (`.sat`).
#[inline(always)]
pub(crate) fn saturate32(bits: u32) -> u32 {
    let value = f32::from_bits(bits);
    if value > 1.0 {
        1f32.to_bits()
    } else if value > 0.0 {
        bits
    } else {
        0
    }
}

pub(crate) fn saturate16(bits: u16) -> u16 {
    let value = half_to_f32(bits);
    if value > 1.0 {
        0x3c00
    } else if value > 0.0 {
        bits
    } else {
        0
    }
}

/// `min`/`max` for any float: -0 is less than +0, and a NaN loses to a number unless `.NaN` is given.
macro_rules! min_max {
    ($name:ident, $float:ty, $max:expr, $nan:expr) => {
        #[inline(always)]
        pub(crate) fn $name(a: $float, b: $float) -> $float {
            if a.is_nan() || b.is_nan() {
                return if $nan || (a.is_nan() && b.is_nan()) {
                    <$float>::NAN
                } else if a.is_nan() {
                    b
                } else {
                    a
                };
            }
            let a_less = a < b || (a == b && a.is_sign_negative());
            if a_less != $max { a } else { b }
        }
    };
}

min_max!(min32, f32, false, false);
min_max!(max32, f32, true, false);
min_max!(min32_nan, f32, false, true);
min_max!(max32_nan, f32, true, true);
min_max!(min64, f64, false, false);
min_max!(max64, f64, true, false);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_ties_and_subnormals() {
        let near = |value| half_from_f64(value, Round::Nearest);
        assert_eq!(near(1.0), 0x3c00);
        assert_eq!(near(1.0 + 1.0 / 2048.0), 0x3c00); // tie to even
        assert_eq!(near(1.0 + 3.0 / 2048.0), 0x3c02); // tie to even, upwards
        assert_eq!(near(65504.0), 0x7bff);
        assert_eq!(near(65519.99), 0x7bff);
        assert_eq!(near(65520.0), 0x7c00);
        assert_eq!(half_from_f64(1e9, Round::Zero), 0x7bff);
        assert_eq!(half_from_f64(-1e9, Round::Up), 0xfbff);
        assert_eq!(half_from_f64(-1e9, Round::Down), 0xfc00);
        assert_eq!(near(2f64.powi(-24)), 1);
        assert_eq!(near(2f64.powi(-25)), 0);
        assert_eq!(near(2f64.powi(-25) * 1.01), 1);
        assert_eq!(half_from_f64(2f64.powi(-40), Round::Up), 1);
        assert_eq!(near(-0.0), 0x8000);
        assert_eq!(near(1023.5 * 2f64.powi(-24)), 0x0400);
        for bits in 0..=0xffffu16 {
            let value = half_to_f32(bits);
            if !value.is_nan() {
                assert_eq!(half_from_f32(value), bits);
            }
        }
    }

    #[test]
    fn fma_rounds_once() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..200_000 {
            let mut draw = || f32::from_bits(rng.u32(..) & 0xbfff_ffff | (rng.u32(..) & 1) << 30);
            let (a, b, c) = (draw(), draw(), draw());
            assert_eq!(bits32(fma32(a, b, c, Round::Nearest)), bits32(a.mul_add(b, c)), "{a:e} {b:e} {c:e}");
            assert_eq!(bits32(add32(a, c, Round::Nearest)), bits32(a + c));
            assert_eq!(bits32(mul32(a, b, Round::Nearest)), bits32(a * b));
        }
    }

    #[test]
    fn directed_rounding() {
        let tiny = f32::from_bits(1);
        assert_eq!(add32(1.0, tiny, Round::Up), 1f32.next_up());
        assert_eq!(add32(1.0, tiny, Round::Down), 1.0);
        assert_eq!(add32(1.0, -tiny, Round::Zero), 1f32.next_down());
        assert_eq!(add32(f32::MAX, f32::MAX, Round::Zero), f32::MAX);
        assert_eq!(add32(1.0, -1.0, Round::Down).to_bits(), (-0f32).to_bits());
        assert_eq!(add32(1.0, -1.0, Round::Up).to_bits(), 0);
        assert_eq!(div32(1.0, 3.0, Round::Up), (1f32 / 3.0).max(0.333_333_34));
        assert_eq!(div32(1.0, 3.0, Round::Down), (1f32 / 3.0).next_down());
        assert_eq!(div32(-1.0, 3.0, Round::Down), -(1f32 / 3.0));
        assert_eq!(sqrt32(2.0, Round::Up), 2f32.sqrt().next_up());
        assert_eq!(sqrt32(4.0, Round::Up), 2.0);
        assert_eq!(add64(1.0, 1e-30, Round::Up), 1f64.next_up());
        assert_eq!(mul64(1f64.next_up(), 1f64.next_up(), Round::Zero), 1f64.next_up().next_up());
    }
}
