//! Attention that reaches less than a sample is attention of smaller samples, to the bit: in floats and in 8-bit codes.

use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::program::{Op, Patchify, Reach};
use common::cases::rng_of;
use common::cases_video::{build, reaching, videos};
use common::naive::Inputs;
use common::{Build, SAMPLE, inputs, run_on};

const HEADS: [usize; 2] = [2, 20];
/// Videos, frames, rows, columns, channels.
const SHAPE: [usize; 5] = [2, 5, 3, 4, 40];

/// `(a, b, c, d)` as `(a, c, b, d)`.
fn swapped(x: &[f32], [a, b, c, d]: [usize; 4]) -> Vec<f32> {
    let rows = (0..a).flat_map(|i| (0..c).flat_map(move |k| (0..b).map(move |j| (i * b + j) * c + k)));
    rows.flat_map(|row| &x[row * d..][..d]).copied().collect()
}

/// What each tier makes of `b`.
fn results(b: &Build, inputs: &Inputs) -> Vec<Vec<u32>> {
    let model = b.open([inputs.dims.height, inputs.dims.width]);
    let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect();
    Tier::available().into_iter().map(|tier| bits(run_on(&Cpu::new(tier), &model, inputs).unwrap())).collect()
}

/// The same attention among all tokens of each of `n` samples of `h` by `w` pixels, which `sample` holds.
fn whole(int8: bool, [n, h, w]: [usize; 3], sample: Vec<f32>) -> Vec<Vec<u32>> {
    let mut b = Build::new(SHAPE[4]);
    let x = b.op(Op::Patchify(Patchify { x: SAMPLE, patch: 1 }));
    reaching(&mut b, &mut rng_of("reach"), x, HEADS, Reach::Sample, int8);
    let mut all = inputs([n, h, w, SHAPE[4]], || 0.0);
    all.sample = sample;
    results(&b, &all)
}

#[test]
fn a_reach_is_that_of_smaller_samples() {
    let [n, f, h, w, c] = SHAPE;
    for int8 in [false, true] {
        let all = videos(SHAPE, &mut rng_of("videos"));
        let within = |reach| {
            let (mut b, x) = build(c);
            reaching(&mut b, &mut rng_of("reach"), x, HEADS, reach, int8);
            results(&b, &all)
        };
        assert_eq!(within(Reach::Frame), whole(int8, [n * f, h, w], all.sample.clone()), "frames, int8 {int8}");
        let places = whole(int8, [n * h * w, f, 1], swapped(&all.sample, [n, f, h * w, c]));
        for (got, want) in within(Reach::Place).into_iter().zip(places) {
            let want: Vec<f32> = want.into_iter().map(f32::from_bits).collect();
            let want: Vec<u32> = swapped(&want, [n, h * w, f, c]).into_iter().map(f32::to_bits).collect();
            assert_eq!(got, want, "places, int8 {int8}");
        }
    }
}
