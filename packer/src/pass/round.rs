//! Puts what attentions read on grids, and their probabilities.

use aquatint::raw::program::{
    Attention, Node, Op, Program, QuantizeGrain, QuantizeRange, QuantizeSpec, Round, SoftmaxGrid, Value,
};
use std::collections::HashMap;

/// The grids of one attention.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttentionGrid {
    /// Bits and range of queries, keys and values; each token has a range per head, unless it is fixed.
    pub operands: [Option<(u8, QuantizeRange)>; 3],
    /// That of probabilities.
    pub softmax: Option<SoftmaxGrid>,
}

/// Rounds what the attentions of `program` read, and their probabilities, to `grids`, in their order; attentions beyond them
/// stay as they are. Attentions that read one value on equal grids share one op.
pub fn round_attentions(program: &mut Program, grids: &[AttentionGrid]) {
    let n_inputs = program.inputs.len() as u32;
    // The new number of every old value, and the new index of every old node.
    let mut numbers: Vec<Value> = (0..n_inputs).map(Value).collect();
    let (mut nodes, mut places) = (Vec::with_capacity(program.nodes.len()), Vec::new());
    let mut rounded: HashMap<Round, Value> = HashMap::new();
    let mut grids = grids.iter();
    for mut node in std::mem::take(&mut program.nodes) {
        node.op.renumber(|operand| numbers[operand.0 as usize]);
        // Layers alone differ from phase to phase, so what stands here of an attention stands in all of them.
        if let Op::Attention(Attention { q, k, v, heads, softmax, .. }) = &mut node.op
            && let Some(grid) = grids.next()
        {
            *softmax = grid.softmax;
            for (operand, wanted) in [q, k, v].into_iter().zip(grid.operands) {
                let Some((bits, range)) = wanted else { continue };
                let spec = QuantizeSpec { bits, grain: QuantizeGrain::Row, range };
                let op = Round { x: *operand, spec, parts: *heads };
                *operand = *rounded.entry(op).or_insert_with(|| {
                    let wide = operand.0.checked_sub(n_inputs).is_some_and(|made_by| {
                        let made_by: &Node = &nodes[made_by as usize];
                        made_by.wide
                    });
                    nodes.push(Node { op: op.into(), path: node.path.clone(), wide });
                    Value(n_inputs + nodes.len() as u32 - 1)
                });
            }
        }
        numbers.push(Value(n_inputs + nodes.len() as u32));
        places.push(nodes.len());
        nodes.push(node);
    }
    program.nodes = nodes;
    program.output = numbers[program.output.0 as usize];
    for variant in &mut program.phases.variants {
        variant.node = places[variant.node];
        variant.op.renumber(|operand| numbers[operand.0 as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquatint::raw::program::{Act, Dim, Input, InputKind, Linear, Role, Tensor, Variant};

    #[test]
    fn operands_are_rounded_once_and_phases_follow() {
        let inputs = vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Height, Dim::Fixed(8)] }];
        let linear = |x, weight| Linear { x: Value(x), weight: Tensor(weight), act: Act::None, ..Linear::default() };
        let attention = |q, k, v| Attention { q: Value(q), k: Value(k), v: Value(v), heads: 2, ..Attention::default() };
        let ops: [Op; 5] = [
            linear(0, 0).into(),
            attention(0, 1, 1).into(),
            linear(2, 1).into(),
            attention(3, 1, 0).into(),
            attention(4, 4, 4).into(),
        ];
        let node = |op| Node { op, path: "p".into(), wide: matches!(op, Op::Linear(_)) };
        let nodes = ops.map(node).to_vec();
        let mut program = Program { role: Role::Denoiser, inputs, nodes, output: Value(5), phases: Default::default() };
        program.phases.variants = vec![Variant { node: 2, phases: 2, op: linear(2, 7).into() }];
        let dynamic = Some((8, QuantizeRange::Dynamic));
        let softmax = Some(SoftmaxGrid { bits: 16, range: QuantizeRange::Dynamic });
        let first = AttentionGrid { operands: [dynamic; 3], softmax };
        let second = AttentionGrid { operands: [None, dynamic, None], softmax: None };
        round_attentions(&mut program, &[first, second]);
        let round = |x| Round { x: Value(x), spec: QuantizeSpec::default(), parts: 2 };
        let want: Vec<Op> = vec![
            linear(0, 0).into(),
            round(0).into(),
            round(1).into(),
            Attention { softmax, ..attention(2, 3, 3) }.into(),
            linear(4, 1).into(),
            attention(5, 3, 0).into(),
            attention(6, 6, 6).into(),
        ];
        assert_eq!(program.nodes.iter().map(|node| node.op).collect::<Vec<_>>(), want);
        assert_eq!(program.output, Value(7));
        assert_eq!(program.phases.variants, [Variant { node: 4, phases: 2, op: linear(4, 7).into() }]);
        assert_eq!(
            program.nodes.iter().map(|n| n.wide).collect::<Vec<_>>(),
            [true, false, true, false, true, false, false]
        );
    }
}
