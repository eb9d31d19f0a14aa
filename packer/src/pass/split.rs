//! Splits layers whose inputs are two values side by side, each half with levels and a range of its own: one product becomes
//! two, of which the second adds the first.
//!
//! ```text
//! shortcut   linear(concat(a, b))        at the end of a        Q-Diffusion §4.2: `nin_shortcut`, `skip_connection`
//! conv       conv(norm(concat(a, b)))    at its output channels Qua2SeDiMo, of SDXL: `conv1` of residual blocks
//! linear     linear(norm(concat(a, b)))  at the end of a        Qua2SeDiMo, of Hunyuan-DiT: `skip_linear`
//! ```
//!
//! The two projects quantize the weight of each half and what it multiplies; behind a norm, whose result is one value, the
//! halves are slices of that.

use crate::error::Result;
use crate::weight::Weights;
use aquatint::raw::format::TensorKind;
use aquatint::raw::program::shape::{self, TensorType};
use aquatint::raw::program::{
    Act, Concat, Conv2d, Dims, GroupNorm, LayerNorm, Linear, Node, Op, Program, Slice, Tensor, Value,
};
use std::collections::HashMap;
use std::fmt;

/// What is split, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Linear layers over two values side by side, where the first ends.
    Shortcut,
    /// 3x3 convolutions over the norm of two values side by side with more channels in than out, at as many inputs as outputs, whether
    /// the first value ends there or not.
    Conv,
    /// Linear layers over the norm of two values side by side, where the first ends.
    Linear,
}

impl Split {
    /// All of them.
    pub const ALL: [Split; 3] = [Split::Shortcut, Split::Conv, Split::Linear];

    /// The one called so.
    pub fn parse(name: &str) -> Option<Split> {
        Split::ALL.into_iter().find(|split| split.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Split::Shortcut => "shortcut",
            Split::Conv => "conv",
            Split::Linear => "linear",
        }
    }

    /// What a network must have for it.
    pub fn layers(self) -> &'static str {
        match self {
            Split::Shortcut => "shortcuts over skip connections",
            Split::Conv => "3x3 convolutions over norms of skip connections",
            Split::Linear => "linear layers over norms of skip connections",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A layer that was split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halves {
    /// Where.
    pub split: Split,
    /// The weights of the halves.
    pub weights: [Tensor; 2],
}

/// Splits every layer that can be and whose weight is `wanted`. The second half is called as
/// [`SECOND_HALF`](crate::weight::SECOND_HALF) says. Layers with an activation or a gate, which both come after the sum, stay
/// whole.
///
/// # Errors
/// If the shapes of a program do not fit.
pub fn split_layers(
    programs: &mut [Program],
    weights: &mut Weights,
    dims: &Dims,
    wanted: &dyn Fn(&Weights, Tensor, Split) -> bool,
) -> Result<Vec<Halves>> {
    let mut done: HashMap<Tensor, Halves> = HashMap::new();
    for program in programs {
        let found = joints(program);
        if !found.iter().any(|joint| done.contains_key(&joint.weight) || wanted(weights, joint.weight, joint.split)) {
            continue;
        }
        let types: Vec<TensorType> = weights.iter().map(|w| TensorKind::F32.ty(&w.dims())).collect();
        let values = shape::infer(program, &types, dims)?;
        let cols = |value: Value| values[value.0 as usize].dims().last().copied().unwrap_or(0);
        let mut cuts = HashMap::new();
        for Joint { node, weight, split, x, sides: [a, b] } in found {
            let at = match split {
                Split::Shortcut | Split::Linear => cols(a),
                Split::Conv => cols(program.value_of(node)),
            };
            if !done.contains_key(&weight)
                && wanted(weights, weight, split)
                && let Some(second) = weights.split(weight, at)
            {
                done.insert(weight, Halves { split, weights: [weight, second] });
            }
            if let Some(halves) = done.get(&weight) {
                let slice =
                    |first: usize, count: usize| Slice { x, first: first as u32, count: count as u32, tokens: false };
                let inputs = match split {
                    Split::Shortcut => [Half::Whole(a), Half::Whole(b)],
                    Split::Conv | Split::Linear => {
                        [Half::Columns(slice(0, at)), Half::Columns(slice(at, cols(x) - at))]
                    }
                };
                cuts.insert(node, (halves.weights[1], inputs));
            }
        }
        rewrite(program, &cuts);
    }
    let mut halves: Vec<Halves> = done.into_values().collect();
    halves.sort_by_key(|halves| halves.weights);
    Ok(halves)
}

/// The kinds of layers in `programs` that could be split and are not, each once.
pub fn whole_kinds(programs: &[Program]) -> Vec<Split> {
    let found = |split: &Split| programs.iter().flat_map(joints).any(|joint| joint.split == *split);
    Split::ALL.into_iter().filter(found).collect()
}

/// A node that multiplies two values side by side.
struct Joint {
    node: usize,
    weight: Tensor,
    split: Split,
    /// What it multiplies.
    x: Value,
    /// The two values, before a norm if there is one.
    sides: [Value; 2],
}

/// What one half multiplies.
#[derive(Clone, Copy)]
enum Half {
    Whole(Value),
    Columns(Slice),
}

/// The nodes that multiply two values side by side.
fn joints(program: &Program) -> Vec<Joint> {
    let of = |value: Value| program.node_of(value).map(|node| &program.nodes[node].op);
    let sides = |value: Value| match of(value) {
        Some(&Op::Concat(Concat { a, b, tokens: false })) => Some([a, b]),
        _ => None,
    };
    let behind_norm = |value: Value| match of(value) {
        Some(&Op::LayerNorm(LayerNorm { x, quantize: None, parts: 0 | 1, .. })) => sides(x),
        Some(&Op::GroupNorm(GroupNorm { x, quantize: None, .. })) => sides(x),
        _ => None,
    };
    let joint = |(node, op): (usize, &Op)| {
        let (x, weight, split, sides) = match *op {
            Op::Linear(Linear { x, weight, act: Act::None, gate: None, .. }) => match sides(x) {
                Some(sides) => (x, weight, Split::Shortcut, sides),
                None => (x, weight, Split::Linear, behind_norm(x)?),
            },
            Op::Conv2d(Conv2d { x, weight, .. }) => (x, weight, Split::Conv, behind_norm(x)?),
            _ => return None,
        };
        Some(Joint { node, weight, split, x, sides })
    };
    program.nodes.iter().map(|node| &node.op).enumerate().filter_map(joint).collect()
}

/// Makes two products of each node in `cuts`, which has the second half's weight and what the halves multiply.
fn rewrite(program: &mut Program, cuts: &HashMap<usize, (Tensor, [Half; 2])>) {
    let n_inputs = program.inputs.len() as u32;
    let mut numbers: Vec<Value> = (0..n_inputs).map(Value).collect();
    let mut nodes: Vec<Node> = Vec::with_capacity(program.nodes.len() + cuts.len());
    for (i, mut node) in std::mem::take(&mut program.nodes).into_iter().enumerate() {
        node.op.renumber(|operand| numbers[operand.0 as usize]);
        if let Some(&(weight, halves)) = cuts.get(&i) {
            let mut push = |op: Op, wide: bool| {
                nodes.push(Node { op, path: node.path.clone(), wide });
                Value(n_inputs + nodes.len() as u32 - 1)
            };
            let [x, y] = halves.map(|half| match half {
                Half::Whole(value) => numbers[value.0 as usize],
                Half::Columns(slice) => push(Slice { x: numbers[slice.x.0 as usize], ..slice }.into(), false),
            });
            match &mut node.op {
                Op::Linear(second) => {
                    let sum = push(Linear { x, ..*second }.into(), node.wide);
                    *second = Linear { x: y, weight, bias: None, residual: Some(sum), ..*second };
                }
                Op::Conv2d(second) => {
                    let sum = push(Conv2d { x, ..*second }.into(), node.wide);
                    *second = Conv2d { x: y, weight, bias: None, shift: None, residual: Some(sum), ..*second };
                }
                other => unreachable!("{} is no product that is split", other.name()),
            }
        }
        nodes.push(node);
        numbers.push(Value(n_inputs + nodes.len() as u32 - 1));
    }
    program.nodes = nodes;
    program.output = numbers[program.output.0 as usize];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reverse::{Array, Tape, Values};
    use crate::weight::{Elements, Storage, Weight, step};
    use aquatint::raw::program::{Columns, Dim, Input, InputKind, Parameter, Role};

    const DIMS: Dims = Dims { batch: 1, conditions: 1, height: 2, width: 2, tokens: 1, ..Dims::ONE };

    fn node(op: impl Into<Op>) -> Node {
        Node { op: op.into(), path: "n".into(), wide: false }
    }

    /// `other`: 8 -> 4, whose result beside the input makes 12; then `nodes`, which see those as value 2. The first weight is
    /// `first`; 1 and 4 are vectors, 5 has 12 entries.
    fn model(first: Weight, nodes: Vec<Node>) -> ([Program; 1], Weights) {
        let mut weights = Weights::new();
        let rows = first.matrix().0;
        weights.push(first);
        let vector = |key: &str, n| Weight::of_checkpoint("unet", key.into(), &[n], Storage::Vector);
        weights.push(vector("skip.bias", rows));
        weights.push(Weight::of_checkpoint("unet", "other.weight".into(), &[4, 8], Storage::Linear));
        weights.push(Weight::of_checkpoint("unet", "time".into(), &[1, 13], Storage::Vector));
        weights.push(vector("unused", 4));
        weights.push(vector("norm.weight", 12));
        let pixels = vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(8)];
        let inputs = vec![Input { kind: InputKind::Sample, dims: pixels }];
        let other = node(Linear { x: Value(0), weight: Tensor(2), ..Linear::default() });
        let concat = node(Concat { a: Value(1), b: Value(0), tokens: false });
        let nodes: Vec<Node> = [other, concat].into_iter().chain(nodes).collect();
        let output = Value(nodes.len() as u32);
        ([Program { role: Role::Denoiser, inputs, nodes, output, phases: Default::default() }], weights)
    }

    fn shortcut() -> Weight {
        Weight::of_checkpoint("unet", "skip.weight".into(), &[6, 12, 1, 1], Storage::Linear)
    }

    fn check(programs: &[Program; 1], weights: &Weights) {
        let types: Vec<TensorType> = weights.iter().map(|w| TensorKind::F32.ty(&w.dims())).collect();
        shape::infer(&programs[0], &types, &DIMS).unwrap();
    }

    fn ops(programs: &[Program; 1], from: usize) -> Vec<Op> {
        programs[0].nodes[from..].iter().map(|node| node.op).collect()
    }

    #[test]
    fn a_shortcut_becomes_two_products_and_the_second_adds_the_first() {
        let whole = Linear { x: Value(2), weight: Tensor(0), bias: Some(Tensor(1)), ..Linear::default() };
        let (mut programs, mut weights) = model(shortcut(), vec![node(whole)]);
        let halves = split_layers(&mut programs, &mut weights, &DIMS, &|_, _, split| split == Split::Shortcut).unwrap();
        assert_eq!(halves, [Halves { split: Split::Shortcut, weights: [Tensor(0), Tensor(6)] }]);
        assert_eq!([0, 6].map(|i| weights[Tensor(i)].matrix()), [(6, 4), (6, 8)]);
        assert_eq!(weights[Tensor(6)].layer(), "skip.weight_quantizer_0");
        let expected = [
            Linear { x: Value(1), ..whole },
            Linear { x: Value(0), weight: Tensor(6), residual: Some(Value(3)), ..Linear::default() },
        ];
        assert_eq!(ops(&programs, 2), expected.map(Op::Linear));
        assert_eq!(programs[0].output, Value(4));
        check(&programs, &weights);
    }

    #[test]
    fn a_convolution_over_a_norm_is_split_at_its_outputs() {
        let norm = GroupNorm { x: Value(2), weight: Tensor(5), bias: Tensor(5), groups: 3, ..GroupNorm::default() };
        let conv = Weight::of_checkpoint("unet", "conv1.weight".into(), &[6, 12, 3, 3], Storage::Conv);
        let shift = Some(Columns { value: Value(4), offset: 1 });
        // What is added per sample and to the sum stays with the first half.
        let whole = Conv2d { x: Value(3), weight: Tensor(0), bias: Some(Tensor(1)), shift, ..Conv2d::default() };
        let time = Parameter { tensor: Tensor(3), ..Parameter::default() };
        let (mut programs, mut weights) = model(conv, vec![node(norm), node(time), node(whole)]);
        let halves = split_layers(&mut programs, &mut weights, &DIMS, &|_, _, split| split == Split::Conv).unwrap();
        assert_eq!(halves, [Halves { split: Split::Conv, weights: [Tensor(0), Tensor(6)] }]);
        // The first value has 4 columns.
        assert_eq!([0, 6].map(|i| weights[Tensor(i)].dims()), [[6, 3, 3, 6]; 2]);
        let expected: [Op; 4] = [
            Slice { x: Value(3), first: 0, count: 6, tokens: false }.into(),
            Slice { x: Value(3), first: 6, count: 6, tokens: false }.into(),
            Conv2d { x: Value(5), ..whole }.into(),
            Conv2d { x: Value(6), weight: Tensor(6), residual: Some(Value(7)), ..Conv2d::default() }.into(),
        ];
        assert_eq!(ops(&programs, 4), expected);
        assert_eq!(programs[0].output, Value(8));
        // With as many channels out as in there is nothing to split.
        let conv = Weight::of_checkpoint("unet", "conv1.weight".into(), &[12, 12, 3, 3], Storage::Conv);
        let (mut programs, mut weights) = model(conv, vec![node(norm), node(time), node(whole)]);
        assert!(split_layers(&mut programs, &mut weights, &DIMS, &|_, _, _| true).unwrap().is_empty());
    }

    #[test]
    fn a_linear_layer_over_a_norm_is_split_where_the_first_value_ends() {
        let norm = LayerNorm { x: Value(2), weight: Some(Tensor(5)), eps: 1e-6, ..LayerNorm::default() };
        let skip = Weight::of_checkpoint("unet", "skip_linear.weight".into(), &[6, 12], Storage::Linear);
        let whole = Linear { x: Value(3), weight: Tensor(0), bias: Some(Tensor(1)), ..Linear::default() };
        let (mut programs, mut weights) = model(skip, vec![node(norm), node(whole)]);
        let before = (programs.clone(), weights.len());
        assert!(split_layers(&mut programs, &mut weights, &DIMS, &|_, _, s| s != Split::Linear).unwrap().is_empty());
        assert_eq!((&programs, weights.len()), (&before.0, before.1));
        let halves = split_layers(&mut programs, &mut weights, &DIMS, &|_, _, split| split == Split::Linear).unwrap();
        assert_eq!(halves, [Halves { split: Split::Linear, weights: [Tensor(0), Tensor(6)] }]);
        assert_eq!((whole_kinds(&before.0), whole_kinds(&programs)), (vec![Split::Linear], vec![]));
        let expected: [Op; 4] = [
            Slice { x: Value(3), first: 0, count: 4, tokens: false }.into(),
            Slice { x: Value(3), first: 4, count: 8, tokens: false }.into(),
            Linear { x: Value(4), ..whole }.into(),
            Linear { x: Value(5), weight: Tensor(6), residual: Some(Value(6)), ..Linear::default() }.into(),
        ];
        assert_eq!(ops(&programs, 3), expected);
        check(&programs, &weights);
    }

    /// What a program makes of numbers, with the weights that it starts with cut as the list says.
    fn run(programs: &[Program; 1], weights: &Weights, [height, width]: [usize; 2]) -> Vec<f32> {
        let numbers = |n: usize, seed: usize| (0..n).map(move |i| ((i * 37 + seed * 11) % 23) as f32 / 11.0 - 1.0);
        let arrays: Vec<Array> = weights
            .iter()
            .map(|weight| {
                let dims = weight.source_dims();
                let values = numbers(dims.iter().product(), weight.whole_name().len()).collect();
                let none = |name: &str| Err(crate::weight::Misfit::new("no parameters", name));
                let source = Elements { dims: dims.to_vec(), values };
                let Elements { dims, values } = step::apply(&weight.steps, source, &none).unwrap();
                Array::new(&dims, values)
            })
            .collect();
        let sample = Array::new(&[3, height, width, 8], numbers(3 * height * width * 8, 5).collect());
        let inputs = Values::from([(Value(0), sample)]);
        let nodes: Vec<usize> = (0..programs[0].nodes.len()).collect();
        let find = |Tensor(i): Tensor| &arrays[i as usize];
        let tape = Tape::run(&programs[0], &nodes, 1, &inputs, &find).unwrap();
        tape.value(programs[0].output).values.clone()
    }

    #[test]
    fn halves_make_what_the_whole_does() {
        let group = GroupNorm {
            x: Value(2),
            weight: Tensor(5),
            bias: Tensor(5),
            groups: 3,
            act: Act::Silu,
            ..GroupNorm::default()
        };
        let layer = LayerNorm {
            x: Value(2),
            weight: Some(Tensor(5)),
            bias: Some(Tensor(5)),
            eps: 1e-6,
            ..LayerNorm::default()
        };
        let conv = Conv2d { x: Value(3), weight: Tensor(0), bias: Some(Tensor(1)), ..Conv2d::default() };
        let linear = Linear { x: Value(3), weight: Tensor(0), bias: Some(Tensor(1)), ..Linear::default() };
        let of = |dims: &[usize], storage| Weight::of_checkpoint("unet", "w.weight".into(), dims, storage);
        for (weight, nodes, split) in [
            (shortcut(), vec![node(Linear { x: Value(2), ..linear })], Split::Shortcut),
            (of(&[7, 12, 3, 3], Storage::Conv), vec![node(group), node(conv)], Split::Conv),
            // Hunyuan-DiT's `skip_linear`.
            (of(&[6, 12], Storage::Linear), vec![node(layer), node(linear)], Split::Linear),
        ] {
            let (mut programs, mut weights) = model(weight, nodes);
            let whole = run(&programs, &weights, [3, 5]);
            assert_eq!(split_layers(&mut programs, &mut weights, &DIMS, &|_, _, _| true).unwrap()[0].split, split);
            let halves = run(&programs, &weights, [3, 5]);
            let size = whole.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(whole.iter().zip(&halves).all(|(a, b)| (a - b).abs() < 64.0 * f32::EPSILON * size), "{split}");
        }
    }

    #[test]
    fn others_are_left_alone() {
        let gate = Some(Columns { value: Value(0), offset: 0 });
        for (act, gate, wanted) in [(Act::Silu, None, true), (Act::None, gate, true), (Act::None, None, false)] {
            let whole = Linear { x: Value(2), weight: Tensor(0), act, gate, ..Linear::default() };
            let (mut programs, mut weights) = model(shortcut(), vec![node(whole)]);
            let before = programs.clone();
            assert!(split_layers(&mut programs, &mut weights, &DIMS, &|_, _, _| wanted).unwrap().is_empty());
            assert_eq!((programs, weights.len()), (before, 6));
        }
    }

    #[test]
    fn splits_have_names() {
        assert_eq!(Split::ALL.map(|split| Split::parse(&split.to_string())), Split::ALL.map(Some));
        assert_eq!(Split::parse("shortcuts"), None);
    }
}
