//! Folds a `quantize` op into the norm whose result it takes.

use aquatint::raw::program::{
    GroupNorm, LayerNorm, Node, Op, Program, Quantize, QuantizeGrain, QuantizeSpec, Value, Variant,
};

/// Lets norms make codes themselves, where nothing else reads their result in any phase.
pub fn fuse(program: &mut Program) {
    let n_inputs = program.inputs.len();
    let mut readers = vec![0usize; program.n_values()];
    program.ops().flat_map(Op::operands).for_each(|v| readers[v.0 as usize] += 1);
    // Codes of the same value in other phases are one reader.
    let quantizers = |v: &&Variant| matches!(v.op, Op::Quantize(_));
    for Variant { op, .. } in program.phases.variants.iter().filter(quantizers) {
        op.operands().for_each(|v| readers[v.0 as usize] -= 1);
    }
    // The result is read by the caller.
    readers[program.output.0 as usize] += 1;

    let mut numbers: Vec<Value> = (0..n_inputs as u32).map(Value).collect();
    let mut nodes: Vec<Node> = Vec::with_capacity(program.nodes.len());
    let mut variants: Vec<Variant> = Vec::with_capacity(program.phases.variants.len());
    let mut others = std::mem::take(&mut program.phases.variants).into_iter().peekable();
    for (i, mut node) in std::mem::take(&mut program.nodes).into_iter().enumerate() {
        let own: Vec<Variant> = std::iter::from_fn(|| others.next_if(|v| v.node == i)).collect();
        // Norms know nothing of what comes between.
        if let Op::Quantize(Quantize { x, spec, turn: None }) = node.op {
            let made = numbers[x.0 as usize];
            let norm =
                (made.0 as usize).checked_sub(n_inputs).filter(|&norm| quantized(nodes[norm].op, spec).is_some());
            let plain = own.iter().all(|v| matches!(v.op, Op::Quantize(Quantize { turn: None, .. })));
            if let Some(norm) = norm.filter(|_| plain && readers[x.0 as usize] == 1) {
                let with = |spec| quantized(nodes[norm].op, spec);
                for Variant { phases, op, .. } in own {
                    variants.extend(op.quantizes().and_then(with).map(|op| Variant { node: norm, phases, op }));
                }
                nodes[norm].op = with(spec).unwrap_or(nodes[norm].op);
                numbers.push(made);
                continue;
            }
        }
        node.op.renumber(|operand| numbers[operand.0 as usize]);
        for Variant { phases, mut op, .. } in own {
            op.renumber(|operand| numbers[operand.0 as usize]);
            variants.push(Variant { node: nodes.len(), phases, op });
        }
        numbers.push(Value((n_inputs + nodes.len()) as u32));
        nodes.push(node);
    }
    // Those of a norm come when its codes do, after other nodes' perhaps.
    variants.sort_by_key(|v| v.node);
    (program.nodes, program.phases.variants) = (nodes, variants);
    program.output = numbers[program.output.0 as usize];
}

/// The norm `op` with its result quantized; none if it is no norm, quantizes already, or is a layer norm, which works row by
/// row, and the codes want a scale per sample.
fn quantized(mut op: Op, spec: QuantizeSpec) -> Option<Op> {
    let quantize = match &mut op {
        Op::GroupNorm(GroupNorm { quantize, .. }) => quantize,
        Op::LayerNorm(LayerNorm { quantize, parts: 0 | 1, .. }) if spec.grain == QuantizeGrain::Row => quantize,
        _ => return None,
    };
    if quantize.is_some() {
        return None;
    }
    *quantize = Some(spec);
    Some(op)
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
        Program { role: Role::Denoiser, inputs, nodes, output, phases: Default::default() }
    }

    fn norm(x: u32) -> Op {
        Op::LayerNorm(LayerNorm {
            x: Value(x),
            weight: None,
            bias: None,
            eps: 1e-6,
            modulation: None,
            ..LayerNorm::default()
        })
    }

    fn linear(x: u32, residual: Option<u32>) -> Op {
        let residual = residual.map(Value);
        Op::Linear(Linear { x: Value(x), weight: Tensor(0), bias: None, act: Act::None, gate: None, residual })
    }

    #[test]
    fn a_norm_read_only_by_quantize_makes_codes() {
        let mut p = program(vec![
            norm(0),
            Op::Quantize(Quantize { x: Value(1), spec: SPEC, turn: None }),
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
        let ops = vec![norm(0), Op::Quantize(Quantize { x: Value(1), spec: SPEC, turn: None }), linear(2, Some(1))];
        let before = program(ops);
        let mut after = before.clone();
        fuse(&mut after);
        assert_eq!(after, before);
    }

    #[test]
    fn a_layer_norm_takes_no_scale_per_sample() {
        let spec = QuantizeSpec { grain: QuantizeGrain::Sample, ..SPEC };
        let before = program(vec![norm(0), Op::Quantize(Quantize { x: Value(1), spec, turn: None }), linear(2, None)]);
        let mut after = before.clone();
        fuse(&mut after);
        assert_eq!(after, before);
    }

    #[test]
    fn only_norms_take_it() {
        let before = program(vec![
            linear(0, None),
            Op::Quantize(Quantize { x: Value(1), spec: SPEC, turn: None }),
            linear(2, None),
        ]);
        let mut after = before.clone();
        fuse(&mut after);
        assert_eq!(after, before);
    }
}
