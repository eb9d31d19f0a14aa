//! Folds a `quantize` op into the norm whose result it takes.

use aquatint::raw::program::{GroupNorm, LayerNorm, Node, Op, Program, Quantize, QuantizeGrain, QuantizeSpec, Value};

/// Lets norms make codes themselves, where nothing else reads their result.
pub fn fuse(program: &mut Program) {
    let n_inputs = program.inputs.len();
    let mut readers = vec![0usize; program.n_values()];
    for node in &mut program.nodes {
        node.op.operands().for_each(|v| readers[v.0 as usize] += 1);
    }
    // The result is read by the caller.
    readers[program.output.0 as usize] += 1;

    let mut numbers: Vec<Value> = (0..n_inputs as u32).map(Value).collect();
    let mut nodes = Vec::with_capacity(program.nodes.len());
    for mut node in std::mem::take(&mut program.nodes) {
        if let Op::Quantize(Quantize { x, spec }) = node.op {
            let made = numbers[x.0 as usize];
            let producer = (made.0 as usize).checked_sub(n_inputs).and_then(|i| nodes.get_mut(i));
            if readers[x.0 as usize] == 1 && producer.is_some_and(|p| take(p, spec)) {
                numbers.push(made);
                continue;
            }
        }
        node.op.renumber(|operand| numbers[operand.0 as usize]);
        numbers.push(Value((n_inputs + nodes.len()) as u32));
        nodes.push(node);
    }
    program.nodes = nodes;
    program.output = numbers[program.output.0 as usize];
}

/// Makes the norm `node` quantize its result; false if it is no norm, does so already, or is a layer norm, which works
/// row by row, and the codes want a scale per sample.
fn take(node: &mut Node, spec: QuantizeSpec) -> bool {
    let quantize = match &mut node.op {
        Op::GroupNorm(GroupNorm { quantize, .. }) => quantize,
        Op::LayerNorm(LayerNorm { quantize, .. }) if spec.grain == QuantizeGrain::Row => quantize,
        _ => return false,
    };
    if quantize.is_some() {
        return false;
    }
    *quantize = Some(spec);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquatint::raw::program::{Act, Dim, Input, InputKind, Linear, QuantizeRange, Role, Tensor};

    const SPEC: QuantizeSpec = QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic };

    fn program(ops: Vec<Op>) -> Program {
        let inputs = vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Fixed(8)] }];
        let nodes: Vec<_> = ops.into_iter().map(|op| Node { op, path: "p".into(), wide: false }).collect();
        let output = Value(nodes.len() as u32);
        Program { role: Role::Denoiser, inputs, nodes, output }
    }

    fn norm(x: u32) -> Op {
        Op::LayerNorm(LayerNorm { x: Value(x), weight: None, bias: None, eps: 1e-6, modulation: None, quantize: None })
    }

    fn linear(x: u32, residual: Option<u32>) -> Op {
        let residual = residual.map(Value);
        Op::Linear(Linear { x: Value(x), weight: Tensor(0), bias: None, act: Act::None, gate: None, residual })
    }

    #[test]
    fn a_norm_read_only_by_quantize_makes_codes() {
        let mut p = program(vec![
            norm(0),
            Op::Quantize(Quantize { x: Value(1), spec: SPEC }),
            linear(2, None),
            linear(2, Some(3)),
        ]);
        fuse(&mut p);
        let names: Vec<_> = p.nodes.iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["layer_norm", "linear", "linear"]);
        assert_eq!(p.nodes[0].op.quantizes(), Some(SPEC));
        let reads: Vec<Vec<u32>> = p.nodes.iter().map(|n| n.op.reads().map(|v| v.0).collect()).collect();
        assert_eq!(reads, [vec![0], vec![1], vec![1, 2]]);
        assert_eq!(p.output, Value(3));
    }

    #[test]
    fn a_norm_with_a_float_reader_stays_apart() {
        let ops = vec![norm(0), Op::Quantize(Quantize { x: Value(1), spec: SPEC }), linear(2, Some(1))];
        let before = program(ops);
        let mut after = before.clone();
        fuse(&mut after);
        assert_eq!(after, before);
    }

    #[test]
    fn a_layer_norm_takes_no_scale_per_sample() {
        let spec = QuantizeSpec { grain: QuantizeGrain::Sample, ..SPEC };
        let before = program(vec![norm(0), Op::Quantize(Quantize { x: Value(1), spec }), linear(2, None)]);
        let mut after = before.clone();
        fuse(&mut after);
        assert_eq!(after, before);
    }

    #[test]
    fn only_norms_take_it() {
        let before =
            program(vec![linear(0, None), Op::Quantize(Quantize { x: Value(1), spec: SPEC }), linear(2, None)]);
        let mut after = before.clone();
        fuse(&mut after);
        assert_eq!(after, before);
    }
}
