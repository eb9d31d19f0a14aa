//! Gives layers with integer activations their codes: puts a `quantize` op in front of them. In programs with phases it also
//! gives layers the weights that they have in each.

use super::product;
use aquatint::raw::program::{
    Conv2d, CurveAxis, GatedLinear, Linear, Node, Op, Phases, Program, Quantize, QuantizeGrain, QuantizeRange,
    QuantizeSpec, Tensor, Turn, Value, Variant,
};
use std::collections::HashMap;

/// What a layer is in one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its weight.
    pub weight: Tensor,
    /// Its bias, if it is another one than in the first phase.
    pub bias: Option<Tensor>,
    /// Width and range of the codes of its input; none for floats.
    pub codes: Option<(u8, QuantizeRange)>,
    /// What its input goes through before it becomes codes.
    pub turn: Option<Turn>,
}

impl Layer {
    /// The layer as the program has it, with these codes.
    pub fn of(weight: Tensor, codes: Option<(u8, QuantizeRange)>) -> Self {
        Layer { weight, bias: None, codes, turn: None }
    }
}

/// When the phases of a program begin; see [`Phases`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Starts {
    /// What positions count.
    pub axis: CurveAxis,
    /// The positions; none where there is one phase.
    pub positions: Vec<f32>,
}

/// Makes every layer what `wanted` says of it, by phase and by the weight that it has now, and quantizes the inputs of those
/// that take codes. Layers that want equal codes of one value in all phases share one op. Linear layers get a scale per row,
/// convolutions one per sample, where ranges are taken when they are computed.
///
/// In a phase where a layer takes floats while it takes codes in others, it reads what they are made of.
pub fn assign(program: &mut Program, starts: &Starts, wanted: &dyn Fn(usize, Tensor) -> Layer) {
    let count = starts.positions.len().max(1);
    let n_inputs = program.inputs.len() as u32;
    // The new number of every old value.
    let mut numbers: Vec<Value> = (0..n_inputs).map(Value).collect();
    let mut codes: HashMap<Vec<Option<Quantize>>, Value> = HashMap::new();
    let mut nodes: Vec<Node> = Vec::with_capacity(program.nodes.len());
    let mut variants = Vec::new();
    let next = |nodes: &Vec<Node>| Value(n_inputs + nodes.len() as u32);
    for mut node in std::mem::take(&mut program.nodes) {
        node.op.renumber(|operand| numbers[operand.0 as usize]);
        if let Some((weight, _, x)) = product(&node.op) {
            let layers: Vec<Layer> = (0..count).map(|phase| wanted(phase, weight)).collect();
            let grain = match node.op {
                Op::Conv2d(_) => QuantizeGrain::Sample,
                _ => QuantizeGrain::Row,
            };
            let quantize = |layer: &Layer| {
                let (bits, range) = layer.codes?;
                Some(Quantize { x, spec: QuantizeSpec { bits, grain, range }, turn: layer.turn })
            };
            let wanted: Vec<Option<Quantize>> = layers.iter().map(quantize).collect();
            let coded = wanted.iter().flatten().next().map(|&any| {
                *codes.entry(wanted.clone()).or_insert_with(|| {
                    // In a phase without codes nobody reads it, and it is not run.
                    let ops: Vec<Op> = wanted.iter().map(|quantize| quantize.unwrap_or(any).into()).collect();
                    let value = next(&nodes);
                    vary(&mut variants, nodes.len(), &ops);
                    nodes.push(Node { op: ops[0], path: node.path.clone(), wide: false });
                    value
                })
            });
            let ops: Vec<Op> = layers
                .iter()
                .map(|layer| {
                    let x = if layer.codes.is_some() { coded.unwrap_or(x) } else { x };
                    become_layer(node.op, x, layer)
                })
                .collect();
            vary(&mut variants, nodes.len(), &ops);
            node.op = ops[0];
        }
        numbers.push(next(&nodes));
        nodes.push(node);
    }
    program.nodes = nodes;
    program.output = numbers[program.output.0 as usize];
    program.phases = Phases { axis: starts.axis, starts: starts.positions.clone(), variants };
}

/// Notes where `ops`, those of node `node` by phase, differ from the first.
fn vary(variants: &mut Vec<Variant>, node: usize, ops: &[Op]) {
    for (phase, op) in ops.iter().enumerate().filter(|(_, op)| **op != ops[0]) {
        match variants.iter_mut().rev().take_while(|v| v.node == node).find(|v| v.op == *op) {
            Some(variant) => variant.phases |= 1 << phase,
            None => variants.push(Variant { node, phases: 1 << phase, op: *op }),
        }
    }
}

/// `op`, which multiplies by a weight, as `layer` with the input `input`.
fn become_layer(mut op: Op, input: Value, layer: &Layer) -> Op {
    let (Op::Linear(Linear { x, weight, bias, .. })
    | Op::GatedLinear(GatedLinear { x, weight, bias, .. })
    | Op::Conv2d(Conv2d { x, weight, bias, .. })) = &mut op
    else {
        unreachable!("ops with a weight")
    };
    (*x, *weight, *bias) = (input, layer.weight, layer.bias.or(*bias));
    op
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquatint::raw::program::{Act, Dim, Input, InputKind, Role};

    fn linear(x: u32, weight: u32, residual: Option<u32>) -> Node {
        let op = Op::Linear(Linear {
            x: Value(x),
            weight: Tensor(weight),
            bias: None,
            act: Act::None,
            gate: None,
            residual: residual.map(Value),
        });
        Node { op, path: format!("layer{weight}"), wide: false }
    }

    fn program(nodes: Vec<Node>) -> Program {
        let inputs = vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Fixed(8)] }];
        let output = Value(nodes.len() as u32);
        Program { role: Role::Denoiser, inputs, nodes, output, phases: Default::default() }
    }

    #[test]
    fn equal_codes_are_shared_and_operands_renumbered() {
        // Layers 0 and 1 want 8 bits of the input, layer 2 wants 6, layer 3 floats.
        let mut p = program(vec![linear(0, 0, None), linear(0, 1, Some(1)), linear(0, 2, None), linear(2, 3, Some(3))]);
        let bits = |t: Tensor| [Some(8), Some(8), Some(6), None][t.0 as usize];
        assign(&mut p, &Starts::default(), &|_, t| Layer::of(t, bits(t).map(|bits| (bits, QuantizeRange::Dynamic))));
        let names: Vec<_> = p.nodes.iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["quantize", "linear", "linear", "quantize", "linear", "linear"]);
        let reads: Vec<Vec<u32>> = p.nodes.iter().map(|n| n.op.reads().map(|v| v.0).collect()).collect();
        assert_eq!(reads, [vec![0], vec![1], vec![1, 2], vec![0], vec![4], vec![3, 5]]);
        assert_eq!(p.output, Value(6));
        assert_eq!(p.nodes[3].op.quantizes().map(|q| (q.bits, q.grain)), Some((6, QuantizeGrain::Row)));
    }

    #[test]
    fn float_layers_are_left_alone() {
        let before = program(vec![linear(0, 0, None), linear(1, 1, None)]);
        let mut after = before.clone();
        assign(&mut after, &Starts::default(), &|_, t| Layer::of(t, None));
        assert_eq!(after, before);
    }

    #[test]
    fn convolutions_get_one_scale_per_sample() {
        let op = Op::Conv2d(Conv2d { x: Value(0), weight: Tensor(0), bias: None, ..Conv2d::default() });
        let mut p = program(vec![Node { op, path: "conv".into(), wide: false }]);
        assign(&mut p, &Starts::default(), &|_, t| Layer::of(t, Some((8, QuantizeRange::Dynamic))));
        assert_eq!(p.nodes[0].op.quantizes().map(|q| q.grain), Some(QuantizeGrain::Sample));
    }

    #[test]
    fn phases_have_weights_and_codes_of_their_own() {
        // Layer 0 has other bits in phase 1, layer 1 another weight and bias, layer 2 floats in phase 2.
        let mut p = program(vec![linear(0, 0, None), linear(0, 1, None), linear(0, 2, None)]);
        let starts = Starts { axis: CurveAxis::Timestep, positions: vec![0.0, 300.0, 600.0] };
        assign(&mut p, &starts, &|phase, t| {
            let codes = match (phase, t.0) {
                (1, 0) => Some(6),
                (2, 2) => None,
                _ => Some(8),
            };
            let own = phase == 1 && t.0 == 1;
            let (weight, bias) = if own { (Tensor(7), Some(Tensor(9))) } else { (t, None) };
            Layer { bias, ..Layer::of(weight, codes.map(|bits| (bits, QuantizeRange::Dynamic))) }
        });
        let names: Vec<_> = p.nodes.iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["quantize", "linear", "quantize", "linear", "quantize", "linear"]);
        assert_eq!((p.phases.axis, &p.phases.starts), (CurveAxis::Timestep, &starts.positions));
        let told: Vec<_> = p.phases.variants.iter().map(|v| (v.node, v.phases)).collect();
        assert_eq!(told, [(0, 0b010), (3, 0b010), (5, 0b100)]);
        assert_eq!(p.phases.variants[0].op.quantizes().map(|q| q.bits), Some(6));
        assert_eq!(product(&p.phases.variants[1].op), Some((Tensor(7), Some(Tensor(9)), Value(3))));
        assert_eq!(product(&p.phases.variants[2].op), Some((Tensor(2), None, Value(0))));
        let needed: Vec<_> = (0..3).map(|phase| p.in_phase(phase).needed()[4]).collect();
        assert_eq!(needed, [true, true, false], "codes that nobody reads are not made");
    }
}
