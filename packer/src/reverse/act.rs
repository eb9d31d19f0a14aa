//! Activations and their derivatives.

use aquatint::raw::backend::cpu::math;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::program::Act;
use rayon::prelude::*;

/// Elements that are worked on together.
const PIECE: usize = 1 << 12;
const SQRT_2_PI: f32 = 0.797_884_6;

/// Applies `act` to every element, as the runtime does.
pub(super) fn activate(act: Act, x: &mut [f32]) {
    if act != Act::None {
        x.par_chunks_mut(PIECE).for_each(|x| math::activate::<Scalar>(act, x));
    }
}

/// Multiplies every element of `dy` by the derivative of `act` at `x`.
pub(super) fn chain(act: Act, x: &[f32], dy: &mut [f32]) {
    if act == Act::None {
        return;
    }
    dy.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(dy, x)| {
        dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= derivative(act, x));
    });
}

/// The derivative of `act` at `x`.
pub(super) fn derivative(act: Act, x: f32) -> f32 {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    // Of x sigmoid(u(x)): sigmoid + x u' sigmoid (1 - sigmoid).
    let gated = |u: f32, slope: f32| {
        let gate = sigmoid(u);
        gate + x * slope * gate * (1.0 - gate)
    };
    match act {
        Act::None => 1.0,
        Act::Silu => gated(x, 1.0),
        Act::QuickGelu => gated(1.702 * x, 1.702),
        Act::GeluTanh => {
            let (two, cubic) = (2.0 * SQRT_2_PI, 0.044_715);
            gated(two * (x + cubic * x * x * x), two * (1.0 + 3.0 * cubic * x * x))
        }
        Act::GeluErf => {
            let density = 0.5 * SQRT_2_PI * (-0.5 * x * x).exp();
            // Below, the quotient loses digits and the series has them all.
            let below = match x.abs() {
                small if small < 0.1 => 0.5 + 0.5 * SQRT_2_PI * x * (1.0 - x * x / 6.0 + x.powi(4) / 40.0),
                _ => math::gelu_erf::<Scalar>(x) / x,
            };
            below + x * density
        }
    }
}
