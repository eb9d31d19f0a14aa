//! What videos add: attention within frames and across them, and positions of both.

use super::cases::{Case, Check, case, linear, rng_of};
use super::naive::Inputs;
use super::{Build, SAMPLE, inputs, normal, normals};
use aquatint::raw::program::{
    Act, Add, Attend, Attention, Dim, Grid, InputKind, Op, Patchify, Pointwise, PositionEmbedding, Reach, Slice, Value,
};
use fastrand::Rng;

/// A model of videos of `channels` channels, and its frames below each other.
pub fn build(channels: usize) -> (Build, Value) {
    let sample = vec![Dim::Batch, Dim::Frames, Dim::Height, Dim::Width, Dim::Fixed(channels as u32)];
    let mut b = Build::of(vec![
        (InputKind::Sample, sample),
        (InputKind::Timestep, vec![Dim::Conditions]),
        (InputKind::ClassLabels, vec![Dim::Conditions]),
    ]);
    let flat = b.op(Op::Patchify(Patchify { x: SAMPLE, patch: 1 }));
    (b, flat)
}

/// Inputs of `n` videos of `f` frames.
pub fn videos([n, f, h, w, c]: [usize; 5], rng: &mut Rng) -> Inputs {
    let mut all = inputs([n, f * h, w, c], || normal(rng));
    (all.dims.height, all.dims.frames) = (h, f);
    all
}

/// Attention of `x` among tokens within `reach`, of keys and values that differ from it.
pub fn reaching(b: &mut Build, rng: &mut Rng, x: Value, [heads, e]: [usize; 2], reach: Reach, int8: bool) {
    let d = heads * e;
    let numbers: Vec<f32> = normals(rng, d * d).iter().map(|v| v / (d as f32).sqrt()).collect();
    let weight = b.f32(&[d, d], &numbers);
    let k = b.op(linear(x, weight));
    let v = b.op(Op::Pointwise(Pointwise { x, act: Act::Silu, mul: 1.0, add: 0.25 }));
    let (heads, scale) = (heads as u32, (e as f32).sqrt().recip());
    let attend = Attend { int8, ..Attend::default() };
    b.op(Op::Attention(Attention { q: x, k, v, heads, scale, attend, reach, ..Attention::default() }));
}

/// One frame and many, one place and many, tails of tiles, several blocks of keys both ways.
pub fn attention_within_reach() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, [f, h, w], heads, e) in [
        (1, [1, 1, 1], 1, 4),
        (2, [3, 2, 5], 2, 12),
        (3, [5, 1, 1], 1, 33),
        (1, [16, 3, 3], 2, 72),
        (2, [1, 17, 2], 3, 8),
        (1, [2, 15, 20], 1, 16),
        (1, [300, 1, 2], 2, 8),
    ] {
        for reach in [Reach::Frame, Reach::Place] {
            let name = format!("attention within a {} of {n}x{f}x{h}x{w} {heads}x{e}", reach.name());
            let rng = &mut rng_of(&name);
            let (mut b, x) = build(heads * e);
            reaching(&mut b, rng, x, [heads, e], reach, false);
            let inputs = videos([n, f, h, w, heads * e], rng);
            cases.push(case(name, b, inputs, Check::Close { k: heads * e, gain: 8.0 }));
        }
    }
    cases
}

/// Positions of frames and of places in them, of a trained size and of any.
pub fn positions() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, [f, h, w], d) in [(1, [1, 1, 1], 4), (2, [3, 2, 5], 8), (1, [16, 5, 3], 72), (3, [7, 1, 4], 20)] {
        for (base, interpolation, grid) in
            [(0, 0.5, Grid::Frames), (4, 2.0, Grid::Frames), (0, 1.0, Grid::SeveralFrames)]
        {
            let name = format!("positions of {n}x{f}x{h}x{w}x{d} in {base} by {interpolation}, {}", grid.name());
            let rng = &mut rng_of(&name);
            let (mut b, x) = build(d);
            let dim = d as u32;
            let places = b.op(Op::PositionEmbedding(PositionEmbedding {
                x,
                dim,
                base,
                interpolation,
                keep_ratio: false,
                grid: Default::default(),
            }));
            let dim = 2 * dim;
            let frames =
                b.op(Op::PositionEmbedding(PositionEmbedding { x, dim, base, interpolation, keep_ratio: false, grid }));
            let frames = b.op(Op::Slice(Slice { x: frames, first: d as u32, count: d as u32, tokens: false }));
            let y = b.op(Op::Add(Add { a: x, b: places }));
            b.op(Op::Add(Add { a: y, b: frames }));
            let inputs = videos([n, f, h, w, d], rng);
            cases.push(case(name, b, inputs, Check::Close { k: 2, gain: 1.0 }));
        }
    }
    cases
}
