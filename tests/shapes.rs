//! The shape rules: for each op what it accepts, and every way in which it refuses, by its message.

use aquatint::program::shape::{Kind, MAX_ELEMENTS, MAX_INTEGER_PRODUCTS, TensorType, Type, infer};
use aquatint::program::{
    Act, Add, Attend, Attention, Columns, Conv2d, ConvStride, CurveAxis, Dim, Dims, Embedding, GatedLinear, GroupNorm,
    Input, InputKind, LayerNorm, Linear, Modulation, Node, Op, Parameter, Patchify, Pointwise, PositionEmbedding,
    Program, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, Resample, Resampling, Role, Tensor,
    TimestepEmbedding, Unpatchify, Value, VectorQuantize,
};

const DIMS: Dims = Dims { batch: 2, conditions: 3, height: 6, width: 10, tokens: 1 };
const MUCH: u32 = 1 << 31;

// Values of every program here; its nodes follow.
const SAMPLE: Value = Value(0); // (2, 6, 10, 8)
const TIME: Value = Value(1); // (3)
const LABELS: Value = Value(2); // (3)
const TABLE: Value = Value(3); // (3, 9): an embedding of the labels
const LAST: Value = Value(4);

// Tensors.
const V8: Tensor = Tensor(0);
const V5: Tensor = Tensor(1);
const W: Tensor = Tensor(2); // (5, 8)
const W_I8: Tensor = Tensor(3);
const W_CODES: Tensor = Tensor(4);
const CONV: Tensor = Tensor(5); // (5, 3, 3, 8)
const CONV_I8: Tensor = Tensor(6);
const CONV_1: Tensor = Tensor(7); // (5, 1, 2, 4)
const ROWS: Tensor = Tensor(8); // (7, 9)
const CURVE: Tensor = Tensor(9);
const HALF_V8: Tensor = Tensor(10);
const CUBE: Tensor = Tensor(11);
const TO_6: Tensor = Tensor(12); // (6, 8)
const WIDE_I8: Tensor = Tensor(13);
const MANY: Tensor = Tensor(14); // (2^31, 8)
const CONV_6_I8: Tensor = Tensor(15); // (5, 3, 3, 6)
const MANY_CONV: Tensor = Tensor(16); // (2^31, 3, 3, 8)
const CODEBOOK: Tensor = Tensor(17); // f32 (4, 8)
const NO_TENSOR: Tensor = Tensor(99);
const NO_VALUE: Value = Value(99);

fn tensors() -> Vec<TensorType> {
    let of =
        |dims: &[usize], f32, codes, integer| TensorType { dims: dims.to_vec(), integer, f32, codes, bytes: false };
    let f32 = |dims| of(dims, true, false, false);
    let f16 = |dims| of(dims, false, false, false);
    let i8 = |dims| of(dims, false, true, true);
    vec![
        f32(&[8]),
        f32(&[5]),
        f16(&[5, 8]),
        i8(&[5, 8]),
        of(&[5, 8], false, true, false),
        f16(&[5, 3, 3, 8]),
        i8(&[5, 3, 3, 8]),
        f16(&[5, 1, 2, 4]),
        f16(&[7, 9]),
        f32(&[2, 3]),
        f16(&[8]),
        f32(&[2, 2, 2]),
        f16(&[6, 8]),
        i8(&[1, MAX_INTEGER_PRODUCTS + 1]),
        f16(&[MUCH as usize, 8]),
        i8(&[5, 3, 3, 6]),
        f16(&[MUCH as usize, 3, 3, 8]),
        f32(&[4, 8]),
    ]
}

fn inputs() -> Vec<Input> {
    let input = |kind, dims| Input { kind, dims };
    vec![
        input(InputKind::Sample, vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(8)]),
        input(InputKind::Timestep, vec![Dim::Conditions]),
        input(InputKind::ClassLabels, vec![Dim::Conditions]),
    ]
}

/// Types of a program of the given ops after the embedding of the labels.
fn types(ops: &[Op]) -> aquatint::Result<Vec<Type>> {
    let embedding = Op::Embedding(Embedding { index: LABELS, table: ROWS });
    let ops = [embedding].into_iter().chain(ops.iter().cloned());
    let nodes: Vec<_> = ops.map(|op| Node { op, path: "a.b".into(), wide: false }).collect();
    infer(&Program { role: Role::Denoiser, inputs: inputs(), nodes, output: TABLE }, &tensors(), &DIMS)
}

#[track_caller]
fn accept(ops: &[Op], dims: &[usize], kind: Kind) {
    match types(ops) {
        Ok(types) => assert_eq!(types.last(), Some(&Type::new(dims, kind)), "{ops:?}"),
        Err(e) => panic!("{e}: {ops:?}"),
    }
}

/// The last op must be refused, with the whole message after its place.
#[track_caller]
fn refuse(ops: &[Op], message: &str) {
    let place = format!("a.b (denoiser node {}, {}): ", ops.len(), ops[ops.len() - 1].name());
    match types(ops) {
        Ok(types) => panic!("accepted as {:?}: {ops:?}", types.last()),
        Err(e) => assert_eq!(e.to_string(), format!("{place}{message}"), "{ops:?}"),
    }
}

/// The result of the last op must be refused for its size, which is checked once for all ops.
#[track_caller]
fn refuse_size(ops: &[Op], shape: &str) {
    match types(ops) {
        Ok(types) => panic!("accepted as {:?}: {ops:?}", types.last()),
        Err(e) => {
            let e = e.to_string();
            assert!(e.ends_with(&format!("number of elements: expected 1 to 2^36, got shape {shape}")), "{e}");
        }
    }
}

fn spec(bits: u8, grain: QuantizeGrain, range: QuantizeRange) -> QuantizeSpec {
    QuantizeSpec { bits, grain, range }
}

const ROW8: QuantizeSpec = QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic };
const SAMPLE6: QuantizeSpec = QuantizeSpec { bits: 6, grain: QuantizeGrain::Sample, range: QuantizeRange::Dynamic };

fn quantize(x: Value, spec: QuantizeSpec) -> Op {
    Op::Quantize(Quantize { x, spec })
}

fn pointwise(x: Value) -> Op {
    Op::Pointwise(Pointwise { x, act: Act::Silu, mul: 1.0, add: 0.0 })
}

fn linear(x: Value, weight: Tensor) -> Op {
    Op::Linear(Linear { x, weight, bias: None, act: Act::None, gate: None, residual: None })
}

fn biased(x: Value, weight: Tensor, bias: Tensor) -> Op {
    Op::Linear(Linear { x, weight, bias: Some(bias), act: Act::None, gate: None, residual: None })
}

fn gated(x: Value, value: Value, offset: u32) -> Op {
    let gate = Some(Columns { value, offset });
    Op::Linear(Linear { x, weight: W, bias: None, act: Act::None, gate, residual: None })
}

fn summed(x: Value, residual: Value) -> Op {
    Op::Linear(Linear { x, weight: W, bias: None, act: Act::None, gate: None, residual: Some(residual) })
}

#[test]
fn linear_takes_rows_of_any_shape() {
    accept(&[linear(SAMPLE, W)], &[2, 6, 10, 5], Kind::Float);
    accept(&[biased(SAMPLE, W, V5)], &[2, 6, 10, 5], Kind::Float);
    accept(&[linear(SAMPLE, W_I8)], &[2, 6, 10, 5], Kind::Float);
    accept(&[linear(SAMPLE, W_CODES)], &[2, 6, 10, 5], Kind::Float);
    accept(&[linear(SAMPLE, CONV_1)], &[2, 6, 10, 5], Kind::Float);
    accept(&[quantize(SAMPLE, ROW8), linear(LAST, W_I8)], &[2, 6, 10, 5], Kind::Float);
    accept(&[gated(SAMPLE, TABLE, 4)], &[2, 6, 10, 5], Kind::Float);
    accept(&[linear(SAMPLE, W), summed(SAMPLE, LAST)], &[2, 6, 10, 5], Kind::Float);
    // A grid of positions repeats over the samples.
    let position = Op::PositionEmbedding(PositionEmbedding { x: SAMPLE, dim: 8, base: 4, interpolation: 1.0 });
    accept(&[position, linear(LAST, W), summed(SAMPLE, Value(5))], &[2, 6, 10, 5], Kind::Float);
}

#[test]
fn linear_refuses() {
    refuse(&[linear(NO_VALUE, W)], "x: expected a value below 4, got 99");
    refuse(&[linear(SAMPLE, NO_TENSOR)], "weight: expected a tensor below 18, got 99");
    refuse(&[linear(SAMPLE, V8)], "weight: expected [o, k], got [8]");
    refuse(&[linear(SAMPLE, CUBE)], "weight: expected [o, k], got [2, 2, 2]");
    refuse(&[linear(TABLE, W)], "x: expected 8 features, as weight [5, 8], got [3, 9]");
    refuse(&[linear(SAMPLE, CONV)], "x: expected 72 features, as weight [5, 3, 3, 8], got [2, 6, 10, 8]");
    let matched = "x: expected float elements, or codes and a weight with an integer codebook, got ";
    let row8 = "Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), linear(LAST, W)], &format!("{matched}{row8}"));
    refuse(&[quantize(SAMPLE, ROW8), linear(LAST, W_CODES)], &format!("{matched}{row8}"));
    refuse(&[biased(SAMPLE, W, NO_TENSOR)], "bias: expected a tensor below 18, got 99");
    refuse(&[biased(SAMPLE, W, V8)], "bias: expected f32 [5], got ([8], \"f32\")");
    refuse(&[biased(SAMPLE, TO_6, HALF_V8)], "bias: expected f32 [6], got ([8], \"not f32\")");
    refuse(&[gated(SAMPLE, TABLE, 5)], "gate: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[gated(SAMPLE, TABLE, u32::MAX)], "gate: expected (3 conditions, at least 4294967300), got [3, 9]");
    refuse(&[gated(SAMPLE, SAMPLE, 0)], "gate: expected (3 conditions, at least 5), got [2, 6, 10, 8]");
    refuse(&[gated(SAMPLE, LABELS, 0)], "gate: expected float elements, got Index");
    let on_table = Op::TimestepEmbedding(TimestepEmbedding { t: TIME, dim: 8, cos_first: true, shift: 0.0 });
    refuse(&[on_table, gated(LAST, TABLE, 0)], "gate: expected a result for each of the 2 samples, got [3, 5]");
    refuse(&[summed(SAMPLE, SAMPLE)], "residual: expected rows dividing those of [2, 6, 10, 5], got [2, 6, 10, 8]");
    refuse(&[summed(SAMPLE, NO_VALUE)], "residual: expected a value below 4, got 99");
    let odd = Op::TimestepEmbedding(TimestepEmbedding { t: TIME, dim: 8, cos_first: true, shift: 0.0 });
    let message = "residual: expected rows dividing those of [3, 5], got [2, 6, 10, 5]";
    refuse(&[linear(SAMPLE, W), odd, summed(Value(5), LAST)], message);
    refuse_size(&[linear(SAMPLE, MANY)], "[2, 6, 10, 2147483648]");
}

#[test]
fn sums_of_codes_stay_within_32_bits() {
    let cols = MAX_INTEGER_PRODUCTS as u32;
    assert!(i64::from(cols) * 255 * 128 <= i64::from(i32::MAX));
    assert!((i64::from(cols) + 1) * 255 * 128 > i64::from(i32::MAX));
    let mut program = Program { role: Role::Denoiser, inputs: inputs(), nodes: Vec::new(), output: Value(3) };
    let mut tensors = tensors();
    for (k, fits) in [(cols, true), (cols + 1, false)] {
        program.inputs[0].dims[3] = Dim::Fixed(k);
        tensors[WIDE_I8.0 as usize].dims[1] = k as usize;
        let node = |op| Node { op, path: "a".into(), wide: false };
        program.nodes = vec![node(quantize(SAMPLE, ROW8)), node(linear(Value(3), WIDE_I8))];
        program.output = Value(4);
        match infer(&program, &tensors, &DIMS) {
            Ok(_) => assert!(fits),
            Err(e) => {
                let want =
                    "a (denoiser node 1, linear): x: expected codes summed over at most 65793 products, got 65794";
                assert_eq!((e.to_string().as_str(), fits), (want, false));
            }
        }
        // Floats have no such limit.
        program.nodes = vec![node(linear(SAMPLE, WIDE_I8))];
        program.output = Value(3);
        infer(&program, &tensors, &DIMS).expect("floats");
    }
}

fn conv(x: Value, weight: Tensor, bias: Option<Tensor>, sampling: ConvStride, residual: Option<Value>) -> Op {
    Op::Conv2d(Conv2d { x, weight, bias, sampling, shift: None, residual })
}

#[test]
fn conv2d_keeps_or_doubles_the_pixels() {
    accept(&[conv(SAMPLE, CONV, None, ConvStride::Same, None)], &[2, 6, 10, 5], Kind::Float);
    accept(&[conv(SAMPLE, CONV, Some(V5), ConvStride::Up, None)], &[2, 12, 20, 5], Kind::Float);
    accept(&[linear(SAMPLE, W), conv(SAMPLE, CONV, None, ConvStride::Same, Some(LAST))], &[2, 6, 10, 5], Kind::Float);
    accept(
        &[quantize(SAMPLE, SAMPLE6), conv(LAST, CONV_I8, None, ConvStride::Same, None)],
        &[2, 6, 10, 5],
        Kind::Float,
    );
}

#[test]
fn conv2d_refuses() {
    refuse(&[conv(NO_VALUE, CONV, None, ConvStride::Same, None)], "x: expected a value below 4, got 99");
    refuse(&[conv(TABLE, CONV, None, ConvStride::Same, None)], "x: expected (n, h, w, c), got [3, 9]");
    refuse(&[conv(SAMPLE, NO_TENSOR, None, ConvStride::Same, None)], "weight: expected a tensor below 18, got 99");
    refuse(&[conv(SAMPLE, W, None, ConvStride::Same, None)], "weight: expected [o, 3, 3, 8], got [5, 8]");
    refuse(&[conv(SAMPLE, CONV_1, None, ConvStride::Same, None)], "weight: expected [o, 3, 3, 8], got [5, 1, 2, 4]");
    refuse(&[conv(SAMPLE, CONV_6_I8, None, ConvStride::Same, None)], "weight: expected [o, 3, 3, 8], got [5, 3, 3, 6]");
    refuse(
        &[quantize(SAMPLE, SAMPLE6), conv(LAST, CONV, None, ConvStride::Same, None)],
        "x: expected float elements, or codes and a weight with an integer codebook, got \
         Codes(QuantizeSpec { bits: 6, grain: Sample, range: Dynamic })",
    );
    let by_row = [quantize(SAMPLE, ROW8), conv(LAST, CONV_I8, None, ConvStride::Same, None)];
    refuse(&by_row, "x: expected codes with one scale per sample, got Row");
    let six = [linear(SAMPLE, TO_6), quantize(LAST, SAMPLE6), conv(Value(5), CONV_6_I8, None, ConvStride::Same, None)];
    refuse(&six, "x: expected codes with a multiple of 4 channels, got 6");
    refuse(&[conv(SAMPLE, CONV, Some(V8), ConvStride::Same, None)], "bias: expected f32 [5], got ([8], \"f32\")");
    let doubled = [linear(SAMPLE, W), conv(SAMPLE, CONV, None, ConvStride::Up, Some(LAST))];
    refuse(&doubled, "residual: expected rows dividing those of [2, 12, 20, 5], got [2, 6, 10, 5]");
    refuse_size(&[conv(SAMPLE, MANY_CONV, None, ConvStride::Same, None)], "[2, 6, 10, 2147483648]");
}

fn attention(q: Value, k: Value, v: Value, heads: u32, scale: f32) -> Op {
    Op::Attention(Attention { q, k, v, heads, scale, attend: Default::default() })
}

fn gated_linear(x: Value, weight: Tensor, bias: Option<Tensor>) -> Op {
    Op::GatedLinear(GatedLinear { x, weight, bias, act: Act::GeluErf })
}

#[test]
fn gated_linear_halves_the_rows_of_its_weight() {
    accept(&[gated_linear(SAMPLE, TO_6, None)], &[2, 6, 10, 3], Kind::Float);
    let narrow = Op::Pointwise(Pointwise { x: SAMPLE, act: Act::None, mul: 1.0, add: 0.0 });
    accept(&[narrow, gated_linear(LAST, TO_6, None)], &[2, 6, 10, 3], Kind::Float);
    refuse(&[gated_linear(NO_VALUE, TO_6, None)], "x: expected a value below 4, got 99");
    refuse(&[gated_linear(SAMPLE, W, None)], "weight: expected [2 o, k], got [5, 8]");
    refuse(&[gated_linear(SAMPLE, V8, None)], "weight: expected [2 o, k], got [8]");
    refuse(&[gated_linear(SAMPLE, CONV_1, None)], "weight: expected [2 o, k], got [5, 1, 2, 4]");
    refuse(&[gated_linear(TABLE, TO_6, None)], "x: expected 8 features, as weight [6, 8], got [3, 9]");
    refuse(&[gated_linear(SAMPLE, TO_6, Some(V8))], "bias: expected f32 [6], got ([8], \"f32\")");
    let codes = "x: expected float elements, or codes and a weight with an integer codebook, got \
                 Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), gated_linear(LAST, TO_6, None)], codes);
    refuse_size(&[gated_linear(SAMPLE, MANY, None)], "[2, 6, 10, 1073741824]");
}

#[test]
fn attention_sees_conditions_and_only_earlier_keys() {
    let attend = |causal, per_condition| Attend { causal, per_condition, int8: false };
    let attention = |q, k, attend| Op::Attention(Attention { q, k, v: k, heads: 1, scale: 1.0, attend });
    let table =
        |features| Op::TimestepEmbedding(TimestepEmbedding { t: TIME, dim: features, cos_first: true, shift: 0.0 });
    // A value of two axes is one key per condition.
    accept(&[table(8), attention(SAMPLE, LAST, attend(false, true))], &[2, 6, 10, 8], Kind::Float);
    accept(&[attention(SAMPLE, SAMPLE, attend(true, false))], &[2, 6, 10, 8], Kind::Float);
    let per_sample = [table(8), attention(SAMPLE, LAST, attend(false, false))];
    let got = "got ([2, 6, 10, 8], [3, 8], [3, 8])";
    refuse(&per_sample, &format!("q, k, v: expected q (n, .., d), k and v (2, .., d), {got}"));
    let got = "got ([2, 6, 10, 8], [2, 6, 10, 8], [2, 6, 10, 8])";
    let of_samples = attention(SAMPLE, SAMPLE, attend(false, true));
    refuse(&[of_samples], &format!("q, k, v: expected q (n, .., d), k and v (3, .., d), {got}"));
    refuse(
        &[table(8), attention(SAMPLE, LAST, attend(true, true))],
        "k: expected as many rows as [2, 6, 10, 8], got [3, 8]",
    );
}

#[test]
fn attention_takes_keys_of_another_length() {
    accept(&[attention(SAMPLE, SAMPLE, SAMPLE, 4, 0.5)], &[2, 6, 10, 8], Kind::Float);
    let smaller = Op::Unpatchify(Unpatchify { x: SAMPLE, patch: 2 });
    let patches = Op::Patchify(Patchify { x: LAST, patch: 2 });
    accept(&[smaller, patches, attention(SAMPLE, Value(5), Value(5), 8, 0.5)], &[2, 6, 10, 8], Kind::Float);
}

#[test]
fn attention_refuses() {
    refuse(&[attention(NO_VALUE, SAMPLE, SAMPLE, 1, 1.0)], "q: expected a value below 4, got 99");
    refuse(&[attention(SAMPLE, LABELS, SAMPLE, 1, 1.0)], "k: expected float elements, got Index");
    let codes = [quantize(SAMPLE, ROW8), attention(SAMPLE, SAMPLE, LAST, 1, 1.0)];
    refuse(&codes, "v: expected float elements, got Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })");
    let equal = "q, k, v: expected q (n, .., d), k and v (3, .., d), got ";
    let got = "([3, 9], [3, 9], [3, 9])";
    refuse(&[attention(TABLE, TABLE, TABLE, 1, 1.0)], &format!("{equal}{got}"));
    let equal = "q, k, v: expected q (n, .., d), k and v (2, .., d), got ";
    let got = "([2, 6, 10, 8], [2, 6, 10, 5], [2, 6, 10, 5])";
    refuse(&[linear(SAMPLE, W), attention(SAMPLE, LAST, LAST, 1, 1.0)], &format!("{equal}{got}"));
    let got = "([2, 6, 10, 8], [2, 6, 10, 8], [2, 6, 10, 5])";
    refuse(&[linear(SAMPLE, W), attention(SAMPLE, SAMPLE, LAST, 1, 1.0)], &format!("{equal}{got}"));
    refuse(&[attention(SAMPLE, SAMPLE, SAMPLE, 0, 1.0)], "heads: expected a divisor of 8, got 0");
    refuse(&[attention(SAMPLE, SAMPLE, SAMPLE, 3, 1.0)], "heads: expected a divisor of 8, got 3");
    refuse(&[attention(SAMPLE, SAMPLE, SAMPLE, 2, f32::NAN)], "scale: expected a finite number, got NaN");
}

fn layer_norm(
    x: Value,
    weight: Option<Tensor>,
    eps: f32,
    modulation: Option<Modulation>,
    q: Option<QuantizeSpec>,
) -> Op {
    Op::LayerNorm(LayerNorm { x, weight, bias: weight, eps, modulation, quantize: q })
}

#[test]
fn layer_norm_keeps_the_shape() {
    accept(&[layer_norm(SAMPLE, None, 0.0, None, None)], &[2, 6, 10, 8], Kind::Float);
    accept(&[layer_norm(SAMPLE, Some(V8), 1e-6, None, Some(ROW8))], &[2, 6, 10, 8], Kind::Codes(ROW8));
    let modulation = Some(Modulation { value: TABLE, scale: 0, shift: 1 });
    accept(&[layer_norm(SAMPLE, None, 1e-6, modulation, None)], &[2, 6, 10, 8], Kind::Float);
}

#[test]
fn layer_norm_refuses() {
    refuse(&[layer_norm(LABELS, None, 0.0, None, None)], "x: expected float elements, got Index");
    refuse(&[layer_norm(SAMPLE, Some(V5), 0.0, None, None)], "weight: expected f32 [8], got ([5], \"f32\")");
    let bias = Some(HALF_V8);
    let norm = Op::LayerNorm(LayerNorm { x: SAMPLE, weight: None, bias, eps: 0.0, modulation: None, quantize: None });
    refuse(&[norm], "bias: expected f32 [8], got ([8], \"not f32\")");
    for (eps, got) in [(-1.0, "-1.0"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let message = format!("eps: expected a finite number, not negative, got {got}");
        refuse(&[layer_norm(SAMPLE, None, eps, None, None)], &message);
    }
    let modulated = |value, scale, shift| layer_norm(SAMPLE, None, 0.0, Some(Modulation { value, scale, shift }), None);
    refuse(&[modulated(TABLE, 2, 0)], "scale: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[modulated(TABLE, 0, 2)], "shift: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[modulated(SAMPLE, 0, 0)], "scale: expected (3 conditions, at least 8), got [2, 6, 10, 8]");
    let per_condition = layer_norm(TABLE, None, 0.0, Some(Modulation { value: TABLE, scale: 0, shift: 0 }), None);
    refuse(&[per_condition], "scale: expected a result for each of the 2 samples, got [3, 9]");
    let seven = spec(7, QuantizeGrain::Row, QuantizeRange::Dynamic);
    refuse(&[layer_norm(SAMPLE, None, 0.0, None, Some(seven))], "quantize bits: expected 6 or 8, got 7");
    let message = format!("quantize grain: expected one scale per row, got {:?}", Some(SAMPLE6));
    refuse(&[layer_norm(SAMPLE, None, 0.0, None, Some(SAMPLE6))], &message);
}

#[test]
fn group_norm_divides_channels_evenly() {
    let norm = |x, weight, bias, groups, eps, quantize| {
        Op::GroupNorm(GroupNorm { x, weight, bias, groups, eps, modulation: None, act: Act::Silu, quantize })
    };
    accept(&[norm(SAMPLE, V8, V8, 4, 1e-6, None)], &[2, 6, 10, 8], Kind::Float);
    accept(&[norm(SAMPLE, V8, V8, 1, 1e-6, Some(SAMPLE6))], &[2, 6, 10, 8], Kind::Codes(SAMPLE6));
    refuse(&[norm(NO_VALUE, V8, V8, 4, 0.0, None)], "x: expected a value below 4, got 99");
    refuse(&[norm(TABLE, V8, V8, 4, 0.0, None)], "x: expected (n, h, w, c), got [3, 9]");
    refuse(&[norm(SAMPLE, V5, V8, 4, 0.0, None)], "weight: expected f32 [8], got ([5], \"f32\")");
    refuse(&[norm(SAMPLE, V8, V5, 4, 0.0, None)], "bias: expected f32 [8], got ([5], \"f32\")");
    refuse(&[norm(SAMPLE, V8, V8, 0, 0.0, None)], "groups: expected a divisor of 8, got 0");
    refuse(&[norm(SAMPLE, V8, V8, 3, 0.0, None)], "groups: expected a divisor of 8, got 3");
    refuse(&[norm(SAMPLE, V8, V8, 4, -0.5, None)], "eps: expected a finite number, not negative, got -0.5");
    let four = spec(4, QuantizeGrain::Sample, QuantizeRange::Dynamic);
    refuse(&[norm(SAMPLE, V8, V8, 4, 0.0, Some(four))], "quantize bits: expected 6 or 8, got 4");
}

#[test]
fn group_norm_takes_a_modulation_per_condition() {
    let norm = |value, scale, shift| {
        Op::GroupNorm(GroupNorm {
            x: SAMPLE,
            weight: V8,
            bias: V8,
            groups: 4,
            eps: 1e-6,
            modulation: Some(Modulation { value, scale, shift }),
            act: Act::Silu,
            quantize: None,
        })
    };
    accept(&[norm(TABLE, 0, 1)], &[2, 6, 10, 8], Kind::Float);
    refuse(&[norm(TABLE, 2, 0)], "scale: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[norm(TABLE, 0, 2)], "shift: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[norm(TABLE, u32::MAX, 0)], "scale: expected (3 conditions, at least 4294967303), got [3, 9]");
    refuse(&[norm(SAMPLE, 0, 0)], "scale: expected (3 conditions, at least 8), got [2, 6, 10, 8]");
    refuse(&[norm(LABELS, 0, 0)], "scale: expected float elements, got Index");
    refuse(&[norm(NO_VALUE, 0, 0)], "scale: expected a value below 4, got 99");
}

#[test]
fn resample_doubles_or_halves_the_pixels() {
    let resample = |x, how| Op::Resample(Resample { x, how });
    accept(&[resample(SAMPLE, Resampling::Nearest)], &[2, 12, 20, 8], Kind::Float);
    accept(&[resample(SAMPLE, Resampling::Mean)], &[2, 3, 5, 8], Kind::Float);
    // 3 x 5 pixels, then 1 x 2, then none.
    let halved = [SAMPLE, LAST, Value(5)].map(|x| resample(x, Resampling::Mean));
    accept(&halved[..2], &[2, 1, 2, 8], Kind::Float);
    refuse_size(&halved, "[2, 0, 1, 8]");
    refuse(&[resample(TABLE, Resampling::Nearest)], "x: expected (n, h, w, c), got [3, 9]");
    refuse(&[resample(LABELS, Resampling::Mean)], "x: expected float elements, got Index");
    let codes = "x: expected float elements, got Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), resample(LAST, Resampling::Nearest)], codes);
}

#[test]
fn vector_quantize_takes_rows_of_the_tables_length() {
    let nearest = |x, table| Op::VectorQuantize(VectorQuantize { x, table });
    accept(&[nearest(SAMPLE, CODEBOOK)], &[2, 6, 10, 8], Kind::Float);
    refuse(&[nearest(TABLE, CODEBOOK)], "table: expected f32 [rows, 9], got [4, 8]");
    refuse(&[nearest(SAMPLE, W)], "table: expected f32 [rows, 8], got [5, 8]");
    refuse(&[nearest(SAMPLE, W_I8)], "table: expected f32 [rows, 8], got [5, 8]");
    refuse(&[nearest(SAMPLE, V8)], "table: expected f32 [rows, 8], got [8]");
    refuse(&[nearest(SAMPLE, NO_TENSOR)], "table: expected a tensor below 18, got 99");
    refuse(&[nearest(LABELS, CODEBOOK)], "x: expected float elements, got Index");
}

#[test]
fn a_parameter_has_the_axes_of_its_tensor() {
    let parameter = |tensor| Op::Parameter(Parameter { tensor });
    for (tensor, dims) in [(V8, &[8][..]), (W, &[5, 8]), (CUBE, &[2, 2, 2]), (CONV, &[5, 3, 3, 8])] {
        accept(&[parameter(tensor)], dims, Kind::Float);
    }
    refuse(&[parameter(W_I8)], "tensor: expected f16 or f32, 1 to 4 axes, got [5, 8]");
    refuse(&[parameter(NO_TENSOR)], "tensor: expected a tensor below 18, got 99");
    refuse_size(&[parameter(MANY_CONV)], "[2147483648, 3, 3, 8]");
}

#[test]
fn pointwise_takes_any_floats() {
    accept(&[pointwise(SAMPLE)], &[2, 6, 10, 8], Kind::Float);
    accept(&[pointwise(TIME)], &[3], Kind::Float);
    refuse(&[pointwise(LABELS)], "x: expected float elements, got Index");
    refuse(&[pointwise(NO_VALUE)], "x: expected a value below 4, got 99");
}

#[test]
fn add_repeats_rows_of_the_second_operand() {
    let add = |a, b| Op::Add(Add { a, b });
    accept(&[add(SAMPLE, SAMPLE)], &[2, 6, 10, 8], Kind::Float);
    let position = Op::PositionEmbedding(PositionEmbedding { x: SAMPLE, dim: 8, base: 4, interpolation: 1.0 });
    accept(&[position, add(SAMPLE, LAST)], &[2, 6, 10, 8], Kind::Float);
    let message = "residual: expected rows dividing those of [6, 10, 8], got [2, 6, 10, 8]";
    refuse(&[position, add(LAST, SAMPLE)], message);
    refuse(&[add(LABELS, SAMPLE)], "a: expected float elements, got Index");
    refuse(&[add(SAMPLE, LABELS)], "residual: expected float elements, got Index");
    refuse(&[add(SAMPLE, TABLE)], "residual: expected rows dividing those of [2, 6, 10, 8], got [3, 9]");
}

#[test]
fn quantize_gives_codes_of_its_own_spec() {
    for range in [QuantizeRange::Dynamic, QuantizeRange::Curve(CURVE, CurveAxis::Timestep)] {
        for (bits, grain) in [(6, QuantizeGrain::Row), (8, QuantizeGrain::Sample)] {
            let spec = spec(bits, grain, range);
            accept(&[quantize(SAMPLE, spec)], &[2, 6, 10, 8], Kind::Codes(spec));
        }
    }
    accept(&[quantize(TIME, ROW8)], &[3], Kind::Codes(ROW8));
    refuse(&[quantize(LABELS, ROW8)], "x: expected float elements, got Index");
    let twice = "x: expected float elements, got Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), quantize(LAST, ROW8)], twice);
    for bits in [1, 4, 7, 16] {
        let spec = spec(bits, QuantizeGrain::Row, QuantizeRange::Dynamic);
        refuse(&[quantize(SAMPLE, spec)], &format!("quantize bits: expected 6 or 8, got {bits}"));
    }
    refuse(&[quantize(TIME, SAMPLE6)], "quantize grain: expected a value with samples, got [3]");
    let curve = |tensor| spec(8, QuantizeGrain::Row, QuantizeRange::Curve(tensor, CurveAxis::StepFraction));
    refuse(&[quantize(SAMPLE, curve(NO_TENSOR))], "curve: expected a tensor below 18, got 99");
    refuse(&[quantize(SAMPLE, curve(W))], "curve: expected f32 [points, 3], got [5, 8]");
    refuse(&[quantize(SAMPLE, curve(V8))], "curve: expected f32 [points, 3], got [8]");
    refuse(&[quantize(SAMPLE, curve(CUBE))], "curve: expected f32 [points, 3], got [2, 2, 2]");
}

#[test]
fn embedding_takes_row_numbers() {
    let embedding = |index, table| Op::Embedding(Embedding { index, table });
    accept(&[embedding(LABELS, W)], &[3, 8], Kind::Float);
    refuse(&[embedding(NO_VALUE, W)], "index: expected a value below 4, got 99");
    refuse(&[embedding(TIME, W)], "index: expected (conditions) or (n, t) row numbers, got ([3], Float)");
    refuse(&[embedding(LABELS, NO_TENSOR)], "table: expected a tensor below 18, got 99");
    refuse(&[embedding(LABELS, V8)], "table: expected f16 or f32 [rows, d], got [8]");
    refuse(&[embedding(LABELS, W_I8)], "table: expected f16 or f32 [rows, d], got [5, 8]");
    refuse(&[embedding(LABELS, CUBE)], "table: expected f16 or f32 [rows, d], got [2, 2, 2]");
}

/// Inputs of prompts, with the ops that take them.
#[test]
fn prompts_have_tokens_features_and_numbers() {
    use Dim::*;
    let dims = Dims { tokens: 7, ..DIMS };
    let types = |inputs: &[(InputKind, &[Dim])], op: Op| {
        let inputs = inputs.iter().map(|&(kind, dims)| Input { kind, dims: dims.to_vec() }).collect::<Vec<_>>();
        let output = Value(inputs.len() as u32);
        let nodes = vec![Node { op, path: "a".into(), wide: false }];
        let program = Program { role: Role::TextEncoder, inputs, nodes, output };
        infer(&program, &tensors(), &dims).map(|t| t[output.0 as usize].dims().to_vec()).map_err(|e| e.to_string())
    };
    let rows = Op::Embedding(Embedding { index: Value(0), table: ROWS });
    assert_eq!(types(&[(InputKind::Tokens, &[Batch, Fixed(77)])], rows), Ok(vec![2, 77, 9]));
    let got = types(&[(InputKind::Tokens, &[Conditions, Fixed(77)])], rows);
    assert_eq!(got, Err("text encoder input Tokens: axes: expected [2, tokens], got [3, 77]".into()));
    types(&[(InputKind::Tokens, &[Batch])], rows).expect_err("one axis");
    let numbers = Op::TimestepEmbedding(TimestepEmbedding { t: Value(0), dim: 8, cos_first: true, shift: 0.0 });
    assert_eq!(types(&[(InputKind::Sizes, &[Conditions, Fixed(6)])], numbers), Ok(vec![3, 48]));
    let got = types(&[(InputKind::Sizes, &[Conditions])], numbers);
    assert_eq!(got, Err("text encoder input Sizes: axes: expected [3, features], got [3]".into()));
    let many = Op::TimestepEmbedding(TimestepEmbedding { t: Value(0), dim: u32::MAX - 1, cos_first: true, shift: 0.0 });
    types(&[(InputKind::Sizes, &[Conditions, Fixed(1 << 30)])], many).expect_err("too many features");
    let linear = linear(Value(0), W);
    let context = &[Conditions, Tokens, Fixed(8)];
    assert_eq!(types(&[(InputKind::Context, context)], linear), Ok(vec![3, 7, 5]));
    assert_eq!(types(&[(InputKind::Pooled, &[Conditions, Fixed(8)])], linear), Ok(vec![3, 5]));
    let got = types(&[(InputKind::Context, &[Conditions, Fixed(77), Fixed(8)])], linear);
    assert_eq!(got, Err("text encoder input Context: axes: expected [3, 7, features], got [3, 77, 8]".into()));
    let got = types(&[(InputKind::Context, &[Batch, Tokens, Fixed(8)])], linear);
    assert_eq!(got, Err("text encoder input Context: axes: expected [3, 7, features], got [2, 7, 8]".into()));
    let got = types(&[(InputKind::Tokens, &[Batch, Fixed(77)])], pointwise(Value(0)));
    assert!(got.is_err_and(|e| e.ends_with("x: expected float elements, got Index")));
}

#[test]
fn timestep_embedding_has_a_sine_for_each_cosine() {
    let embedding = |t, dim, shift| Op::TimestepEmbedding(TimestepEmbedding { t, dim, cos_first: false, shift });
    accept(&[embedding(TIME, 6, 1.0)], &[3, 6], Kind::Float);
    refuse(&[embedding(LABELS, 6, 1.0)], "t: expected float elements, got Index");
    refuse(&[embedding(SAMPLE, 6, 1.0)], "t: expected (conditions) or (conditions, k), got [2, 6, 10, 8]");
    let even = "dim, shift: expected an even dim of at least 4 and a shift below half of it, got ";
    let cases = [
        (0, 0.0, "(0, 0.0)"),
        (2, 0.0, "(2, 0.0)"),
        (5, 0.0, "(5, 0.0)"),
        (6, 3.0, "(6, 3.0)"),
        (6, f32::NAN, "(6, NaN)"),
        (6, f32::NEG_INFINITY, "(6, -inf)"),
    ];
    for (dim, shift, got) in cases {
        refuse(&[embedding(TIME, dim, shift)], &format!("{even}{got}"));
    }
}

#[test]
fn position_embedding_has_the_grid_of_its_operand() {
    let embedding =
        |x, dim, base, interpolation| Op::PositionEmbedding(PositionEmbedding { x, dim, base, interpolation });
    accept(&[embedding(SAMPLE, 12, 4, 0.5)], &[6, 10, 12], Kind::Float);
    accept(&[quantize(SAMPLE, ROW8), embedding(LAST, 12, 4, 0.5)], &[6, 10, 12], Kind::Float);
    refuse(&[embedding(NO_VALUE, 8, 4, 1.0)], "x: expected a value below 4, got 99");
    refuse(&[embedding(TABLE, 8, 4, 1.0)], "x: expected (n, h, w, c), got [3, 9]");
    let positive = "dim, base, interpolation: expected a multiple of 4, and two positive numbers, got ";
    let cases = [
        (0, 4, 1.0, "(0, 4, 1.0)"),
        (6, 4, 1.0, "(6, 4, 1.0)"),
        (8, 0, 1.0, "(8, 0, 1.0)"),
        (8, 4, 0.0, "(8, 4, 0.0)"),
        (8, 4, -1.0, "(8, 4, -1.0)"),
        (8, 4, f32::NAN, "(8, 4, NaN)"),
        (8, 4, f32::INFINITY, "(8, 4, inf)"),
    ];
    for (dim, base, interpolation, got) in cases {
        refuse(&[embedding(SAMPLE, dim, base, interpolation)], &format!("{positive}{got}"));
    }
    refuse_size(&[embedding(SAMPLE, MUCH, 4, 1.0)], "[6, 10, 2147483648]");
}

#[test]
fn patches_divide_the_size() {
    let patchify = |x, patch| Op::Patchify(Patchify { x, patch });
    accept(&[patchify(SAMPLE, 1)], &[2, 6, 10, 8], Kind::Float);
    accept(&[patchify(SAMPLE, 2)], &[2, 3, 5, 32], Kind::Float);
    for patch in [0, 3, 4, 5, 6, 10, u32::MAX] {
        let multiples = format!("x: expected height and width in multiples of the patch size {patch}");
        refuse(&[patchify(SAMPLE, patch)], &format!("{multiples}, got [2, 6, 10, 8]"));
    }
    refuse(&[patchify(TABLE, 1)], "x: expected (n, h, w, c), got [3, 9]");
    let codes = "x: expected float elements, got Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), patchify(LAST, 1)], codes);
}

#[test]
fn unpatchify_undoes_patchify() {
    let unpatchify = |x, patch| Op::Unpatchify(Unpatchify { x, patch });
    accept(&[unpatchify(SAMPLE, 2)], &[2, 12, 20, 2], Kind::Float);
    accept(&[Op::Patchify(Patchify { x: SAMPLE, patch: 2 }), unpatchify(LAST, 2)], &[2, 6, 10, 8], Kind::Float);
    for patch in [0, 3, 4, 1 << 12, 1 << 16, u32::MAX] {
        let multiples = format!("x: expected features in multiples of {patch} x {patch}");
        refuse(&[unpatchify(SAMPLE, patch)], &format!("{multiples}, got [2, 6, 10, 8]"));
    }
    refuse(&[unpatchify(TABLE, 1)], "x: expected (n, h, w, c), got [3, 9]");
    refuse(&[unpatchify(LABELS, 1)], "x: expected float elements, got Index");
}

/// Types of a program without nodes.
fn declared(inputs: Vec<Input>, output: u32, dims: Dims) -> Result<Vec<Type>, String> {
    let program = Program { role: Role::VaeDecoder, inputs, nodes: Vec::new(), output: Value(output) };
    infer(&program, &tensors(), &dims).map_err(|e| e.to_string())
}

#[test]
fn inputs_have_the_axes_of_their_kind() {
    let types = declared(inputs(), 0, DIMS).expect("sound");
    let want = [(&[2, 6, 10, 8][..], Kind::Float), (&[3], Kind::Float), (&[3], Kind::Index)];
    assert_eq!(types, want.map(|(dims, kind)| Type::new(dims, kind)));

    use Dim::*;
    let refused: [(InputKind, &[Dim], &str); 9] = [
        (InputKind::Sample, &[], "Sample: axes: expected [2, 6, 10, channels], got []"),
        (InputKind::Sample, &[Batch, Fixed(8)], "Sample: axes: expected [2, 6, 10, channels], got [2, 8]"),
        (
            InputKind::Sample,
            &[Fixed(1), Height, Width, Fixed(8)],
            "Sample: axes: expected [2, 6, 10, channels], got [1, 6, 10, 8]",
        ),
        (
            InputKind::Sample,
            &[Batch, Width, Height, Fixed(8)],
            "Sample: axes: expected [2, 6, 10, channels], got [2, 10, 6, 8]",
        ),
        (
            InputKind::Sample,
            &[Batch, Height, Width, Fixed(0)],
            "Sample: number of elements: expected 1 to 2^36, got shape [2, 6, 10, 0]",
        ),
        (
            InputKind::Sample,
            &[Batch, Height, Width, Fixed(MUCH - 1)],
            "Sample: number of elements: expected 1 to 2^36, got shape [2, 6, 10, 2147483647]",
        ),
        (InputKind::Timestep, &[Batch], "Timestep: axes: expected [3], got [2]"),
        (InputKind::Timestep, &[Conditions, Fixed(1)], "Timestep: axes: expected [3], got [3, 1]"),
        (InputKind::ClassLabels, &[Fixed(4)], "ClassLabels: axes: expected [3], got [4]"),
    ];
    for (kind, dims, message) in refused {
        let got = declared(vec![Input { kind, dims: dims.to_vec() }], 0, DIMS);
        assert_eq!(got, Err(format!("vae decoder input {message}")));
    }
    // A model of one size only says so by fixed axes; another size is refused by name.
    let fixed = vec![Input { kind: InputKind::Sample, dims: vec![Batch, Fixed(6), Fixed(10), Fixed(4)] }];
    declared(fixed.clone(), 0, DIMS).expect("its own size");
    let got = declared(fixed, 0, Dims { height: 7, ..DIMS });
    assert_eq!(got, Err("vae decoder input Sample: axes: expected [2, 7, 10, channels], got [2, 6, 10, 4]".into()));
    let twice = vec![inputs()[1].clone(), inputs()[1].clone()];
    assert_eq!(
        declared(twice, 0, DIMS),
        Err("vae decoder input Timestep: input: expected each kind once, got a second one".into())
    );
}

#[test]
fn no_axis_is_empty_and_no_size_overflows() {
    for dims in [
        Dims { batch: 0, ..DIMS },
        Dims { conditions: 0, ..DIMS },
        Dims { height: 0, ..DIMS },
        Dims { width: 0, ..DIMS },
        Dims { batch: usize::MAX, ..DIMS },
        Dims { conditions: usize::MAX, ..DIMS },
        Dims { height: 1 << 32, width: 1 << 32, ..DIMS },
        Dims { batch: usize::MAX, conditions: usize::MAX, height: usize::MAX, width: usize::MAX, tokens: 1 },
    ] {
        let got = declared(inputs(), 0, dims).expect_err("refused");
        assert!(got.contains("number of elements: expected 1 to 2^36, got shape ["), "{dims:?}: {got}");
    }
    let most = Dims { batch: MAX_ELEMENTS / 8, conditions: 1, height: 1, width: 1, tokens: 1 };
    declared(inputs(), 0, most).expect("the most that is allowed");
    declared(inputs(), 0, Dims { batch: MAX_ELEMENTS / 8 + 1, ..most }).expect_err("one more");
}

#[test]
fn the_output_is_a_float_value() {
    let got = declared(inputs(), 3, DIMS);
    assert_eq!(got, Err("vae decoder: output: expected a value below 3, got 3".into()));
    let got = declared(inputs(), 2, DIMS);
    assert_eq!(got, Err("vae decoder: output: expected float elements, got Index".into()));
}

#[test]
fn odd_sizes_pass_through() {
    for (batch, height, width) in [(1, 1, 1), (3, 5, 7), (2, 17, 33)] {
        let dims = Dims { batch, height, width, conditions: 1, tokens: 1 };
        let ops = [
            conv(SAMPLE, CONV, None, ConvStride::Up, None),
            pointwise(Value(3)),
            Op::Patchify(Patchify { x: Value(4), patch: 2 }),
        ];
        let nodes = ops.map(|op| Node { op, path: "n".into(), wide: false }).to_vec();
        let program = Program { role: Role::Denoiser, inputs: inputs(), nodes, output: Value(5) };
        let types = infer(&program, &tensors(), &dims).expect("sound");
        assert_eq!(types[4].dims(), [batch, 2 * height, 2 * width, 5]);
        assert_eq!(types[5].dims(), [batch, height, width, 20]);
        assert_eq!(types[5].rows(), batch * height * width);
        assert_eq!(types[5].rows_per_sample(), height * width);
        assert_eq!(types[5].len(), batch * height * width * 20);
    }
}

#[test]
fn files_of_bytes_are_no_weights() {
    const BYTES: Tensor = Tensor(18);
    let mut tensors = tensors();
    tensors.push(TensorType { dims: vec![8], integer: false, f32: false, codes: false, bytes: true });
    let refuse = |what: &str, op: Op| {
        let embedding = Op::Embedding(Embedding { index: LABELS, table: ROWS });
        let nodes = [embedding, op].map(|op| Node { op, path: "a.b".into(), wide: false }).into();
        let program = Program { role: Role::Denoiser, inputs: inputs(), nodes, output: LAST };
        let message = infer(&program, &tensors, &DIMS).expect_err(what).to_string();
        let expected = format!("{what}: expected a tensor of weights, got a file of bytes");
        assert_eq!(message, format!("a.b (denoiser node 1, {}): {expected}", op.name()));
    };
    refuse("weight", linear(TABLE, BYTES));
    refuse("weight", Op::GatedLinear(GatedLinear { x: TABLE, weight: BYTES, bias: None, act: Act::GeluErf }));
    let conv = |weight| {
        Op::Conv2d(Conv2d {
            x: SAMPLE,
            weight,
            bias: Some(BYTES),
            sampling: ConvStride::Same,
            shift: None,
            residual: None,
        })
    };
    refuse("weight", conv(BYTES));
    refuse("bias", conv(CONV));
    let norm =
        |weight, bias| Op::LayerNorm(LayerNorm { x: TABLE, weight, bias, eps: 1e-5, modulation: None, quantize: None });
    refuse("weight", norm(Some(BYTES), None));
    refuse("bias", norm(None, Some(BYTES)));
    refuse("table", Op::Embedding(Embedding { index: LABELS, table: BYTES }));
    refuse("table", Op::VectorQuantize(VectorQuantize { x: TABLE, table: BYTES }));
    refuse("tensor", Op::Parameter(Parameter { tensor: BYTES }));
    let range = QuantizeRange::Curve(BYTES, CurveAxis::Timestep);
    refuse("curve", quantize(TABLE, spec(8, QuantizeGrain::Row, range)));
}
