//! The oracle itself, on cases worked out by hand, and elementary functions against PyTorch's and diffusers' values.

use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::program::{
    Act, Add, Attend, Attention, Columns, Conv2d, ConvStride, CurveAxis, Dim, Dims, Embedding, GatedLinear, GroupNorm,
    InputKind, LayerNorm, Linear, Modulation, Multiply, Op, Parameter, Patchify, Pointwise, PositionEmbedding,
    Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, RelativeBias, Resample, Resampling, Round, SoftmaxGrid,
    TimestepEmbedding, Unpatchify, Value, VectorQuantize,
};
use common::cases::{dynamic, linear};
use common::naive::{self, Array, Inputs};
use common::{Build, LABELS, SAMPLE, TIMESTEP, inputs, run};
use safetensors::SafeTensors;

/// What the oracle makes of `build` for a sample of these numbers.
fn oracle(build: &Build, dims: [usize; 4], sample: &[f32]) -> Vec<f64> {
    let mut numbers = sample.iter().copied();
    let values = naive::run(&build.program, &build.tensors, &inputs(dims, || numbers.next().unwrap()));
    values[build.program.output.0 as usize].data.clone()
}

#[test]
fn linear_by_hand() {
    let mut b = Build::new(2);
    let weight = b.f32(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 2.0, -1.0]);
    let bias = Some(b.f32(&[3], &[0.0, 10.0, 0.0]));
    let table = b.f32(&[2, 4], &[9.0, 1.0, 2.0, 3.0, 9.0, 0.0, 0.5, -1.0]);
    let value = b.op(Op::Embedding(Embedding { index: LABELS, table }));
    let gate = Some(Columns { value, offset: 1 });
    let row = b.f32(&[3, 2], &[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    let residual = Some(b.op(linear(SAMPLE, row)));
    b.op(Op::Linear(Linear { x: SAMPLE, weight, bias, act: Act::None, gate, residual }));
    // Sample 0: (3, 4) -> (3, 14, 2) * (1, 2, 3) + (0, 0, 4); sample 1: (1, 2) -> (1, 12, 0) * (0, 0.5, -1) + (0, 0, 2).
    assert_eq!(oracle(&b, [2, 1, 1, 2], &[3.0, 4.0, 1.0, 2.0]), [3.0, 28.0, 10.0, 0.0, 6.0, 2.0]);
}

#[test]
fn gated_linear_by_hand() {
    let mut b = Build::new(2);
    // Value, gate, value, gate.
    let weight = b.f32(&[4, 2], &[1.0, 0.0, 0.0, 1.0, 2.0, -1.0, 1.0, 1.0]);
    let bias = Some(b.f32(&[4], &[0.0, 10.0, 0.0, -7.0]));
    b.op(Op::GatedLinear(GatedLinear { x: SAMPLE, weight, bias, act: Act::None }));
    // (3, 4) -> 3 * 14, 2 * 0; (1, 2) -> 1 * 12, 0 * -4.
    assert_eq!(oracle(&b, [1, 1, 2, 2], &[3.0, 4.0, 1.0, 2.0]), [42.0, 0.0, 12.0, 0.0]);
    b.op(Op::GatedLinear(GatedLinear { x: SAMPLE, weight, bias: None, act: Act::Silu }));
    // The gate alone goes through the activation: 2 ln 3 * silu(ln 3), silu(ln 3) = 3 ln 3 / 4; then silu(0).
    let got = oracle(&b, [1, 1, 1, 2], &[-3f32.ln(), 3f32.ln()]);
    let ln = f64::from(3f32.ln());
    assert!((got[0] + 0.75 * ln * ln).abs() < 1e-6 && got[1].abs() < 1e-6, "{got:?}");
}

#[test]
fn conv_by_hand() {
    let mut b = Build::new(1);
    let weight = b.f32(&[1, 3, 3, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    b.op(Op::Conv2d(Conv2d {
        x: SAMPLE,
        weight,
        bias: None,
        sampling: ConvStride::Same,
        residual: Some(SAMPLE),
        ..Conv2d::default()
    }));
    // A single 1 at the left of a row of two: the centre weight there, the left weight beside it.
    assert_eq!(oracle(&b, [1, 1, 2, 1], &[1.0, 0.0]), [6.0, 4.0]);
    assert_eq!(oracle(&b, [1, 2, 1, 1], &[1.0, 0.0]), [6.0, 2.0]);
    let mut b = Build::new(1);
    let weight = b.f32(&[1, 3, 3, 1], &[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    b.op(Op::Conv2d(Conv2d { x: SAMPLE, weight, bias: None, sampling: ConvStride::Up, ..Conv2d::default() }));
    // Each pixel becomes four; then everything moves right by one.
    assert_eq!(oracle(&b, [1, 1, 2, 1], &[1.0, 2.0]), [0.0, 1.0, 1.0, 2.0, 0.0, 1.0, 1.0, 2.0]);

    // Three pixels, of which each window sums three: two of them become three again, 5, 5, 7, between zeros.
    let mut b = Build::new(1);
    let first = b.f32(&[1, 3, 3, 1], &[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    let sum = b.f32(&[1, 3, 3, 1], &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    let x = b.op(Op::Conv2d(Conv2d { x: SAMPLE, weight: first, sampling: ConvStride::Down, ..Conv2d::default() }));
    let size_of = Some(SAMPLE);
    b.op(Op::Conv2d(Conv2d { x, weight: sum, sampling: ConvStride::Up, size_of, ..Conv2d::default() }));
    assert_eq!(oracle(&b, [1, 1, 3, 1], &[5.0, 6.0, 7.0]), [10.0, 17.0, 12.0]);
}

#[test]
fn attention_by_hand() {
    let mut b = Build::new(2);
    let v = b.op(Op::Pointwise(Pointwise { x: SAMPLE, act: Act::None, mul: 10.0, add: 1.0 }));
    b.op(Op::Attention(Attention {
        q: SAMPLE,
        k: SAMPLE,
        v,
        heads: 2,
        scale: 2f32.ln(),
        attend: Default::default(),
        ..Attention::default()
    }));
    // Head 0: queries and keys (0, 1): weights 1/2, 1/2 and 1/3, 2/3 over values (1, 11). Head 1: keys equal.
    let got = oracle(&b, [1, 1, 2, 2], &[0.0, 3.0, 1.0, 3.0]);
    for (got, want) in got.iter().zip([6.0, 31.0, 1.0 / 3.0 + 22.0 / 3.0, 31.0]) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
}

#[test]
fn rounding_by_hand() {
    let dynamic = dynamic(8, QuantizeGrain::Row);
    let mut b = Build::new(4);
    b.op(Op::Round(Round { x: SAMPLE, spec: dynamic, parts: 2 }));
    // Steps of 1 from -5 on, and of 2 from 0 on; 4.4 and 7 are between.
    assert_eq!(oracle(&b, [1, 1, 1, 4], &[-5.0, 250.0, 0.0, 510.0]), [-5.0, 250.0, 0.0, 510.0]);
    let mut b = Build::new(3);
    b.op(Op::Round(Round { x: SAMPLE, spec: dynamic, parts: 0 }));
    assert_eq!(oracle(&b, [1, 1, 2, 3], &[-5.0, 4.4, 250.0, 510.0, 7.2, 0.0]), [-5.0, 4.0, 250.0, 510.0, 8.0, 0.0]);
    let curve = b.f32(&[1, 3], &[0.0, 0.5, 2.0]);
    let spec =
        QuantizeSpec { bits: 2, grain: QuantizeGrain::Row, range: QuantizeRange::curve(curve, CurveAxis::Timestep) };
    b.op(Op::Round(Round { x: SAMPLE, spec, parts: 0 }));
    // Codes 0 to 3 are -1, -0.5, 0, 0.5.
    assert_eq!(oracle(&b, [1, 1, 1, 3], &[-7.0, -0.3, 0.8]), [-1.0, -0.5, 0.5]);
}

#[test]
fn attention_on_a_grid_by_hand() {
    let attention = |softmax| {
        let mut b = Build::new(1);
        let v = b.op(Op::Pointwise(Pointwise { x: SAMPLE, act: Act::None, mul: 10.0, add: 1.0 }));
        let softmax = Some(match softmax {
            None => SoftmaxGrid { bits: 8, range: QuantizeRange::Dynamic },
            Some(delta) => {
                let curve = b.f32(&[1, 3], &[0.0, delta, 0.0]);
                SoftmaxGrid { bits: 8, range: QuantizeRange::curve(curve, CurveAxis::Timestep) }
            }
        });
        let attend = Attend::default();
        b.op(Op::Attention(Attention {
            q: SAMPLE,
            k: SAMPLE,
            v,
            heads: 1,
            scale: 4f32.ln(),
            attend,
            softmax,
            ..Attention::default()
        }));
        b
    };
    let check = |softmax, wants: [f64; 2]| {
        let got = oracle(&attention(softmax), [1, 1, 2, 1], &[0.0, 1.0]);
        assert!(got.iter().zip(wants).all(|(got, want)| (got - want).abs() < 1e-5), "{got:?} {wants:?}");
    };
    // Probabilities 1/2, 1/2 and 1/5, 4/5 of values 1 and 11; a quarter of 255 is 63.75, which becomes 64.
    check(None, [6.0, 0.8 / 255.0 * (64.0 + 255.0 * 11.0)]);
    // Steps of a quarter, of which 1/5 and 4/5 are 1 and 3; steps of 1/1000, of which there are 255: 1/5 is 200 of them.
    check(Some(0.25), [6.0, 0.25 + 0.75 * 11.0]);
    check(Some(0.001), [0.255 * 12.0, 0.2 + 0.255 * 11.0]);
}

#[test]
fn masked_and_shared_attention_by_hand() {
    // Zero queries see everything alike: means.
    let attention = |attend, keys: fn(&mut Build) -> Value| {
        let mut b = Build::new(1);
        let q = b.op(Op::Pointwise(Pointwise { x: SAMPLE, act: Act::None, mul: 0.0, add: 0.0 }));
        let v = keys(&mut b);
        b.op(Op::Attention(Attention { q, k: v, v, heads: 1, scale: 1.0, attend, ..Attention::default() }));
        b
    };
    let causal = attention(Attend { causal: true, ..Attend::default() }, |_| SAMPLE);
    assert_eq!(oracle(&causal, [2, 1, 3, 1], &[6.0, 2.0, 1.0, 3.0, 5.0, 7.0]), [6.0, 4.0, 3.0, 3.0, 4.0, 5.0]);

    // Rows 1 and 2 of the grid (height 2, width 2) are the conditions' keys.
    let shared = Attend { per_condition: true, ..Attend::default() };
    let b = attention(shared, |b| {
        let grid = b.op(Op::PositionEmbedding(PositionEmbedding {
            x: SAMPLE,
            dim: 4,
            base: 2,
            interpolation: 1.0,
            keep_ratio: false,
            grid: Default::default(),
        }));
        let weight = b.f32(&[1, 4], &[1.0, 0.0, 100.0, 0.0]);
        b.op(linear(grid, weight))
    });
    let mut inputs = inputs([3, 2, 2, 1], || 0.0);
    (inputs.dims.conditions, inputs.conditions) = (2, vec![1, 0, 1]);
    let values = naive::run(&b.program, &b.tensors, &inputs);
    // Sines of column and row: (0, sin 1) for condition 0, both plus 100 sin 1 for condition 1.
    let mean = 0.5 * 1f64.sin();
    let other = mean + 100.0 * 1f64.sin();
    let got = &values[b.program.output.0 as usize].data;
    for (got, want) in got.iter().zip([other, other, other, other, mean, mean, mean, mean, other, other, other, other])
    {
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }
}

#[test]
fn lengths_and_biases_by_hand() {
    // Queries of zero weigh values 1, 2, 4 by their biases alone: ln 1, ln 3 and whatever, of which two keys are seen.
    let mut b = Build::with(1, &[(InputKind::Lengths, vec![Dim::Batch])]);
    let q = b.op(Op::Pointwise(Pointwise { x: SAMPLE, act: Act::None, mul: 0.0, add: 0.0 }));
    let numbers = [0.0, 3f32.ln(), 7.0].repeat(3);
    let tensor = b.f32(&[1, 3, 3], &numbers);
    let bias = Some(b.op(Op::Parameter(Parameter { tensor, ..Parameter::default() })));
    let lengths = Some(b.input(InputKind::Lengths));
    let attention = Attention { q, k: SAMPLE, v: SAMPLE, heads: 1, scale: 1.0, bias, lengths, ..Attention::default() };
    b.op(Op::Attention(attention));
    let sample = vec![1.0, 2.0, 4.0, 8.0, 9.0, 10.0];
    let inputs = Inputs { sample, lengths: vec![2, 0], ..inputs([2, 1, 3, 1], || 0.0) };
    let got = naive::run(&b.program, &b.tensors, &inputs).pop().expect("a result").data;
    let want = [1.75, 1.75, 1.75, 0.0, 0.0, 0.0];
    assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-7), "{got:?}");
}

#[test]
fn products_rows_and_root_mean_squares_by_hand() {
    let mut b = Build::new(2);
    let tensor = b.f32(&[2, 1], &[10.0, 20.0]);
    let row = b.op(Op::Parameter(Parameter { tensor, flat: true, ..Parameter::default() }));
    let sum = b.op(Op::Add(Add { a: SAMPLE, b: row }));
    b.op(Op::Multiply(Multiply { a: SAMPLE, b: sum }));
    assert_eq!(oracle(&b, [1, 1, 2, 2], &[1.0, 2.0, 3.0, -4.0]), [11.0, 44.0, 39.0, -64.0]);

    let mut b = Build::new(2);
    let tensor = b.f32(&[3, 2], &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    let rows = b.op(Op::Parameter(Parameter { tensor, rows: 2, ..Parameter::default() }));
    b.op(Op::Add(Add { a: SAMPLE, b: rows }));
    assert_eq!(oracle(&b, [1, 1, 2, 2], &[1.0, 2.0, 3.0, -4.0]), [11.0, 22.0, 33.0, 36.0]);

    let mut b = Build::new(2);
    let weight = Some(b.f32(&[2], &[1.0, 2.0]));
    b.op(Op::LayerNorm(LayerNorm { x: SAMPLE, weight, eps: 0.5, rms: true, ..LayerNorm::default() }));
    // The mean of 1 and 16 is 8.5, and with a half 9.
    assert_eq!(oracle(&b, [1, 1, 1, 2], &[1.0, 4.0]), [1.0 / 3.0, 8.0 / 3.0]);
}

#[test]
fn buckets_by_hand() {
    // Of four buckets on each side two are for distances 0 and 1; the others begin at 2 and at 2 (8 / 2)^(1/2) = 4.
    let mut b = Build::with(1, &[(InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(6)])]);
    let table = b.f32(&[8, 1], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    b.op(Op::RelativeBias(RelativeBias { x: b.input(InputKind::Tokens), table, buckets: 8, max_distance: 8 }));
    let inputs = Inputs { tokens: vec![0; 6], ..inputs([1, 1, 1, 1], || 0.0) };
    let got = naive::run(&b.program, &b.tensors, &inputs).pop().expect("a result");
    assert_eq!(got.dims, [1, 6, 6]);
    assert_eq!(got.data[..6], [0.0, 5.0, 6.0, 6.0, 7.0, 7.0]);
    assert_eq!(got.data[30..], [3.0, 3.0, 2.0, 2.0, 1.0, 0.0]);
}

#[test]
fn erf_by_hand() {
    // Abramowitz & Stegun, table 7.1.
    for (x, want) in
        [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (1.5, 0.966_105_146_5), (2.0, 0.995_322_265_0)]
    {
        assert!((naive::erf(x) - want).abs() < 1e-10 && (naive::erf(-x) + want).abs() < 1e-10, "{x}");
    }
    assert!((1.0 - naive::erf(4.0) - 1.541_725_790e-8).abs() < 1e-15);
    assert!((1.0 - naive::erf(6.4)).abs() < 1e-15 && naive::erf(-7.0) == -1.0);
}

#[test]
fn norms_by_hand() {
    let mut b = Build::new(2);
    let table = b.f32(&[1, 4], &[1.0, 2.0, 5.0, 6.0]);
    let value = b.op(Op::Embedding(Embedding { index: LABELS, table }));
    let modulation = Some(Modulation { value, scale: 0, shift: 2 });
    let (weight, bias) = (Some(b.f32(&[2], &[1.0, 2.0])), Some(b.f32(&[2], &[0.0, 1.0])));
    b.op(Op::LayerNorm(LayerNorm { x: SAMPLE, weight, bias, eps: 0.0, modulation, ..LayerNorm::default() }));
    // (1, 3) -> (-1, 1) -> (-1, 3) -> (-1 * 2 + 5, 3 * 3 + 6).
    assert_eq!(oracle(&b, [1, 1, 1, 2], &[1.0, 3.0]), [3.0, 15.0]);

    let mut b = Build::new(2);
    let (weight, bias) = (b.f32(&[2], &[1.0, 2.0]), b.f32(&[2], &[0.0, 1.0]));
    let norm = |groups| {
        Op::GroupNorm(GroupNorm {
            x: SAMPLE,
            weight,
            bias,
            groups,
            eps: 3.0,
            modulation: None,
            act: Act::None,
            quantize: None,
        })
    };
    b.op(norm(2));
    // Two pixels. Channel 0: (1, 3), variance 1, with eps 4. Channel 1: equal.
    assert_eq!(oracle(&b, [1, 1, 2, 2], &[1.0, 7.0, 3.0, 7.0]), [-0.5, 1.0, 0.5, 1.0]);
    b.op(norm(1));
    // All four: mean 2, variance 1.
    assert_eq!(oracle(&b, [1, 1, 2, 2], &[1.0, 3.0, 1.0, 3.0]), [-0.5, 2.0, -0.5, 2.0]);

    let table = b.f32(&[2, 4], &[1.0, 2.0, 5.0, 6.0, 0.0, 0.0, 1.0, -9.0]);
    let value = b.op(Op::Embedding(Embedding { index: LABELS, table }));
    let modulation = Some(Modulation { value, scale: 0, shift: 2 });
    let (x, act) = (SAMPLE, Act::None);
    b.op(Op::GroupNorm(GroupNorm { x, weight, bias, groups: 1, eps: 3.0, modulation, act, quantize: None }));
    // The same norm; then times (2, 3) plus (5, 6) in the first sample, plus (1, -9) in the second.
    let twice = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0];
    assert_eq!(oracle(&b, [2, 1, 2, 2], &twice), [4.0, 12.0, 4.0, 12.0, 0.5, -7.0, 0.5, -7.0]);
}

#[test]
fn resampling_by_hand() {
    let mut b = Build::new(2);
    b.op(Op::Resample(Resample { x: SAMPLE, how: Resampling::Nearest }));
    let rows = [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0];
    assert_eq!(oracle(&b, [1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0]), [rows, rows].concat());
    let mut b = Build::new(1);
    b.op(Op::Resample(Resample { x: SAMPLE, how: Resampling::Mean }));
    // Of 3 x 5 pixels, the first two rows and four columns count.
    let pixels: Vec<f32> = (0..15u8).map(f32::from).collect();
    assert_eq!(oracle(&b, [1, 3, 5, 1], &pixels), [3.0, 5.0]);
}

#[test]
fn vector_quantization_by_hand() {
    let mut b = Build::new(2);
    let table = b.f32(&[4, 2], &[0.0, 0.0, 4.0, 0.0, 0.0, 3.0, 4.0, 0.0]);
    b.op(Op::VectorQuantize(VectorQuantize { x: SAMPLE, table }));
    // (2, 0) is as near to the first row as to the second and the fourth; (3, 1) is at 10, 2, 13, 2.
    assert_eq!(oracle(&b, [1, 1, 3, 2], &[2.0, 0.0, 3.0, 1.0, -1.0, 2.0]), [0.0, 0.0, 4.0, 0.0, 0.0, 3.0]);
}

#[test]
fn tokens_and_numbers_by_hand() {
    let mut b = Build::with(1, &[(InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(2)])]);
    let table = b.f32(&[3, 2], &[0.0, 1.0, 10.0, 11.0, 20.0, 21.0]);
    let x = b.op(Op::Embedding(Embedding { index: b.input(InputKind::Tokens), table }));
    let tensor = b.f32(&[2, 2], &[100.0, 200.0, 300.0, 400.0]);
    let grid = b.op(Op::Parameter(Parameter { tensor, ..Parameter::default() }));
    b.op(Op::Add(Add { a: x, b: grid }));
    let sample = inputs([2, 1, 1, 1], || 0.0);
    let values = naive::run(&b.program, &b.tensors, &Inputs { tokens: vec![2, 0, 1, 1], ..sample });
    let result = &values[b.program.output.0 as usize];
    assert_eq!(result.dims, [2, 2, 2]);
    assert_eq!(result.data, [120.0, 221.0, 300.0, 401.0, 110.0, 211.0, 310.0, 411.0]);

    let mut b = Build::with(1, &[(InputKind::Sizes, vec![Dim::Conditions, Dim::Fixed(2)])]);
    let t = b.input(InputKind::Sizes);
    b.op(Op::TimestepEmbedding(TimestepEmbedding { t, dim: 4, cos_first: true, shift: 1.0 }));
    let sample = inputs([1, 1, 1, 1], || 0.0);
    let values = naive::run(&b.program, &b.tensors, &Inputs { sizes: vec![0.0, 3.0], ..sample });
    let result = &values[b.program.output.0 as usize];
    // Frequencies 1 and 1 / 10000.
    let want = [1.0, 1.0, 0.0, 0.0, 3f64.cos(), 3e-4f64.cos(), 3f64.sin(), 3e-4f64.sin()];
    assert_eq!(result.dims, [1, 8]);
    assert!(result.data.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-15), "{:?}", result.data);
}

#[test]
fn quantization_by_hand() {
    let x = Array { dims: vec![2, 2], data: vec![0.0, 63.0, -6.3, 0.06] };
    let rows = naive::quantize(&x, 63, QuantizeGrain::Row, None);
    // Steps 1 and 6.36 / 63; the second zero point is 62.4, rounded to 62, so -62.4 becomes code 0, which is -62.
    let step = 6.36 / 63.0;
    assert_eq!(rows.data[..2], [0.0, 63.0]);
    assert!((rows.data[2] + 62.0 * step).abs() < 1e-12 && (rows.data[3] - step).abs() < 1e-12, "{:?}", rows.data);
    assert_eq!(naive::quantize(&x, 255, QuantizeGrain::Row, Some((0.5, 3.0))).data, [0.0, 63.0, -1.5, 0.0]);
    // Zero between two codes, of which the last is 4: -1.5, -0.5, 0.5, 1.5 and 2.5.
    let few = Array { dims: vec![2, 2], data: vec![0.1, 9.0, -6.3, -0.9] };
    assert_eq!(naive::quantize(&few, 4, QuantizeGrain::Row, Some((1.0, 1.5))).data, [0.5, 2.5, -1.5, -0.5]);
    let x = Array { dims: vec![1, 2, 2], data: vec![-1.0, 254.0, 0.4, 0.6] };
    assert_eq!(naive::quantize(&x, 255, QuantizeGrain::Sample, None).data, [-1.0, 254.0, 0.0, 1.0]);
    let x = Array { dims: vec![1, 2], data: vec![7.1, 7.1] };
    assert_eq!(naive::quantize(&x, 255, QuantizeGrain::Row, None), x);
}

#[test]
fn patches_by_hand() {
    let mut b = Build::new(1);
    let x = b.op(Op::Patchify(Patchify { x: SAMPLE, patch: 2 }));
    let pixels: Vec<f32> = (0..8u8).map(f32::from).collect();
    assert_eq!(oracle(&b, [1, 2, 4, 1], &pixels), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
    b.op(Op::Unpatchify(Unpatchify { x, patch: 2 }));
    assert_eq!(oracle(&b, [1, 2, 4, 1], &pixels), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

/// A tensor of the fixture.
fn fixture(name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/embeddings.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let floats = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (view.shape().to_vec(), floats.collect())
}

/// Both the portable tier and the oracle come within `tolerance` of `want`, absolutely.
fn agree(name: &str, build: &Build, inputs: &Inputs, want: &[f32], tolerance: f64) {
    let got = run(Scalar, &build.open([inputs.dims.height, inputs.dims.width]), inputs);
    let values = naive::run(&build.program, &build.tensors, inputs);
    let exact = &values[build.program.output.0 as usize].data;
    assert!(got.len() == want.len() && exact.len() == want.len(), "{name}: length");
    for (i, &want) in want.iter().enumerate() {
        let want = f64::from(want);
        let near = |x: f64| (x - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(near(got[i].into()), "{name} {i}: {} is not {want}", got[i]);
        assert!(near(exact[i]), "{name} {i}: the oracle's {} is not {want}", exact[i]);
    }
}

#[test]
fn activations_are_torchs() {
    let (_, x) = fixture("act.x");
    for (act, name) in [
        (Act::GeluTanh, "act.gelu_tanh"),
        (Act::Silu, "act.silu"),
        (Act::GeluErf, "act.gelu_erf"),
        (Act::QuickGelu, "act.quick_gelu"),
    ] {
        let mut b = Build::new(x.len());
        b.op(Op::Pointwise(Pointwise { x: SAMPLE, act, mul: 1.0, add: 0.0 }));
        let mut numbers = x.iter().copied();
        let inputs = inputs([1, 1, 1, x.len()], || numbers.next().unwrap());
        agree(name, &b, &inputs, &fixture(name).1, 3e-7);
    }
}

#[test]
fn timestep_embeddings_are_diffusers() {
    let (_, t) = fixture("time.t");
    for (shift, name) in [(0.0, "time.shift0"), (1.0, "time.shift1")] {
        let (shape, want) = fixture(name);
        let mut b = Build::new(4);
        b.op(Op::TimestepEmbedding(TimestepEmbedding { t: TIMESTEP, dim: shape[1] as u32, cos_first: true, shift }));
        for (&timestep, want) in t.iter().zip(want.chunks_exact(shape[1])) {
            let inputs = Inputs { timestep, ..inputs([1, 1, 1, 4], || 0.0) };
            // diffusers rounds frequencies and angles to f32, twice 2^-24 of an angle of up to t.
            agree(name, &b, &inputs, want, 2e-7 + 2e-7 * f64::from(timestep));
            // The runtime rounds where diffusers does, and differs only where their exponentials do.
            let got = run(Scalar, &b.open([1, 1]), &inputs);
            let same = got.iter().zip(want).filter(|(g, w)| (*g - *w).abs() <= 6e-8).count();
            assert!(4 * same >= 3 * want.len(), "{name} t {timestep}: {same} of {} equal", want.len());
        }
    }
}

/// The numbers of SDXL's sizes, embedded side by side.
#[test]
fn several_numbers_are_embedded_side_by_side() {
    let (_, t) = fixture("time.t");
    let (shape, want) = fixture("time.shift0");
    let mut b = Build::with(4, &[(InputKind::Sizes, vec![Dim::Conditions, Dim::Fixed(t.len() as u32)])]);
    let numbers = b.input(InputKind::Sizes);
    b.op(Op::TimestepEmbedding(TimestepEmbedding { t: numbers, dim: shape[1] as u32, cos_first: true, shift: 0.0 }));
    let most = t.iter().copied().fold(0.0, f32::max);
    let inputs = Inputs { sizes: t, ..inputs([1, 1, 1, 4], || 0.0) };
    agree("numbers", &b, &inputs, &want, 2e-7 + 2e-7 * f64::from(most));
}

#[test]
fn position_embeddings_are_diffusers() {
    for (name, base) in [("pos.d72_g5", 5), ("pos.d64_g8", 8), ("pos.d64_g12_base8", 8)] {
        let (shape, want) = fixture(name);
        let side = shape[0].isqrt();
        let mut b = Build::new(4);
        b.op(Op::PositionEmbedding(PositionEmbedding {
            x: SAMPLE,
            dim: shape[1] as u32,
            base,
            interpolation: 1.0,
            keep_ratio: false,
            grid: Default::default(),
        }));
        let mut inputs = inputs([1, side, side, 4], || 0.0);
        inputs.dims = Dims { batch: 1, conditions: 1, height: side, width: side, tokens: 1, ..Dims::ONE };
        // diffusers rounds positions, of up to 8, to f32.
        agree(name, &b, &inputs, &want, 5e-7);
    }
}

#[test]
fn codes_are_what_the_matrix_says() {
    let mut b = Build::new(3);
    let q = b.op(Op::Quantize(Quantize { x: SAMPLE, spec: dynamic(8, QuantizeGrain::Row), turn: None }));
    let matrix = aquatint::raw::codec::QuantizedMatrix {
        bits: aquatint::raw::codec::Bits::new(2).unwrap(),
        rows: 1,
        cols: 3,
        codes: vec![3, 0, 1],
        table: aquatint::raw::codec::TableValues::I8(vec![-128, 5, 0, 127]),
        grain: aquatint::raw::codec::Grain::Tensor,
        scale: vec![2.0],
        offset: vec![0.5],
    };
    let weight = b.codes(&[1, 3], &matrix);
    b.op(linear(q, weight));
    // Codes (0, 255, 10) of step 1 are exact; weights are 2 * (127.5, -127.5, 5.5).
    assert_eq!(oracle(&b, [1, 1, 1, 3], &[0.0, 255.0, 10.0]), [-65025.0 + 110.0]);
}
