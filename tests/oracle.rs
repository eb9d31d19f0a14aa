//! The oracle itself, on cases worked out by hand, and elementary functions against PyTorch's and diffusers' values.

mod common;

use aquatint::backend::cpu::simd::scalar::Scalar;
use aquatint::program::{Act, Columns, Dims, Modulation, Op, QuantizeGrain, Sampling};
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
    let value = b.op(Op::Embedding { index: LABELS, table });
    let gate = Some(Columns { value, offset: 1 });
    let row = b.f32(&[3, 2], &[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    let residual = Some(b.op(linear(SAMPLE, row)));
    b.op(Op::Linear { x: SAMPLE, weight, bias, act: Act::None, gate, residual });
    // Sample 0: (3, 4) -> (3, 14, 2) * (1, 2, 3) + (0, 0, 4); sample 1: (1, 2) -> (1, 12, 0) * (0, 0.5, -1) + (0, 0, 2).
    assert_eq!(oracle(&b, [2, 1, 1, 2], &[3.0, 4.0, 1.0, 2.0]), [3.0, 28.0, 10.0, 0.0, 6.0, 2.0]);
}

#[test]
fn conv_by_hand() {
    let mut b = Build::new(1);
    let weight = b.f32(&[1, 3, 3, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    b.op(Op::Conv2d { x: SAMPLE, weight, bias: None, sampling: Sampling::Same, shift: None, residual: Some(SAMPLE) });
    // A single 1 at the left of a row of two: the centre weight there, the left weight beside it.
    assert_eq!(oracle(&b, [1, 1, 2, 1], &[1.0, 0.0]), [6.0, 4.0]);
    assert_eq!(oracle(&b, [1, 2, 1, 1], &[1.0, 0.0]), [6.0, 2.0]);
    let mut b = Build::new(1);
    let weight = b.f32(&[1, 3, 3, 1], &[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    b.op(Op::Conv2d { x: SAMPLE, weight, bias: None, sampling: Sampling::Up, shift: None, residual: None });
    // Each pixel becomes four; then everything moves right by one.
    assert_eq!(oracle(&b, [1, 1, 2, 1], &[1.0, 2.0]), [0.0, 1.0, 1.0, 2.0, 0.0, 1.0, 1.0, 2.0]);
}

#[test]
fn attention_by_hand() {
    let mut b = Build::new(2);
    let v = b.op(Op::Pointwise { x: SAMPLE, act: Act::None, mul: 10.0, add: 1.0 });
    b.op(Op::Attention { q: SAMPLE, k: SAMPLE, v, heads: 2, scale: 2f32.ln() });
    // Head 0: queries and keys (0, 1): weights 1/2, 1/2 and 1/3, 2/3 over values (1, 11). Head 1: keys equal.
    let got = oracle(&b, [1, 1, 2, 2], &[0.0, 3.0, 1.0, 3.0]);
    for (got, want) in got.iter().zip([6.0, 31.0, 1.0 / 3.0 + 22.0 / 3.0, 31.0]) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
}

#[test]
fn norms_by_hand() {
    let mut b = Build::new(2);
    let table = b.f32(&[1, 4], &[1.0, 2.0, 5.0, 6.0]);
    let value = b.op(Op::Embedding { index: LABELS, table });
    let modulation = Some(Modulation { value, scale: 0, shift: 2 });
    let (weight, bias) = (Some(b.f32(&[2], &[1.0, 2.0])), Some(b.f32(&[2], &[0.0, 1.0])));
    b.op(Op::LayerNorm { x: SAMPLE, weight, bias, eps: 0.0, modulation, quantize: None });
    // (1, 3) -> (-1, 1) -> (-1, 3) -> (-1 * 2 + 5, 3 * 3 + 6).
    assert_eq!(oracle(&b, [1, 1, 1, 2], &[1.0, 3.0]), [3.0, 15.0]);

    let mut b = Build::new(2);
    let (weight, bias) = (b.f32(&[2], &[1.0, 2.0]), b.f32(&[2], &[0.0, 1.0]));
    let norm = |groups| Op::GroupNorm { x: SAMPLE, weight, bias, groups, eps: 3.0, act: Act::None, quantize: None };
    b.op(norm(2));
    // Two pixels. Channel 0: (1, 3), variance 1, with eps 4. Channel 1: equal.
    assert_eq!(oracle(&b, [1, 1, 2, 2], &[1.0, 7.0, 3.0, 7.0]), [-0.5, 1.0, 0.5, 1.0]);
    b.op(norm(1));
    // All four: mean 2, variance 1.
    assert_eq!(oracle(&b, [1, 1, 2, 2], &[1.0, 3.0, 1.0, 3.0]), [-0.5, 2.0, -0.5, 2.0]);
}

#[test]
fn quantization_by_hand() {
    let x = Array { dims: vec![2, 2], data: vec![0.0, 63.0, -6.3, 0.06] };
    let rows = naive::quantize(&x, 6, QuantizeGrain::Row, None);
    // Steps 1 and 6.36 / 63; the second zero point is 62.4, rounded to 62, so -62.4 becomes code 0, which is -62.
    let step = 6.36 / 63.0;
    assert_eq!(rows.data[..2], [0.0, 63.0]);
    assert!((rows.data[2] + 62.0 * step).abs() < 1e-12 && (rows.data[3] - step).abs() < 1e-12, "{:?}", rows.data);
    assert_eq!(naive::quantize(&x, 8, QuantizeGrain::Row, Some((0.5, 3.0))).data, [0.0, 63.0, -1.5, 0.0]);
    let x = Array { dims: vec![1, 2, 2], data: vec![-1.0, 254.0, 0.4, 0.6] };
    assert_eq!(naive::quantize(&x, 8, QuantizeGrain::Sample, None).data, [-1.0, 254.0, 0.0, 1.0]);
    let x = Array { dims: vec![1, 2], data: vec![7.1, 7.1] };
    assert_eq!(naive::quantize(&x, 8, QuantizeGrain::Row, None), x);
}

#[test]
fn patches_by_hand() {
    let mut b = Build::new(1);
    let x = b.op(Op::Patchify { x: SAMPLE, patch: 2 });
    let pixels: Vec<f32> = (0..8u8).map(f32::from).collect();
    assert_eq!(oracle(&b, [1, 2, 4, 1], &pixels), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
    b.op(Op::Unpatchify { x, patch: 2 });
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
    for (act, name) in [(Act::GeluTanh, "act.gelu_tanh"), (Act::Silu, "act.silu")] {
        let mut b = Build::new(x.len());
        b.op(Op::Pointwise { x: SAMPLE, act, mul: 1.0, add: 0.0 });
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
        b.op(Op::TimestepEmbedding { t: TIMESTEP, dim: shape[1] as u32, cos_first: true, shift });
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

#[test]
fn position_embeddings_are_diffusers() {
    for (name, base) in [("pos.d72_g5", 5), ("pos.d64_g8", 8), ("pos.d64_g12_base8", 8)] {
        let (shape, want) = fixture(name);
        let side = shape[0].isqrt();
        let mut b = Build::new(4);
        b.op(Op::PositionEmbedding { x: SAMPLE, dim: shape[1] as u32, base, interpolation: 1.0 });
        let mut inputs = inputs([1, side, side, 4], || 0.0);
        inputs.dims = Dims { batch: 1, conditions: 1, height: side, width: side };
        // diffusers rounds positions, of up to 8, to f32.
        agree(name, &b, &inputs, &want, 5e-7);
    }
}

#[test]
fn codes_are_what_the_matrix_says() {
    let mut b = Build::new(3);
    let q = b.op(Op::Quantize { x: SAMPLE, spec: dynamic(8, QuantizeGrain::Row) });
    let matrix = aquatint::codec::QuantizedMatrix {
        bits: aquatint::codec::Bits::new(2).unwrap(),
        rows: 1,
        cols: 3,
        codes: vec![3, 0, 1],
        table: aquatint::codec::TableValues::I8(vec![-128, 5, 0, 127]),
        grain: aquatint::codec::Grain::Tensor,
        scale: vec![2.0],
        offset: vec![0.5],
    };
    let weight = b.codes(&[1, 3], &matrix);
    b.op(linear(q, weight));
    // Codes (0, 255, 10) of step 1 are exact; weights are 2 * (127.5, -127.5, 5.5).
    assert_eq!(oracle(&b, [1, 1, 1, 3], &[0.0, 255.0, 10.0]), [-65025.0 + 110.0]);
}
