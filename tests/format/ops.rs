//! Programs survive the file: every role, every kind of input and axis, and every op with every attribute, written and
//! read again; and what the records of the ops must not hold.

use aquatint::Error;
use aquatint::raw::format::{Packed, TensorKind, TensorSpec, Writer};
use aquatint::raw::program::{
    Act, Add, Attend, Attention, Columns, Concat, Conv2d, ConvStride, CurveAxis, Dim, Embedding, GatedLinear, Grid,
    GroupNorm, Input, InputKind, LayerNorm, Linear, Modulation, Multiply, Node, Op, PadRows, Parameter, Patchify,
    Pointwise, PositionEmbedding, Program, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, RangeCurve, Reach,
    RelativeBias, Resample, Resampling, Role, Rotary, Round, Slice, SoftmaxGrid, Tensor, TimestepEmbedding, Turn,
    Unpatchify, Value, VectorQuantize,
};
use common::tiny::{self, AlignedBytes, build, first_word, split};
use std::sync::atomic::{AtomicUsize, Ordering};
use zerocopy::IntoBytes;

// Sections.
const PROGRAMS: usize = 2;
const NODES: usize = 3;
const ARGS: usize = 4;

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
    Program { role, inputs, nodes: nodes.collect(), output: X, phases: Default::default() }
}

const X: Value = Value(0);
const TOKENS: Value = Value(1);
const CONTEXT: Value = Value(2);
const POOLED: Value = Value(3);
const SIZES: Value = Value(4);
const FIRST: Value = Value(5);

fn group_norm(modulation: Option<Modulation>) -> Op {
    let range = QuantizeRange::Curve(RangeCurve { points: CURVE, axis: CurveAxis::StepFraction, top: 62 });
    let quantize = Some(QuantizeSpec { bits: 6, grain: QuantizeGrain::Sample, range });
    Op::GroupNorm(GroupNorm { x: X, weight: V8, bias: V8, groups: 4, eps: 0.25, modulation, act: Act::Silu, quantize })
}

fn attention(attend: Attend) -> Op {
    Op::Attention(Attention {
        q: CONTEXT,
        k: CONTEXT,
        v: CONTEXT,
        heads: 2,
        scale: 0.5,
        attend,
        ..Attention::default()
    })
}

fn on_grid(grid: SoftmaxGrid) -> Op {
    let Op::Attention(op) = attention(Attend::default()) else { unreachable!("an attention") };
    Op::Attention(Attention { softmax: Some(grid), ..op })
}

fn within(reach: Reach) -> Op {
    let Op::Attention(op) = attention(Attend::default()) else { unreachable!("an attention") };
    Op::Attention(Attention { q: X, k: X, v: X, reach, ..op })
}

/// Every op, each attribute with a value of its own.
fn ops() -> Vec<Op> {
    let mut ops = vec![
        Op::VectorQuantize(VectorQuantize { x: X, table: ROWS }),
        Op::Concat(Concat { a: FIRST, b: X, tokens: false }),
        Op::Concat(Concat { a: CONTEXT, b: CONTEXT, tokens: true }),
        Op::Slice(Slice { x: X, first: 3, count: 5, tokens: false }),
        Op::Slice(Slice { x: Value(FIRST.0 + 2), first: 1, count: 1, tokens: true }),
        Op::Rotary(Rotary { x: X, table: X, heads: 1 }),
        Op::LayerNorm(LayerNorm { x: X, eps: 0.5, parts: 2, ..LayerNorm::default() }),
        Op::LayerNorm(LayerNorm {
            x: X,
            eps: 0.5,
            shift: Some(Columns { value: POOLED, offset: 9 }),
            ..LayerNorm::default()
        }),
        Op::PositionEmbedding(PositionEmbedding {
            x: X,
            dim: 8,
            base: 3,
            interpolation: 2.0,
            keep_ratio: true,
            grid: Default::default(),
        }),
        group_norm(None),
        group_norm(Some(Modulation { value: POOLED, scale: 11, shift: 1_000_000 })),
        Op::Parameter(Parameter { tensor: KERNEL, ..Parameter::default() }),
        Op::Parameter(Parameter { tensor: KERNEL, flat: true, rows: 2 }),
        Op::Embedding(Embedding { index: TOKENS, table: ROWS }),
        Op::TimestepEmbedding(TimestepEmbedding { t: SIZES, dim: 8, cos_first: true, shift: 1.0 }),
        Op::PositionEmbedding(PositionEmbedding {
            x: X,
            dim: 8,
            base: 3,
            interpolation: 2.0,
            keep_ratio: false,
            grid: Default::default(),
        }),
        Op::PositionEmbedding(PositionEmbedding {
            x: X,
            dim: 8,
            base: 0,
            interpolation: 2.0,
            keep_ratio: false,
            grid: Grid::Frames,
        }),
        within(Reach::Frame),
        within(Reach::Place),
        Op::Add(Add { a: X, b: CONTEXT }),
        Op::Multiply(Multiply { a: X, b: FIRST }),
        Op::RelativeBias(RelativeBias { x: TOKENS, table: ROWS, buckets: 16, max_distance: 128 }),
        Op::LayerNorm(LayerNorm { x: X, weight: Some(V8), eps: 0.5, rms: true, ..LayerNorm::default() }),
        Op::Patchify(Patchify { x: X, patch: 2 }),
        Op::Unpatchify(Unpatchify { x: X, patch: 2 }),
        Op::Quantize(Quantize {
            x: X,
            spec: QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic },
            turn: None,
        }),
        Op::Quantize(Quantize { x: X, turn: Some(Turn { factors: V8, block: 8 }), ..Default::default() }),
        Op::LayerNorm(LayerNorm {
            x: X,
            weight: None,
            bias: Some(V8),
            eps: 0.5,
            modulation: Some(Modulation { value: POOLED, scale: 1, shift: 2 }),
            ..LayerNorm::default()
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
    let spec = |range| QuantizeSpec { bits: 5, grain: QuantizeGrain::Row, range };
    let curves = [CurveAxis::Timestep, CurveAxis::StepFraction].map(|axis| QuantizeRange::curve(CURVE, axis));
    let ranges = || curves.into_iter().chain([QuantizeRange::Dynamic]);
    ops.extend(ranges().map(|range| Op::Round(Round { x: X, spec: spec(range), parts: 4 })));
    ops.extend(ranges().map(|range| on_grid(SoftmaxGrid { bits: 16, range })));
    let doubled = Value(FIRST.0 + ops.len() as u32);
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
            size_of: (sampling == ConvStride::Up).then_some(doubled),
        })
    }));
    ops
}

#[test]
fn programs_are_read_as_they_were_written() {
    let roles =
        [Role::Denoiser, Role::VaeDecoder, Role::VaeEncoder, Role::TextEncoder, Role::TextEncoder2, Role::Refiner];
    let mut programs: Vec<Program> = roles.into_iter().map(|role| program(role, ops())).collect();
    programs[1].inputs[1] = programs[1].inputs.remove(2);
    let padded = Op::PadRows(PadRows { x: Value(1), lengths: CONTEXT, table: ROWS, first: 6 });
    programs[1].nodes = vec![Node { op: padded, path: "n0".into(), wide: false }];
    let kinds = [InputKind::Lengths, InputKind::Timestep, InputKind::ClassLabels, InputKind::Lengths2];
    let conditions = kinds.map(|kind| Input { kind, dims: vec![Dim::Conditions] });
    programs[1].inputs.splice(2.., conditions);
    let nodes = programs.iter().flat_map(|program| &program.nodes);
    let names: std::collections::BTreeSet<_> = nodes.map(|node| node.op.name()).collect();
    assert_eq!(names.len(), 24, "{names:?}");
    let packed = Packed::new(file(&programs)).expect("sound");
    assert_eq!(packed.programs(), programs);
}

/// The message that a file of one node gives when its words are these.
fn refused(op: Op, words: &[u32]) -> String {
    let mut sections = split(file(&[program(Role::Denoiser, vec![op])]).as_ref());
    let first = 4 * first_word(build(&sections).as_ref(), 0);
    sections[ARGS].truncate(first);
    sections[ARGS].extend(words.iter().flat_map(|word| word.to_le_bytes()));
    sections[NODES][4..8].copy_from_slice(&(words.len() as u32).to_le_bytes());
    match Packed::new(build(&sections)) {
        Err(e @ Error::Format { section: "ARGS", .. }) => e.to_string(),
        Err(other) => panic!("{other}"),
        Ok(packed) => panic!("read as {:?}", packed.programs()[0].nodes),
    }
}

/// The words of the only node of a program.
fn words(op: Op) -> Vec<u32> {
    let file = file(&[program(Role::Denoiser, vec![op])]);
    let args = split(file.as_ref())[ARGS].split_off(4 * first_word(file.as_ref(), 0));
    args.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

#[test]
fn words_are_those_of_the_specification() {
    let real = f32::to_bits;
    let gate = Some(Columns { value: POOLED, offset: 4 });
    let linear = Linear { x: X, weight: SQUARE, bias: None, act: Act::None, gate, residual: None };
    let per_condition = Attend { per_condition: true, ..Attend::default() };
    let spec =
        QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::curve(CURVE, CurveAxis::Timestep) };
    let range = QuantizeRange::Curve(RangeCurve { points: CURVE, axis: CurveAxis::Timestep, top: 252 });
    let ends = QuantizeSpec { range, ..spec };
    let modulation = Some(Modulation { value: POOLED, scale: 0, shift: 0 });
    let norm = LayerNorm { x: X, weight: None, bias: None, eps: 0.0, modulation: None, ..LayerNorm::default() };
    let cases: &[(Op, &[u32])] = &[
        (linear.into(), &[1, 5, 0, 0, 4, 4]),
        (Linear { gate: None, residual: Some(X), ..linear }.into(), &[1, 5, 0, 0, 0, 0, 1]),
        (Linear { gate: None, ..linear }.into(), &[1, 5]),
        (attention(Attend::default()), &[3, 3, 3, 2, real(0.5)]),
        (attention(per_condition), &[3, 3, 3, 2, real(0.5), 0, 1]),
        (on_grid(SoftmaxGrid { bits: 8, range: QuantizeRange::Dynamic }), &[3, 3, 3, 2, real(0.5), 0, 0, 0, 8]),
        (on_grid(SoftmaxGrid { bits: 16, range: spec.range }), &[3, 3, 3, 2, real(0.5), 0, 0, 0, 16, 1, 2]),
        (Round { x: X, spec, parts: 0 }.into(), &[1, 8, 0, 1, 2]),
        (Round { x: X, parts: 2, ..Default::default() }.into(), &[1, 8, 0, 0, 0, 2]),
        (norm.into(), &[1]),
        (LayerNorm { modulation, ..norm }.into(), &[1, 0, 0, 0, 4]),
        (LayerNorm { quantize: Some(spec), ..norm }.into(), &[1, 0, 0, 0, 0, 0, 0, 8, 0, 1, 2]),
        (LayerNorm { quantize: Some(ends), ..norm }.into(), &[1, 0, 0, 0, 0, 0, 0, 8, 0, 1, 2, 252]),
        (LayerNorm { rms: true, ..norm }.into(), &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (Quantize { x: X, spec, turn: None }.into(), &[1, 8, 0, 1, 2]),
        (Quantize { x: X, spec: ends, turn: None }.into(), &[1, 8, 0, 1, 2, 0, 0, 252]),
        (
            Quantize { x: X, turn: Some(Turn { factors: V8, block: 8 }), ..Default::default() }.into(),
            &[1, 8, 0, 0, 0, 1, 8],
        ),
        (Parameter { tensor: V8, ..Parameter::default() }.into(), &[1]),
        (Parameter { tensor: V8, flat: true, rows: 0 }.into(), &[1, 1]),
        (Parameter { tensor: V8, flat: false, rows: 3 }.into(), &[1, 0, 3]),
        (Multiply { a: X, b: X }.into(), &[1, 1]),
        (RelativeBias { x: TOKENS, table: ROWS, buckets: 16, max_distance: 128 }.into(), &[2, 3, 16, 128]),
        (
            PositionEmbedding {
                x: X,
                dim: 8,
                base: 3,
                interpolation: 2.0,
                keep_ratio: false,
                grid: Default::default(),
            }
            .into(),
            &[1, 8, 3, real(2.0)],
        ),
        (
            PositionEmbedding { x: X, dim: 8, base: 3, interpolation: 2.0, keep_ratio: true, grid: Default::default() }
                .into(),
            &[1, 8, 3, real(2.0), 1],
        ),
        (Concat { a: CONTEXT, b: CONTEXT, tokens: true }.into(), &[3, 3, 1]),
        (Slice { x: CONTEXT, first: 0, count: 1, tokens: true }.into(), &[3, 0, 1, 1]),
        (Rotary { x: X, table: X, heads: 1 }.into(), &[1, 1, 1]),
        (LayerNorm { shift: gate, ..norm }.into(), &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4]),
        (LayerNorm { parts: 2, ..norm }.into(), &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
        (
            PositionEmbedding { x: X, dim: 8, base: 0, interpolation: 2.0, keep_ratio: false, grid: Grid::Frames }
                .into(),
            &[1, 8, 0, real(2.0), 0, 1],
        ),
        (
            PositionEmbedding {
                x: X,
                dim: 8,
                base: 0,
                interpolation: 2.0,
                keep_ratio: false,
                grid: Grid::SeveralFrames,
            }
            .into(),
            &[1, 8, 0, real(2.0), 0, 2],
        ),
        (within(Reach::Place), &[1, 1, 1, 2, real(0.5), 0, 0, 0, 0, 0, 0, 0, 0, 2]),
    ];
    for &(op, wanted) in cases {
        assert_eq!(words(op), wanted, "{op:?}");
    }
    let file = file(&[program(Role::VaeEncoder, Vec::new())]);
    let sections = split(file.as_ref());
    let symbol = |n: u32| 1 << 31 | n;
    let sample = [0, 0, 4, symbol(0), symbol(2), symbol(3), 8];
    let args: Vec<u8> = sample.into_iter().chain([3, 0, 2, symbol(0), 77]).flat_map(u32::to_le_bytes).collect();
    assert!(sections[ARGS].starts_with(&args), "{:?}", sections[ARGS]);
    let record: Vec<u8> = [2u32, 5, 28, 0, 0, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    assert_eq!(sections[PROGRAMS], record);
}

/// A bias and lengths are read of values that have their shapes: a node's, and an input's.
#[test]
fn masks_of_attention_are_read_as_they_were_written() {
    let inputs = [
        (InputKind::Sample, vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(8)]),
        (InputKind::Context, vec![Dim::Conditions, Dim::Tokens, Dim::Fixed(8)]),
        (InputKind::Lengths, vec![Dim::Conditions]),
    ];
    let inputs = inputs.map(|(kind, dims)| Input { kind, dims }).to_vec();
    let [context, lengths, bias] = [1, 2, 3].map(Value);
    let of_distances = RelativeBias { x: context, table: ROWS, buckets: 16, max_distance: 9 };
    let attention = Attention {
        q: context,
        k: context,
        v: context,
        heads: 8,
        scale: 0.5,
        bias: Some(bias),
        lengths: Some(lengths),
        ..Attention::default()
    };
    let nodes =
        [Op::from(of_distances), attention.into()].map(|op| Node { op, path: "n".into(), wide: false }).to_vec();
    let program = Program { role: Role::Denoiser, inputs, nodes, output: X, phases: Default::default() };
    let bytes = file(std::slice::from_ref(&program));
    let args = &split(bytes.as_ref())[ARGS];
    let words: Vec<u32> = [2, 3, 16, 9, 2, 2, 2, 8, 0.5f32.to_bits(), 0, 0, 0, 0, 0, 0, 4, 3].to_vec();
    assert!(args.ends_with(words.as_bytes()), "{args:?}");
    assert_eq!(Packed::new(bytes).expect("sound").programs(), [program]);
}

#[test]
fn faults_of_the_newer_ops_are_named() {
    let nearest = Op::VectorQuantize(VectorQuantize { x: X, table: ROWS });
    let resample = Op::Resample(Resample { x: X, how: Resampling::Mean });
    let parameter = Op::Parameter(Parameter { tensor: ROWS, ..Parameter::default() });
    let gated = Op::GatedLinear(GatedLinear { x: X, weight: ROWS, bias: None, act: Act::GeluErf });
    // The first node of a program has no other to add.
    let alone = |op: &Op| matches!(op, Op::Conv2d(conv) if conv.residual.or(conv.size_of).is_none());
    let conv = ops().into_iter().find(alone).expect("it is one of them");
    let modulated = group_norm(Some(Modulation { value: POOLED, scale: 1, shift: 2 }));
    let attention = attention(Attend::default());
    let round = Op::Round(Round { x: X, ..Default::default() });
    let rms = Op::LayerNorm(LayerNorm { x: X, rms: true, ..LayerNorm::default() });
    let multiply = Op::Multiply(Multiply { a: X, b: X });
    let distances = Op::RelativeBias(RelativeBias { x: TOKENS, table: ROWS, buckets: 16, max_distance: 128 });
    let eps = 0.25f32.to_bits();
    let cases: &[(Op, &[u32], &str)] = &[
        (nearest, &[6, 3], "x: expected a value below 5, got 5"),
        (nearest, &[0, 3], "x: expected a value below 5, got none"),
        (nearest, &[1, 7], "table: expected a tensor below 6, got 6"),
        (nearest, &[1], "table: expected a tensor below 6, got none"),
        (nearest, &[1, 3, 1], "words: expected at most 2, got 3; use a newer aquatint"),
        (nearest, &[1, 3, 0], "words: expected at most 2, got 3"),
        (nearest, &[], "x: expected a value below 5, got none"),
        (resample, &[1, 2], "how: expected 0 to 1, got 2; use a newer aquatint"),
        (resample, &[1, u32::MAX], "how: expected 0 to 1, got 4294967295"),
        (resample, &[6, 1], "x: expected a value below 5, got 5"),
        (resample, &[1, 0], "last word: expected no zero, got 0"),
        (resample, &[1, 1, 1], "words: expected at most 2"),
        (parameter, &[7], "tensor: expected a tensor below 6, got 6"),
        (parameter, &[], "tensor: expected a tensor below 6, got none"),
        (parameter, &[1, 2], "flat: expected 0 or 1, got 2"),
        (parameter, &[1, 1, 1, 1], "words: expected at most 3"),
        (gated, &[1, 3, 0, 5], "act: expected 0 to 4, got 5; use a newer aquatint"),
        (gated, &[1, 3, 7], "bias: expected a tensor below 6, got 6"),
        (gated, &[1, 3, 0, 3, 1], "words: expected at most 4"),
        (conv, &[1, 4, 0, 4], "sampling: expected 0 to 3, got 4; use a newer aquatint"),
        (modulated, &[1, 1, 1, 4, eps, 6, 1, 2], "modulation: expected a value below 5, got 5"),
        // Without a modulation its columns mean nothing, and without bits a quantization.
        (modulated, &[1, 1, 1, 4, eps, 0, 1, 2], "first column of scale: expected 0, got 1"),
        (modulated, &[1, 1, 1, 4, eps, 0, 0, 0, 0, 0, 1], "quantize grain: expected 0, got 1"),
        (modulated, &[1, 1, 1, 4, eps, 0, 0, 0, 0, 6, 1, 2], "quantize range: expected 0, got 2"),
        (modulated, &[1, 1, 1, 4, eps, 0, 0, 0, 0, 6, 1, 0, 2], "quantize curve: expected 0, got 2"),
        (modulated, &[1, 1, 1, 4, eps, 0, 0, 0, 0, 6, 1, 2, 7], "quantize curve: expected a tensor below 6, got 6"),
        (modulated, &[1, 1, 1, 4, eps, 0, 0, 0, 0, 6, 1, 2, 2, 1, 1], "words: expected at most 14, got 15"),
        // The last code of what is not in a curve's range.
        (modulated, &[1, 1, 1, 4, eps, 0, 0, 0, 0, 6, 1, 0, 0, 1], "quantize top: expected 0, got 1"),
        (attention, &[3, 3, 3, 2, 0, 2], "causal: expected 0 or 1, got 2"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, u32::MAX], "int8: expected 0 or 1, got 4294967295"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, 1, 0, 1], "softmax range: expected 0, got 1"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, 0, 16, 3], "softmax range: expected 0 to 2, got 3; use a newer aquatint"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, 0, 16, 1], "softmax range: expected 0, got 1"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, 0, 16, 1, 7], "softmax curve: expected a tensor below 6, got 6"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, 0, 16, 1, 2, 1, 7], "lengths: expected a value below 5, got 6"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 6], "bias: expected a value below 5, got 5"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3], "reach: expected 0 to 2, got 3; use a newer aquatint"),
        (attention, &[3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1, 1], "words: expected at most 14, got 15"),
        (rms, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], "rms: expected 0 or 1, got 2"),
        (rms, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 6], "shift: expected a value below 5, got 5"),
        (rms, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3], "first column of the shift alone: expected 0, got 3"),
        (rms, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 1], "words: expected at most 16, got 17"),
        (multiply, &[1], "b: expected a value below 5, got none"),
        (multiply, &[1, 1, 1], "words: expected at most 2, got 3"),
        (distances, &[0, 3, 32, 128], "x: expected a value below 5, got none"),
        (distances, &[2, 7, 32, 128], "table: expected a tensor below 6, got 6"),
        (distances, &[2, 3, 32, 128, 1], "words: expected at most 4, got 5"),
        (round, &[1, 8, 2], "quantize grain: expected 0 to 1, got 2; use a newer aquatint"),
        (round, &[1, 8, 0, 1, 2, 2, 1, 1], "words: expected at most 7, got 8"),
    ];
    for &(op, words, text) in cases {
        let message = refused(op, words);
        assert!(message.contains(&format!("node 0 {} {text}", op.name())), "{words:?}: {message}");
    }
}
