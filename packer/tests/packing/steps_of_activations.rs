//! Steps of activations: codes and their derivatives, and how steps are learned, against torch; and whole models with learned ranges.

use crate::common::{Dense, load};
use aquatint::raw::program::{
    CurveAxis, Dim, Input, InputKind, Linear, Node, Op, Program, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec,
    Role, Tensor, Value,
};
use packer::reconstruct::{Block, StepTraining, Steps};
use packer::reverse::{Array, Tape, Values, Wanted, has_rule};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn fixture() -> BTreeMap<String, Dense> {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/steps.safetensors"))
}

fn array(dense: &Dense) -> Array {
    Array::new(&dense.shape, dense.values.clone())
}

const CURVE: Tensor = Tensor(1);

/// Codes of so many bits with the ranges of the curve; then `more`.
fn program(bits: u8, more: Option<Linear>) -> Program {
    let range = QuantizeRange::curve(CURVE, CurveAxis::StepFraction);
    let quantize = Quantize { x: Value(0), spec: QuantizeSpec { bits, grain: QuantizeGrain::Row, range }, turn: None };
    let ops = [Some(Op::from(quantize)), more.map(Op::from)];
    let node = |op| Node { op, path: "n".into(), wide: false };
    let nodes: Vec<Node> = ops.into_iter().flatten().map(node).collect();
    let inputs = vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch] }];
    let output = Value(nodes.len() as u32);
    Program { role: Role::Denoiser, inputs, nodes, output, phases: Default::default() }
}

fn assert_near(got: &[f32], expected: &[f32], what: &str) {
    let size = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 64.0 * f32::EPSILON * size, "{what} {i}: {got}, torch has {expected}");
    }
}

#[test]
fn codes_of_fixed_ranges_have_the_derivatives_of_torch() {
    let all = fixture();
    let at = |key: &str| &all[&format!("codes/{key}")];
    let program = program(6, None);
    assert!(has_rule(&program.nodes[0].op));
    let (inputs, ranges) = (Values::from([(Value(0), array(at("x")))]), array(at("ranges")));
    let find = |_| &ranges;
    let tape = Tape::run(&program, &[0], 1, &inputs, &find).unwrap();
    assert_near(&tape.value(Value(1)).values, &at("y").values, "result");
    let wanted = Wanted { tensors: [CURVE].into(), values: [Value(0)].into() };
    let back = tape.backward(Values::from([(Value(1), array(at("dy")))]), &wanted);
    assert_near(&back.value(Value(0)).unwrap().values, &at("dx").values, "derivative of the input");
    assert_near(back.tensor(CURVE).unwrap(), &at("dranges").values, "derivative of the ranges");
    // Some are cut off, some are not.
    let cut = at("dx").values.iter().filter(|d| **d == 0.0).count();
    assert!(cut > 10 && cut < 90, "{cut}");
}

#[test]
fn ranges_that_are_taken_while_running_have_no_rule() {
    let mut program = program(6, None);
    let dynamic = QuantizeSpec { bits: 6, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic };
    program.nodes[0].op = Quantize { x: Value(0), spec: dynamic, turn: None }.into();
    assert!(!has_rule(&program.nodes[0].op));
    let inputs = Values::from([(Value(0), Array::zeros(&[1, 4]))]);
    let none = Array::zeros(&[1]);
    let find = |_| &none;
    assert!(Tape::run(&program, &[0], 1, &inputs, &find).is_err());
}

#[test]
fn steps_are_learned_as_torch_learns_them() {
    let all = fixture();
    let at = |key: &str| &all[&format!("stage/{key}")];
    let program = program(3, Some(Linear { x: Value(1), weight: Tensor(0), ..Linear::default() }));
    let (inputs, target, w) = (Values::from([(Value(0), array(at("x")))]), array(at("target")), array(at("w")));
    let find = |tensor: Tensor| if tensor == Tensor(0) { &w } else { panic!("the curve is what is learned") };
    let shared = BTreeSet::new();
    let block = Block {
        program: &program,
        nodes: &[0, 1],
        frames: 1,
        output: Value(2),
        inputs: &inputs,
        shared: &shared,
        target: &target,
        weights: &find,
    };
    let points: Vec<[f32; 3]> = at("points").values.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
    let whole = |dense: &Dense| dense.values.iter().map(|&v| v as usize).collect::<Vec<usize>>();
    let (of_sample, batches) = (whole(at("at")), whole(at("batches")));
    let begin = [Steps::new(CURVE, points.clone())];
    let train = |iterations: usize, see: &mut dyn FnMut(f64) -> bool| {
        let mut steps = begin.clone();
        let training = StepTraining { iterations, rate: 0.03 };
        let mut next = |count: usize| batches[(count - 1) * 4..count * 4].to_vec();
        let curve = block.train_steps(&mut steps, &of_sample, &training, &mut next, see).unwrap();
        (curve, steps[0].finish())
    };
    let mut losses = Vec::new();
    let (curve, learned) = train(40, &mut |loss| {
        losses.push(loss as f32);
        true
    });
    for (i, (got, expected)) in losses.iter().zip(&at("losses").values).enumerate() {
        assert!((got - expected).abs() <= 2e-3 * expected, "{i}: {got}, torch has {expected}");
    }
    for ((learned, before), expected) in learned.iter().zip(&points).zip(&at("scales").values) {
        assert!((learned[1] - expected).abs() < 2e-3 * expected, "{learned:?}, torch has {expected}");
        assert_eq!((learned[0], learned[2]), (before[0], before[2]), "positions and zero points");
    }
    // Better than ranges by extremes.
    let curve = curve.unwrap();
    assert!(curve.end < 0.95 * curve.begin, "{} {}", curve.begin, curve.end);
    // Who wants no more ends the work; a result that is worse is not taken.
    assert!(train(40, &mut |_| false).0.is_none());
    let mut wild = begin.clone();
    let training = StepTraining { iterations: 2, rate: 8.0 };
    let curve =
        block.train_steps(&mut wild, &of_sample, &training, &mut |_| vec![0, 1], &mut |_| true).unwrap().unwrap();
    assert_eq!((curve.end, wild[0].finish()), (curve.begin, points));
}
