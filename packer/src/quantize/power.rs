//! `x^2.4`, the loss of the uniform quantizer, as straight-line arithmetic that vectorizes.
//!
//! `powf` is a library call of some 20 ns; a large model needs ten of them per weight. This one is about 40 plain
//! operations without a branch, so the compiler turns the loop over a block into SIMD code on any target.

/// Adding and subtracting this rounds to the nearest integer, ties to even, for |x| < 2^22.
pub(super) const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// Bits of sqrt(1/2): mantissas are reduced to [sqrt(1/2), sqrt(2)).
const SQRT_HALF: u32 = 0x3f35_04f3;

/// `x^2.4` for x >= 0, within 2e-6 of the true value (relative) wherever that is a normal f32; 0 for 0.
#[inline(always)]
pub(super) fn pow24(x: f32) -> f32 {
    // log2(x) = exponent + log2(mantissa); with t = (m - 1) / (m + 1), log2(m) = (2 / ln 2) * atanh(t), |t| < 0.1716.
    let exponent = (x.to_bits().wrapping_sub(SQRT_HALF) as i32) >> 23;
    let m = f32::from_bits(x.to_bits().wrapping_sub((exponent << 23) as u32));
    let t = (m - 1.0) / (m + 1.0);
    let u = t * t;
    let series = ((u * (1.0 / 7.0) + 0.2) * u + (1.0 / 3.0)) * u + 1.0;
    let log2 = exponent as f32 + t * series * (2.0 * std::f32::consts::LOG2_E);

    // 2^y = 2^round(y) * 2^f with |f| <= 1/2: the integer goes to the exponent field, the fraction into a polynomial
    // (the exponential series; its first missing term is below 1.5e-8).
    let y = 0.4 * log2;
    let shifted = y + ROUND;
    let whole = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let f = (y - (shifted - ROUND)) * std::f32::consts::LN_2;
    let p = ((((((f * (1.0 / 5040.0) + 1.0 / 720.0) * f + 1.0 / 120.0) * f + 1.0 / 24.0) * f + 1.0 / 6.0) * f + 0.5)
        * f
        + 1.0)
        * f
        + 1.0;
    // x >= 0 keeps |y| below 64, so the exponent field never overflows.
    let scale = f32::from_bits((whole.wrapping_add(127) as u32) << 23);
    x * x * (p * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_powf() {
        let mut worst = 0.0f64;
        let mut bits = 0x0100_0000u32; // about 2^-125
        while bits < 0x5f00_0000 {
            let x = f32::from_bits(bits);
            let expected = f64::from(x).powf(2.4);
            if (f64::from(f32::MIN_POSITIVE)..f64::from(f32::MAX)).contains(&expected) && x * x >= f32::MIN_POSITIVE {
                worst = worst.max((f64::from(pow24(x)) / expected - 1.0).abs());
            }
            bits += 9973;
        }
        assert!(worst < 2e-6, "relative error {worst:e}");
        assert!(worst > 1e-9, "the sweep measured nothing");
    }

    #[test]
    fn zero_and_tiny_values_stay_finite() {
        assert_eq!(pow24(0.0), 0.0);
        assert_eq!(pow24(f32::from_bits(1)), 0.0);
        assert_eq!(pow24(f32::MIN_POSITIVE), 0.0);
        assert!(pow24(f32::MAX) > f32::MAX);
    }
}
