//! The shape rules: for each op what it accepts, and every way in which it refuses, by its message.

mod elementwise;
mod products;
mod programs;

use aquatint::raw::program::shape::{Kind, MAX_ELEMENTS, MAX_INTEGER_PRODUCTS, TensorType, Type, infer};
use aquatint::raw::program::{
    Act, Attend, Columns, Conv2d, ConvStride, CurveAxis, Dim, Dims, Embedding, Input, InputKind, Linear, Modulation,
    Node, Op, Pointwise, Program, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, Resampling, Role, Tensor,
    Value,
};

const DIMS: Dims = Dims { batch: 2, conditions: 3, height: 6, width: 10, tokens: 1, ..Dims::ONE };
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
    infer(
        &Program { role: Role::Denoiser, inputs: inputs(), nodes, output: TABLE, phases: Default::default() },
        &tensors(),
        &DIMS,
    )
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
    Op::Quantize(Quantize { x, spec, turn: None })
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

fn conv(x: Value, weight: Tensor, bias: Option<Tensor>, sampling: ConvStride, residual: Option<Value>) -> Op {
    Op::Conv2d(Conv2d { x, weight, bias, sampling, shift: None, residual, size_of: None })
}
