//! Programs survive the file: every role, every kind of input and axis, and every op with every attribute, written and
//! read again; and what the records of the ops must not hold.

#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "common/tiny.rs"]
mod tiny;

use aquatint::Error;
use aquatint::format::{Packed, TensorKind, TensorSpec, Writer};
use aquatint::program::{
    Act, Add, Attend, Attention, Columns, Concat, Conv2d, ConvStride, CurveAxis, Dim, Embedding, GatedLinear,
    GroupNorm, Input, InputKind, LayerNorm, Linear, Modulation, Node, Op, Parameter, Patchify, Pointwise,
    PositionEmbedding, Program, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, Resample, Resampling, Role,
    Tensor, TimestepEmbedding, Unpatchify, Value, VectorQuantize,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use tiny::{AlignedBytes, reseal, sections};
use zerocopy::IntoBytes;

/// Axes of the tensors, all f32.
const TENSORS: [&[usize]; 6] = [&[8], &[2, 3], &[16, 8], &[8, 3, 3, 8], &[8, 8], &[16]];
const V8: Tensor = Tensor(0);
const CURVE: Tensor = Tensor(1);
const ROWS: Tensor = Tensor(2);
const KERNEL: Tensor = Tensor(3);
const SQUARE: Tensor = Tensor(4);
const V16: Tensor = Tensor(5);

/// A file of these programs.
fn file(programs: &[Program]) -> AlignedBytes {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("aquatint-ops-{}-{}.aqt", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let mut writer = Writer::create(&path).expect("the temporary directory takes files");
    for (i, dims) in TENSORS.into_iter().enumerate() {
        let spec = TensorSpec { name: format!("t{i}"), dims: dims.to_vec(), kind: TensorKind::F32 };
        writer.tensor(spec, vec![1f32; dims.iter().product()].as_bytes()).expect("the temporary directory takes files");
    }
    writer.finish(programs, &tiny::meta()).expect("the temporary directory takes files");
    let bytes = AlignedBytes::new(&std::fs::read(&path).expect("just written"));
    std::fs::remove_file(&path).expect("just written");
    bytes
}

/// A program of all kinds of inputs but labels and timesteps, whose result is its sample.
fn program(role: Role, ops: Vec<Op>) -> Program {
    let input = |kind, dims| Input { kind, dims };
    let inputs = vec![
        input(InputKind::Sample, vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(8)]),
        input(InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(77)]),
        input(InputKind::Context, vec![Dim::Conditions, Dim::Tokens, Dim::Fixed(8)]),
        input(InputKind::Pooled, vec![Dim::Conditions, Dim::Fixed(1 << 20)]),
        input(InputKind::Sizes, vec![Dim::Conditions, Dim::Fixed(6)]),
    ];
    let nodes = ops.into_iter().enumerate().map(|(i, op)| Node { op, path: format!("n{i}"), wide: i % 3 == 1 });
    Program { role, inputs, nodes: nodes.collect(), output: X }
}

const X: Value = Value(0);
const TOKENS: Value = Value(1);
const CONTEXT: Value = Value(2);
const POOLED: Value = Value(3);
const SIZES: Value = Value(4);
const FIRST: Value = Value(5);

fn group_norm(modulation: Option<Modulation>) -> Op {
    let range = QuantizeRange::Curve(CURVE, CurveAxis::StepFraction);
    let quantize = Some(QuantizeSpec { bits: 6, grain: QuantizeGrain::Sample, range });
    Op::GroupNorm(GroupNorm { x: X, weight: V8, bias: V8, groups: 4, eps: 0.25, modulation, act: Act::Silu, quantize })
}

fn attention(attend: Attend) -> Op {
    Op::Attention(Attention { q: CONTEXT, k: CONTEXT, v: CONTEXT, heads: 2, scale: 0.5, attend })
}

/// Every op, each attribute with a value of its own.
fn ops() -> Vec<Op> {
    let mut ops = vec![
        Op::VectorQuantize(VectorQuantize { x: X, table: ROWS }),
        Op::Concat(Concat { a: FIRST, b: X }),
        group_norm(None),
        group_norm(Some(Modulation { value: POOLED, scale: 11, shift: 1_000_000 })),
        Op::Parameter(Parameter { tensor: KERNEL }),
        Op::Embedding(Embedding { index: TOKENS, table: ROWS }),
        Op::TimestepEmbedding(TimestepEmbedding { t: SIZES, dim: 8, cos_first: true, shift: 1.0 }),
        Op::PositionEmbedding(PositionEmbedding { x: X, dim: 8, base: 3, interpolation: 2.0 }),
        Op::Add(Add { a: X, b: CONTEXT }),
        Op::Patchify(Patchify { x: X, patch: 2 }),
        Op::Unpatchify(Unpatchify { x: X, patch: 2 }),
        Op::Quantize(Quantize {
            x: X,
            spec: QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic },
        }),
        Op::LayerNorm(LayerNorm {
            x: X,
            weight: None,
            bias: Some(V8),
            eps: 0.5,
            modulation: Some(Modulation { value: POOLED, scale: 1, shift: 2 }),
            quantize: None,
        }),
        Op::Linear(Linear {
            x: X,
            weight: SQUARE,
            bias: None,
            act: Act::None,
            gate: Some(Columns { value: POOLED, offset: 4 }),
            residual: Some(CONTEXT),
        }),
        Op::GatedLinear(GatedLinear { x: X, weight: ROWS, bias: None, act: Act::GeluErf }),
        Op::GatedLinear(GatedLinear { x: CONTEXT, weight: ROWS, bias: Some(V16), act: Act::Silu }),
    ];
    ops.extend([Resampling::Nearest, Resampling::Mean].map(|how| Op::Resample(Resample { x: X, how })));
    let acts = [Act::None, Act::Silu, Act::GeluTanh, Act::GeluErf, Act::QuickGelu];
    ops.extend(acts.map(|act| Op::Pointwise(Pointwise { x: X, act, mul: 2.0, add: -1.0 })));
    ops.extend(
        (0..8)
            .map(|bits| attention(Attend { causal: bits & 1 != 0, per_condition: bits & 2 != 0, int8: bits & 4 != 0 })),
    );
    ops.extend(ConvStride::ALL.map(|sampling| {
        Op::Conv2d(Conv2d {
            x: X,
            weight: KERNEL,
            bias: Some(V8),
            sampling,
            shift: Some(Columns { value: POOLED, offset: 5 }),
            residual: (sampling == ConvStride::Same).then_some(FIRST),
        })
    }));
    ops
}

#[test]
fn programs_are_read_as_they_were_written() {
    let roles =
        [Role::Denoiser, Role::VaeDecoder, Role::VaeEncoder, Role::TextEncoder, Role::TextEncoder2, Role::Refiner];
    let mut programs: Vec<Program> = roles.into_iter().map(|role| program(role, ops())).collect();
    programs[1].nodes.clear();
    for (input, kind) in programs[1].inputs[3..].iter_mut().zip([InputKind::Timestep, InputKind::ClassLabels]) {
        *input = Input { kind, dims: vec![Dim::Conditions] };
    }
    let names: std::collections::BTreeSet<_> = ops().iter().map(Op::name).collect();
    assert_eq!(names.len(), 18, "{names:?}");
    let packed = Packed::new(file(&programs)).expect("sound");
    assert_eq!(packed.programs(), programs);
}

/// The message that a file of one node gives when `bytes` stand at `at` of its record.
fn refused(op: Op, at: usize, bytes: &[u8]) -> String {
    let mut file = file(&[program(Role::Denoiser, vec![op])]);
    let nodes = sections(file.as_ref())[3].0 as usize;
    file.as_mut()[nodes + at..][..bytes.len()].copy_from_slice(bytes);
    reseal(file.as_mut());
    match Packed::new(file) {
        Err(e @ Error::Format { .. }) => e.to_string(),
        Err(other) => panic!("{other}"),
        Ok(packed) => panic!("read as {:?}", packed.programs()[0].nodes),
    }
}

#[test]
fn faults_of_the_newer_ops_are_named() {
    // Places in a node's record.
    let (act, quantize, operands, tensors, ints, floats, int2) = (2, 3, 16, 28, 36, 44, 56);
    let le = |n: u32| n.to_le_bytes();
    let none = le(u32::MAX);
    let nearest = Op::VectorQuantize(VectorQuantize { x: X, table: ROWS });
    let resample = Op::Resample(Resample { x: X, how: Resampling::Mean });
    let parameter = Op::Parameter(Parameter { tensor: ROWS });
    let gated = Op::GatedLinear(GatedLinear { x: X, weight: ROWS, bias: None, act: Act::GeluErf });
    let modulated = group_norm(Some(Modulation { value: POOLED, scale: 1, shift: 2 }));
    let cases: &[(&Op, usize, &[u8], &str)] = &[
        (&nearest, 0, &[19], "op: expected 1 to 18, got 19; use a newer aquatint"),
        (&nearest, operands, &le(5), "operand: expected a value below 5, got 5"),
        (&nearest, operands, &none, "operand: expected a value below 5, got 4294967295"),
        (&nearest, operands + 4, &le(0), "unused fields"),
        (&nearest, tensors, &le(6), "tensor: expected below 6, got 6"),
        (&nearest, tensors, &none, "tensor: expected below 6, got 4294967295"),
        (&nearest, tensors + 4, &le(0), "unused fields"),
        (&nearest, ints, &le(1), "unused fields"),
        (&nearest, act, &[1], "unused fields"),
        (&nearest, quantize, &[8], "unused fields"),
        (&resample, ints, &le(2), "resampling: expected 0 or 1, got 2"),
        (&resample, ints, &none, "resampling: expected 0 or 1, got 4294967295"),
        (&resample, ints + 4, &le(1), "unused fields"),
        (&resample, operands, &le(5), "operand: expected a value below 5, got 5"),
        (&resample, tensors, &le(0), "unused fields"),
        (&resample, floats, &le(1), "unused fields"),
        (&resample, int2, &le(1), "unused fields"),
        (&parameter, tensors, &le(6), "tensor: expected below 6, got 6"),
        (&parameter, tensors, &none, "tensor: expected below 6, got 4294967295"),
        (&parameter, operands, &le(0), "unused fields"),
        (&gated, act, &[5], "activation: expected a known activation, got 5"),
        (&gated, operands + 4, &le(0), "unused fields"),
        (&gated, tensors + 4, &le(6), "tensor: expected below 6, got 6"),
        (&gated, ints, &le(1), "unused fields"),
        (&modulated, operands + 4, &le(5), "operand: expected a value below 5, got 5"),
        // Without a modulation its columns mean nothing.
        (&modulated, operands + 4, &none, "unused fields"),
        (&modulated, operands + 8, &le(0), "unused fields"),
        (&attention(Attend::default()), ints + 4, &le(8), "unused fields"),
        (&attention(Attend::default()), ints + 4, &none, "unused fields"),
        (&attention(Attend::default()), int2, &le(1), "unused fields"),
    ];
    for &(op, at, bytes, text) in cases {
        let message = refused(op.clone(), at, bytes);
        assert!(message.contains(text), "{} {at} {bytes:?}: {message}", op.name());
    }
}
