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
    let x = greater(lesser(x, 88.0), -87.0);
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
    const TWO_SQRT_2_PI: f32 = 1.595_769_2;
    let u = x * fma::<I>(x * x, 0.044715 * TWO_SQRT_2_PI, TWO_SQRT_2_PI);
    x / (1.0 + exp::<I>(-u))
}

/// GELU itself (Hendrycks & Gimpel 2016), `x P(X <= x)` for a standard normal `X`, to 1.2e-7 and a unit in the last place.
///
/// `max(x, 0) - z Q(z)` with `z = |x|` and the normal tail `Q(z) = erfc(z / sqrt 2) / 2 = exp(-z^2 / 2) p(t)`,
/// `t = 1 / (1 + 0.275 z)`: the form of Abramowitz & Stegun 7.1.26, with one more term. The coefficients are a minimax
/// fit of our own of `z Q(z)` on 0..8, 9.1e-9 off at most before rounding.
#[inline(always)]
pub fn gelu_erf<I: Isa>(x: f32) -> f32 {
    let z = x.abs();
    let t = 1.0 / fma::<I>(0.275, z, 1.0);
    let mut p = -0.113_541_69;
    for c in [0.446_732_72, -0.322_629_92, 0.327_340_32, 0.044_689_49, 0.117_409_12] {
        p = fma::<I>(p, t, c);
    }
    greater(x, 0.0) - z * (p * t * exp::<I>(-0.5 * z * z))
}

/// `x * sigmoid(1.702 x)`.
#[inline(always)]
pub fn quick_gelu<I: Isa>(x: f32) -> f32 {
    x / (1.0 + exp::<I>(-1.702 * x))
}

/// Applies `act` to every element.
#[inline(always)]
pub fn activate<I: Isa>(act: Act, x: &mut [f32]) {
    match act {
        Act::None => {}
        Act::Silu => x.iter_mut().for_each(|v| *v = silu::<I>(*v)),
        Act::GeluTanh => x.iter_mut().for_each(|v| *v = gelu_tanh::<I>(*v)),
        Act::GeluErf => x.iter_mut().for_each(|v| *v = gelu_erf::<I>(*v)),
        Act::QuickGelu => x.iter_mut().for_each(|v| *v = quick_gelu::<I>(*v)),
    }
}

/// The greater of two; unlike `f32::max` a single instruction, because it does not care for NaN.
#[inline(always)]
pub fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The lesser of two; see [`greater`].
#[inline(always)]
pub fn lesser(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Lanes of a reduction. Chunks of this many elements are folded lane by lane, which vectorizes; then lanes are folded
/// pairwise. The order depends on the length only.
pub const LANES: usize = 16;

/// Folds `f(x)` over a slice with `join`, from `start`.
#[inline(always)]
pub fn fold(x: &[f32], start: f32, f: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = join(lanes[i], f(chunk[i]));
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = join(*lane, f(v));
    }
    // Through memory: otherwise the compiler sees this tree from inside the loop above and keeps lanes in odd pieces.
    let mut lanes = std::hint::black_box(lanes);
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// Sum of `f(x)`.
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    fold(x, 0.0, f, |a, b| a + b)
}

/// Greatest element.
#[inline(always)]
pub fn greatest(x: &[f32]) -> f32 {
    fold(x, f32::NEG_INFINITY, |v| v, greater)
}

/// Least element.
#[inline(always)]
pub fn least(x: &[f32]) -> f32 {
    fold(x, f32::INFINITY, |v| v, lesser)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Tier;
    use crate::backend::cpu::simd::scalar::Scalar;
    use crate::backend::cpu::simd::vectorized;

    vectorized! {
        fn Activate<'a, I>(act: Act, x: &'a mut [f32]) {
            activate::<I>(act, x);
        }
    }

    /// The normal distribution, by the series of `erf` with positive terms only.
    fn normal_cdf(x: f64) -> f64 {
        let (mut sum, mut term) = (0.0, x);
        for n in 0..300 {
            sum += term;
            term *= x * x / f64::from(2 * n + 3);
        }
        0.5 + (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
    }

    #[test]
    fn gelus_are_exact_to_a_few_units_on_every_tier() {
        assert!((normal_cdf(1.0) - 0.841_344_746_068_542_9).abs() < 1e-15);
        assert!((normal_cdf(-3.0) - 0.001_349_898_031_630_094_6).abs() < 1e-15);
        let x: Vec<f32> = (-90_000..=90_000).map(|i| i as f32 * 1e-4).collect();
        let gelu: Vec<f64> = x.iter().map(|&x| f64::from(x) * normal_cdf(x.into())).collect();
        let quick: Vec<f64> = x.iter().map(|&x| f64::from(x) / (1.0 + (-1.702 * f64::from(x)).exp())).collect();
        for tier in Tier::available() {
            for (act, want) in [(Act::GeluErf, &gelu), (Act::QuickGelu, &quick)] {
                let mut y = x.clone();
                activate_on(tier, act, &mut y);
                for ((x, y), want) in x.iter().zip(y).zip(want) {
                    // The fit and a dozen roundings of numbers below 1; then those of the result.
                    let (error, allowed) = ((f64::from(y) - want).abs(), 1.2e-7 + 1.8e-7 * want.abs());
                    assert!(error <= allowed, "{act:?} on {}: {y} for {x}, {error:e} off", tier.name());
                }
            }
        }
    }

    fn activate_on(tier: Tier, act: Act, x: &mut [f32]) {
        match tier {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(isa) => isa.run(Activate, (act, x)),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(isa) => isa.run(Activate, (act, x)),
            Tier::Portable(isa) => isa.run(Activate, (act, x)),
        }
    }

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
            assert!(quick_gelu::<Scalar>(x).is_finite());
            assert!((gelu_erf::<Scalar>(x) - x.max(0.0)).abs() <= 1e-7 * x.abs(), "{x}: {}", gelu_erf::<Scalar>(x));
            assert!(silu::<Scalar>(x).is_finite() && gelu_tanh::<Scalar>(x.clamp(-1e9, 1e9)).is_finite());
        }
        assert_eq!(silu::<Scalar>(-1e30), -1e30 / (1.0 + exp::<Scalar>(88.0)));
    }
}
