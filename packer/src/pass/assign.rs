//! Gives layers with integer activations their codes: puts a `quantize` op in front of them.

use aquatint::raw::program::{
    Conv2d, GatedLinear, Linear, Node, Op, Program, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, Tensor, Value,
};
use std::collections::HashMap;

/// Quantizes the input of every layer for whose weight `wanted` names a width and a range. Layers that want equal codes of one value
/// share one op. Linear layers get a scale per row, convolutions one per sample, where ranges are taken when they are computed.
pub fn assign(program: &mut Program, wanted: &dyn Fn(Tensor) -> Option<(u8, QuantizeRange)>) {
    let n_inputs = program.inputs.len() as u32;
    // The new number of every old value.
    let mut numbers: Vec<Value> = (0..n_inputs).map(Value).collect();
    let mut codes: HashMap<(Value, QuantizeSpec), Value> = HashMap::new();
    let mut nodes: Vec<Node> = Vec::with_capacity(program.nodes.len());
    let next = |nodes: &Vec<Node>| Value(n_inputs + nodes.len() as u32);
    for mut node in std::mem::take(&mut program.nodes) {
        node.op.renumber(|operand| numbers[operand.0 as usize]);
        let (weight, grain) = match node.op {
            Op::Linear(Linear { weight, .. }) | Op::GatedLinear(GatedLinear { weight, .. }) => {
                (Some(weight), QuantizeGrain::Row)
            }
            Op::Conv2d(Conv2d { weight, .. }) => (Some(weight), QuantizeGrain::Sample),
            _ => (None, QuantizeGrain::Row),
        };
        if let Some((bits, range)) = weight.and_then(wanted) {
            let (Op::Linear(Linear { x, .. }) | Op::GatedLinear(GatedLinear { x, .. }) | Op::Conv2d(Conv2d { x, .. })) =
                &mut node.op
            else {
                unreachable!("ops with a weight")
            };
            let spec = QuantizeSpec { bits, grain, range };
            *x = *codes.entry((*x, spec)).or_insert_with(|| {
                let value = next(&nodes);
                nodes.push(Node { op: Op::Quantize(Quantize { x: *x, spec }), path: node.path.clone(), wide: false });
                value
            });
        }
        numbers.push(next(&nodes));
        nodes.push(node);
    }
    program.nodes = nodes;
    program.output = numbers[program.output.0 as usize];
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
        Program { role: Role::Denoiser, inputs, nodes, output }
    }

    #[test]
    fn equal_codes_are_shared_and_operands_renumbered() {
        // Layers 0 and 1 want 8 bits of the input, layer 2 wants 6, layer 3 floats.
        let mut p = program(vec![linear(0, 0, None), linear(0, 1, Some(1)), linear(0, 2, None), linear(2, 3, Some(3))]);
        assign(&mut p, &|t| [Some(8), Some(8), Some(6), None][t.0 as usize].map(|bits| (bits, QuantizeRange::Dynamic)));
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
        assign(&mut after, &|_| None);
        assert_eq!(after, before);
    }

    #[test]
    fn convolutions_get_one_scale_per_sample() {
        let op = Op::Conv2d(Conv2d { x: Value(0), weight: Tensor(0), bias: None, ..Conv2d::default() });
        let mut p = program(vec![Node { op, path: "conv".into(), wide: false }]);
        assign(&mut p, &|_| Some((8, QuantizeRange::Dynamic)));
        assert_eq!(p.nodes[0].op.quantizes().map(|q| q.grain), Some(QuantizeGrain::Sample));
    }
}
