//! Qua2SeDiMo's search in the arithmetic that its code has on f16 weights: every result of an operation is rounded to
//! f16, a mean once more at its end.

use super::{Affine, Rule};
use aquatint::raw::codec::Bits;
use half::f16;

/// Above this score no range is taken up, in any arithmetic.
const WORST: f32 = 1e10;

fn round(v: f32) -> f32 {
    f16::from_f32(v).to_f32()
}

/// The best of the shrunken ranges; `None` if no range scores at all: a row of one value, or errors beyond f16.
pub(super) fn search(row: &[f32], min: f32, max: f32, bits: Bits) -> Option<Affine> {
    let top = (bits.levels() - 1) as f32;
    let mut best: Option<(f32, Affine)> = None;
    for i in 0..Rule::MseHalf.candidates() {
        let shrink = (1.0 - 0.1 * f64::from(i)) as f32;
        let (high, low) = (round(shrink * round(max)), round(shrink * round(min)));
        let step = round(round(high - low) / top);
        let zero = round(-low / step).round_ties_even();
        let Some(map) = Affine::new(step, zero, (0.0, top), (min, max)) else { continue };
        let sum: f32 = row.iter().map(|&v| round(f64::from(round((v - value(&map, v)).abs())).powf(2.4) as f32)).sum();
        let score = round(sum / row.len() as f32);
        if score < best.map_or(WORST, |(score, _)| score) {
            best = Some((score, map));
        }
    }
    best.map(|(_, map)| map)
}

/// The code of `v`, as a number.
fn code(map: &Affine, v: f32) -> f32 {
    let scaled = round(round(v) / map.step).round_ties_even();
    round(scaled + map.zero).clamp(map.bottom, map.top)
}

/// What `v` becomes.
fn value(map: &Affine, v: f32) -> f32 {
    round(round(code(map, v) - map.zero) * map.step)
}

/// The codes, as numbers, that Qua2SeDiMo's code makes of f16 `weights` with this step and zero point.
pub fn codes(weights: &[f32], step: f32, zero: f32, bits: Bits) -> impl Iterator<Item = f32> {
    let map = Affine { step, zero, bottom: 0.0, top: (bits.levels() - 1) as f32, small: false };
    weights.iter().map(move |&v| code(&map, v))
}

pub(super) fn encode(map: &Affine, row: &[f32], codes: &mut [u8]) {
    for (to, &v) in codes.iter_mut().zip(row) {
        *to = code(map, v) as u8;
    }
}
