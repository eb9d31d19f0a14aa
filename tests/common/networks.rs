//! Small networks of many ops, for tests of the executor.

use super::cases::{dynamic, linear};
use super::{Build, Codec, LABELS, SAMPLE, TIMESTEP, normals};
use aquatint::raw::program::{
    Act, Add, Attention, Columns, Conv2d, ConvStride, CurveAxis, Embedding, GroupNorm, LayerNorm, Linear, Modulation,
    Node, Op, Patchify, Phases, PositionEmbedding, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, Tensor,
    TimestepEmbedding, Unpatchify, Value, Variant,
};
use fastrand::Rng;

/// Channels of the sample.
pub const CHANNELS: usize = 12;

fn weight(b: &mut Build, rng: &mut Rng, o: usize, k: usize) -> Tensor {
    let size = 1.0 / (k as f32).sqrt();
    let data: Vec<f32> = normals(rng, o * k).iter().map(|v| v * size).collect();
    b.f32(&[o, k], &data)
}

fn codes(b: &mut Build, rng: &mut Rng, dims: &[usize]) -> Tensor {
    let (o, k) = (dims[0], dims[1..].iter().product::<usize>());
    let mut matrix = Codec::all(true)[5].random(rng, o, k, false);
    matrix.scale.iter_mut().for_each(|s| *s *= 0.5 / (k as f32).sqrt());
    b.codes(dims, &matrix)
}

/// Timestep and class to a modulation, by a table of integer products; a gated layer on the sample; a position
/// embedding. `range` makes the range of both quantizations.
pub fn conditioned(mut range: impl FnMut(&mut Build) -> QuantizeRange) -> Build {
    let (rng, d) = (&mut Rng::with_seed(1), CHANNELS);
    let mut b = Build::new(d);
    let b_ = &mut b;
    let spec = QuantizeSpec { range: range(b_), ..dynamic(8, QuantizeGrain::Row) };
    let table = weight(b_, rng, 6, 24);
    let weights =
        [weight(b_, rng, 24, 16), codes(b_, rng, &[3 * d, 24]), codes(b_, rng, &[d, d]), weight(b_, rng, d, 24)];
    let t = b.op(Op::TimestepEmbedding(TimestepEmbedding { t: TIMESTEP, dim: 16, cos_first: true, shift: 0.0 }));
    let x =
        b.op(Op::Linear(Linear { x: t, weight: weights[0], bias: None, act: Act::Silu, gate: None, residual: None }));
    let class = b.op(Op::Embedding(Embedding { index: LABELS, table }));
    let x = b.op(Op::Add(Add { a: x, b: class }));
    let q = b.op(Op::Quantize(Quantize { x, spec, turn: None }));
    let value = b.op(linear(q, weights[1]));
    let rows = b.op(linear(x, weights[3]));
    let grid = b.op(Op::PositionEmbedding(PositionEmbedding {
        x: SAMPLE,
        dim: d as u32,
        base: 3,
        interpolation: 1.0,
        keep_ratio: false,
        grid: Default::default(),
    }));
    let x = b.op(Op::Add(Add { a: SAMPLE, b: grid }));
    let modulation = Some(Modulation { value, scale: 0, shift: d as u32 });
    let x = b.op(Op::LayerNorm(LayerNorm {
        x,
        weight: None,
        bias: None,
        eps: 1e-6,
        modulation,
        quantize: Some(spec),
        ..LayerNorm::default()
    }));
    let gate = Some(Columns { value, offset: 2 * d as u32 });
    let y =
        b.op(Op::Linear(Linear { x, weight: weights[2], bias: None, act: Act::None, gate, residual: Some(SAMPLE) }));
    // Rows of conditions, repeated over the rows of the sample.
    b.op(Op::Add(Add { a: y, b: rows }));
    b
}

/// [`conditioned`] in four phases, the bounds of which lie between calls: in the loop other weights, codes of other widths and
/// floats; and if `hoisted`, before it, too.
pub fn phased(axis: CurveAxis, hoisted: bool) -> Build {
    let mut b = conditioned(|_| QuantizeRange::Dynamic);
    let (rng, d) = (&mut Rng::with_seed(4), CHANNELS);
    let others = [codes(&mut b, rng, &[d, d]), weight(&mut b, rng, d, d), weight(&mut b, rng, d, 24)];
    let starts = match axis {
        CurveAxis::Timestep => vec![0.0, 250.0, 500.0, 700.0],
        CurveAxis::StepFraction => vec![0.0, 0.25, 0.5, 0.75],
    };
    let six = dynamic(6, QuantizeGrain::Row);
    let mut variants = Vec::new();
    let mut linears = 0;
    for (node, Node { op, .. }) in b.program.nodes.iter().enumerate() {
        let mut vary = |phases, op| variants.push(Variant { node, phases, op });
        match *op {
            Op::Quantize(op) if hoisted => vary(0b1010, Op::Quantize(Quantize { spec: six, ..op })),
            Op::LayerNorm(op) => {
                vary(0b0010, Op::LayerNorm(LayerNorm { quantize: Some(six), ..op }));
                vary(0b0100, Op::LayerNorm(LayerNorm { quantize: None, ..op }));
            }
            Op::Linear(op) => {
                linears += 1;
                match linears {
                    3 if hoisted => vary(0b0100, Op::Linear(Linear { weight: others[2], ..op })),
                    4 => {
                        vary(0b0010, Op::Linear(Linear { weight: others[0], ..op }));
                        vary(0b0100, Op::Linear(Linear { weight: others[1], ..op }));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    assert_eq!((linears, variants.len()), (4, if hoisted { 6 } else { 4 }));
    b.program.phases = Phases { axis, starts, variants };
    b
}

/// A quantization of the class alone whose scale follows the timestep.
pub fn curve_over_prompt() -> Build {
    let (rng, d) = (&mut Rng::with_seed(2), CHANNELS);
    let mut b = Build::new(d);
    let (table, w) = (weight(&mut b, rng, 6, 24), codes(&mut b, rng, &[d, 24]));
    let curve = b.f32(&[2, 3], &[0.0, 0.015625, 100.0, 500.0, 0.0625, 128.0]);
    let class = b.op(Op::Embedding(Embedding { index: LABELS, table }));
    let range = QuantizeRange::curve(curve, CurveAxis::Timestep);
    let q = b.op(Op::Quantize(Quantize {
        x: class,
        spec: QuantizeSpec { range, ..dynamic(8, QuantizeGrain::Row) },
        turn: None,
    }));
    let value = b.op(linear(q, w));
    let identity: Vec<f32> = (0..d * d).map(|i| f32::from(u8::from(i % (d + 1) == 0))).collect();
    let identity = b.f32(&[d, d], &identity);
    let gate = Some(Columns { value, offset: 0 });
    b.op(Op::Linear(Linear { x: SAMPLE, weight: identity, bias: None, act: Act::None, gate, residual: None }));
    b
}

/// Convolutions, group norms, patches and attention, in floats and codes.
pub fn spatial() -> Build {
    let (rng, d) = (&mut Rng::with_seed(3), CHANNELS);
    let mut b = Build::new(d);
    let ones = b.f32(&[d], &vec![1.0; d]);
    let zeros = b.f32(&[d], &vec![0.0; d]);
    let norm = |x, act, quantize| {
        Op::GroupNorm(GroupNorm { x, weight: ones, bias: zeros, groups: 3, eps: 1e-6, modulation: None, act, quantize })
    };
    let conv =
        |x, weight, sampling, residual| Op::Conv2d(Conv2d { x, weight, sampling, residual, ..Conv2d::default() });
    let table = weight(&mut b, rng, 6, 8 * d);
    let floats = weight(&mut b, rng, 4 * d, 4 * d);
    let kernels = [codes(&mut b, rng, &[d, 3, 3, d]), codes(&mut b, rng, &[d, 3, 3, d])];
    let last = codes(&mut b, rng, &[4 * d, 4 * d]);
    let class = b.op(Op::Embedding(Embedding { index: LABELS, table }));
    let x = b.op(norm(SAMPLE, Act::Silu, Some(dynamic(8, QuantizeGrain::Sample))));
    let x = b.op(conv(x, kernels[0], ConvStride::Same, Some(SAMPLE)));
    let patches: Value = b.op(Op::Patchify(Patchify { x, patch: 2 }));
    let k = b.op(linear(patches, floats));
    let x = b.op(Op::Attention(Attention {
        q: patches,
        k,
        v: patches,
        heads: 4,
        scale: 0.3,
        attend: Default::default(),
        ..Attention::default()
    }));
    let modulation = Some(Modulation { value: class, scale: 0, shift: 4 * d as u32 });
    let quantize = Some(dynamic(8, QuantizeGrain::Row));
    let x = b.op(Op::LayerNorm(LayerNorm {
        x,
        weight: None,
        bias: None,
        eps: 1e-6,
        modulation,
        quantize,
        ..LayerNorm::default()
    }));
    let x = b.op(Op::Linear(Linear {
        x,
        weight: last,
        bias: None,
        act: Act::GeluTanh,
        gate: None,
        residual: Some(patches),
    }));
    let x = b.op(Op::Unpatchify(Unpatchify { x, patch: 2 }));
    let x = b.op(norm(x, Act::None, None));
    b.op(conv(x, kernels[1], ConvStride::Up, None));
    b
}
