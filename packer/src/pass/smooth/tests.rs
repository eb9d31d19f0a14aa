//! Where factors go, on small programs.

use super::*;
use crate::weight::{Storage, Weight};
use aquatint::raw::program::{
    Act, Attention, Columns, Dim, Dims, GatedLinear, Input, InputKind, Linear, Modulation, Node, Pointwise, Role,
};

const DIMS: Dims = Dims { batch: 1, conditions: 1, height: 2, width: 2, tokens: 1, ..Dims::ONE };

/// A program over rows of 4 channels, of which the first input is the sample and the second one a row per condition.
struct Sketch {
    nodes: Vec<Node>,
    weights: Weights,
}

impl Sketch {
    fn new() -> Self {
        Sketch { nodes: Vec::new(), weights: Weights::new() }
    }

    fn push(&mut self, op: impl Into<Op>) -> Value {
        self.nodes.push(Node { op: op.into(), path: format!("node{}", self.nodes.len()), wide: false });
        Value(1 + self.nodes.len() as u32)
    }

    fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let (key, storage) = match dims.len() {
            1 => (format!("w{}.bias", self.weights.len()), Storage::Vector),
            _ => (format!("w{}.weight", self.weights.len()), Storage::Linear),
        };
        self.weights.push(Weight::of_checkpoint("unet", key, dims, storage))
    }

    /// A linear layer with a bias.
    fn linear(&mut self, x: Value, dims: [usize; 2], with: Linear) -> Value {
        let (weight, bias) = (self.tensor(&dims), Some(self.tensor(&dims[..1])));
        self.push(Linear { x, weight, bias, ..with })
    }

    fn norm(&mut self, x: Value, modulation: Option<Modulation>) -> Value {
        self.push(LayerNorm { x, eps: 1e-6, modulation, ..LayerNorm::default() })
    }

    /// What can be said of all values of the program, the last of which is its result.
    fn found(&mut self) -> Vec<Smoothable> {
        let inputs = vec![
            Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(4)] },
            Input { kind: InputKind::Pooled, dims: vec![Dim::Conditions, Dim::Fixed(4)] },
        ];
        let output = Value(1 + self.nodes.len() as u32);
        let program =
            Program { role: Role::Denoiser, inputs, nodes: self.nodes.clone(), output, phases: Default::default() };
        smoothables(&[program], &self.weights, &DIMS).unwrap()
    }

    /// What can be said of `value`.
    fn of(&mut self, value: Value) -> Smoothable {
        self.found().into_iter().find(|site| site.value == value).unwrap()
    }
}

const SAMPLE: Value = Value(0);
const POOLED: Value = Value(1);
const PLAIN: Linear = Linear { x: SAMPLE, weight: Tensor(0), bias: None, act: Act::None, gate: None, residual: None };

#[test]
fn norms_take_factors_for_all_their_readers() {
    let mut sketch = Sketch::new();
    let normed = sketch.norm(SAMPLE, None);
    let q = sketch.linear(normed, [4, 4], PLAIN);
    sketch.linear(normed, [3, 4], PLAIN);
    sketch.push(Pointwise { x: q, act: Act::Silu, mul: 1.0, add: 0.0 });
    let site = sketch.of(normed);
    assert_eq!((site.channels, &site.layers[..]), (4, &[Tensor(0), Tensor(2)][..]));
    assert_eq!(site.fold, Ok(Fold::Norm { node: 0, shift: None }));
    // What else reads it would see other numbers.
    let reader = sketch.push(Pointwise { x: normed, act: Act::Silu, mul: 1.0, add: 0.0 });
    assert_eq!(sketch.of(normed).fold, Err(Obstacle::Reader("pointwise")));
    // So would a residual, even of a layer that multiplies it, too.
    sketch.nodes.pop();
    assert_eq!(reader, sketch.linear(normed, [4, 4], Linear { residual: Some(normed), ..PLAIN }));
    assert_eq!(sketch.of(normed).fold, Err(Obstacle::Reader("linear")));
    // And the caller.
    let mut sketch = Sketch::new();
    let normed = sketch.norm(SAMPLE, None);
    sketch.linear(normed, [4, 4], PLAIN);
    let again = sketch.norm(SAMPLE, None);
    assert_eq!(sketch.of(normed).fold, Ok(Fold::Norm { node: 0, shift: None }));
    sketch.nodes.pop();
    let layer = sketch.nodes.pop().unwrap();
    assert!(sketch.found().is_empty() && again.0 == 4);
    sketch.nodes.push(layer);
}

#[test]
fn a_weight_that_is_used_elsewhere_keeps_its_columns() {
    let mut sketch = Sketch::new();
    let normed = sketch.norm(SAMPLE, None);
    sketch.linear(normed, [4, 4], PLAIN);
    sketch.linear(SAMPLE, [4, 4], PLAIN);
    assert!(sketch.of(normed).fold.is_ok());
    sketch.push(Linear { x: SAMPLE, weight: Tensor(0), bias: None, ..PLAIN });
    assert_eq!(sketch.of(normed).fold, Err(Obstacle::Shared));
}

#[test]
fn a_modulated_norm_divides_the_rows_of_its_shift_and_nothing_else() {
    let mut sketch = Sketch::new();
    let rows = sketch.linear(POOLED, [12, 4], PLAIN);
    let normed = sketch.norm(SAMPLE, Some(Modulation { value: rows, shift: 4, scale: 0 }));
    let gate = Some(Columns { value: rows, offset: 8 });
    sketch.linear(normed, [4, 4], Linear { gate, ..PLAIN });
    let made_by = Rows { weight: Tensor(0), bias: Some(Tensor(1)) };
    assert_eq!(sketch.of(normed).fold, Ok(Fold::Norm { node: 1, shift: Some((made_by, 4)) }));
    // A gate that reads into the shift, a scale that is the shift, another norm of the same shift, and the whole of it.
    let gated = |sketch: &mut Sketch, offset| {
        let gate = Some(Columns { value: rows, offset });
        sketch.linear(SAMPLE, [4, 4], Linear { gate, ..PLAIN })
    };
    for (offset, fits) in [(0, true), (1, false), (4, false), (7, false), (8, true)] {
        gated(&mut sketch, offset);
        assert_eq!(sketch.of(normed).fold.is_ok(), fits, "{offset}");
        sketch.nodes.pop();
    }
    for (scale, shift, fits) in [(0, 8, true), (4, 8, false), (0, 4, false)] {
        sketch.norm(SAMPLE, Some(Modulation { value: rows, scale, shift }));
        assert_eq!(sketch.of(normed).fold.is_ok(), fits, "{scale} {shift}");
        sketch.nodes.pop();
    }
    let Op::LayerNorm(norm) = &mut sketch.nodes[1].op else { panic!("the norm") };
    norm.modulation = Some(Modulation { value: rows, shift: 4, scale: 4 });
    assert_eq!(sketch.of(normed).fold, Err(Obstacle::Reader("layer_norm")));
}

#[test]
fn values_of_attention_take_factors_in_their_rows() {
    let attend = |v, act| {
        let mut sketch = Sketch::new();
        let [q, k] = [(), ()].map(|()| sketch.linear(SAMPLE, [4, 4], PLAIN));
        let values = sketch.linear(SAMPLE, [4, 4], Linear { act, ..PLAIN });
        let v = if v { values } else { k };
        let attended = sketch.push(Attention { q, k, v, heads: 2, scale: 1.0, ..Attention::default() });
        sketch.linear(attended, [4, 4], PLAIN);
        sketch.of(attended).fold
    };
    assert_eq!(attend(true, Act::None), Ok(Fold::Rows(Rows { weight: Tensor(4), bias: Some(Tensor(5)) })));
    assert_eq!(attend(true, Act::Silu), Err(Obstacle::Producer("an activation")));
    assert_eq!(attend(false, Act::None), Err(Obstacle::Reader("another op")));
}

#[test]
fn gated_layers_take_factors_in_the_rows_of_values() {
    let mut sketch = Sketch::new();
    let (weight, bias) = (sketch.tensor(&[6, 4]), Some(sketch.tensor(&[6])));
    let hidden = sketch.push(GatedLinear { x: SAMPLE, weight, bias, act: Act::GeluErf });
    sketch.linear(hidden, [4, 3], PLAIN);
    let site = sketch.of(hidden);
    assert_eq!((site.channels, site.fold), (3, Ok(Fold::EvenRows(Rows { weight, bias }))));
    let (mut programs, factors) = ([program(&sketch)], vec![2.0, 3.0, 4.0]);
    fold(&mut programs, &mut sketch.weights, &[(site, factors)]);
    let divisors = sketch.weights.parameter("unet/w0.smoothing_rows").unwrap();
    assert_eq!(divisors.values, [2.0, 1.0, 3.0, 1.0, 4.0, 1.0]);
}

#[test]
fn activations_stand_in_the_way() {
    let mut sketch = Sketch::new();
    let hidden = sketch.linear(SAMPLE, [5, 4], Linear { act: Act::GeluTanh, ..PLAIN });
    let after = sketch.linear(hidden, [4, 5], PLAIN);
    sketch.linear(after, [4, 4], PLAIN);
    assert_eq!(sketch.of(SAMPLE).fold, Err(Obstacle::Producer("the input")));
    assert_eq!(sketch.of(hidden).fold, Err(Obstacle::Producer("an activation")));
    assert_eq!(sketch.of(after).fold, Ok(Fold::Rows(Rows { weight: Tensor(2), bias: Some(Tensor(3)) })));
}

fn program(sketch: &Sketch) -> Program {
    Program {
        role: Role::Denoiser,
        inputs: Vec::new(),
        nodes: sketch.nodes.clone(),
        output: Value(0),
        phases: Default::default(),
    }
}

#[test]
fn two_norms_of_one_modulation_share_a_vector_of_rows() {
    let mut sketch = Sketch::new();
    let rows = sketch.linear(POOLED, [16, 4], PLAIN);
    let first = sketch.norm(SAMPLE, Some(Modulation { value: rows, shift: 0, scale: 4 }));
    let x = sketch.linear(first, [4, 4], PLAIN);
    let second = sketch.norm(x, Some(Modulation { value: rows, shift: 8, scale: 12 }));
    sketch.linear(second, [4, 4], PLAIN);
    let found = sketch.found();
    let sites: Vec<_> = [first, second]
        .into_iter()
        .zip([2.0, 4.0])
        .map(|(value, factor)| (found.iter().find(|s| s.value == value).unwrap().clone(), vec![factor; 4]))
        .collect();
    let (mut programs, mut weights) = ([program(&sketch)], sketch.weights);
    fold(&mut programs, &mut weights, &sites);
    let divisors = weights.parameter("unet/w0.smoothing_rows").unwrap();
    assert_eq!(divisors.values, [[2.0; 4], [1.0; 4], [4.0; 4], [1.0; 4]].concat());
    let steps = |tensor: u32| weights[Tensor(tensor)].steps.clone();
    let scale = |channels, by: &str, divide| vec![Step::Scale { channels, by: by.into(), divide }];
    assert_eq!(steps(0), scale(Channels::Output, "unet/w0.smoothing_rows", true));
    assert_eq!(steps(1), steps(0), "the bias likewise");
    assert_eq!(steps(2), scale(Channels::Input, "unet/w2.smoothing", false));
    assert_eq!(steps(3), [], "biases of readers stay");
    // Norms without weights got some.
    let Op::LayerNorm(LayerNorm { weight: Some(made), bias: None, .. }) = programs[0].nodes[1].op else {
        panic!("a norm with a weight")
    };
    assert_eq!(weights[made].name(), "unet/node1.weight");
    assert_eq!(steps(made.0), scale(Channels::Output, "unet/w2.smoothing", true));
}
