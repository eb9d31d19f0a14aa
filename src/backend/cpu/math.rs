//! Elementary functions that vectorize: polynomials without branches or table look-ups.

use super::simd::Isa;
use crate::program::Act;

/// `a * b + c`, fused where the tier can.
#[inline(always)]
pub fn fma<I: Isa>(a: f32, b: f32, c: f32) -> f32 {
    if I::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` to 2 units in the last place; arguments are clamped so that the result stays finite and normal.
///
/// `x = n ln 2 + r`, `|r| <= ln 2 / 2`; `e^r` by its Taylor series to degree 7 (truncation 5e-9 relative);
/// rounding to `n` by adding and subtracting 1.5 * 2^23, whose low mantissa bits then hold `n`.
#[inline(always)]
pub fn exp<I: Isa>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = fma::<I>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<I>(n, -LN2_LOW, fma::<I>(n, -LN2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fma::<I>(p, r, c);
    }
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu<I: Isa>(x: f32) -> f32 {
    x / (1.0 + exp::<I>(-x))
}

/// The tanh approximation of GELU (Hendrycks & Gimpel 2016), `x sigmoid(2 u)` with `u = sqrt(2/pi)(x + 0.044715 x^3)`.
#[inline(always)]
pub fn gelu_tanh<I: Isa>(x: f32) -> f32 {
    const TWO_SQRT_2_PI: f32 = 1.595_769_1;
    let u = x * fma::<I>(x * x, 0.044715 * TWO_SQRT_2_PI, TWO_SQRT_2_PI);
    x / (1.0 + exp::<I>(-u))
}

/// Applies `act` to every element.
#[inline(always)]
pub fn activate<I: Isa>(act: Act, x: &mut [f32]) {
    match act {
        Act::None => {}
        Act::Silu => x.iter_mut().for_each(|v| *v = silu::<I>(*v)),
        Act::GeluTanh => x.iter_mut().for_each(|v| *v = gelu_tanh::<I>(*v)),
    }
}

/// Sum in 16 interleaved lanes, then pairwise: vectorizes, and the order depends on the length only.
#[inline(always)]
pub fn sum(x: impl ExactSizeIterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (i, v) in x.enumerate() {
        lanes[i % 16] += v;
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::scalar::Scalar;

    #[test]
    fn exp_is_within_three_ulp() {
        let mut worst: f64 = 0.0;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp::<Scalar>(x)) - exact).abs() / exact);
        }
        assert!(worst < 3.0 * f64::from(f32::EPSILON) / 2.0, "{worst:e}");
    }

    #[test]
    fn far_arguments_stay_finite() {
        for x in [-1e30f32, -100.0, 100.0, 1e30, f32::MAX, f32::MIN] {
            assert!(exp::<Scalar>(x).is_finite());
            assert!(silu::<Scalar>(x).is_finite() && gelu_tanh::<Scalar>(x.clamp(-1e9, 1e9)).is_finite());
        }
        assert_eq!(silu::<Scalar>(-1e30), -1e30 / (1.0 + exp::<Scalar>(88.0)));
    }
}
