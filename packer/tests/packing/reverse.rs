//! Derivatives of programs, against torch's and against differences.

use crate::common::load;
use aquatint::raw::program::{
    Act, Add, Attend, Attention, Columns, Concat, Conv2d, ConvStride, Dim, Embedding, GatedLinear, GroupNorm, Input,
    InputKind, LayerNorm, Linear, Modulation, Multiply, Node, Op, PadRows, Parameter, Patchify, Pointwise, Program,
    QuantizeRange, QuantizeSpec, Reach, RelativeBias, Resample, Resampling, Role, Rotary, Slice, SoftmaxGrid, Tensor,
    Unpatchify, Value,
};
use packer::reverse::{Array, Tape, Values, Wanted, has_rule};
use std::collections::BTreeMap;
use std::path::Path;

/// Roundings that a number may be off by, of the largest one of its kind in a case: sums of a few dozen products, a few of
/// them in a row. (Of the largest: the derivative with respect to a bias of keys is 0, of terms that are not.)
const ROUNDINGS: f32 = 64.0;

/// Frames of a sample, in the cases where tokens attend to some others alone.
const FRAMES: usize = 3;

/// What torch made of a case.
struct Case {
    values: Values,
    tensors: BTreeMap<Tensor, Array>,
    expected: BTreeMap<String, Array>,
}

fn case(name: &str) -> Case {
    let all = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reverse.safetensors"));
    let mut case = Case { values: Values::new(), tensors: BTreeMap::new(), expected: BTreeMap::new() };
    for (key, tensor) in all {
        let Some(key) = key.strip_prefix(&format!("{name}/")) else { continue };
        let array = Array::new(&tensor.shape, tensor.values);
        match key.split_once('.') {
            Some(("v", i)) => drop(case.values.insert(Value(i.parse().unwrap()), array)),
            Some(("t", i)) => drop(case.tensors.insert(Tensor(i.parse().unwrap()), array)),
            _ => drop(case.expected.insert(key.to_owned(), array)),
        }
    }
    assert!(!case.values.is_empty(), "{name}");
    case
}

fn program(inputs: usize, ops: Vec<Op>) -> Program {
    let input = Input { kind: InputKind::Sample, dims: vec![Dim::Batch] };
    let nodes: Vec<Node> = ops.into_iter().map(|op| Node { op, path: "block".into(), wide: false }).collect();
    let output = Value((inputs + nodes.len() - 1) as u32);
    Program { role: Role::Denoiser, inputs: vec![input; inputs], nodes, output, phases: Default::default() }
}

fn linear(x: u32, weight: u32, bias: u32) -> Linear {
    Linear { x: Value(x), weight: Tensor(weight), bias: Some(Tensor(bias)), ..Linear::default() }
}

/// The ops of every case that reads one value.
fn simple() -> Vec<(String, Vec<Op>)> {
    let mut cases = Vec::new();
    let acts = [Act::None, Act::Silu, Act::GeluTanh, Act::GeluErf, Act::QuickGelu];
    for (act, name) in acts.into_iter().zip(["none", "silu", "gelu_tanh", "gelu_erf", "quick_gelu"]) {
        cases.push((format!("linear/{name}"), vec![Op::Linear(Linear { act, ..linear(0, 0, 1) })]));
        let gated = GatedLinear { x: Value(0), weight: Tensor(0), bias: Some(Tensor(1)), act };
        cases.push((format!("gated/{name}"), vec![Op::GatedLinear(gated)]));
    }
    cases.push(("linear/rows".into(), vec![Op::Linear(linear(0, 0, 1))]));
    for (name, sampling) in [
        ("same", ConvStride::Same),
        ("up", ConvStride::Up),
        ("down", ConvStride::Down),
        ("down_end", ConvStride::DownPadEnd),
    ] {
        let conv = Conv2d { bias: Some(Tensor(1)), sampling, ..Conv2d::default() };
        cases.push((format!("conv/{name}"), vec![Op::Conv2d(conv)]));
    }
    let norm = LayerNorm { weight: Some(Tensor(0)), bias: Some(Tensor(1)), eps: 1e-5, ..LayerNorm::default() };
    cases.push(("layer_norm/affine".into(), vec![Op::LayerNorm(norm)]));
    let norm = LayerNorm { weight: Some(Tensor(0)), eps: 1e-5, rms: true, ..LayerNorm::default() };
    cases.push(("layer_norm/rms".into(), vec![Op::LayerNorm(norm)]));
    for (name, act, groups) in [("none", Act::None, 3), ("silu", Act::Silu, 2)] {
        let norm = GroupNorm { bias: Tensor(1), groups, eps: 1e-5, act, ..GroupNorm::default() };
        cases.push((format!("group_norm/{name}"), vec![Op::GroupNorm(norm)]));
    }
    let pointwise = Pointwise { x: Value(0), act: Act::Silu, mul: 1.5, add: -0.25 };
    cases.push(("pointwise".into(), vec![Op::Pointwise(pointwise)]));
    for (name, how) in [("nearest", Resampling::Nearest), ("mean", Resampling::Mean)] {
        cases.push((format!("resample/{name}"), vec![Op::Resample(Resample { x: Value(0), how })]));
    }
    cases.push(("patchify".into(), vec![Op::Patchify(Patchify { x: Value(0), patch: 3 })]));
    cases.push(("unpatchify".into(), vec![Op::Unpatchify(Unpatchify { x: Value(0), patch: 3 })]));
    cases.push(("patchify/frames".into(), vec![Op::Patchify(Patchify { x: Value(0), patch: 3 })]));
    let (weight, bias) = (Some(Tensor(0)), Some(Tensor(1)));
    let norm = LayerNorm { weight, bias, eps: 1e-6, parts: 3, ..LayerNorm::default() };
    cases.push(("layer_norm/parts".into(), vec![Op::LayerNorm(norm)]));
    cases.push(("slice/tokens".into(), vec![Op::Slice(Slice { x: Value(0), first: 1, count: 3, tokens: true })]));
    for (name, flat, rows) in [("flat", true, 2), ("rows", false, 3)] {
        let parameter = Op::Parameter(Parameter { tensor: Tensor(0), flat, rows });
        cases.push((format!("parameter/{name}"), vec![parameter, Op::Add(Add { a: Value(0), b: Value(1) })]));
    }
    cases
}

/// The ops of the others.
fn composed() -> Vec<(String, Vec<Op>)> {
    let gate = Some(Columns { value: Value(1), offset: 4 });
    let gated = Linear { act: Act::Silu, gate, residual: Some(Value(2)), ..linear(0, 0, 1) };
    let cyclic = Linear { residual: Some(Value(1)), ..Linear::default() };
    let odd = Conv2d { bias: Some(Tensor(1)), sampling: ConvStride::Up, size_of: Some(Value(1)), ..Conv2d::default() };
    let shift = Some(Columns { value: Value(1), offset: 2 });
    let shifted = Conv2d { bias: Some(Tensor(1)), shift, residual: Some(Value(2)), ..Conv2d::default() };
    let attention = Attention { k: Value(1), v: Value(2), heads: 3, scale: 0.4, ..Attention::default() };
    let causal = Attention { attend: Attend { causal: true, ..Attend::default() }, ..attention };
    let cross = Attention { attend: Attend { per_condition: true, ..Attend::default() }, ..attention };
    let modulation = Some(Modulation { value: Value(1), scale: 9, shift: 1 });
    let layer = LayerNorm { eps: 1e-6, modulation, ..LayerNorm::default() };
    let modulation = Some(Modulation { value: Value(1), scale: 0, shift: 6 });
    let group = GroupNorm { bias: Tensor(1), groups: 2, eps: 1e-6, modulation, act: Act::Silu, ..GroupNorm::default() };
    let columns = Some(Columns { value: Value(1), offset: 2 });
    let (weight, bias) = (Some(Tensor(0)), Some(Tensor(1)));
    let moved = LayerNorm { weight, bias, eps: 1e-6, shift: columns, ..LayerNorm::default() };
    let sum = Add { a: Value(0), b: Value(1) };
    let concat = Concat { a: Value(0), b: Value(1), tokens: false };
    [
        ("linear/gate", vec![Op::Linear(gated)]),
        ("linear/cyclic", vec![Op::Linear(cyclic)]),
        ("conv/up_odd", vec![Op::Conv2d(odd)]),
        ("conv/shift", vec![Op::Conv2d(shifted)]),
        ("attention/self", vec![Op::Attention(attention)]),
        ("attention/pixels", vec![Op::Attention(attention)]),
        ("attention/causal", vec![Op::Attention(causal)]),
        ("attention/cross", vec![Op::Attention(cross)]),
        ("attention/vector", vec![Op::Attention(cross)]),
        ("attention/bias", vec![Op::Attention(Attention { bias: Some(Value(3)), ..attention })]),
        ("attention/lengths", vec![Op::Attention(Attention { lengths: Some(Value(3)), ..cross })]),
        ("attention/frame", vec![Op::Attention(Attention { reach: Reach::Frame, ..attention })]),
        ("attention/place", vec![Op::Attention(Attention { reach: Reach::Place, ..attention })]),
        ("layer_norm/shift", vec![Op::LayerNorm(moved)]),
        ("rotary", vec![Op::Rotary(Rotary { x: Value(0), table: Value(1), heads: 2 })]),
        ("concat/tokens", vec![Op::Concat(Concat { tokens: true, ..concat })]),
        ("pad_rows", vec![Op::PadRows(PadRows { lengths: Value(1), first: 2, ..PadRows::default() })]),
        ("layer_norm/modulated", vec![Op::LayerNorm(layer)]),
        ("group_norm/modulated", vec![Op::GroupNorm(group)]),
        ("add/cyclic", vec![Op::Add(sum)]),
        ("concat", vec![Op::Concat(concat)]),
        ("multiply", vec![Op::Multiply(Multiply { a: Value(0), b: Value(1) })]),
        ("slice", vec![Op::Slice(Slice { x: Value(0), first: 2, count: 3, tokens: false })]),
        ("block/dit", dit(6)),
        ("block/resnet", resnet()),
    ]
    .map(|(name, ops)| (name.to_owned(), ops))
    .into()
}

/// A block of a DiT of `d` features: value 0 are tokens, 1 what modulation is made of, 2 the modulation.
pub fn dit(d: u32) -> Vec<Op> {
    let gated = |x, weight, run, residual| {
        let gate = Some(Columns { value: Value(2), offset: run * d });
        Op::Linear(Linear { gate, residual: Some(Value(residual)), ..linear(x, weight, weight + 1) })
    };
    let norm = |x, run, eps| {
        let modulation = Some(Modulation { value: Value(2), scale: (run + 1) * d, shift: run * d });
        Op::LayerNorm(LayerNorm { x: Value(x), eps, modulation, ..LayerNorm::default() })
    };
    let scale = 0.4;
    let attention = Attention {
        q: Value(4),
        k: Value(5),
        v: Value(6),
        heads: 2,
        scale,
        attend: Attend::default(),
        ..Attention::default()
    };
    vec![
        Op::Linear(linear(1, 0, 1)),
        norm(0, 0, 1e-6),
        Op::Linear(linear(3, 2, 3)),
        Op::Linear(linear(3, 4, 5)),
        Op::Linear(linear(3, 6, 7)),
        Op::Attention(attention),
        gated(7, 8, 2, 0),
        norm(8, 3, 1e-5),
        Op::Linear(Linear { act: Act::GeluTanh, ..linear(9, 10, 11) }),
        gated(10, 12, 5, 8),
    ]
}

fn resnet() -> Vec<Op> {
    let norm = |x, weight, groups| {
        let (weight, bias) = (Tensor(weight), Tensor(weight + 1));
        Op::GroupNorm(GroupNorm {
            x: Value(x),
            weight,
            bias,
            groups,
            eps: 1e-5,
            act: Act::Silu,
            ..GroupNorm::default()
        })
    };
    let conv = |x, weight, shift: Option<u32>, residual: Option<u32>| {
        let shift = shift.map(|value| Columns { value: Value(value), offset: 0 });
        let (weight, bias) = (Tensor(weight), Some(Tensor(weight + 1)));
        Op::Conv2d(Conv2d { x: Value(x), weight, bias, shift, residual: residual.map(Value), ..Conv2d::default() })
    };
    vec![
        norm(0, 0, 2),
        Op::Linear(linear(1, 4, 5)),
        conv(2, 2, Some(3), None),
        norm(4, 6, 3),
        Op::Linear(linear(0, 10, 11)),
        conv(5, 8, None, Some(6)),
    ]
}

fn largest<'a>(arrays: impl Iterator<Item = &'a Array>) -> f32 {
    arrays.flat_map(|array| &array.values).fold(0f32, |m, v| m.max(v.abs()))
}

fn assert_near(got: &[f32], expected: &[f32], size: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= ROUNDINGS * f32::EPSILON * size, "{what} {i}: {got}, torch has {expected}");
    }
}

fn check(name: &str, ops: Vec<Op>) {
    let Case { values, tensors, expected } = case(name);
    let program = program(values.len(), ops);
    assert!(program.nodes.iter().all(|node| has_rule(&node.op)));
    let nodes: Vec<usize> = (0..program.nodes.len()).collect();
    let weights = |tensor: Tensor| &tensors[&tensor];
    let tape = Tape::run(&program, &nodes, FRAMES, &values, &weights).unwrap();
    let y = tape.value(program.output);
    assert_eq!(y.dims, expected["y"].dims, "{name}");
    assert_near(&y.values, &expected["y"].values, largest([&expected["y"]].into_iter()), &format!("{name}: result"));
    let size = largest(expected.iter().filter(|(key, _)| key.starts_with('d') && key.contains('.')).map(|(_, d)| d));
    let wanted = Wanted { tensors: tensors.keys().copied().collect(), values: values.keys().copied().collect() };
    let back = tape.backward(Values::from([(program.output, expected["dy"].clone())]), &wanted);
    for (&value, array) in &values {
        let what = format!("dv.{}", value.0);
        if !expected.contains_key(&what) {
            assert!(back.value(value).is_none(), "{name}: {what} of counts");
            continue;
        }
        let zeros = vec![0.0; array.values.len()];
        let got = back.value(value).map_or(&zeros, |array| &array.values);
        assert_near(got, &expected[&what].values, size, &format!("{name}: {what}"));
    }
    for &tensor in tensors.keys() {
        let what = format!("dt.{}", tensor.0);
        assert_near(back.tensor(tensor).unwrap(), &expected[&what].values, size, &format!("{name}: {what}"));
    }
    // What nobody asks for is not worked out, and what is does not depend on the rest.
    let one = Wanted { values: [Value(0)].into(), ..Wanted::default() };
    let less = tape.backward(Values::from([(program.output, expected["dy"].clone())]), &one);
    assert_eq!(less.value(Value(0)), back.value(Value(0)), "{name}");
    assert!(tensors.keys().all(|&tensor| less.tensor(tensor).is_none()));
}

#[test]
fn derivatives_of_ops_are_those_of_torch() {
    let cases = simple();
    assert_eq!(cases.len(), 29);
    cases.into_iter().for_each(|(name, ops)| check(&name, ops));
}

#[test]
fn derivatives_of_blocks_are_those_of_torch() {
    composed().into_iter().for_each(|(name, ops)| check(&name, ops));
}

#[test]
fn derivatives_are_the_limits_of_differences() {
    for (name, ops) in composed() {
        let Case { values, tensors, expected } = case(&name);
        let program = program(values.len(), ops);
        let nodes: Vec<usize> = (0..program.nodes.len()).collect();
        let dy = &expected["dy"].values;
        // The loss at inputs and weights that are moved along their own numbers.
        let moved = |array: &Array, by: f32| Array {
            dims: array.dims.clone(),
            values: array.values.iter().enumerate().map(|(i, v)| v + by * ((i % 7) as f32 - 2.5)).collect(),
        };
        let loss = |by: f32| -> f64 {
            let by_value = |v: Value| if expected.contains_key(&format!("dv.{}", v.0)) { by } else { 0.0 };
            let values: Values = values.iter().map(|(&v, array)| (v, moved(array, by_value(v)))).collect();
            let tensors: BTreeMap<Tensor, Array> = tensors.iter().map(|(&t, array)| (t, moved(array, by))).collect();
            let weights = |tensor: Tensor| &tensors[&tensor];
            let tape = Tape::run(&program, &nodes, FRAMES, &values, &weights).unwrap();
            let y = tape.value(program.output);
            y.values.iter().zip(dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum()
        };
        let weights = |tensor: Tensor| &tensors[&tensor];
        let tape = Tape::run(&program, &nodes, FRAMES, &values, &weights).unwrap();
        let wanted = Wanted { tensors: tensors.keys().copied().collect(), values: values.keys().copied().collect() };
        let back = tape.backward(Values::from([(program.output, expected["dy"].clone())]), &wanted);
        let along =
            |d: &[f32]| -> f64 { d.iter().enumerate().map(|(i, &v)| f64::from(v) * ((i % 7) as f64 - 2.5)).sum() };
        let slope: f64 = values.keys().filter_map(|&v| back.value(v)).map(|array| along(&array.values)).sum::<f64>()
            + tensors.keys().filter_map(|&t| back.tensor(t)).map(along).sum::<f64>();
        // Errors of a central difference fall with the square of the step until rounding takes over.
        let step = 5e-4;
        let difference = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
        let scale = slope.abs().max(1.0);
        assert!((difference - slope).abs() < 0.01 * scale, "{name}: {difference} {slope}");
    }
}

#[test]
fn what_has_no_rule_is_refused_by_name() {
    let ops = [
        Op::Embedding(Embedding::default()),
        Op::LayerNorm(LayerNorm { quantize: Some(QuantizeSpec::default()), ..LayerNorm::default() }),
        Op::Attention(Attention {
            softmax: Some(SoftmaxGrid { bits: 8, range: QuantizeRange::Dynamic }),
            ..Attention::default()
        }),
        Op::RelativeBias(RelativeBias::default()),
        Op::Linear(Linear { x: Value(7), ..Linear::default() }),
    ];
    let array = Array::new(&[1, 2], vec![1.0, 2.0]);
    let values = Values::from([(Value(0), array.clone())]);
    for (op, told) in ops.into_iter().zip(["embedding", "layer_norm", "attention", "relative_bias", "Value(7)"]) {
        let (program, weights) = (program(1, vec![op]), |_: Tensor| &array);
        let error = Tape::run(&program, &[0], 1, &values, &weights).err().expect("a refusal").to_string();
        assert!(error.contains("block (node 0)") && error.contains(told), "{error}");
    }
}
